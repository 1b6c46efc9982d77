"""Another way of pruning at the same measured time: bisection on how much goes, with the clock as judge."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

M = TypeVar("M")

#: A ratio from the target to this much above it, relative to it, is the same time.
TOLERANCE = 0.02

#: Amounts nearer to each other than this are not told apart.
_RESOLUTION = 0.002


@dataclass(frozen=True, slots=True)
class Trial(Generic[M]):
    """One amount that was tried.

    Attributes:
        amount: what was asked for, in (0, 1): more goes with more.
        made: what came of it.
        ratio: its measured time as a share of the original's.
    """

    amount: float
    made: M
    ratio: float


@dataclass(frozen=True, slots=True)
class Meeting(Generic[M]):
    """What a bisection found.

    Attributes:
        slower: the fastest trial that takes at least the target.
        faster: the slowest trial that takes less.
        trials: how many models were timed.
    """

    slower: Trial[M] | None
    faster: Trial[M] | None
    trials: int

    @property
    def given(self) -> Trial[M] | None:
        """The trial to compare with something that takes the target: it has at least as much time.

        Where nothing takes as much, the slowest of all.
        """
        return self.slower or self.faster


def meet(
    make: Callable[[float], M | None],
    ratio_of: Callable[[M], float],
    same: Callable[[M], Hashable],
    target: float,
    *,
    most: int = 9,
    highest: float = 0.95,
) -> Meeting[M]:
    """Find the amount at which a model takes a share of the original's time.

    A step of channel counts may jump over the target; then the trials on both sides of it are what there is.
    Time need not fall everywhere with the amount: the best of all trials counts, not the last.

    Args:
        make: from an amount in (0, 1) to a model; None where that much can't go.
        ratio_of: measures its time as a share of the original's.
        same: equal for models that need not be timed twice: those with the same channel counts.
        target: the share.
        most: models that are timed.
        highest: amount that is tried at most.
    """
    low, high = 0.0, highest
    trials: dict[Hashable, Trial[M]] = {}
    while len(trials) < most and high - low > _RESOLUTION:
        amount = (low + high) / 2
        made = make(amount)
        if made is None:
            high = amount
            continue
        key = same(made)
        if key not in trials:
            trials[key] = Trial(amount, made, ratio_of(made))
        ratio = trials[key].ratio
        if target <= ratio <= target * (1 + TOLERANCE):
            break
        low, high = (amount, high) if ratio > target else (low, amount)
    slower = [trial for trial in trials.values() if trial.ratio >= target]
    faster = [trial for trial in trials.values() if trial.ratio < target]
    return Meeting(
        min(slower, key=lambda trial: trial.ratio, default=None),
        max(faster, key=lambda trial: trial.ratio, default=None),
        len(trials),
    )
