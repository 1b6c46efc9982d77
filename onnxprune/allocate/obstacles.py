"""Why less can't be left: what holds the rest, layer by layer, and why its channels stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxprune.allocate.limits import Limit
from onnxprune.allocate.meeting import Missed
from onnxprune.errors import LimitMissed
from onnxprune.types import ChannelGroup, IntArray

#: What holds a smaller share of the original stands in nobody's way.
_LEAST_SHARE = 0.0005


def limit_missed(
    missed: Missed, groups: Sequence[ChannelGroup], stay: Mapping[str, str | None]
) -> LimitMissed:
    """Return the error that says what was reached, and what stands in the way.

    Args:
        missed: the limit, and the choice that leaves least of what it limits.
        groups: all groups of the model.
        stay: by name, why a group stays whole; None where it may shrink.
    """
    limit = missed.limit
    reached = limit.left(missed.best)
    return LimitMissed(
        f"{limit.metric} can be brought to {reached:.3f} of the original, not to {limit.keep:.4g}: "
        f"{missed.why}",
        reached,
        _obstacles(limit, missed.best, {group.name: group for group in groups}, stay),
    )


def _obstacles(
    limit: Limit,
    best: Mapping[str, IntArray],
    groups: Mapping[str, ChannelGroup],
    stay: Mapping[str, str | None],
) -> list[str]:
    """Return one line for each holder, the largest first."""
    holders = [] if limit.holders is None else limit.holders(best)
    lines = []
    for holder in sorted(holders, key=lambda holder: -holder.share):
        if holder.share < _LEAST_SHARE:
            break
        reasons = [_why_it_stays(groups[name], best.get(name), stay.get(name)) for name in holder.groups]
        told = "; ".join(reasons) or "no channels of it can go"
        lines.append(f"{holder.name}: holds {holder.share:.1%} of the original {limit.metric}: {told}")
    return lines


def _why_it_stays(group: ChannelGroup, gone: IntArray | None, reason: str | None) -> str:
    if reason is not None:
        return f"{group.name} stays whole ({reason})"
    kept = group.size - (0 if gone is None else len(gone))
    return f"{group.name} is at the least that may stay ({kept} of {group.size})"
