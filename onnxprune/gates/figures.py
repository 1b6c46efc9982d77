"""Measurements -> what a report shows and gates are judged by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy.typing as npt
import onnx_ir as ir

from onnxprune.cost import cost_of_model
from onnxprune.errors import DataError
from onnxprune.gates.evidence import Evidence, JudgedAccuracy, JudgedLatency, JudgedSubset
from onnxprune.gates.settings import GateSettings
from onnxprune.machine import graphics, processor
from onnxprune.measure import intervals
from onnxprune.measure.accuracy import AccuracyResult, Judged, Subset
from onnxprune.measure.intervals import Estimate
from onnxprune.measure.latency import CONTROL, PERCENTILES, LatencyResult, Timed
from onnxprune.measure.memory import measure_memory
from onnxprune.measure.metrics import Metric, find_metric
from onnxprune.measure.turns import ratio_of
from onnxprune.messages import visible
from onnxprune.model.digest import files_digest
from onnxprune.model.io import load
from onnxprune.model.size import files_bytes, zstd_size_bytes
from onnxprune.model.stored import all_nodes
from onnxprune.record import (
    AccuracyRecord,
    Interval,
    LatencyRecord,
    MemoryRecord,
    ModelRecord,
    SubsetRecord,
)
from onnxprune.runtime import Execution
from onnxprune.types import Skipped
from onnxprune.verification.zeros import share_of_zeros

ALL = "all samples"
BOUNDARY = "near the boundary"

_ONNX_DOMAINS = ("", "ai.onnx")

Feeds: TypeAlias = Mapping[str, npt.NDArray[Any]]
Kind: TypeAlias = Literal["all", "segment", "boundary"]


def count_models(
    models: Iterable[tuple[str, str | Path]], input_shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Any]:
    """Return all that can be counted of model files, by the names that it has in `Evidence`.

    That is ``models``, and of the last one ``operators``, ``opset``, ``ir_version`` and ``unknown_weights``.
    Bodies and functions count; calls of a model's own functions are no operators.

    Args:
        models: names and files, the final model last.
        input_shapes: sizes for symbolic axes.

    Raises:
        ModelError: one can't be read.
        UsageError: an input shape is missing or does not fit.
    """
    records: list[ModelRecord] = []
    uses: dict[str, Any] = {}
    for name, path in models:
        model = load(path)
        sparsity, unknown = share_of_zeros(model)
        uses = _what_it_uses(model, unknown)
        cost = cost_of_model(model, input_shapes, in_place=True)
        records.append(
            ModelRecord(
                name=name,
                sha256=files_digest(path),
                params=cost.params,
                macs=cost.macs,
                size_bytes=files_bytes(path),
                zstd_bytes=zstd_size_bytes(path),
                sparsity=sparsity,
            )
        )
    return {"models": tuple(records), **uses}


def _what_it_uses(model: ir.Model, unknown: Sequence[Skipped]) -> dict[str, Any]:
    imports = [model.graph.opset_imports, *(function.opset_imports for function in model.functions.values())]
    names = {
        node.op_type if node.domain in _ONNX_DOMAINS else f"{node.domain}:{node.op_type}"
        for node in all_nodes(model)
        if node.op_identifier() not in model.functions
    }
    versions = [versions.get(domain) or 0 for versions in imports for domain in _ONNX_DOMAINS]
    return {
        "operators": tuple(sorted(names)),
        "opset": max(versions),
        "ir_version": model.ir_version,
        "unknown_weights": tuple(f"{visible(skip.name)}: {visible(skip.reason)}" for skip in unknown),
    }


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
