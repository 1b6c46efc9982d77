"""Importance and a budget -> the residual branches that go."""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.allocate.wishes import check_wishes
from onnxprune.errors import LimitMissed, UsageError
from onnxprune.types import Branch, Budget, FloatArray, IntArray, Metric

#: Whether all branches compete, or only those of one kind with each other.
SCOPES = ("global", "uniform")


@dataclass(frozen=True, slots=True)
class Limits:
    """What may not go.

    Attributes:
        scope: "global" (all branches compete) or "uniform" (the same share of every kind goes).
        protect: globs over the names of branches, of the nodes that add them, and of their weights.
        floor: the least share of the branches of every kind that stays; at least one always does.
    """

    scope: str = "global"
    protect: Sequence[str] = ()
    floor: float = 0.1


def choose_branches(
    branches: Sequence[Branch],
    scores: FloatArray,
    limits: Limits,
    *,
    amount: float | None = None,
    counts: Mapping[str, int] | None = None,
    budgets: Sequence[Budget] = (),
    cost: Callable[[Sequence[int], Metric], float] | None = None,
    why_not: Callable[[Sequence[int]], str | None] = lambda _: None,
) -> tuple[IntArray, Mapping[int, str]]:
    """Decide which branches go: the least important ones, or those that matter least for what they cost.

    Args:
        branches: all that can go.
        scores: float64 [branch], higher is kept longer.
        limits: see `Limits`.
        amount: share of the branches to remove, in [0, 1).
        counts: how many branches go by kind, instead of an amount or budgets.
        budgets: keep at most these shares of metrics, instead of an amount. Branches then go in order of
            their score per share that they take of what is to be saved.
        cost: the share of a metric that is left once branches (by number) are removed.
        why_not: the reason why branches must not go together, None if they may.

    Returns:
        int32 [removed branches], ascending, and why others stay that would have gone, by number.

    Raises:
        UsageError: neither or both of amount and budgets, a value out of range, an unknown scope.
        LimitMissed: no choice within the limits meets the budgets; the message says what was reached.
    """
    if counts is None:
        check_wishes(amount, budgets, limits.scope, SCOPES, limits.floor, "kind")
    reasons = _protected(branches, limits.protect)
    open_ = [number for number in range(len(branches)) if number not in reasons]
    room = _Room([branch.kind for branch in branches], limits.floor, why_not)
    if counts is not None:
        removed = _by_count(open_, scores, room, counts)
    elif amount is not None:
        removed = _by_amount(open_, scores, room, amount, limits.scope)
    elif cost is not None:
        removed, missed = _meet(open_, scores, room, budgets, cost)
        if missed is not None:
            stay = {**reasons, **room.kept}
            told = [f"{branches[number].name}: {stay[number]}" for number in sorted(stay)]
            raise LimitMissed(*missed, told)
    else:
        raise UsageError("a target needs a cost")
    return np.array(sorted(removed), dtype=np.int32), {**reasons, **room.kept}


def _protected(branches: Sequence[Branch], globs: Sequence[str]) -> dict[int, str]:
    return {
        number: f"protected by {glob!r}"
        for number, branch in enumerate(branches)
        for glob in globs
        if fnmatch.filter((branch.name, branch.node, *branch.weights), glob)
    }


class _Room:
    """The branches that are gone, and whether one more may go."""

    def __init__(
        self, kinds: Sequence[str], floor: float, why_not: Callable[[Sequence[int]], str | None]
    ) -> None:
        self.kinds = kinds
        self.left = Counter(kinds)
        self.least = {kind: max(1, math.ceil(floor * count)) for kind, count in self.left.items()}
        self.why_not = why_not
        self.gone: list[int] = []
        self.kept: dict[int, str] = {}

    def take(self, number: int) -> bool:
        """Let a branch go, or note why it stays."""
        kind = self.kinds[number]
        reason = self.why_not([*self.gone, number])
        if self.left[kind] <= self.least[kind]:
            what = kind.replace("_", " ")
            reason = f"the floor: {self.least[kind]} of {self.kinds.count(kind)} {what} branches stay"
        if reason is not None:
            self.kept[number] = reason
            return False
        self.left[kind] -= 1
        self.gone.append(number)
        return True


def _by_count(
    numbers: Sequence[int], scores: FloatArray, room: _Room, counts: Mapping[str, int]
) -> list[int]:
    """Take so many branches of each kind, as far as the limits let them go."""
    left = dict(counts)
    for number in sorted(numbers, key=scores.__getitem__):  # ties go in order of the graph
        kind = room.kinds[number]
        if left.get(kind, 0) and room.take(number):
            left[kind] -= 1
    return room.gone


def _by_amount(
    numbers: Sequence[int], scores: FloatArray, room: _Room, amount: float, scope: str
) -> list[int]:
    """Take a share of all branches, or of those of each kind, as far as the limits let them go."""
    if scope == "uniform":
        kinds = dict.fromkeys(room.kinds[number] for number in numbers)
        parts = [[number for number in numbers if room.kinds[number] == kind] for kind in kinds]
    else:
        parts = [list(numbers)]
    for part in parts:
        left = math.floor(amount * len(part) + 0.5)
        for number in sorted(part, key=scores.__getitem__):  # ties go in order of the graph
            if left and room.take(number):
                left -= 1
    return room.gone


def _meet(
    numbers: Sequence[int],
    scores: FloatArray,
    room: _Room,
    budgets: Sequence[Budget],
    cost: Callable[[Sequence[int], Metric], float],
) -> tuple[list[int], tuple[str, float] | None]:
    """Take branch by branch until the budgets are met; then give back what is not needed, the best first.

    Where that is not enough, the second result says so, and what is left.
    """

    def left(gone: Sequence[int]) -> list[float]:
        return [cost(gone, budget.metric) for budget in budgets]

    def fits(shares: Sequence[float]) -> bool:
        return all(share <= budget.keep for share, budget in zip(shares, budgets, strict=True))

    def saved(number: int) -> float:
        """Return what a branch takes of all that is to be saved; of the metric itself where it is one."""
        wanted = [max(1 - budget.keep, 1e-9) if len(budgets) > 1 else 1.0 for budget in budgets]
        return sum(max(1 - share, 0.0) / want for share, want in zip(left([number]), wanted, strict=True))

    savings = {number: saved(number) for number in numbers}
    worth = {number: scores[number] / savings[number] if savings[number] else math.inf for number in numbers}
    reached = left(room.gone)
    for number in sorted(numbers, key=worth.__getitem__):
        if fits(reached):
            break
        if room.take(number):
            reached = left(room.gone)
    for share, budget in zip(reached, budgets, strict=True):
        if share > budget.keep:
            why = "every branch that may go is gone; protect less or lower the floor"
            told = f"{budget.metric} can be brought to {share:.3f} of the original, not to {budget.keep:.4g}"
            return room.gone, (f"{told}: {why}", share)
    removed = room.gone
    for number in sorted(removed, key=scores.__getitem__, reverse=True):
        without = [other for other in removed if other != number]
        if fits(left(without)):
            removed = without
    return removed, None
