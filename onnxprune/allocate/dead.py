"""Dead channels: those whose removal changes nothing that the model computes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.allocate.options import Options, reason_to_skip
from onnxprune.ops.kept import Kept
from onnxprune.ops.sums import SeenConstants, Sums
from onnxprune.types import BoolArray, ChannelGroup, Choice, IntArray, Skipped


@dataclass(frozen=True, slots=True)
class Dead:
    """Which channels do nothing: no sum reads them, or all that read them see a constant.

    Attributes:
        removable: bool ``[size]`` by group name: they may go, all together.
        carriers: bool ``[size]`` by group name: constants that stay, since others are folded into
            their weights.
        stuck: by group name, why other constants of the group stay.
        found: by group name, how many channels are dead, whether or not they may go.
    """

    removable: Mapping[str, BoolArray]
    carriers: Mapping[str, BoolArray]
    stuck: Mapping[str, str]
    found: Mapping[str, int]


def find_dead(
    groups: Sequence[ChannelGroup], units: Mapping[str, IntArray], sums: Sums, options: Options
) -> Dead:
    """Find the channels that may go without changing anything; each group keeps at least one.

    Args:
        groups: all groups of the model.
        units: int32 ``[size]`` by group name, the label of each channel.
        sums: of the model.
        options: what is protected, and the kinds of groups that may lose channels.
    """
    count = sums.channels.labels.count
    summed = np.zeros(count, dtype=np.bool_)
    for seen in sums.seen:
        summed[seen.labels] = True
    stays = carriers = alive = np.ones(count, dtype=np.bool_)
    while True:  # what only dead channels read is dead as well
        alive = _alive(sums, ~stays)
        before, stays = stays, np.ones(count, dtype=np.bool_)
        for group in groups:
            if group.exact and reason_to_skip(group, options) is None:
                labels = units[group.name]
                stays[labels] = alive[labels]
                if not stays[labels].any():
                    stays[labels[0]] = True
        carriers = _choose_carriers(sums, stays)
        stays |= carriers
        if np.array_equal(stays, before):
            break
    return Dead(
        removable={group.name: ~stays[units[group.name]] for group in groups},
        carriers={group.name: carriers[units[group.name]] for group in groups},
        stuck=_stuck(groups, units, sums),
        found={group.name: int((summed & ~alive)[units[group.name]].sum()) for group in groups},
    )


def _alive(sums: Sums, gone: BoolArray) -> BoolArray:
    """Return bool ``[labels.count]``: channels that change what some sum, of those left, adds up to."""
    kept = Kept(sums.channels, gone)
    alive = np.zeros(len(gone), dtype=np.bool_)
    for seen in sums.seen:
        exact = seen.zero | seen.into_bias | seen.into_weight
        if gone.any():
            exact |= sums.unread(seen, kept)
        alive[seen.labels[~exact]] = True
    return alive


def _choose_carriers(sums: Sums, stays: BoolArray) -> BoolArray:
    """Return bool ``[labels.count]``: constants that must stay, so that others are folded into them."""
    carriers = np.zeros_like(stays)
    for seen in sums.seen:
        if seen.place != "weight":
            continue
        stay_here: BoolArray = np.asarray((stays | carriers)[seen.labels].all(axis=-1))
        goes: BoolArray = ~stay_here & np.asarray(seen.labels.any(axis=-1))
        if not (goes & seen.into_weight).any() or seen.carrier(~goes) is not None:
            continue
        chosen = seen.carrier(goes)
        if chosen is not None:
            carriers[seen.labels[chosen]] = True
    carriers[0] = False
    return carriers


def _stuck(groups: Sequence[ChannelGroup], units: Mapping[str, IntArray], sums: Sums) -> dict[str, str]:
    """Say where constants that are not zero can't be folded."""
    reason: dict[int, str] = {}
    for seen in sums.seen:
        for position in np.flatnonzero(seen.constant & ~seen.zero & (seen.place == "nowhere")).tolist():
            for label in seen.labels[position].tolist():
                reason.setdefault(label, _why(seen, position))
    found = {
        group.name: [reason[label] for label in units[group.name].tolist() if label in reason]
        for group in groups
    }
    return {name: reasons[0] for name, reasons in found.items() if reasons}


def _why(seen: SeenConstants, position: int) -> str:
    node = seen.contraction.node
    number = seen.constants[:, position]
    what = f"constant {number[np.argmax(np.abs(number))]:.2g}"
    if node.op_type in ("Conv", "ConvTranspose"):
        return f"{what} meets the zero-padded border of {node.name}"
    return f"{what} cannot be folded into {node.name} ({node.op_type})"


def choose_dead(
    groups: Sequence[ChannelGroup], dead: Dead, options: Options
) -> tuple[tuple[Choice, ...], tuple[Skipped, ...]]:
    """Choose all dead channels, and say of which groups some stay, and why.

    Kept counts are multiples of what the user asked for; ``auto`` asks for nothing here.

    Args:
        groups: all groups of the model.
        dead: from `find_dead`, with the same options.
        options: see `Options`.
    """
    choices, notes = [], []
    for group in groups:
        removed = np.flatnonzero(dead.removable[group.name]).astype(np.int32)
        step = 1 if options.align == "auto" else int(options.align)
        kept = min(group.size, math.ceil((group.size - len(removed)) / step) * step)
        removed = removed[: group.size - kept]
        choices.append(Choice(group, removed, _reason(group, dead, options) if not len(removed) else None))
        if len(removed) and group.name in dead.stuck:
            notes.append(Skipped(group.name, f"some dead channels stay: {dead.stuck[group.name]}"))
    return tuple(choices), tuple(notes)


def _reason(group: ChannelGroup, dead: Dead, options: Options) -> str:
    reason = reason_to_skip(group, options)
    found = dead.found[group.name]
    if reason is not None:
        return f"{reason}; {found} of its {group.size} channels are dead" if found else reason
    if group.name in dead.stuck:
        return f"dead channels stay: {dead.stuck[group.name]}"
    if dead.carriers[group.name].any():
        return "a dead channel stays to carry its constant across a zero-padded border"
    if found:
        return f"its {found} dead channels stay: kept counts go in steps"
    return "no channel is dead"
