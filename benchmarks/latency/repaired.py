"""Accuracy after repair at the same measured time: a target in time, the same share everywhere, by MACs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accuracy.worker import predictions, share_equal

import onnxprune
from latency.clock import Clock
from latency.rivals import RIVALS, Rival
from onnxprune.pipeline import PruneResult

#: What all ways of this package share: the default score (obs, on the calibration samples) and repair.
REPAIR = {"recover": "reconstruct"}


def measure(task: Mapping[str, Any]) -> dict[str, Any]:
    """Prune one trained model in all ways; a row of figures for each."""
    source, clock = Path(task["model"]), Clock.of(task)
    options = {"data": onnxprune.load_data(task["calibration"]), "seed": task["seed"], **REPAIR}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        started = time.perf_counter()
        result = onnxprune.prune(
            onnxprune.load(source),
            target_latency=task["target"],
            threads=task["threads"],
            latency_batch=task["batch"],
            time_limit=task["time_limit"],
            cache=task["cache"],
            **options,
        )
        seconds = time.perf_counter() - started
        ours = Path(task["delivered"])
        ours.parent.mkdir(exist_ok=True)
        row: dict[str, Any] = {
            "dense": top1(source, task),
            "latency": {**judged(result, ours, task, clock), "seconds": seconds},
        }
        for name in RIVALS:
            rival = Rival(name, source, folder, options)
            meeting = rival.meet(ours, clock)
            if meeting.given is None:
                row[name] = {"error": "no amount could be cut"}
                continue
            repaired = onnxprune.prune(onnxprune.load(source), **rival.options(meeting.given.amount))
            path = folder / f"{name}.onnx"
            row[name] = {
                **judged(repaired, path, task, clock),
                "beside ours": clock.ratio(ours, path).value,
                "amount": meeting.given.amount,
                "trials": meeting.trials,
            }
    return row


def judged(result: PruneResult, path: Path, task: Mapping[str, Any], clock: Clock) -> dict[str, Any]:
    """Write a result, and return its accuracy, its time beside the original's, and what it keeps."""
    onnxprune.save_pruned(result, path, against=task["model"])
    cost = {entry["what"]: entry["ratio"] for entry in result.report.sections["cost"]}
    return {"top1": top1(path, task), "MACs": cost["MACs"], **clock.figures(Path(task["model"]), path)}


def top1(path: Path, task: Mapping[str, Any]) -> float:
    """Return the share of the held-out samples that a model names correctly."""
    data = onnxprune.load_data(task["evaluation"])
    return share_equal(predictions(path, data), data.labels)
