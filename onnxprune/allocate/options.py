"""How channels are chosen, and which groups may lose any."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.types import ChannelGroup

#: The scope that goes by what was measured.
SENSITIVITY = "sensitivity"

#: The scope that keeps most importance.
KNAPSACK = "knapsack"


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
