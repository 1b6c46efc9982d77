"""Command lines from Python, for models that nobody vouches for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxprune import errors
from onnxprune.messages import one_line

_START = """
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from onnxprune_cli.__main__ import run
run()
"""


def contained(
    arguments: Sequence[str | Path], *, timeout: float | None = None, memory: str | None = None
) -> dict[str, Any]:
    """Run one command line in processes of its own, and return what it says with ``--json``.

    The functions of this package work in your process: a model that crashes ONNX Runtime, or makes it hang or
    swell, takes your process with it. Files from strangers therefore go through this.

    Args:
        arguments: a command and its options, such as ``["prune", "in.onnx", "-o", "out.onnx", "--amount",
            "0.5"]``.
        timeout: seconds after which it is ended; None for no limit.
        memory: such as ``"8GB"``; None for what the machine has.

    Returns:
        The JSON document. Where a gate of `compress` is missed, it says so and nothing is raised.

    Raises:
        OnnxPruneError: the class that the same call would raise in Python, with the same line.
        RuntimeFailure: a native library crashed.
        LimitMissed: it took too long, or another limit was missed.
    """
    limits = [
        *([] if timeout is None else ["--timeout", str(timeout)]),
        *([] if memory is None else ["--memory", memory]),
    ]
    import_path = json.dumps([entry for entry in sys.path if entry])  # never the current folder
    asked = [*limits, *(str(argument) for argument in arguments), "--json"]
    done = subprocess.run(
        [sys.executable, "-I", "-c", _START, import_path, *asked],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        document: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        last = done.stderr.strip().rpartition("\n")[2]
        raise errors.RuntimeFailure(one_line(last.removeprefix("error: "))) from None
    if "error" not in document:
        return document
    told = document["error"]
    kind = getattr(errors, told["type"], errors.OnnxPruneError)
    if kind in (errors.LimitMissed, errors.NothingToPrune):
        more = {"reached": told["reached"]} if "reached" in told else {}
        raise kind(told["message"], reasons=told["reasons"], **more)
    raise kind(told["message"])
