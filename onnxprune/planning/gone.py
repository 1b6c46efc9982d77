"""What is gone already counts, goes before everything else, and is never brought back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.allocate.dead import Dead
from onnxprune.planning.channel_trials import Candidates
from onnxprune.types import BoolArray, ChannelGroup, Choice, IntArray, Mask


def masks_with_gone(gone: Mapping[str, Mask], now: Mapping[str, Mask]) -> dict[str, Mask]:
    """Return masks without the weights that are gone."""
    joined = {**gone, **now}
    for name in gone.keys() & now.keys():
        joined[name] = Mask(now[name].shape, gone[name].bits & now[name].bits)
    return joined


def with_gone(choice: Choice, original: Mapping[str, ChannelGroup], before: Mapping[str, IntArray]) -> Choice:
    """Return a choice with the channels that are gone.

    Args:
        choice: for one group.
        original: all groups as they were found, by name.
        before: int32 channel numbers by group name.
    """
    name = choice.group.name
    total = np.union1d(choice.removed, before.get(name, [])).astype(np.int32)
    return Choice(original[name], total, None if len(total) else choice.skipped)


def gone_first(candidates: Candidates, masked: Mapping[str, IntArray]) -> Dead:
    """Let channels that are masked already go before all others; none of them carries a constant."""
    dead = candidates.dead
    first, last = dict(dead.removable), dict(dead.carriers)
    for group in candidates.groups:
        if group.name in masked:
            gone = among(group, masked[group.name])
            first[group.name] = gone | dead.removable.get(group.name, False)
            last[group.name] = ~gone & dead.carriers.get(group.name, False)
    return replace(dead, removable=first, carriers=last)


def among(group: ChannelGroup, numbers: IntArray) -> BoolArray:
    """Return bool [size], True for some channels."""
    marked = np.zeros(group.size, dtype=np.bool_)
    marked[numbers] = True
    return marked


def frozen(groups: Sequence[ChannelGroup], reasons: Mapping[str, str]) -> list[ChannelGroup]:
    """Return the groups, those that have a reason to stay whole frozen."""
    return [
        replace(group, frozen=group.frozen or reasons[group.name]) if group.name in reasons else group
        for group in groups
    ]
