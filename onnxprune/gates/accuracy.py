"""Gates on accuracy: of all samples, of segments, near the decision boundary, and agreement."""

from __future__ import annotations

import math
from collections.abc import Iterator

from onnxprune.gates.claims import Claim, flipped, shown, worst
from onnxprune.gates.evidence import Evidence, JudgedSubset
from onnxprune.gates.settings import GateSettings
from onnxprune.measure.intervals import LEAST_DIFFERING, quantile_of
from onnxprune.measure.paired import samples_to_resolve, score_interval
from onnxprune.messages import visible
from onnxprune.record import GateRecord, Interval

_UNMEASURED = "accuracy was not measured"
_AGAINST_ITSELF = "the metric compares with the original, which has none of its own: use the gate accuracy"
_LEAST_GROWTH = 1e-3


class AccuracyGates:
    """Gates on the metric, whichever way is better.

    Args:
        settings: the gates.
        evidence: with the intervals of the confidence that the settings ask for.
    """

    def __init__(self, settings: GateSettings, evidence: Evidence) -> None:
        judged = evidence.judged_accuracy
        self.settings = settings
        self.judged = judged
        self.subsets = () if judged is None else judged.subsets
        self.higher = settings.direction(None if judged is None else judged.higher_is_better)
        self.metric = "the metric" if evidence.accuracy is None else visible(evidence.accuracy.metric)

    def records(self) -> Iterator[GateRecord]:
        """Yield all gates on accuracy that are asked for."""
        asked = self.settings
        if asked.accuracy is not None:
            yield self._level(asked.accuracy)
        if asked.accuracy_drop is not None:
            yield self._drop("accuracy_drop", asked.accuracy_drop, self._only("all"), "")
        if asked.accuracy_relative is not None:
            yield self._relative(asked.accuracy_relative)
        if asked.segment_drop is not None:
            yield from self._segments(asked.segment_drop)
        if asked.worst_segment is not None:
            yield self._worst_segment(asked.worst_segment)
        if asked.boundary_drop is not None:
            where = " where that is least sure"
            yield self._drop("boundary_drop", asked.boundary_drop, self._only("boundary"), where)
        for name in ("agreement", "cosine"):
            if getattr(asked, name) is not None:
                yield self._likeness(name)

    def _only(self, kind: str) -> JudgedSubset | None:
        return next((subset for subset in self.subsets if subset.record.kind == kind), None)

    def _level(self, limit: float, name: str = "accuracy") -> GateRecord:
        claim = self._level_claim(name, limit, self.metric)
        subset = self._only("all")
        if subset is None or self.higher is None:
            return claim.missing(
                _UNMEASURED if subset is None else "the direction of the metric is not known"
            )
        final = subset.record.final
        return self._judged(claim, subset, final, f"{shown(final)} on {final.count} samples")

    def _level_claim(self, name: str, limit: float, what: str) -> Claim:
        least = self.higher is not False
        return Claim(name, f"{what} is at {'least' if least else 'most'} {limit:g}", limit, least)

    def _drop(self, name: str, limit: float, subset: JudgedSubset | None, where: str) -> GateRecord:
        side = "above" if self.higher is False else "below"
        requirement = f"at most {limit:g} {side} the original{where}"
        claim = Claim(name, requirement, limit, at_least=False)
        lost = self._lost(subset)
        if isinstance(lost, str) or subset is None:
            return claim.missing(str(lost))
        detail = f"lost {shown(lost)} on {lost.count} samples{_changes(subset)}"
        return self._judged(claim, subset, lost, detail, self._lost_corrected(subset))

    def _lost(self, subset: JudgedSubset | None) -> Interval | str:
        """Return how much of the metric is lost on some samples, or why that is not known."""
        if subset is None:
            return (
                _UNMEASURED if self.judged is None else "the output holds no class scores, so none is unsure"
            )
        if self.higher is None:
            return "the direction of the metric is not known"
        if subset.record.change is None:
            return _AGAINST_ITSELF
        return flipped(subset.record.change) if self.higher else subset.record.change

    def _lost_corrected(self, subset: JudgedSubset) -> Interval | None:
        change = None if subset.corrected is None else subset.corrected.change
        return None if change is None else flipped(change) if self.higher else change

    def _relative(self, share: float) -> GateRecord:
        """Judge the share that is kept: 1 - lost / original, or 1 / (1 + lost / original) of what grows.

        Both are estimates; each end of the interval takes the end of the original's that makes it wider.
        """
        claim = Claim(
            "accuracy_relative", f"at least {share:g} of the original's {self.metric}", share, at_least=True
        )
        subset = self._only("all")
        lost = self._lost(subset)
        if isinstance(lost, str) or subset is None:
            return claim.missing(str(lost))
        original = subset.record.original
        if original is None or original.low <= 0:
            return claim.missing("shares are of figures above 0, and the original's may be none")
        ends = (original.value, original.low, original.high)

        def kept(loss: float, base: float) -> float:
            if self.higher:
                return 1 - loss / base
            return 1 / max(1 + loss / base, _LEAST_GROWTH)

        lowest = min(kept(lost.high, base) for base in ends)
        highest = max(kept(lost.low, base) for base in ends)
        measured = Interval(
            value=kept(lost.value, original.value), low=lowest, high=highest, count=lost.count
        )
        detail = f"kept {shown(measured)}, from {original.value:.4g} to {subset.record.final.value:.4g}"
        return self._judged(claim, subset, measured, f"{detail} on {lost.count} samples")

    def _segments(self, limit: float) -> Iterator[GateRecord]:
        found = [subset for subset in self.subsets if subset.record.kind == "segment"]
        if not found:
            yield self._drop("segment_drop", limit, None, " in any segment")
        for subset in found:
            name = visible(subset.record.name)
            gate = self._drop(f"segment_drop[{name}]", limit, subset, f" in segment {name}")
            yield _together(gate, len(found))

    def _worst_segment(self, limit: float) -> GateRecord:
        found = [subset for subset in self.subsets if subset.record.kind == "segment"]
        claim = self._level_claim("worst_segment", limit, f"{self.metric} of the worst segment")
        if not found or self.higher is None:
            return claim.missing("no segments were measured")
        gates = []
        for subset in found:
            final, corrected = subset.record.final, subset.corrected
            name = visible(subset.record.name)
            gate = self._judged(
                claim, subset, final, f"{name}: {shown(final)} on {final.count} samples",
                None if corrected is None else corrected.final,
            )  # fmt: skip
            gates.append((final.value if self.higher else -final.value, gate))
        verdict = worst(gate.verdict for _, gate in gates)
        # the one to show: the lowest of those that decided
        _, shown_gate = min(
            (entry for entry in gates if entry[1].verdict == verdict), key=lambda entry: entry[0]
        )
        return _together(shown_gate, len(found))

    def _likeness(self, name: str) -> GateRecord:
        limit = getattr(self.settings, name)
        what = f"at least {limit:g} of the samples have the original's highest class"
        if name == "cosine":
            what = f"the mean cosine with the original's outputs is at least {limit:g}"
        claim = Claim(name, what, limit, at_least=True)
        found = None if self.judged is None else getattr(self.judged, name)
        if found is None:
            return claim.missing(_UNMEASURED if self.judged is None else "the output holds no class scores")
        detail = f"{shown(found)} on {found.count} samples"
        return judged(claim, found, detail, is_share=name == "agreement", needed=_by_width(limit, found))

    def _judged(
        self,
        claim: Claim,
        subset: JudgedSubset,
        figure: Interval,
        detail: str,
        corrected: Interval | None = None,
    ) -> GateRecord:
        needed = self._needed(claim, subset, figure)
        return judged(claim, figure, detail, corrected, is_share=subset.is_share, needed=needed)

    def _needed(self, claim: Claim, subset: JudgedSubset, figure: Interval) -> int | None:
        """Return how many samples decide a gate if these are typical; None if no number does."""
        risen, fallen = subset.risen, subset.fallen
        is_drop = claim.name.partition("[")[0].endswith("_drop")
        if is_drop and risen is not None and fallen is not None:
            gained, lost = (risen, fallen) if self.higher else (fallen, risen)
            z, count = quantile_of(self.settings.confidence), figure.count
            low, _ = score_interval(gained, lost, count, z)
            if math.isclose(-low, figure.high, abs_tol=1e-9):  # else it is the bootstrap's
                return samples_to_resolve(gained / count, lost / count, claim.limit, z)
        return _by_width(claim.limit, figure)


def _by_width(limit: float, figure: Interval) -> int | None:
    """Return how many samples it takes: the width of an interval shrinks with the root of their number."""
    distance = abs(figure.value - limit)
    side = figure.value - figure.low if figure.value > limit else figure.high - figure.value
    return math.ceil(figure.count * (side / distance) ** 2) if distance > 1e-12 else None


def judged(
    claim: Claim,
    figure: Interval,
    detail: str,
    corrected: Interval | None = None,
    *,
    is_share: bool,
    needed: int | None,
) -> GateRecord:
    """Judge an estimate from samples; where they don't decide, say how many would.

    Args:
        claim: what is asked.
        figure: what was found.
        detail: the same in words.
        corrected: the interval to fail by, where several are looked at.
        is_share: any number of samples has an interval; those of other figures are bootstrapped, which takes
            `LEAST_DIFFERING` of them.
        needed: how many samples would decide; None if no number does.
    """
    gate = claim.estimated(figure, detail, corrected)
    if not is_share and figure.count < LEAST_DIFFERING:
        why = f"; a figure without bounds takes {LEAST_DIFFERING} samples or more, not {figure.count}"
        return gate.model_copy(update={"verdict": "inconclusive", "detail": detail + why})
    if gate.verdict != "inconclusive":
        return gate
    if claim.holds(figure.low, figure.high) == "fail":
        why = "; alone it would fail, but one of so many may by chance"
    elif needed is None:
        why = "; what was found lies on the limit: more samples may never decide it"
    else:
        why = f"; about {_rounded(needed)} samples would decide it if these are typical"
    return gate.model_copy(update={"detail": detail + why})


def _rounded(count: int) -> int:
    """Return a number of samples upwards, to two digits."""
    unit = int(10 ** max(0, len(str(count)) - 2))
    return -(-count // unit) * unit


def _changes(subset: JudgedSubset) -> str:
    risen, fallen = subset.risen, subset.fallen
    if risen is None or fallen is None or risen != int(risen) or fallen != int(fallen):
        return ""
    return f" ({fallen:.0f} became wrong, {risen:.0f} right)"


def _together(gate: GateRecord, count: int) -> GateRecord:
    """Say by what interval a segment that did not pass is judged, where it is one of several."""
    if count == 1 or gate.verdict == "pass":
        return gate
    why = f"; fails only by an interval that holds for all {count} segments together"
    return gate.model_copy(update={"detail": gate.detail + why})
