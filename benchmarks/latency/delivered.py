"""A target in time on full-size models: is it delivered, how fast, and what does it keep beside rivals?"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rows import in_process

import onnxprune
from latency.clock import Clock
from latency.rivals import RIVALS, Rival, importance_kept

WORKER = Path(__file__).resolve().parent / "worker.py"


def measure(task: Mapping[str, Any]) -> dict[str, Any]:
    """Search twice, each time in a process of its own: with an empty cache, and with what that left."""
    source, clock = Path(task["model"]), Clock.of(task)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found: dict[str, dict[str, Any]] = {}
        for name in ("cold", "warm"):
            job = {**task, "question": "search", "out": str(folder / f"{name}.onnx"), "cache": str(folder)}
            row = dict(in_process(WORKER, job, task["timeout"], variables={}))
            if "error" in row:
                return {"error": f"{name}: {row['error']}"}
            found[name] = {**row, **clock.figures(source, Path(job["out"]))}
        ours = folder / "cold.onnx"
        return {
            **found,
            **{name: _beside(name, source, ours, clock, folder) for name in RIVALS},
        }


def search(task: Mapping[str, Any]) -> dict[str, Any]:
    """Deliver the target once, and say how long `prune` took for it."""
    model = onnxprune.load(task["model"])
    shapes = task.get("input_shapes")
    started = time.perf_counter()
    result = onnxprune.prune(
        model,
        target_latency=task["target"],
        threads=task["threads"],
        latency_batch=task.get("batch"),
        time_limit=task["time_limit"],
        cache=task["cache"],
        **({"input_shapes": shapes} if shapes else {}),
    )
    seconds = time.perf_counter() - started
    onnxprune.save(result.model, task["out"])
    cost = {entry["what"]: entry["ratio"] for entry in result.report.sections["cost"]}
    return {
        "seconds": seconds,
        "latency": dict(result.report.sections["latency"]),
        "rounds": rounds_of(result.report.sections),
        "importance": importance_kept(model, result.plan),
        "MACs": cost["MACs"],
    }


def rounds_of(sections: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each cut that the search timed: what it predicted before, and what it measured."""
    return [dict(row) for row in sections["latency rounds"]]


def _beside(name: str, source: Path, ours: Path, clock: Clock, folder: Path) -> dict[str, Any]:
    """Bring a rival to the time of the delivered model, and say what it keeps."""
    rival = Rival(name, source, folder, {})
    meeting = rival.meet(ours, clock)
    trial = meeting.given
    if trial is None:
        return {"error": "no amount could be cut"}
    again = clock.figures(ours, trial.made.path)
    return {
        "amount": trial.amount,
        "importance": importance_kept(onnxprune.load(source), trial.made.plan),
        **clock.figures(source, trial.made.path),
        "beside ours": again["ratio"],
        "beside ours low": again["low"],
        "beside ours high": again["high"],
        "trials": meeting.trials,
    }
