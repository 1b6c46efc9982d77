"""How much is removed by when: at once, or growing over the steps of a tuning run, or round by round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from onnxprune.errors import UsageError
from onnxprune.registry import did_you_mean

#: How the share that is removed grows.
SHAPES = ("one-shot", "linear", "cubic", "geometric")

#: Prunings of a schedule that says nothing of their frequency.
_USUAL_PRUNINGS = 20

#: Share of the steps before the first pruning, where nothing is said; none where all goes at once.
_USUAL_WARM_UP = 0.1


class Milestone(NamedTuple):
    """One pruning.

    Attributes:
        step: how many steps of tuning are done before it.
        share: what is removed after it, of the whole.
    """

    step: int
    share: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """When what share is removed, over the steps of one tuning run.

    With p the part of the prunings that are done, from 0 at the first to 1 at the last:

    - one-shot: all goes at the first.
    - linear: ``initial + (final - initial) * p``.
    - cubic: ``final + (initial - final) * (1 - p)**3``, fast at first, when there is much that does not
      matter, and slowly at the end (Zhu and Gupta 2017, "To Prune, or Not to Prune", eq. 1).
    - geometric: ``1 - (1 - initial)**(1 - p) * (1 - final)**p``, the same share of what is left each time,
      as iterative magnitude pruning does (Frankle and Carbin 2019, "The Lottery Ticket Hypothesis",
      section 2).

    Attributes:
        final: share that is removed in the end, in (0, 1).
        steps: of tuning in all, at least one.
        shape: one of `SHAPES`.
        initial: share that is removed at the first pruning already (nothing is pruned then if it is 0).
        warm_up: share of the steps before the first pruning; None for 0.1, or 0 where all goes at once.
        frequency: steps from one pruning to the next; None for about 20 prunings.
        freeze: share of the steps after the last pruning, in which nothing more goes.
    """

    final: float
    steps: int
    shape: str = "cubic"
    initial: float = 0.0
    warm_up: float | None = None
    frequency: int | None = None
    freeze: float = 0.25

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UsageError: naming it.
        """
        _check_shape(self.shape)
        for name, value in (
            ("steps", self.steps),
            ("frequency", 1 if self.frequency is None else self.frequency),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"{name} is a whole number from 1 on, not {value!r}")
        if not 0 < self.final < 1:  # also refuses NaN
            raise UsageError(f"a schedule removes a share between 0 and 1, not {self.final!r}")
        if not 0 <= self.initial < self.final:
            raise UsageError(
                f"the initial share is at least 0 and below the final one, {self.final:g}, "
                f"not {self.initial!r}"
            )
        before = self.warm_up_share
        if not (0 <= before <= 1 and 0 <= self.freeze <= 1 and before + self.freeze <= 1):
            raise UsageError(
                f"warm-up {before:g} and freeze {self.freeze:g} are shares of the steps, together at most 1"
            )
        span = self._last_step - self._first_step
        if self.shape != "one-shot" and self.frequency is not None and span < self.frequency:
            raise UsageError(
                f"{span} steps lie between warm-up and freeze, fewer than the {self.frequency} from one "
                "pruning to the next: take more steps, or prune more often"
            )

    @property
    def warm_up_share(self) -> float:
        """Share of the steps before the first pruning."""
        if self.warm_up is not None:
            return self.warm_up
        return 0.0 if self.shape == "one-shot" else _USUAL_WARM_UP

    @property
    def _first_step(self) -> int:
        return math.floor(self.warm_up_share * self.steps)

    @property
    def _last_step(self) -> int:
        return max(self._first_step, self.steps - math.ceil(self.freeze * self.steps))

    def milestones(self) -> tuple[Milestone, ...]:
        """Return the prunings in order: steps and shares grow strictly, and the last share is ``final``."""
        first, span = self._first_step, self._last_step - self._first_step
        if self.shape == "one-shot" or span == 0:
            return (Milestone(first, self.final),)
        frequency = self.frequency or max(1, span // _USUAL_PRUNINGS)
        count = span // frequency
        shares = [self.initial, *shares_by_round(self.final, count, self.shape, initial=self.initial)]
        found: list[Milestone] = []
        for number, share in enumerate(shares):
            if share > (found[-1].share if found else 0.0):
                found.append(Milestone(first + number * frequency, share))
        return tuple(found)


def shares_by_round(
    final: float, rounds: int, shape: str = "cubic", *, initial: float = 0.0
) -> tuple[float, ...]:
    """Return the share that is removed by the end of each round; the last one is ``final``.

    Args:
        final: share that is removed in the end.
        rounds: how many there are, at least one.
        shape: one of `SHAPES`; the formulas are in `Schedule`, with p = round / rounds.
        initial: share that is removed before the first.

    Raises:
        UsageError: there is no round, or no such shape.
    """
    _check_shape(shape)
    if rounds < 1:
        raise UsageError(f"rounds is a whole number from 1 on, not {rounds}")
    if shape == "one-shot":
        return (final,) * rounds

    def share(part: float) -> float:
        if shape == "linear":
            return initial + (final - initial) * part
        if shape == "cubic":
            return final + (initial - final) * (1 - part) ** 3
        return 1 - float((1 - initial) ** (1 - part) * (1 - final) ** part)

    return (*(share(number / rounds) for number in range(1, rounds)), final)


def _check_shape(shape: str) -> None:
    if shape not in SHAPES:
        raise UsageError(
            f"unknown schedule {shape!r}{did_you_mean(shape, SHAPES)}; known: {', '.join(SHAPES)}"
        )
