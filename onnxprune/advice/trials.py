"""Candidates timed against the original, in turns, as far as the time goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from onnxprune.advice.candidates import Candidate, Made
from onnxprune.errors import LimitMissed, NothingToPrune, OnnxPruneError
from onnxprune.measure.intervals import Estimate
from onnxprune.measure.latency import Verdict
from onnxprune.messages import one_line

#: For so much longer than the limit, as a share of it, models are made that take seconds, for their bounds.
_GRACE = 0.25


class Clock:
    """How much time is left for measuring.

    Args:
        limit_seconds: from now on.
    """

    def __init__(self, limit_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        self._end = time.perf_counter() + limit_seconds

    @property
    def left_seconds(self) -> float:
        """What is left; negative once it is over."""
        return self._end - time.perf_counter()


@dataclass(frozen=True, slots=True)
class Compared:
    """Time of a model against the original.

    Attributes:
        ratio: of the model's to the original's.
        control: the same of the original to itself.
        verdict: on that.
    """

    ratio: Estimate
    control: Estimate
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of a candidate.

    Attributes:
        candidate: what was tried.
        size_ratio: bytes of the weights of what it makes, to the original's; None where it makes nothing.
        macs_ratio: the same of multiply-accumulates; None where they don't say what it costs.
        ratio: its latency as a share of the original's; None where it was not timed.
        verdict: of the benchmark, on that; None as above.
        bound: the least that the ratio can be, by Amdahl's law; None where nothing is known.
        noise: how far the control of the benchmark lies from 1, or may lie: the original against itself.
        skipped: why it was not timed.
    """

    candidate: Candidate
    size_ratio: float | None = None
    macs_ratio: float | None = None
    ratio: Estimate | None = None
    verdict: Verdict | None = None
    bound: float | None = None
    noise: float = 0.0
    skipped: str | None = None

    @property
    def faster(self) -> bool:
        """Tell whether it was measured to be faster, beyond noise."""
        return self.verdict == "faster"


def run_trial(
    candidate: Candidate,
    compare: Callable[[Made], Compared],
    bound_of: Callable[[Made], float | None],
    clock: Clock,
    *,
    needed_seconds: float,
    progress: Callable[[str], None],
) -> tuple[Trial, Made | None]:
    """Make and time a candidate; where there is no time for that, it gets a bound.

    It comes with the model that it made, which nobody keeps: all of them together may be large.

    Args:
        candidate: what is tried.
        compare: times a model against the original.
        bound_of: the least share of the time that a model can take, as far as that is known.
        clock: what is left.
        needed_seconds: that timing one takes.
        progress: is told what is being tried.
    """
    late = _no_time(needed_seconds, clock)
    progress(candidate.name)
    if clock.left_seconds <= (-_GRACE * clock.limit_seconds if candidate.cheap else 0):
        return Trial(candidate, skipped=late), None
    try:
        made = candidate.make()
    except (NothingToPrune, LimitMissed) as error:
        return Trial(candidate, skipped=f"it removes nothing: {one_line(error)}"), None
    except OnnxPruneError as error:
        return Trial(candidate, skipped=f"it can't be made: {one_line(error)}"), None
    trial = Trial(candidate, made.size_ratio, made.macs_ratio, bound=bound_of(made))
    if clock.left_seconds < needed_seconds:
        return replace(trial, skipped=late), made
    try:
        found = compare(made)
    except OnnxPruneError as error:
        return replace(trial, skipped=f"it can't be timed: {one_line(error)}"), made
    noise = max(1 - found.control.low, found.control.high - 1)
    return replace(trial, ratio=found.ratio, verdict=found.verdict, noise=noise), made


def _no_time(needed: float, clock: Clock) -> str:
    return (
        f"not timed: it takes about {max(needed, 1):.0f} s, and the {clock.limit_seconds:g} s of "
        "--time-limit are over"
    )
