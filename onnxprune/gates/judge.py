"""Evidence and gates -> verdicts."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator, Sequence

from onnxprune.errors import UsageError
from onnxprune.gates.accuracy import AccuracyGates
from onnxprune.gates.baseline import baseline_gates
from onnxprune.gates.claims import Claim, shown, worst
from onnxprune.gates.evidence import Evidence
from onnxprune.gates.settings import GATES, GateSettings
from onnxprune.measure.latency import reach_of
from onnxprune.measure.memory import REPEATS_WITHIN_MIB
from onnxprune.messages import one_line
from onnxprune.record import GateRecord, Interval, MemoryRecord, ModelRecord, Record, Verdict

_NO_MODEL = "the model was not counted"
_NO_TIME = "latency was not measured"


def judge(
    settings: GateSettings, evidence: Evidence, baseline: Record | None = None
) -> tuple[GateRecord, ...]:
    """Judge every gate that is asked for.

    Args:
        settings: the gates.
        evidence: what was measured, with intervals of the confidence that the settings ask for.
        baseline: the record of the last accepted run; gates that compare with it are inconclusive without.

    Raises:
        UsageError: the evidence has intervals of another confidence.
    """
    if evidence.confidence != settings.confidence:
        raise UsageError(
            f"the evidence has intervals of {evidence.confidence:g}, the gates ask for "
            f"{settings.confidence:g}: measure again"
        )
    found = [
        *AccuracyGates(settings, evidence).records(),
        *_latency_gates(settings, evidence),
        *_counted_gates(settings, evidence),
        *_memory_gates(settings, evidence),
        *_graph_gates(settings, evidence),
        *baseline_gates(settings, evidence, baseline),
    ]
    order = {name: place for place, name in enumerate(GATES)}
    found.sort(key=lambda gate: order[gate.name.partition("[")[0]])
    missing = set(settings.asked()) - {gate.name.partition("[")[0] for gate in found}
    if missing:
        raise AssertionError(f"gates were not judged: {sorted(missing)}")  # a bug of ours: never a pass
    return tuple(found)


def verdict_of(gates: Iterable[GateRecord]) -> Verdict:
    """Return fail if any gate failed, else inconclusive if any is, else pass."""
    return worst(gate.verdict for gate in gates)


def accepts(settings: GateSettings, gates: Iterable[GateRecord]) -> bool:
    """Tell whether the model is accepted: every gate passed, or is inconclusive where the settings let it.

    That lets too small a sample pass, never a figure that is missing.
    """
    lax = settings.inconclusive == "pass"
    return all(
        gate.verdict == "pass" or (lax and gate.verdict == "inconclusive" and gate.measured is not None)
        for gate in gates
    )


# --- time ---------------------------------------------------------------------------------------------------


def _latency_gates(settings: GateSettings, evidence: Evidence) -> Iterator[GateRecord]:
    for name, quantile in (("latency_ratio", "median"), ("latency_p95_ratio", "95th percentile")):
        limit = getattr(settings, name)
        if limit is not None:
            requirement = f"at most {limit:g} of the original's time, at the {quantile}"
            yield _ratio_of_times(Claim(name, requirement, limit, at_least=False), evidence)
    for name, quantile in (("latency_p50_ms", "median"), ("latency_p95_ms", "95th percentile")):
        limit = getattr(settings, name)
        if limit is not None:
            requirement = f"at most {limit:g} ms for one run, at the {quantile}"
            yield _milliseconds(Claim(name, requirement, limit, at_least=False), evidence)


def _ratio_of_times(claim: Claim, evidence: Evidence) -> GateRecord:
    """Judge a ratio by its interval, widened by what the control says may be noise."""
    measured = evidence.judged_latency
    if measured is None:
        return claim.missing(_NO_TIME)
    at_median = claim.name == "latency_ratio"
    ratio = measured.ratio if at_median else measured.p95_ratio
    control = measured.control if at_median else measured.p95_control
    if min(ratio.low, control.low) <= 0:
        return claim.missing("one run is too short for the clock")
    noise = math.exp(reach_of(control.low, control.high))
    widened = Interval(value=ratio.value, low=ratio.low / noise, high=ratio.high * noise, count=ratio.count)
    detail = f"{shown(ratio)}, noise {noise - 1:.1%}, in {measured.rounds} rounds"
    gate = claim.estimated(widened, detail)
    if gate.verdict == "inconclusive":
        quieter = claim.holds(ratio.low, ratio.high) != "inconclusive"
        what = "a quieter machine" if quieter else "more rounds, or a quieter machine,"
        return gate.model_copy(update={"detail": f"{detail}; {what} may decide it"})
    return gate


def _milliseconds(claim: Claim, evidence: Evidence) -> GateRecord:
    measured = evidence.judged_latency
    if measured is None:
        return claim.missing(_NO_TIME)
    figure = measured.p50_ms if claim.name == "latency_p50_ms" else measured.p95_ms
    if figure is None:
        return claim.missing(f"{measured.rounds} rounds don't bound it; run more pairs")
    gate = claim.estimated(figure, f"{shown(figure)} ms in {measured.rounds} rounds")
    if gate.verdict == "inconclusive":
        return gate.model_copy(update={"detail": f"{gate.detail}; more rounds may decide it"})
    return gate


# --- what is counted ----------------------------------------------------------------------------------------

_COUNTED = {
    "size": ("size_bytes", "on disk"),
    "size_ratio": ("size_bytes", "on disk"),
    "zstd_size": ("zstd_bytes", "as zstd stores it"),
    "zstd_ratio": ("zstd_bytes", "as zstd stores it"),
    "params_ratio": ("params", "parameters"),
    "macs_ratio": ("macs", "multiply-accumulates"),
}


def _counted_gates(settings: GateSettings, evidence: Evidence) -> Iterator[GateRecord]:
    for name, (key, what) in _COUNTED.items():
        limit = getattr(settings, name)
        if limit is not None:
            unit = f"of the original's {what}" if name.endswith("_ratio") else f"bytes {what}"
            requirement = (
                f"at most {limit:g} {unit}" if name.endswith("_ratio") else f"at most {limit} {unit}"
            )
            yield _count(Claim(name, requirement, limit, at_least=False), key, evidence.models)
    if settings.sparsity is not None:
        claim = Claim(
            "sparsity",
            f"at least {settings.sparsity:g} of the weights are zero",
            settings.sparsity,
            at_least=True,
        )
        if evidence.unknown_weights:
            unknown = evidence.unknown_weights
            yield claim.missing(one_line(f"the zeros of {len(unknown)} weights can't be told; {unknown[0]}"))
        elif evidence.models:
            share = evidence.models[-1].sparsity
            yield claim.exact(share, f"{share:.2%} of the weights are zero")
        else:
            yield claim.missing(_NO_MODEL)


def _count(claim: Claim, key: str, models: Sequence[ModelRecord]) -> GateRecord:
    is_ratio = claim.name.endswith("_ratio")
    if not models or (is_ratio and len(models) < 2):
        return claim.missing(_NO_MODEL)
    final, original = getattr(models[-1], key), getattr(models[0], key)
    if not is_ratio:
        return claim.exact(final, f"{final} bytes")
    if original <= 0:
        return claim.missing(f"the original has none: {original}")
    return claim.exact(final / original, f"{final} of {original}")


def _memory_gates(settings: GateSettings, evidence: Evidence) -> Iterator[GateRecord]:
    """Judge peaks, which repeat within a few MiB: that far they reach to either side."""
    peaks = [_peak(record) for record in evidence.memory]
    for name, unit in (("memory_mib", "MiB"), ("memory_ratio", "of the original's memory")):
        limit = getattr(settings, name)
        if limit is None:
            continue
        claim = Claim(name, f"at most {limit:g} {unit}, at the peak", limit, at_least=False)
        peak = peaks[-1] if peaks else None
        base = peaks[0] if len(peaks) > 1 else None
        if peak is None or (name == "memory_ratio" and base is None):
            reasons = [record.reason for record in evidence.memory if record.reason]
            yield claim.missing(one_line(reasons[0]) if reasons else "memory was not measured")
            continue
        near = REPEATS_WITHIN_MIB
        if name == "memory_mib":
            yield claim.estimated(_within(peak, near), f"{peak:g} MiB, which repeats within {near:g} MiB")
        elif base is None or base <= near:
            yield claim.missing(f"the original takes {base:g} MiB, which is too little to compare with")
        else:
            low, high = max(0.0, peak - near) / (base + near), (peak + near) / (base - near)
            ratio = Interval(value=peak / base, low=low, high=high, count=1)
            detail = f"{peak:g} of {base:g} MiB, which repeat within {near:g} MiB"
            yield claim.estimated(ratio, detail)


def _peak(record: MemoryRecord) -> float | None:
    """Return the most memory of loading and running; None if either is not known."""
    if record.load_peak_mib is None or record.run_peak_mib is None:
        return None
    return max(record.load_peak_mib, record.run_peak_mib)


def _within(value: float, distance: float) -> Interval:
    return Interval(value=value, low=value - distance, high=value + distance, count=1)


# --- the graph ----------------------------------------------------------------------------------------------


def _graph_gates(settings: GateSettings, evidence: Evidence) -> Iterator[GateRecord]:
    for name, what in (("opset", "the ONNX operator set"), ("ir_version", "the version of the format")):
        limit, found = getattr(settings, name), getattr(evidence, name)
        if limit is not None:
            claim = Claim(name, f"{what} is at most {limit}", limit, at_least=False)
            yield claim.missing(_NO_MODEL) if found is None else claim.exact(found, f"it is {found}")
    if settings.operators is not None:
        yield _operators("operators", settings.operators, evidence.operators, allowed=True)
    if settings.operators_forbidden is not None:
        yield _operators(
            "operators_forbidden", settings.operators_forbidden, evidence.operators, allowed=False
        )


def _operators(
    name: str, patterns: Sequence[str], found: Sequence[str] | None, *, allowed: bool
) -> GateRecord:
    requirement = f"{'no others than' if allowed else 'none of'} {', '.join(patterns)}"
    wrong = [
        operator
        for operator in found or ()
        if any(fnmatch.fnmatchcase(operator, pattern) for pattern in patterns) != allowed
    ]
    if found is None:
        verdict: Verdict = "inconclusive"
        detail = _NO_MODEL
    elif wrong:
        verdict, detail = "fail", one_line(f"not allowed: {', '.join(wrong)}")
    else:
        verdict, detail = "pass", one_line(f"{len(found)} operators: {', '.join(found)}")
    return GateRecord(
        name=name,
        requirement=one_line(requirement),
        limit=list(patterns),
        measured=None if found is None else one_line(", ".join(wrong if wrong else found) or "none"),
        verdict=verdict,
        detail=detail,
    )
