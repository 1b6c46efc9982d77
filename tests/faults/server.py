"""A process that has imported everything, and does one task after another, each in a fork of its own.

It reads requests from stdin, one JSON document a line, and answers each with one. It never runs a model
itself, so it has no threads, and a fork of it is as good as a new process.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import faulty
import tasks


def serve() -> None:
    """Answer requests until there are none left."""
    for line in sys.stdin:
        request = json.loads(line)
        answer = do_in_fork(request)
        print(json.dumps(answer), flush=True)


def do_in_fork(request: dict[str, Any]) -> dict[str, Any]:
    """Do a task in a fork; return its status (negative: the signal), what it printed, its operations."""
    log = Path(request["log"])
    child = os.fork()
    if child == 0:
        do(request, log)
    _, status = os.waitpid(child, 0)
    operations = log / "operations.json"
    return {
        "status": os.waitstatus_to_exitcode(status),
        "stderr": (log / "stderr").read_text(encoding="utf-8"),
        "operations": json.loads(operations.read_text(encoding="ascii")) if operations.exists() else None,
    }


def do(request: dict[str, Any], log: Path) -> None:
    """Do a task, and end this process."""
    status = 70
    try:
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(log / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.chdir(request["folder"])
        os.environ["TMPDIR"] = str(log)
        faults = faulty.Faulty(f"{request['folder']}/out", request["at"], request["way"])
        faults.install()
        status = tasks.TASKS[request["task"]](*request.get("arguments", ()))
        sys.stdout.flush()
        sys.stderr.flush()
        (log / "operations.json").write_text(json.dumps(faults.operations), encoding="ascii")
    except BaseException:  # noqa: BLE001 # whatever it is: a bug, which the test must see
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    serve()
