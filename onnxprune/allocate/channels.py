"""Scores and limits -> the channels that go."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from onnxprune.allocate.importance import importance_kept, predicted_losses
from onnxprune.allocate.limits import Limit
from onnxprune.allocate.meeting import Missed, lose_least, make_menus, meet
from onnxprune.allocate.obstacles import limit_missed
from onnxprune.allocate.options import KNAPSACK, SENSITIVITY, Options, reason_to_skip
from onnxprune.allocate.ranked import RANKINGS, rank, step_of
from onnxprune.allocate.wishes import check_wishes
from onnxprune.errors import UsageError
from onnxprune.types import BoolArray, ChannelGroup, Choice, Curve, IntArray, Scores


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
    check_wishes(amount, limits, options.scope, (*RANKINGS, KNAPSACK, SENSITIVITY), options.floor, "group")
    if options.align != "auto" and (not isinstance(options.align, int) or options.align < 1):
        raise UsageError(f"align is 'auto' or a whole number from 1 on, not {options.align!r}")
    reasons = {group.name: reason_to_skip(group, options) for group in groups}
    able = [group for group in groups if reasons[group.name] is None]
    ranked = rank(able, scores, options, first or {}, last or {}, structures or {}, steps or {})
    removed: Mapping[str, IntArray] | Missed
    if options.scope in (KNAPSACK, SENSITIVITY):
        known = (
            curves or {} if options.scope == SENSITIVITY else predicted_losses(ranked, losses=scores.losses)
        )
        removed = lose_least(ranked, make_menus(ranked, known), amount, limits)
    elif amount is not None:
        removed = RANKINGS[options.scope](ranked, amount)
    elif scores.losses and options.scope == "global":
        menus = make_menus(ranked, predicted_losses(ranked, losses=True))
        removed = lose_least(ranked, menus, None, limits)
    else:
        removed = meet(ranked, limits, RANKINGS[options.scope])
    if isinstance(removed, Missed):
        raise limit_missed(removed, groups, reasons)
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


def choose_again(
    groups: Sequence[ChannelGroup],
    scores: Scores,
    options: Options,
    counts: Mapping[str, int],
    *,
    first: Mapping[str, BoolArray],
    last: Mapping[str, BoolArray],
) -> dict[str, IntArray | str]:
    """Choose so many channels of each group, the least important ones, whatever else would be chosen.

    Args:
        groups: all groups of the model.
        scores: of the groups that are not frozen.
        options: of which floor and alignment play no part.
        counts: how many channels go, by the names of groups that lose any.
        first: as for `choose_channels`.
        last: as for `choose_channels`.

    Returns:
        int32 channel numbers by group name, or the reason why a group's channels can't be chosen.
    """
    found: dict[str, IntArray | str] = {}
    reasons = {group.name: reason_to_skip(group, options) for group in groups}
    able = [group for group in groups if group.name in counts and reasons[group.name] is None]
    for ranked in rank(able, scores, options, first, last, {}, {}):
        found[ranked.name] = np.sort(ranked.order[: counts[ranked.name]])
    return {**{name: str(reasons[name]) for name in counts if name not in found}, **found}


def share_kept(
    groups: Sequence[ChannelGroup],
    scores: Scores,
    options: Options,
    removed: Mapping[str, IntArray],
    *,
    first: Mapping[str, BoolArray],
    last: Mapping[str, BoolArray],
) -> float:
    """Return the share of the importance that a choice keeps: see `importance_kept`.

    Args:
        groups: all groups of the model.
        scores: of the groups that are not frozen.
        options: see `Options`.
        removed: int32 channel numbers by group name.
        first: as for `choose_channels`.
        last: as for `choose_channels`.
    """
    able = [group for group in groups if reason_to_skip(group, options) is None]
    return importance_kept(rank(able, scores, options, first, last, {}, {}), removed, losses=scores.losses)


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
    for group in rank(able, scores, options, first, last, {}, {}):
        sets = {len(gone): gone for gone in (group.weakest(amount * group.size) for amount in amounts)}
        found[group.name] = [sets[count] for count in sorted(sets) if count]
    return found


def _nothing_goes(group: ChannelGroup, options: Options, steps: Mapping[str, int]) -> str:
    step = step_of(group, options, steps)
    return f"all {group.size} channels stay at this amount (kept counts go in steps of {step})"
