"""How limits are met: by the smallest amount of a ranking, or at the least loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.allocate.limits import Limit, met
from onnxprune.allocate.menus import Counts, Menu, make_menu, meet_amount
from onnxprune.allocate.ranked import Ranked, global_, uniform
from onnxprune.allocate.search import CountLimit, keep_within, least_left
from onnxprune.types import Curve, FloatArray, IntArray

#: Steps of the search for a target; each halves the uncertainty.
_BISECTIONS = 14

#: The largest amount that a ranking is asked for.
_EVERYTHING = 1.0 - 1e-9

#: Counts that a group offers at most: steps of less than one percent.
_MOST_COUNTS = 128

Chooser = Callable[[Sequence[Ranked], float], dict[str, IntArray]]


@dataclass(frozen=True, slots=True)
class Missed:
    """A limit that no choice keeps to.

    Attributes:
        limit: the limit.
        best: int32 channel numbers by group name: what leaves least of it.
        why: why no more can go, and what to do.
    """

    limit: Limit
    best: Mapping[str, IntArray]
    why: str


def meet(ranked: Sequence[Ranked], limits: Sequence[Limit], choose: Chooser) -> dict[str, IntArray] | Missed:
    """Find the smallest amount that keeps to the limits, by bisection; nothing, if nothing may go.

    Args:
        ranked: the groups that may lose channels.
        limits: at least one.
        choose: shares an amount out.
    """
    if not ranked:
        return {}
    low, high = 0.0, _EVERYTHING
    best = choose(ranked, high)
    for limit in limits:
        if limit.left(best) > limit.keep:
            why = "every group that may shrink is at its floor; protect less or lower the floor"
            return Missed(limit, best, why)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        removed = choose(ranked, middle)
        if met(limits, removed):
            best, high = removed, middle
        else:
            low = middle
    return _give_back(best, choose(ranked, low), limits)


def _give_back(
    removed: dict[str, IntArray], less: Mapping[str, IntArray], limits: Sequence[Limit]
) -> dict[str, IntArray]:
    """Between a choice that keeps to the limits and the next one, which does not, take group by group.

    Whole groups move by a step at once, so the limits are kept with room to spare. Where the larger part of a
    group still fits, it stays.
    """
    for name, fewer in less.items():
        if len(fewer) < len(removed[name]):
            trial = {**removed, name: fewer}
            if met(limits, trial):
                removed = trial
    return removed


def make_menus(ranked: Sequence[Ranked], curves: Mapping[str, Curve]) -> list[Menu]:
    """Return what each group offers, by what it loses when so many of its weakest channels go.

    Of a group that offers more counts than can be told apart, every few of them are taken.
    """
    return [make_menu(curves[group.name], _thinned(group.counts())) for group in ranked]


def _thinned(counts: Sequence[int]) -> list[int]:
    places = np.linspace(0, len(counts) - 1, min(len(counts), _MOST_COUNTS))
    return [counts[place] for place in np.unique(np.rint(places).astype(int)).tolist()]


def lose_least(
    ranked: Sequence[Ranked], menus: Sequence[Menu], amount: float | None, limits: Sequence[Limit]
) -> dict[str, IntArray] | Missed:
    """Take the weakest channels of every group, as many of each as add up to the least loss.

    Args:
        ranked: the groups that may lose channels.
        menus: one for each of them.
        amount: share of all channels that goes, or None.
        limits: at least one where no amount is given.
    """
    if not ranked:
        return {}
    groups = {group.name: group for group in ranked}

    def removed(counts: Mapping[str, int]) -> dict[str, IntArray]:
        return {name: groups[name].weakest(count) for name, count in counts.items()}

    if amount is not None:
        return removed(meet_amount(menus, round(amount * sum(group.size for group in ranked))))
    others = [meet(ranked, limits, choose) for choose in (uniform, global_)]
    starts = [
        {name: len(gone) for name, gone in other.items()} for other in others if not isinstance(other, Missed)
    ]
    counted = [_by_counts(limit, groups) for limit in limits]
    counts = keep_within(menus, counted, starts)
    if counts is not None:
        return removed(counts)
    if starts:
        why = "by what could be measured: some trials failed (see what was left alone); take another scope"
    else:
        why = "every group that may shrink is at its floor; protect less or lower the floor"
    for limit, one in zip(limits, counted, strict=True):
        best = removed(least_left(menus, one))
        if limit.left(best) > limit.keep:
            return Missed(limit, best, why)
    return Missed(limits[0], removed(least_left(menus, counted[0])), "not together with the other targets")


def _by_counts(limit: Limit, groups: Mapping[str, Ranked]) -> CountLimit:
    """Return a limit on counts, of which the weakest channels go."""

    def removed(counts: Mapping[str, int]) -> dict[str, IntArray]:
        return {name: groups[name].weakest(count) for name, count in counts.items()}

    def along(counts: Mapping[str, int], name: str, options: Counts) -> FloatArray:
        several = [groups[name].weakest(count) for count in options.tolist()]
        return limit.along(removed(counts), name, several)  # type: ignore[misc] # used only if it is there

    exact = None if limit.along is None else along
    return CountLimit(limit.keep, lambda counts: limit.left(removed(counts)), exact)
