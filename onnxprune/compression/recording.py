"""All that a run did and found -> its record."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from onnxprune.compression.chain import Chain
from onnxprune.compression.folder import PACKAGES
from onnxprune.compression.outputs import Placed
from onnxprune.compression.stages import Job
from onnxprune.data import Dataset
from onnxprune.gates.baseline import compare_with_baseline
from onnxprune.gates.evidence import Evidence
from onnxprune.gates.judge import verdict_of
from onnxprune.layer_changes import layer_changes
from onnxprune.machine import graphics, memory_bytes, processor
from onnxprune.model.digest import files_digest, sha256_of
from onnxprune.model.size import files_bytes
from onnxprune.recipe.load import LoadedRecipe
from onnxprune.recipe.schema import Apply
from onnxprune.record import (
    CheckRecord,
    CurveRecord,
    Environment,
    FileRecord,
    GateRecord,
    ModelRecord,
    PointRecord,
    RecipeRecord,
    Record,
    Skip,
    StageRecord,
)


@dataclass(frozen=True, slots=True)
class Run:
    """What is recorded.

    Attributes:
        loaded: the recipe.
        started: when.
        job: what the stages shared.
        chain: what they gave.
        evidence: measured on the models.
        gates: judged.
        baseline: path and record of the last accepted run, or None.
        placed: the compressed model.
        accepted: it is under its name.
        notes: what the user should know and did not ask for.
    """

    loaded: LoadedRecipe
    started: datetime
    job: Job
    chain: Chain
    evidence: Evidence
    gates: tuple[GateRecord, ...]
    baseline: tuple[str, Record] | None
    placed: Placed
    accepted: bool
    notes: tuple[str, ...]


def record_of(run: Run) -> Record:
    """Return the record of a run."""
    recipe, evidence = run.loaded.recipe, run.evidence
    noted = (Skip(name="the run", reason=note) for note in run.notes)
    left = (skip for stage in run.chain.stages for skip in stage.skipped)
    skipped = tuple(dict.fromkeys((*left, *noted)))
    baseline = None
    if run.baseline is not None:
        path, earlier = run.baseline
        baseline = compare_with_baseline(evidence, run.gates, earlier, path)
    return Record(
        version=metadata.version("onnxprune"),
        started=run.started.isoformat(timespec="seconds"),
        finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        title=recipe.title or Path(recipe.model.path).name,
        verdict=verdict_of(run.gates),
        accepted=run.accepted,
        output=str(run.placed.path),
        recipe=RecipeRecord(
            path=str(run.loaded.path or ""),
            text=run.loaded.text,
            sha256=run.loaded.digest,
            overrides=run.loaded.overrides,
        ),
        environment=_environment(),
        files=tuple(_files(run)),
        models=evidence.models,
        stages=run.chain.stages,
        gates=run.gates,
        checks=tuple(CheckRecord(name=c.name, passed=c.passed, detail=c.detail) for c in run.placed.checks),
        accuracy=evidence.accuracy,
        latency=evidence.latency,
        memory=evidence.memory,
        layers=layer_changes(
            run.placed.before,
            run.placed.after,
            skipped,
            input_shapes=recipe.run.input_shapes or None,
            in_place=True,
        ),
        skipped=skipped,
        sensitivity=tuple(curves(run.chain.stages)),
        pareto=trade_off(evidence.models),
        baseline=baseline,
        commands=tuple(_commands(run)),
    )


def _environment() -> Environment:
    facts = dict(fact.split(": ", 1) for fact in processor().split("; ") if ": " in fact)
    name = facts.get("model name") or next(iter(facts.values()), platform.machine())
    hardware = {
        "processor": name, "cores": os.cpu_count(), "memory_bytes": memory_bytes(),
        "graphics": graphics() or None,
    }  # fmt: skip
    packages = {name: metadata.version(name) for name in PACKAGES}
    return Environment(
        hardware={key: value for key, value in hardware.items() if value is not None},
        system=f"{platform.platform()}, Python {platform.python_version()}",
        packages=packages,
    )


def _files(run: Run) -> Iterator[FileRecord]:
    recipe = run.loaded.recipe
    named = (
        ("model", recipe.model.path, run.job.original),
        ("output", str(run.placed.path), run.placed.file),
    )
    for role, name, path in named:
        yield FileRecord(
            role=role,
            path=name,
            sha256=files_digest(path),
            size_bytes=files_bytes(path),
        )
    for stage in recipe.stages:
        if isinstance(stage, Apply):
            files = [path for path in sorted(Path(stage.plan).iterdir()) if path.is_file()]
            digest = hashlib.sha256("".join(sha256_of(path) for path in files).encode()).hexdigest()
            size = sum(path.stat().st_size for path in files)
            yield FileRecord(role="plan", path=stage.plan, sha256=digest, size_bytes=size)
    data = (("calibration data", recipe.data.calibration), ("evaluation data", recipe.data.evaluation))
    for role, source in data:
        samples = None if source is None else run.job.samples(source)
        if isinstance(samples, Dataset) and source is not None:
            size = sum(array.nbytes for array in samples.arrays.values())
            yield FileRecord(role=role, path=source, sha256=samples.digest, size_bytes=size)


#: Columns of a table of trials that are not its loss.
_NO_LOSS = {"group", "size", "removed", "removed_share", "increase", "top1_share"}


def curves(stages: Iterable[StageRecord]) -> Iterator[CurveRecord]:
    """Yield the curves of the first stage that measured what removing from single groups costs."""
    tables = (stage.sections.get("sensitivity") for stage in stages)
    rows: Sequence[Mapping[str, Any]] = next(filter(None, tables), ())
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["increase"] is not None:
            points.setdefault(row["group"], [(0.0, 0.0)]).append((row["removed_share"], row["increase"]))
    metric = next((name for row in rows for name in row if name not in _NO_LOSS), "loss")
    for name, curve in points.items():
        amounts, losses = zip(*sorted(curve), strict=True)
        yield CurveRecord(name=name, amount=amounts, loss=losses, metric=metric.replace("_", " "))


def trade_off(models: Sequence[ModelRecord]) -> tuple[PointRecord, ...]:
    """Return what each stage left of time (or of size) and of accuracy."""
    timed = all(model.latency_ratio is not None for model in models[1:])
    points = []
    for model in models:
        if model.accuracy is None:  # no data; or the original, where the metric compares with it
            continue
        if timed:
            cost = 1.0 if model.latency_ratio is None else model.latency_ratio.value
        else:
            cost = model.size_bytes / models[0].size_bytes
        points.append(
            PointRecord(
                name=model.name,
                cost=cost,
                accuracy=model.accuracy.value,
                chosen=model is models[-1],
                cost_of="time" if timed else "size",
            )
        )
    return tuple(points)


def _commands(run: Run) -> Iterator[str]:
    """Yield what reproduces the run, and looks at its result by hand."""
    recipe = run.loaded.recipe
    yield f"pip install onnxprune=={metadata.version('onnxprune')}"
    if run.loaded.path is not None:
        sets = [part for entry in run.loaded.overrides for part in ("--set", entry)]
        yield shlex.join(["onnxprune", "compress", str(run.loaded.path), *sets])
    model, output = str(run.job.original), str(run.placed.path)
    yield shlex.join(["onnxprune", "verify", output, "--against", model])
    yield shlex.join(["onnxprune", "bench", model, output])
    if recipe.data.evaluation is not None:
        words = ["onnxprune", "validate", model, output, "--data", recipe.data.evaluation]
        yield shlex.join([*words, "--metric", recipe.data.metric])
