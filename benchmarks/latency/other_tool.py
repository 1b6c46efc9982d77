"""Torch-Pruning's model, exported to ONNX, at the same measured time: as it is, and with statistics anew.

It prunes the trained module in its own environment (torch_side.py). The ratio that it is asked for is found
by bisection on the exported file's time, as for every rival.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rows import in_process

import onnxprune
from latency.clock import Clock
from latency.equal_time import meet
from latency.repaired import top1
from onnxprune.runtime import open_session

SIDE = Path(__file__).resolve().parent / "torch_side.py"

#: Its own choices: the same ratio everywhere, or one threshold for all groups.
VARIANTS = {"the same ratio everywhere": False, "global": True}

#: Multiples of this many channels, its own way to avoid slow counts.
ROUND_TO = 8

#: Samples that show that both sides start from the same function.
_COMPARED = 64

#: Layers that keep their outputs, by network. With both branches of its concatenation cut, Torch-Pruning
#: 1.6.1 removes the wrong number of columns of the linear layer behind the flattening: it does not run.
LEFT_WHOLE = {"digits_residual": ["narrow"]}


class SideFailed(Exception):
    """Torch-Pruning, or its environment, failed; the message says how."""


def measure(task: Mapping[str, Any]) -> dict[str, Any]:
    """Bring every variant to the time that was delivered, and judge it; a row of figures for each."""
    source, clock = Path(task["model"]), Clock.of(task)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write_expected(task, folder / "expected.npy")
        whole = _made(task, folder, 0.0, "the same ratio everywhere", statistics_too=False)
        row: dict[str, Any] = {"unpruned": clock.figures(source, whole / "plain.onnx")}
        row["unpruned"]["top1"] = top1(whole / "plain.onnx", task)
        for name in VARIANTS:
            try:
                row[name] = _variant(name, task, folder, clock)
            except SideFailed as failure:
                row[name] = {"error": str(failure)}
    return row


def _variant(name: str, task: Mapping[str, Any], folder: Path, clock: Clock) -> dict[str, Any]:
    source, ours, quick = Path(task["model"]), Path(task["delivered"]), clock.quick()
    meeting = meet(
        lambda ratio: _made(task, folder, ratio, name, statistics_too=False),
        lambda made: quick.ratio(ours, made / "plain.onnx").value,
        lambda made: (made / "shapes.json").read_text(),
        1.0,
    )
    trial = meeting.given
    if trial is None:
        raise SideFailed("nothing could be cut")
    made = _made(task, folder, trial.amount, name, statistics_too=True)
    anew = [top1(path, task) for path in sorted(made.glob("statistics-*.onnx"))]
    return {
        "top1": top1(made / "plain.onnx", task),
        "top1 with statistics": statistics.fmean(anew) if anew else None,
        "top1 with statistics by seed": anew,
        **clock.figures(source, made / "plain.onnx"),
        "beside ours": clock.ratio(ours, made / "plain.onnx").value,
        "amount": trial.amount,
        "trials": meeting.trials,
        "fastest it gets": meeting.faster is None,
    }


def _write_expected(task: Mapping[str, Any], path: Path) -> None:
    """Write what the file gives for the first calibration samples."""
    samples = onnxprune.load_data(task["calibration"][0]).arrays["image"][:_COMPARED]
    session = open_session(task["model"])
    np.save(path, session.run({"image": samples})[session.output_names[0]])


def _made(task: Mapping[str, Any], folder: Path, ratio: float, name: str, *, statistics_too: bool) -> Path:
    """Have the other side prune and export, and return the folder that it wrote to."""
    out = folder / f"{'global' if VARIANTS[name] else 'local'}-{ratio:.4f}{'-anew' * statistics_too}"
    out.mkdir()
    job = {
        "network": task["network"],
        "weights": task["model"],
        "calibration": task["calibration"],
        "expected": str(folder / "expected.npy"),
        "ratio": ratio,
        "global": VARIANTS[name],
        "round_to": ROUND_TO,
        "left_whole": LEFT_WHOLE.get(task["network"], []),
        "statistics": statistics_too,
        "out": str(out),
    }
    row = in_process(SIDE, job, task["timeout"], python=task["python"])
    if "error" in row:
        raise SideFailed(f"at ratio {ratio:.2f}: {row['error']}")
    (out / "shapes.json").write_text(json.dumps(row["shapes"]))
    return out
