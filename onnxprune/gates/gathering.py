"""Every model of a run is measured beside the original, under the same conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.gates.evidence import Evidence, JudgedAccuracy
from onnxprune.gates.figures import (
    accuracy_record,
    count_models,
    interval,
    judge_accuracy,
    judge_latency,
    latency_record,
    memory_record,
)
from onnxprune.gates.settings import ON_MEMORY, GateSettings, check_data, check_settings
from onnxprune.measure import intervals
from onnxprune.measure.accuracy import AccuracyResult, run_on_data
from onnxprune.measure.inputs import random_inputs
from onnxprune.measure.latency import Timed, time_in_turns
from onnxprune.measure.turns import ratio_of
from onnxprune.model.inputs import graph_inputs
from onnxprune.model.io import load
from onnxprune.record import (
    MemoryRecord,
    ModelRecord,
)
from onnxprune.runtime import DEFAULT, Execution

_MOST_SAMPLES = 1000  # times of single runs that are kept

Feeds: TypeAlias = dict[str, npt.NDArray[Any]]


def gather_evidence(
    paths: Mapping[str, str | Path],
    *,
    evaluation: Dataset | None,
    metric: str = "top1",
    output: str | None = None,
    settings: GateSettings,
    execution: Execution = DEFAULT,
    batch: int = 32,
    pairs: int = 100,
    latency_batch: int | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    memory: bool = False,
    seed: int = 0,
    step: Callable[[str], None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Evidence:
    """Measure all models of a run.

    Everything but times and memory is the same for the same files, data and seed.

    Args:
        paths: model files by name: the original first, the final model last.
        evaluation: samples; without them there is no accuracy, and times are of random inputs.
        metric: as in `onnxprune.validate`.
        output: name of the output to judge; the first one by default.
        batch: samples in a run on data, where that is free.
        settings: the gates: the confidence that they are judged at, the segments, and whether memory counts.
        execution: where and how models run.
        pairs: rounds of the measurement of times, at least; all models take turns in it. More where a gate
            needs them.
        latency_batch: samples in a run that is timed, where that is free; 1 by default.
        input_shapes: sizes for symbolic axes: for what is counted, and for random inputs.
        memory: measure it even where no gate asks for it.
        seed: of random inputs and of the bootstrap.
        step: called with what is measured next.
        progress: called with the share of that which is done, in (0, 1].

    Raises:
        UsageError: fewer than two models, or a gate that can't be judged by what is there.
        DataError: data that does not fit the models, outputs or metrics that are not finite.
        ModelError, RuntimeFailure: a model can't be read or run.
    """
    if len(paths) < 2:
        raise UsageError("gates compare a model with its original: give both")
    check_settings(settings, has_data=evaluation is not None, metric=metric)
    segments = () if evaluation is None else check_data(settings, evaluation, metric)
    say = step or (lambda _: None)
    files = {name: Path(path) for name, path in paths.items()}
    original = next(iter(files.values()))
    say("counting")
    counted = count_models(files.items(), input_shapes)
    records = {record.name: record for record in counted["models"]}
    final = list(files)[-1]
    last = records[final].sha256
    results: dict[str, AccuracyResult] = {}
    judged: JudgedAccuracy | None = None
    for name, record in list(records.items())[1:]:
        if evaluation is not None and record.sha256 not in results:
            say(f"judging {name}")
            found = run_on_data(
                files[name], original, data=evaluation, metric=metric, output=output, batch=batch,
                provider=execution.provider, threads=execution.threads, progress=progress,
            )  # fmt: skip
            results[record.sha256] = found.result(seed=seed)
            if record.sha256 == last:
                judged = judge_accuracy(found, results[last], settings, segments, seed)
    feeds = _feeds(original, evaluation, latency_batch, input_shapes, seed)
    say("measuring latency")
    if settings.latency_p95_ms is not None:
        pairs = max(pairs, intervals.least_rounds(0.95, settings.confidence))
    distinct = {record.sha256: files[name] for name, record in list(records.items())[1:]}
    timed = time_in_turns(
        original, list(distinct.values()), execution=execution, pairs=pairs, seed=seed, feeds=feeds,
        progress=progress,
    )  # fmt: skip
    memories: list[MemoryRecord] = []
    if memory or any(name in settings.asked() for name in ON_MEMORY):
        say("measuring memory")
        memories = [memory_record(name, files[name], execution, feeds) for name in (next(iter(files)), final)]
    keys = dict(zip(distinct, timed.others, strict=True))
    times = timed.beside(keys[last])
    measured = {"models": _with_measurements(records, results, timed, keys, seed)}
    return Evidence(
        **(counted | measured),
        accuracy=accuracy_record(results[last]) if results else None,
        latency=latency_record(times, evaluation is not None),
        memory=tuple(memories),
        judged_accuracy=judged,
        judged_latency=judge_latency(timed, keys[last], times, settings.confidence),
        confidence=settings.confidence,
    )


def _feeds(
    original: Path,
    evaluation: Dataset | None,
    batch: int | None,
    input_shapes: Mapping[str, tuple[int, ...]] | None,
    seed: int,
) -> Feeds:
    """Return what is timed: the first samples, as often as the batch needs them; or random inputs."""
    model = load(original)
    if evaluation is None:
        return random_inputs(model, batch=batch, input_shapes=input_shapes, seed=seed)
    fixed = {_fixed_batch(value) for value in graph_inputs(model)} - {None}
    count = next(iter(fixed), None) or batch or 1
    if batch is not None and count != batch:
        raise UsageError(f"the model has a fixed batch of {count}, not {batch}")
    chosen = np.arange(count) % len(evaluation)
    return {name: array[chosen] for name, array in evaluation.arrays.items()}


def _fixed_batch(value: ir.Value) -> int | None:
    first = value.shape[0] if value.shape is not None and len(value.shape) else None
    return first if isinstance(first, int) and first > 0 else None  # some exporters write -1 for any size


def _with_measurements(
    records: Mapping[str, ModelRecord],
    results: Mapping[str, AccuracyResult],
    timed: Timed,
    keys: Mapping[str, int],
    seed: int,
) -> tuple[ModelRecord, ...]:
    """Add accuracy and times to what was counted."""
    found = []
    for place, record in enumerate(records.values()):
        key = keys[record.sha256] if place else 0
        wall_ms = timed.times.wall[key].reshape(-1) * 1000
        chosen = np.linspace(0, wall_ms.size - 1, min(_MOST_SAMPLES, wall_ms.size)).astype(int)
        subset = results[record.sha256].overall if place and results else None
        if not place and results:
            beside = list(results.values())[-1].overall.reference
            accuracy = None if beside is None else interval(beside)
        else:
            accuracy = None if subset is None else interval(subset.model)
        measured = {
            "accuracy": accuracy,
            "latency_ratio": interval(ratio_of(timed.times, key=key, seed=seed)) if place else None,
            "latency_ms": timed.times.milliseconds(key),
            "latency_p95_ms": timed.times.milliseconds(key, 0.95),
            "latency_samples_ms": tuple(round(float(ms), 6) for ms in wall_ms[chosen]),
        }
        found.append(record.model_copy(update=measured))
    return tuple(found)
