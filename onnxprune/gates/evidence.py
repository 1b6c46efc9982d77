"""What gates are judged by: every model of a run measured beside the original, under the same conditions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from pydantic import BaseModel, ConfigDict

from onnxprune.analyze import analyze
from onnxprune.cost import cost_of
from onnxprune.data import Dataset
from onnxprune.errors import DataError, UsageError
from onnxprune.gates.settings import ON_MEMORY, GateSettings, check_data, check_settings
from onnxprune.machine import graphics, processor
from onnxprune.measure import intervals
from onnxprune.measure.accuracy import AccuracyResult, Judged, Subset, run_on_data
from onnxprune.measure.inputs import random_inputs
from onnxprune.measure.intervals import Estimate
from onnxprune.measure.latency import CONTROL, PERCENTILES, LatencyResult, Timed, time_in_turns
from onnxprune.measure.memory import measure_memory
from onnxprune.measure.metrics import Metric, find_metric
from onnxprune.measure.turns import ratio_of
from onnxprune.messages import visible
from onnxprune.model.digest import files_digest
from onnxprune.model.inputs import graph_inputs
from onnxprune.model.io import load, model_files
from onnxprune.model.size import zstd_size_bytes
from onnxprune.model.stored import all_nodes
from onnxprune.record import (
    AccuracyRecord,
    Interval,
    LatencyRecord,
    MemoryRecord,
    ModelRecord,
    SubsetRecord,
)
from onnxprune.runtime import DEFAULT, Execution
from onnxprune.verification.zeros import share_of_zeros

ALL = "all samples"
BOUNDARY = "near the boundary"

_MOST_SAMPLES = 1000  # times of single runs that are kept
_ONNX_DOMAINS = ("", "ai.onnx")

Feeds: TypeAlias = dict[str, npt.NDArray[Any]]
Kind: TypeAlias = Literal["all", "segment", "boundary"]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class JudgedSubset(_Facts):
    """The metric on some samples, with intervals of the confidence that the gates ask for.

    Attributes:
        record: as in the report, but for the intervals.
        corrected: the same at the confidence at which all segments together hold; of segments only.
        risen, fallen: sums of what single samples gained and lost, where the metric is a share.
        is_share: each sample's figure lies between 0 and 1, so that intervals hold for any number of them.
    """

    record: SubsetRecord
    corrected: SubsetRecord | None
    risen: float | None
    fallen: float | None
    is_share: bool


class JudgedAccuracy(_Facts):
    """The accuracy of the final model, with intervals of the confidence that the gates ask for.

    Attributes:
        higher_is_better: the direction of the metric, where the settings did not have to say it.
        subsets: all samples, segments that are judged, near the boundary.
        agreement, cosine: as in `AccuracyRecord`.
    """

    higher_is_better: bool | None
    subsets: tuple[JudgedSubset, ...]
    agreement: Interval | None
    cosine: Interval | None


class JudgedLatency(_Facts):
    """Times of the final model, with intervals of the confidence that the gates ask for.

    Attributes:
        ratio, p95_ratio: time of one run / that of the original, at the median and at the 95th percentile.
        control, p95_control: what a second session of the original seems to take.
        p50_ms, p95_ms: milliseconds of one run; None where there were too few rounds to bound them.
        rounds: how many there were.
    """

    ratio: Interval
    p95_ratio: Interval
    control: Interval
    p95_control: Interval
    p50_ms: Interval | None
    p95_ms: Interval | None
    rounds: int


class Evidence(_Facts):
    """What was measured.

    Attributes:
        models: the original first, the final model last.
        accuracy, latency, memory: as a report shows them; None or empty where they were not measured.
        judged_accuracy, judged_latency: what gates are judged by; None likewise.
        confidence: of the intervals of the latter.
        operators: of the final model, with their domain where it is not ONNX's own: ``com.microsoft:QGemm``.
        opset: the ONNX operator set of the final model, its functions' too; 0 where it uses none.
        ir_version: of the final model.
        unknown_weights: those of the final model whose zeros can't be counted, each with the reason.
    """

    models: tuple[ModelRecord, ...]
    accuracy: AccuracyRecord | None = None
    latency: LatencyRecord | None = None
    memory: tuple[MemoryRecord, ...] = ()
    judged_accuracy: JudgedAccuracy | None = None
    judged_latency: JudgedLatency | None = None
    confidence: float = intervals.CONFIDENCE
    operators: tuple[str, ...] | None = None
    opset: int | None = None
    ir_version: int | None = None
    unknown_weights: tuple[str, ...] = ()


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
    records = {name: model_record(name, path, input_shapes) for name, path in files.items()}
    judged: dict[str, Judged] = {}
    if evaluation is not None:
        for name in list(files)[1:]:
            if records[name].sha256 not in judged:
                say(f"judging {name}")
                judged[records[name].sha256] = run_on_data(
                    files[name], original, data=evaluation, metric=metric, output=output, batch=batch,
                    provider=execution.provider, threads=execution.threads, progress=progress,
                )  # fmt: skip
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
    final = list(files)[-1]
    if memory or any(name in settings.asked() for name in ON_MEMORY):
        say("measuring memory")
        memories = [memory_record(name, files[name], execution, feeds) for name in (next(iter(files)), final)]
    keys = dict(zip(distinct, timed.others, strict=True))
    results = {digest: found.result(seed=seed) for digest, found in judged.items()}
    models = _with_measurements(records, results, timed, keys, seed)
    last = models[-1].sha256
    times = timed.beside(keys[last])
    return Evidence(
        models=models,
        accuracy=accuracy_record(results[last]) if results else None,
        latency=latency_record(times, evaluation is not None),
        memory=tuple(memories),
        judged_accuracy=(
            judge_accuracy(judged[last], results[last], settings, segments, seed) if judged else None
        ),
        judged_latency=judge_latency(timed, keys[last], times, settings.confidence),
        confidence=settings.confidence,
        **what_it_uses(files[final]),
    )


def evidence_of_accuracy(
    judged: Judged, result: AccuracyResult, settings: GateSettings, segments: tuple[str, ...], seed: int
) -> Evidence:
    """Return evidence of accuracy alone.

    Args:
        judged: the model that is judged, beside the original where there is one.
        result: of it, with intervals of 95 %.
        settings: the gates.
        segments: those that are judged.
        seed: of the bootstrap.
    """
    return Evidence(
        models=(),
        accuracy=accuracy_record(result),
        judged_accuracy=judge_accuracy(judged, result, settings, segments, seed),
        confidence=settings.confidence,
    )


def model_record(
    name: str, path: str | Path, input_shapes: Mapping[str, tuple[int, ...]] | None = None
) -> ModelRecord:
    """Return what can be counted of a model file.

    Raises:
        ModelError: it can't be read.
        UsageError: an input shape is missing or does not fit.
    """
    model = load(path)
    analysis = analyze(model, input_shapes=input_shapes)
    cost = cost_of(analysis.model.graph, analysis.channels)
    return ModelRecord(
        name=name,
        sha256=files_digest(path),
        params=cost.params,
        macs=cost.macs,
        size_bytes=sum(file.stat().st_size for file in model_files(path)),
        zstd_bytes=zstd_size_bytes(path),
        sparsity=share_of_zeros(model)[0],
    )


def what_it_uses(path: str | Path) -> dict[str, Any]:
    """Return ``operators``, ``opset``, ``ir_version`` and ``unknown_weights`` of a file, as in `Evidence`.

    Bodies and functions count; calls of the model's own functions are no operators.
    """
    model = load(path)
    imports = [model.graph.opset_imports, *(function.opset_imports for function in model.functions.values())]
    names = {
        node.op_type if node.domain in _ONNX_DOMAINS else f"{node.domain}:{node.op_type}"
        for node in all_nodes(model)
        if node.op_identifier() not in model.functions
    }
    versions = [versions.get(domain) or 0 for versions in imports for domain in _ONNX_DOMAINS]
    unknown = share_of_zeros(model)[1]
    return {
        "operators": tuple(sorted(names)),
        "opset": max(versions),
        "ir_version": model.ir_version,
        "unknown_weights": tuple(f"{visible(skip.name)}: {visible(skip.reason)}" for skip in unknown),
    }


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


def accuracy_record(result: AccuracyResult) -> AccuracyRecord:
    """Return what a report shows of an accuracy."""
    agreement = result.agreement
    return AccuracyRecord(
        metric=result.metric,
        higher_is_better=result.higher_is_better,
        compared_with=result.compared_with,
        output=result.output,
        samples=result.overall.model.count,
        subsets=_subsets(result),
        agreement=None if agreement is None or agreement.argmax is None else interval(agreement.argmax),
        cosine=None if agreement is None else interval(agreement.cosine),
        data_sha256=result.data_digest,
    )


def judge_accuracy(
    judged: Judged, result: AccuracyResult, settings: GateSettings, segments: tuple[str, ...], seed: int
) -> JudgedAccuracy:
    """Return what gates on accuracy are judged by.

    A model is accepted only if every segment passes, so each may pass at the plain confidence (R. L. Berger
    1982: the chance to accept a model with a bad segment is that of this segment to pass). But the more
    segments there are, the likelier one of them fails by chance; so they fail at the confidence
    1 - (1 - c) / k, for k segments (Bonferroni).
    """
    plain = result  # which took long enough to draw
    if settings.confidence != intervals.CONFIDENCE:
        plain = judged.result(confidence=settings.confidence, seed=seed)
    corrected: dict[str, SubsetRecord] = {}
    if len(segments) > 1:
        together = 1 - (1 - settings.confidence) / len(segments)
        found = judged.by_segment(confidence=together, seed=seed)
        corrected = {name: _subset("segment", name, found[name]) for name in segments}
    metric = find_metric(judged.metric)
    is_share = isinstance(metric, Metric) and metric.classifies
    raw: dict[tuple[Kind, str], Subset | None] = {
        ("all", ALL): plain.overall,
        ("boundary", BOUNDARY): plain.near_boundary,
    }
    raw |= {("segment", name): plain.segments[name] for name in segments}
    subsets = [
        JudgedSubset(
            record=_subset(kind, name, subset),
            corrected=corrected.get(name) if kind == "segment" else None,
            risen=subset.risen,
            fallen=subset.fallen,
            is_share=is_share or subset.risen is not None,
        )
        for (kind, name), subset in raw.items()
        if subset is not None
    ]
    agreement = plain.agreement
    return JudgedAccuracy(
        higher_is_better=plain.higher_is_better,
        subsets=tuple(subsets),
        agreement=None if agreement is None or agreement.argmax is None else interval(agreement.argmax),
        cosine=None if agreement is None else interval(agreement.cosine),
    )


def _subsets(result: AccuracyResult) -> tuple[SubsetRecord, ...]:
    segments = [_subset("segment", name, subset) for name, subset in result.segments.items()]
    near = result.near_boundary
    boundary = [] if near is None else [_subset("boundary", BOUNDARY, near)]
    return (_subset("all", ALL, result.overall), *segments, *boundary)


def _subset(kind: Kind, name: str, subset: Subset) -> SubsetRecord:
    return SubsetRecord(
        name=name,
        kind=kind,
        original=None if subset.reference is None else interval(subset.reference),
        final=interval(subset.model),
        change=None if subset.change is None else interval(subset.change),
    )


def judge_latency(timed: Timed, key: int, result: LatencyResult, confidence: float) -> JudgedLatency:
    """Return what gates on time are judged by.

    Args:
        timed: raw times.
        key: the session that is judged.
        result: of that session, with intervals of 95 %, which are not drawn again.
        confidence: of the intervals.
    """
    drawn = {(key, row.percentile): row.ratio for row in result.percentiles}
    drawn |= {(CONTROL, row.percentile): row.control for row in result.percentiles}

    def ratio(session: int, percentile: str) -> Interval:
        found = drawn[session, percentile]
        if found is None or confidence != intervals.CONFIDENCE:
            quantile = PERCENTILES[percentile]
            found = ratio_of(timed.times, quantile, key=session, seed=timed.seed, confidence=confidence)
        return interval(found)

    wall_ms = timed.times.wall[key] * 1000
    p50, p95 = (intervals.quantile_of_rounds(wall_ms, quantile, confidence) for quantile in (0.5, 0.95))
    return JudgedLatency(
        ratio=ratio(key, "p50"),
        p95_ratio=ratio(key, "p95"),
        control=ratio(CONTROL, "p50"),
        p95_control=ratio(CONTROL, "p95"),
        p50_ms=None if p50 is None else interval(p50),
        p95_ms=None if p95 is None else interval(p95),
        rounds=len(wall_ms),
    )


def latency_record(result: LatencyResult, from_data: bool) -> LatencyRecord:
    """Return what a report shows of how times were measured, and on what processor."""
    plain = result.as_dict()
    keys = ("provider", "options", "threads", "spinning", "arena", "pin", "on_device", "pairs", "repeats",
            "input_shapes")  # fmt: skip
    setting = {key: plain[key] for key in keys if plain[key] is not None and plain[key] != {}}
    setting["inputs"] = "evaluation data" if from_data else "random"
    setting["processor"] = "; ".join(filter(None, (processor(), graphics())))
    return LatencyRecord(
        control_ratio=interval(result.control), verdict=result.verdict or "inconclusive", setting=setting
    )


def memory_record(name: str, path: str | Path, execution: Execution, feeds: Feeds) -> MemoryRecord:
    """Return the memory that a model file takes, in a process of its own."""
    found = measure_memory(path, execution=execution, feeds=feeds)
    return MemoryRecord(name=name, **found.as_dict())


def interval(estimate: Estimate) -> Interval:
    """Return an estimate as it stands in a record.

    Raises:
        DataError: it is no number: sums that overflow.
    """
    ends = (estimate.value, estimate.low, estimate.high)
    if not all(math.isfinite(end) for end in ends):
        raise DataError(
            f"a figure is not finite ({', '.join(f'{end:g}' for end in ends)}): look at the outputs"
        )
    return Interval(value=estimate.value, low=estimate.low, high=estimate.high, count=estimate.count)
