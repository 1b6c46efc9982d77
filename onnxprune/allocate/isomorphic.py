"""Which channel groups are of the same structure, so that the scores of their channels compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import onnx_ir as ir

from onnxprune.types import ChannelGroup

#: The kind of a group, and for each sort of its members operator, role of the axis, rank, and how often.
Structure: TypeAlias = tuple[str, tuple[tuple[str, str, int, str], ...]]


def structures_of(model: ir.Model, groups: Sequence[ChannelGroup]) -> Mapping[str, Structure]:
    """Return what each group is made of, by its name; groups with equal structures are isomorphic.

    The hidden units of all feed-forward layers of a transformer are of one structure, its heads of another;
    in a residual network, the channels inside blocks are of one, and the widths of the stages of another.
    Magnitudes differ between such classes for reasons that say nothing of importance (Fang et al. 2024,
    "Isomorphic Pruning for Vision Models", section 3.2). Stages differ in their number of blocks, so it only
    counts whether a sort of member occurs once or several times.

    Args:
        model: the model in which the groups were found.
        groups: of which the structure is wanted.
    """
    op_types = {str(node.name): node.op_type for node in model.graph.all_nodes()}
    found = {}
    for group in groups:
        members = Counter(
            (
                op_types[member.consumer],
                "in" if member.contracted else "out",
                len(model.graph.initializers[member.tensor].shape or ()),
            )
            for member in group.members
        )
        sorts = sorted((*sort, "once" if count == 1 else "several") for sort, count in members.items())
        found[group.name] = (str(group.kind), tuple(sorts))
    return found
