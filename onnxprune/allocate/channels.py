"""Scores and a budget -> the channels that go."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.allocate.by_sensitivity import make_menu, meet_amount, meet_target
from onnxprune.allocate.limits import Limit, met
from onnxprune.allocate.wishes import check_wishes
from onnxprune.errors import LimitMissed, UsageError
from onnxprune.types import BoolArray, ChannelGroup, Choice, Curve, FloatArray, IntArray, Scores

#: From the measured cliffs of ONNX Runtime on x86 (see docs): never an odd count, wide layers in blocks.
_AUTO_STEPS = ((128, 16), (64, 8), (8, 4))

#: The scope that goes by what was measured.
SENSITIVITY = "sensitivity"

#: Steps of the search for a target; each halves the uncertainty.
_BISECTIONS = 14


@dataclass(frozen=True, slots=True)
class Options:
    """How channels are chosen.

    Attributes:
        scope: "uniform" (the same share of every group), "global" (one threshold for normalised scores; where
            scores are losses, the least sum of them that meets the amount or target), "isomorphic" (one for
            each class of groups of the same structure, the same share of each class) or
            "sensitivity" (the least predicted loss, by measured curves).
        align: kept counts are multiples of this; "auto" follows what the CPU's kernels like.
        protect: globs; a group whose name, or one of whose tensors, matches stays whole.
        floor: the least share of a group that stays.
        kinds: the kinds of groups that may lose channels.
    """

    scope: str = "uniform"
    align: int | str = "auto"
    protect: Sequence[str] = ()
    floor: float = 0.1
    kinds: frozenset[str] = frozenset({"channels", "hidden", "heads", "experts"})


def choose_channels(
    groups: Sequence[ChannelGroup],
    scores: Scores,
    options: Options,
    *,
    amount: float | None = None,
    limits: Sequence[Limit] = (),
    steps: Mapping[str, int] | None = None,
    first: Mapping[str, BoolArray] | None = None,
    last: Mapping[str, BoolArray] | None = None,
    structures: Mapping[str, Hashable] | None = None,
    curves: Mapping[str, Curve] | None = None,
) -> tuple[Choice, ...]:
    """Decide which channels go, by amount or until all limits are kept.

    Args:
        groups: all groups of the model.
        scores: of the groups that are not frozen.
        options: see `Options`.
        amount: share of the channels to remove, in [0, 1).
        limits: on what may be left, instead of an amount.
        steps: by group name, what kept counts are multiples of, as it was measured; goes before what is
            usual where ``options.align`` is "auto".
        first: bool ``[size]`` by group name: channels that go before all others, because they do nothing.
        last: bool ``[size]`` by group name: channels that go after all others.
        structures: by group name, what groups that compete under "isomorphic" have in common.
        curves: by group name, what "sensitivity" goes by: one for every group that may lose channels.

    Raises:
        UsageError: neither or both of amount and limits, a value out of range, an unknown scope.
        LimitMissed: no choice within the floors keeps to the limits; the message says what was reached.
    """
    check_wishes(amount, limits, options.scope, (*_RANKINGS, SENSITIVITY), options.floor, "group")
    if options.align != "auto" and (not isinstance(options.align, int) or options.align < 1):
        raise UsageError(f"align is 'auto' or a whole number from 1 on, not {options.align!r}")
    reasons = {group.name: reason_to_skip(group, options) for group in groups}
    able = [group for group in groups if reasons[group.name] is None]
    ranked = _rank(able, scores, options, first or {}, last or {}, structures or {}, steps or {})
    if options.scope == SENSITIVITY:
        removed = _by_curves(ranked, curves or {}, amount, limits)
    elif amount is not None:
        removed = _RANKINGS[options.scope](ranked, amount)
    elif scores.losses and options.scope == "global":
        removed = _by_curves(ranked, _predicted(scores), None, limits)
    else:
        removed = _meet(ranked, limits, _RANKINGS[options.scope])
    empty = np.zeros(0, dtype=np.int32)
    return tuple(
        Choice(
            group,
            removed.get(group.name, empty),
            reasons[group.name]
            or (None if len(removed.get(group.name, empty)) else _nothing_goes(group, options, steps or {})),
        )
        for group in groups
    )


def removed_at(
    groups: Sequence[ChannelGroup],
    scores: Scores,
    options: Options,
    amounts: Sequence[float],
    *,
    first: Mapping[str, BoolArray],
    last: Mapping[str, BoolArray],
) -> dict[str, list[IntArray]]:
    """Return what goes from each group that may lose channels, at several amounts: each set once.

    Args:
        groups: all groups of the model.
        scores: of the groups that are not frozen.
        options: see `Options`; counts that they do not allow are not among those returned.
        amounts: shares to remove.
        first: as for `choose_channels`.
        last: as for `choose_channels`.
    """
    able = [group for group in groups if reason_to_skip(group, options) is None]
    found = {}
    for group in _rank(able, scores, options, first, last, {}, {}):
        sets = {len(gone): gone for gone in (group.weakest(amount * group.size) for amount in amounts)}
        found[group.name] = [sets[count] for count in sorted(sets) if count]
    return found


def reason_to_skip(group: ChannelGroup, options: Options) -> str | None:
    """Return why a group stays whole, None if it may lose channels."""
    if group.frozen is not None:
        return group.frozen
    if group.kind not in options.kinds:
        return f"the pattern does not remove {group.kind.replace('_', ' ')}"
    for pattern in options.protect:
        if any(
            fnmatch.fnmatchcase(name, pattern) for name in (group.name, *(m.tensor for m in group.members))
        ):
            return f"protected by {pattern!r}"
    return None


def _rank(
    groups: Sequence[ChannelGroup],
    scores: Scores,
    options: Options,
    first: Mapping[str, BoolArray],
    last: Mapping[str, BoolArray],
    structures: Mapping[str, Hashable],
    steps: Mapping[str, int],
) -> list[_Ranked]:
    return [
        _Ranked(
            group,
            _reranked(scores.channels[group.name], group.name, first, last, scores.losses),
            math.ceil(options.floor * group.size),
            _step(group, options, steps),
            structures.get(group.name),
        )
        for group in groups
    ]


def _reranked(
    values: FloatArray,
    name: str,
    first: Mapping[str, BoolArray],
    last: Mapping[str, BoolArray],
    losses: bool,
) -> FloatArray:
    """Return scores that compare between groups, with infinities for what goes first and last.

    Losses do as they are. Other scores grow with how much a channel has of weights and activations, so they
    are taken as shares of the greatest in the group. On trained networks (residual and transformer, four
    scores), a global threshold for these kept more accuracy than one for shares of the mean.
    """
    nobody = np.zeros(len(values), dtype=np.bool_)
    weakest, strongest = first.get(name, nobody), last.get(name, nobody)
    plain = values[~(weakest | strongest)]
    relative = values if losses else values / (plain.max(initial=0.0) or 1.0)
    return np.where(weakest, -np.inf, np.where(strongest, np.inf, relative))


def _nothing_goes(group: ChannelGroup, options: Options, steps: Mapping[str, int]) -> str:
    step = _step(group, options, steps)
    return f"all {group.size} channels stay at this amount (kept counts go in steps of {step})"


def _step(group: ChannelGroup, options: Options, steps: Mapping[str, int]) -> int:
    if options.align != "auto":
        return int(options.align)
    if group.name in steps:
        return steps[group.name]
    if group.kind != "channels":
        return 1  # heads count one by one, and matrix products have no cliffs
    return next((step for size, step in _AUTO_STEPS if group.size >= size), 1)


class _Ranked:
    """The channels of a group, weakest first, and the counts that may be left. Scores compare."""

    def __init__(
        self, group: ChannelGroup, values: FloatArray, least: int, step: int, structure: Hashable = None
    ) -> None:
        self.name = group.name
        self.structure = structure
        self.size = group.size
        self.values = values
        self.order: IntArray = np.argsort(values, kind="stable").astype(np.int32)  # ties go by index
        self.step = step
        self.least = max(1, least)

    def weakest(self, wanted: float) -> IntArray:
        """Return about ``wanted`` channels, ascending, such that what is left is allowed."""
        return np.sort(self.order[: self.size - self._allowed(self.size - wanted)])

    def counts(self) -> list[int]:
        """Return how many channels may go: at least those that go before all others, if that may be."""
        lowest = self._lowest()
        kept = {*range(lowest, self.size, self.step), self.size}
        counts = sorted(self.size - count for count in kept)
        first = int(np.isneginf(self.values).sum())
        return [count for count in counts if count >= first] or counts[-1:]

    def _lowest(self) -> int:
        return min(self.size, math.ceil(self.least / self.step) * self.step)

    def _allowed(self, kept: float) -> int:
        """Return the count nearest to ``kept`` that is whole or a multiple of the step above the floor."""
        lowest = self._lowest()
        below = math.floor(kept / self.step) * self.step
        counts = [min(max(count, lowest), self.size) for count in (below, below + self.step, self.size)]
        return min(counts, key=lambda count: (abs(count - kept), count))


def _uniform(ranked: Sequence[_Ranked], amount: float) -> dict[str, IntArray]:
    """The same share of every group."""
    return {group.name: group.weakest(amount * group.size) for group in ranked}


def _global(ranked: Sequence[_Ranked], amount: float) -> dict[str, IntArray]:
    """The lowest share of all channels."""
    if not ranked:
        return {}
    everything = np.sort(np.concatenate([group.values for group in ranked]))
    count = round(amount * len(everything))
    threshold = everything[count] if count < len(everything) else np.inf
    return {group.name: group.weakest(float((group.values < threshold).sum())) for group in ranked}


def _isomorphic(ranked: Sequence[_Ranked], amount: float) -> dict[str, IntArray]:
    """The lowest share of the channels of every class of groups of the same structure."""
    classes: dict[Hashable, list[_Ranked]] = {}
    for group in ranked:
        classes.setdefault(group.structure, []).append(group)
    return {name: gone for each in classes.values() for name, gone in _global(each, amount).items()}


_RANKINGS: dict[str, Callable[[Sequence[_Ranked], float], dict[str, IntArray]]] = {
    "uniform": _uniform,
    "global": _global,
    "isomorphic": _isomorphic,
}


def _by_curves(
    ranked: Sequence[_Ranked],
    curves: Mapping[str, Curve],
    amount: float | None,
    limits: Sequence[Limit],
) -> dict[str, IntArray]:
    """The weakest channels of every group, as many of each as add up to the least predicted loss."""
    groups = {group.name: group for group in ranked}
    menus = [make_menu(curves[group.name], group.counts()) for group in ranked]

    def removed(counts: Mapping[str, int]) -> dict[str, IntArray]:
        return {name: groups[name].weakest(count) for name, count in counts.items()}

    if amount is not None:
        return removed(meet_amount(menus, round(amount * sum(group.size for group in ranked))))
    others = [_meet(ranked, limits, choose) for choose in (_uniform, _global)]
    starts = [{name: len(gone) for name, gone in other.items()} for other in others]
    limit = limits[0]
    counts = meet_target(menus, limit.keep, lambda counts: limit.left(removed(counts)), starts)
    if counts is None:
        raise LimitMissed(
            f"{limit.metric} can't be brought to {limit.keep:.4g} of the original by what could be "
            "measured: some trials failed (see what was left alone); take another scope"
        )
    return removed(counts)


def _meet(
    ranked: Sequence[_Ranked],
    limits: Sequence[Limit],
    choose: Callable[[Sequence[_Ranked], float], dict[str, IntArray]],
) -> dict[str, IntArray]:
    """Find the smallest amount that keeps to the limits, by bisection; nothing, if nothing may go."""
    if not ranked:
        return {}
    low, high = 0.0, 1.0 - 1e-9
    best = choose(ranked, high)
    for limit in limits:
        reached = limit.left(best)
        if reached > limit.keep:
            raise LimitMissed(
                f"{limit.metric} can be brought to {reached:.3f} of the original, not to {limit.keep:.4g}: "
                f"every group that may shrink is at its floor; protect less or lower the floor"
            )
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        removed = choose(ranked, middle)
        if met(limits, removed):
            best, high = removed, middle
        else:
            low = middle
    return _give_back(best, choose(ranked, low), limits)


def _predicted(scores: Scores) -> dict[str, Curve]:
    """Return what each group loses when its weakest channels go, from scores that are losses."""
    return {
        name: Curve(name, len(values), np.arange(len(values) + 1), np.append(0.0, np.cumsum(np.sort(values))))
        for name, values in scores.channels.items()
    }


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
