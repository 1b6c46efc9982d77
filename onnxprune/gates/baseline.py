"""This run beside the last accepted one: its figures, and whether they may be compared at all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onnxprune.gates.claims import Claim, flipped, shown
from onnxprune.gates.evidence import Evidence
from onnxprune.gates.settings import GateSettings
from onnxprune.measure.intervals import CONFIDENCE, quantile_of
from onnxprune.measure.latency import reach_of
from onnxprune.record import (
    AccuracyRecord,
    BaselineRecord,
    GateRecord,
    Interval,
    ModelRecord,
    Record,
)

_NO_BASELINE = "no record of an accepted run was given: --baseline report.json"

#: What of a measurement has to be the same for its times to be compared.
_SETTING = ("provider", "options", "threads", "input_shapes", "processor")


def baseline_gates(
    settings: GateSettings, evidence: Evidence, baseline: Record | None
) -> Iterator[GateRecord]:
    """Yield the gates that compare with the last accepted run."""
    drop, slower, larger = (
        settings.baseline_accuracy_drop,
        settings.baseline_latency_ratio,
        settings.baseline_size_ratio,
    )
    if drop is not None:
        claim = Claim("baseline_accuracy_drop", f"at most {drop:g} below the last accepted run", drop, False)
        yield _accuracy(claim, settings, evidence, baseline)
    if slower is not None:
        requirement = f"at most {slower:g} of the time, against the original, of the last accepted run"
        yield _latency(
            Claim("baseline_latency_ratio", requirement, slower, False), settings, evidence, baseline
        )
    if larger is not None:
        requirement = f"at most {larger:g} of the size of the last accepted run"
        claim = Claim("baseline_size_ratio", requirement, larger, False)
        before, now = _final(baseline.models if baseline else ()), _final(evidence.models)
        if baseline is None or before is None or now is None or before.size_bytes <= 0:
            yield claim.missing(_NO_BASELINE if baseline is None else "a size is missing")
        else:
            detail = f"{now.size_bytes} bytes, {before.size_bytes} before"
            yield claim.exact(now.size_bytes / before.size_bytes, detail)


def compare_with_baseline(
    evidence: Evidence, gates: Sequence[GateRecord], baseline: Record, path: str | Path
) -> BaselineRecord:
    """Return the figures of the last accepted run beside those of this one.

    Args:
        evidence: of this run.
        gates: of this run; those that passed before and do not now get a row.
        baseline: the record of the last accepted run.
        path: where that is.

    Returns:
        rows with ``figure``, ``before``, ``now`` and ``change``: a difference for accuracy and the like, a
        ratio for the others, None where the two can't be compared; ``note`` says why not.
    """
    rows = [*_accuracy_rows(evidence, baseline), *_model_rows(evidence, baseline)]
    passed = {gate.name for gate in baseline.gates if gate.verdict == "pass"}
    rows += [
        {"figure": f"gate {gate.name}", "before": "pass", "now": gate.verdict, "change": None,
         "note": gate.detail}
        for gate in gates
        if gate.verdict != "pass" and gate.name in passed
    ]  # fmt: skip
    return BaselineRecord(path=str(path), finished=baseline.finished, rows=tuple(rows))


# --- accuracy -----------------------------------------------------------------------------------------------


def _accuracy(
    claim: Claim, settings: GateSettings, evidence: Evidence, baseline: Record | None
) -> GateRecord:
    """Judge what is lost since the last accepted run.

    The two models were not run side by side, so changes can't be paired by sample. Where both come from the
    same original, what each lost against it is compared, else the metric of each. Intervals are joined by
    squares and adding (R. G. Newcombe 1998, method 10, without its correction for pairs): as if the runs had
    other samples, which is too wide for the same.
    """
    if baseline is None:
        return claim.missing(_NO_BASELINE)
    why_not = _why_not_accuracy(evidence.accuracy, baseline.accuracy)
    higher = settings.direction(None if evidence.accuracy is None else evidence.accuracy.higher_is_better)
    if why_not is None and higher is None:
        why_not = "the direction of the metric is not known"
    judged = evidence.judged_accuracy
    now = None if judged is None else next((s.record for s in judged.subsets if s.record.kind == "all"), None)
    if why_not is not None or now is None or baseline.accuracy is None:
        return claim.missing(why_not or "accuracy was not measured")
    before = next((subset for subset in baseline.accuracy.subsets if subset.kind == "all"), None)
    if before is None:
        return claim.missing("the last accepted run has no figure of all samples")
    pair = (now.final, before.final)
    if _same_original(evidence, baseline) and now.change is not None and before.change is not None:
        pair = (now.change, before.change)
    change = difference(pair[0], _rescaled(pair[1], settings.confidence))
    lost = flipped(change) if higher else change
    return claim.estimated(
        lost, f"lost {shown(lost)}: {now.final.value:.4g}, {before.final.value:.4g} before"
    )


def difference(now: Interval, before: Interval) -> Interval:
    """Return the difference of two estimates, with the interval of squares and adding."""
    value = now.value - before.value
    low = value - math.hypot(now.value - now.low, before.high - before.value)
    high = value + math.hypot(now.high - now.value, before.value - before.low)
    return Interval(value=value, low=low, high=high, count=min(now.count, before.count))


def _rescaled(figure: Interval, confidence: float) -> Interval:
    """Return an estimate of a record, whose interval is of 95 %, with one of another confidence."""
    stretch = quantile_of(confidence) / quantile_of(CONFIDENCE)
    return Interval(
        value=figure.value,
        low=figure.value - stretch * (figure.value - figure.low),
        high=figure.value + stretch * (figure.high - figure.value),
        count=figure.count,
    )


def _why_not_accuracy(now: AccuracyRecord | None, before: AccuracyRecord | None) -> str | None:
    """Return why two accuracies can't be compared, None if they can."""
    if now is None or before is None:
        return "accuracy was not measured in both runs"
    if now.data_sha256 != before.data_sha256:
        return "the last accepted run was judged on other data"
    for key, what in (("metric", "metric"), ("output", "output"), ("compared_with", "reference")):
        if getattr(now, key) != getattr(before, key):
            return f"the last accepted run was judged by another {what}: {getattr(before, key)!r}"
    return None


def _accuracy_rows(evidence: Evidence, baseline: Record) -> Iterator[dict[str, Any]]:
    now, before = evidence.accuracy, baseline.accuracy
    if now is None and before is None:
        return
    why_not = _why_not_accuracy(now, before)
    earlier = {} if before is None else {subset.name: subset.final.value for subset in before.subsets}
    current = {} if now is None else {subset.name: subset.final.value for subset in now.subsets}
    metric = now.metric if now is not None else before.metric if before is not None else ""
    for name in dict.fromkeys((*current, *earlier)):
        yield _row(f"{metric}, {name}", earlier.get(name), current.get(name), why_not, ratio=False)
    for key in ("agreement", "cosine"):
        values = [None if found is None else _value(getattr(found, key)) for found in (before, now)]
        if values != [None, None]:
            yield _row(f"{key} with the original", values[0], values[1], why_not, ratio=False)


def _value(figure: Interval | None) -> float | None:
    return None if figure is None else figure.value


# --- time, size ---------------------------------------------------------------------------------------------


def _latency(claim: Claim, settings: GateSettings, evidence: Evidence, baseline: Record | None) -> GateRecord:
    """Judge time against the original now beside the same before: two ratios, each of its own day."""
    if baseline is None:
        return claim.missing(_NO_BASELINE)
    why_not = _why_not_times(evidence, baseline)
    judged, before = evidence.judged_latency, _final(baseline.models)
    if why_not is not None or judged is None or before is None or before.latency_ratio is None:
        return claim.missing(why_not or "latency was not measured in both runs")
    earlier = _rescaled(before.latency_ratio, settings.confidence)
    controls = [judged.control, *([baseline.latency.control_ratio] if baseline.latency else [])]
    if min(figure.low for figure in (judged.ratio, earlier, *controls)) <= 0:
        return claim.missing("one run is too short for the clock")
    logs = difference(_logarithm(judged.ratio), _logarithm(earlier))
    noise = math.hypot(*(reach_of(control.low, control.high) for control in controls))
    ratio = Interval(
        value=math.exp(logs.value), low=math.exp(logs.low - noise), high=math.exp(logs.high + noise),
        count=logs.count,
    )  # fmt: skip
    detail = f"{shown(ratio)}: {judged.ratio.value:.4g} of the original, {earlier.value:.4g} before"
    return claim.estimated(ratio, detail)


def _logarithm(figure: Interval) -> Interval:
    value, low, high = (math.log(end) for end in (figure.value, figure.low, figure.high))
    return Interval(value=value, low=low, high=high, count=figure.count)


def _why_not_times(evidence: Evidence, baseline: Record) -> str | None:
    """Return why two ratios of times can't be compared, None if they can."""
    if evidence.latency is None or baseline.latency is None:
        return "latency was not measured in both runs"
    for key in _SETTING:
        now, before = evidence.latency.setting.get(key), baseline.latency.setting.get(key)
        if _plain(now) != _plain(before):
            return f"the last accepted run was timed with another setting: {key}"
    return (
        None if _same_work(evidence, baseline) else "the original of the last accepted run is of another size"
    )


def _plain(value: Any) -> Any:
    """Return a value as JSON would give it back."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _model_rows(evidence: Evidence, baseline: Record) -> Iterator[dict[str, Any]]:
    before, now = _final(baseline.models), _final(evidence.models)
    why_not = _why_not_times(evidence, baseline)
    times = [None if model is None else _value(model.latency_ratio) for model in (before, now)]
    if any(time is not None for time in times):
        yield _row("time, as a share of the original's", times[0], times[1], why_not, ratio=True)
    for key, what in (
        ("size_bytes", "bytes on disk"), ("zstd_bytes", "bytes as zstd stores it"), ("params", "parameters"),
        ("macs", "multiply-accumulates"),
    ):  # fmt: skip
        counted = [None if model is None else getattr(model, key) for model in (before, now)]
        yield _row(what, counted[0], counted[1], None, ratio=True)
    shares = [None if model is None else model.sparsity for model in (before, now)]
    yield _row("share of zeros", shares[0], shares[1], None, ratio=False)


def _row(
    figure: str, before: float | None, now: float | None, why_not: str | None, *, ratio: bool
) -> dict[str, Any]:
    change = None
    if why_not is None and before is not None and now is not None:
        change = now - before if not ratio else now / before if before else None
    row: dict[str, Any] = {"figure": figure, "before": before, "now": now, "change": change}
    return row if why_not is None else {**row, "note": why_not}


def _final(models: Sequence[ModelRecord]) -> ModelRecord | None:
    return models[-1] if models else None


def _same_original(evidence: Evidence, baseline: Record) -> bool:
    return bool(
        evidence.models and baseline.models and evidence.models[0].sha256 == baseline.models[0].sha256
    )


def _same_work(evidence: Evidence, baseline: Record) -> bool:
    """Tell whether both originals compute as much: the same one, or one that was trained again."""
    if not evidence.models or not baseline.models:
        return False
    now, before = evidence.models[0], baseline.models[0]
    return (now.params, now.macs) == (before.params, before.macs)
