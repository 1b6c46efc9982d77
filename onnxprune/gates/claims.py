"""One gate: a figure with its interval beside a limit, and the verdict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from onnxprune.record import GateRecord, Interval, Verdict

#: Verdicts, the worst first.
_ORDER: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")


@dataclass(frozen=True, slots=True)
class Claim:
    """What a gate asks.

    Attributes:
        name: of the gate.
        requirement: what is asked, in words.
        limit: the number.
        at_least: the figure has to reach the limit; otherwise it may not be above it.
    """

    name: str
    requirement: str
    limit: float
    at_least: bool

    def holds(self, low: float, high: float) -> Verdict:
        """Return pass where a whole interval keeps the limit, fail where none of it does.

        What is no number keeps nothing and breaks nothing.
        """
        if self.at_least:
            return "pass" if low >= self.limit else "fail" if high < self.limit else "inconclusive"
        return "pass" if high <= self.limit else "fail" if low > self.limit else "inconclusive"

    def exact(self, figure: float, detail: str) -> GateRecord:
        """Judge a figure that is counted, not estimated."""
        return self.record(self.holds(figure, figure), figure, detail)

    def estimated(self, figure: Interval, detail: str, for_failing: Interval | None = None) -> GateRecord:
        """Judge an estimate: passing by its interval, failing by another one where several are looked at."""
        verdict = self.holds(figure.low, figure.high)
        if verdict == "fail" and for_failing is not None:
            verdict = self.holds(for_failing.low, for_failing.high)
        return self.record(verdict, figure, detail)

    def missing(self, why: str) -> GateRecord:
        """Say that there is nothing to judge by."""
        return self.record("inconclusive", None, why)

    def record(self, verdict: Verdict, measured: Any, detail: str) -> GateRecord:
        """Return the gate with a verdict."""
        return GateRecord(
            name=self.name, requirement=self.requirement, limit=self.limit, measured=measured,
            verdict=verdict, detail=detail,
        )  # fmt: skip


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst verdict; pass where there is none."""
    return min(verdicts, key=_ORDER.index, default="pass")


def flipped(figure: Interval) -> Interval:
    """Return an estimate of the same figure with the other sign."""
    ends = {"value": 0.0 - figure.value, "low": 0.0 - figure.high, "high": 0.0 - figure.low}  # never -0
    return Interval(**ends, count=figure.count)


def shown(figure: Interval, digits: int = 4) -> str:
    """Return an estimate as text."""
    value, low, high = (f"{end + 0.0:.{digits}g}" for end in (figure.value, figure.low, figure.high))
    return f"{value} [{low}, {high}]"  # adding 0 takes the sign from a zero
