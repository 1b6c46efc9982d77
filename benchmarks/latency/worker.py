"""One run, in a process of its own: ``run.py`` starts it with the task as JSON; its last line is the row."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import reason

#: The function that answers each question. Imported when it is asked, as each reads other packages.
QUESTIONS = {
    "delivered": "latency.delivered:measure",
    "search": "latency.delivered:search",
    "accuracy": "latency.repaired:measure",
    "torch_pruning": "latency.other_tool:measure",
    "prediction": "latency.predicted:measure",
    "unreachable": "latency.unreachable:measure",
}


def main() -> None:
    task = json.loads(sys.argv[1])
    module, function = QUESTIONS[task["question"]].split(":")
    try:
        row = getattr(importlib.import_module(module), function)(task)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is what this row has to say
        traceback.print_exc()
        row = {"error": reason(error, [value for value in task.values() if isinstance(value, str)])}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
