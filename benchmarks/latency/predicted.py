"""Predicted against measured time, before any correction: uniform cuts, and what a target delivers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxprune
from latency.clock import Clock
from latency.delivered import rounds_of
from onnxprune.allocate.channels import Options
from onnxprune.analyze import analyze
from onnxprune.planning.latency.meet import Latency, shrinking
from onnxprune.planning.latency.wish import LatencyWish
from onnxprune.runtime import Execution

#: Shares of every group that stay.
KEPT = (0.75, 0.5, 0.25)


def measure(task: Mapping[str, Any]) -> dict[str, Any]:
    """Predict one model at several cuts, then cut and time it."""
    source, clock = Path(task["model"]), Clock.of(task)
    model = onnxprune.load(source)
    shapes = {"input_shapes": clock.input_shapes} if clock.input_shapes else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        started = time.perf_counter()
        analysis = analyze(model, **shapes)
        wish = LatencyWish(
            batch=clock.batch, execution=Execution(threads=clock.threads),
            time_limit=task["time_limit"], cache=folder,
        )  # fmt: skip
        groups = shrinking(analysis, shapes, analysis.groups, Options(), 0)
        prediction = Latency(groups, wish).prediction
        row: dict[str, Any] = {"seconds": time.perf_counter() - started}
        for kept in KEPT:
            plan = onnxprune.plan(model, amount=1 - kept, **shapes)
            counts = {group.name: group.size - len(group.removed) for group in plan.groups}
            path = folder / "uniform.onnx"
            onnxprune.save(onnxprune.apply_plan(model, plan).model, path)
            row[f"uniform {kept}"] = {"predicted": prediction.share(counts), **clock.figures(source, path)}
        row["delivered"] = _delivered(task, model, source, clock, folder, shapes)
    return row


def _delivered(
    task: Mapping[str, Any], model: Any, source: Path, clock: Clock, folder: Path, shapes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a search predicted and measured in each round, and the figures of what it delivers."""
    result = onnxprune.prune(
        model, target_latency=task["target"], threads=clock.threads, latency_batch=clock.batch,
        time_limit=task["time_limit"], cache=folder, **shapes,
    )  # fmt: skip
    rounds = rounds_of(result.report.sections)
    path = folder / "delivered.onnx"
    onnxprune.save(result.model, path)
    return {"rounds": rounds, **clock.figures(source, path)}
