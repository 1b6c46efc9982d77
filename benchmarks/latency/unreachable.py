"""A target in time that can't be met, from the command line: what it says, and its exit status."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: What the script ``onnxprune`` does.
COMMAND_LINE = "from onnxprune_cli.main import run; run()"


def measure(task: Mapping[str, Any]) -> dict[str, Any]:
    """Ask for the impossible, and return the command line, the exit status, what it said and left behind."""
    source = Path(task["model"])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "small.onnx"
        options = ["--target-latency", str(task["target"]), "--threads", str(task["threads"])]
        options += ["--time-limit", str(task["time_limit"]), *task["more"]]
        call = [sys.executable, "-c", COMMAND_LINE, "prune", str(source), "-o", str(out), *options]
        done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=task["timeout"])
        said = (done.stdout + done.stderr).replace(str(source), source.name).replace(str(out), out.name)
        return {
            "command": " ".join(["onnxprune", "prune", source.name, "-o", out.name, *options]),
            "status": done.returncode,
            "said": said.splitlines(),
            "written": out.exists(),
        }
