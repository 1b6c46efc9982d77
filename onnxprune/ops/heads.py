"""Attention heads in fused operators: axes that are products of a head and a place in a head.

A fused operator takes queries, keys and values as ``[batch, sequence, heads * places]`` or with an axis for
the heads. Both are the same to the rules: labels of the heads, and labels of the places in a head. All-zero
labels mean that nothing is tracked there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.ops.channels import Channels, Ref
from onnxprune.ops.kept import Kept
from onnxprune.ops.labels import LabelArray


@dataclass(frozen=True, slots=True)
class Heads:
    """Labels of one operand of an attention: int32 ``[heads, k]`` and ``[places, k]``."""

    heads: LabelArray
    places: LabelArray

    def merged(self) -> LabelArray:
        """Return the labels of the product axis, int32 ``[heads * places, k]``."""
        shape = (len(self.heads), len(self.places))
        columns = [
            np.broadcast_to(self.heads[:, None], (*shape, self.heads.shape[-1])),
            np.broadcast_to(self.places[None], (*shape, self.places.shape[-1])),
        ]
        return np.concatenate(columns, axis=-1).reshape(math.prod(shape), -1)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the heads of a value stand.

    Attributes:
        places: the axis of the places, or of the product.
        heads: the axis of the heads, None if they are merged into ``places``.
    """

    places: int
    heads: int | None = None

    def read(self, channels: Channels, ref: Ref, head_count: int, reason: str) -> Heads:
        """Return the labels of a value's heads; channels along its other axes are frozen."""
        for axis in range(channels.rank(ref)):
            if axis not in (self.places, self.heads):
                channels.freeze_axis(ref, axis, reason)
        if self.heads is None:
            return split(channels, channels.alone(ref, self.places), head_count, channels.shape(ref)[-1])
        shape = channels.shape(ref)
        return Heads(
            _or_none(channels.alone(ref, self.heads), shape[self.heads]),
            _or_none(channels.alone(ref, self.places), shape[self.places]),
        )

    def put(self, channels: Channels, value: ir.Value, labels: Heads) -> None:
        """Give a result its labels."""
        if self.heads is None:
            channels.put(value, (self.places,), labels.merged())
        else:
            channels.put(value, (self.heads,), labels.heads)
            channels.put(value, (self.places,), labels.places)


#: ``[batch, sequence, heads * places]``
MERGED = Layout(2)
#: ``[batch, heads, sequence, places]``
STACKED = Layout(3, 1)
#: ``[batch, sequence, heads, 2 or 3, places]``: keys and values, or queries too, in one tensor
PACKED = Layout(4, 2)


def _or_none(labels: LabelArray | None, size: int) -> LabelArray:
    return np.zeros((size, 1), dtype=np.int32) if labels is None else labels


def split(channels: Channels, labels: LabelArray | None, head_count: int, size: int) -> Heads:
    """Return the heads and places of labels ``[heads * places, k]``; None: an untracked axis of ``size``."""
    if labels is None:
        return Heads(_or_none(None, head_count), _or_none(None, size // head_count))
    return Heads(*channels.labels.separate(labels.reshape(head_count, -1, labels.shape[-1]), (0,)))


def split_parts(
    channels: Channels, labels: LabelArray | None, parts: Sequence[tuple[int, int]]
) -> list[Heads]:
    """Return the heads of several operands that stand one after another along one axis.

    Args:
        channels: the labels of the graph.
        labels: of the whole axis ``[sum of heads * places, k]``, None if it is untracked.
        parts: heads and places of each operand.
    """
    found, start = [], 0
    for heads, places in parts:
        size = heads * places
        piece = None if labels is None else labels[start : start + size]
        found.append(split(channels, piece, heads, size))
        start += size
    return found


def link_heads(channels: Channels, node: ir.Node, query: Heads, key: Heads, value: Heads) -> Heads:
    """Say which heads and places belong together; return those of the result.

    A head of the keys serves ``heads / key heads`` heads of the queries in a row. So query heads are
    products of a key head and a place in its row, and rows stay equally long. Queries and keys share places
    (the product sums over them), the result has those of the values.
    """
    unify(channels, key.heads, value.heads, f"keys or values of {node.name} have heads that must stay")
    unify(channels, query.places, key.places, f"{node.name} sums over places that have no channels")
    reason = f"{node.name} has heads that must stay"
    key_count = len(key.heads)
    if key_count == len(query.heads):
        unify(channels, query.heads, key.heads, reason)
    elif key_count == 1:
        channels.freeze(key.heads, f"{node.name} has a single head of keys and values")
    else:
        table = query.heads.reshape(key_count, -1, query.heads.shape[-1])
        serving, _ = channels.labels.separate(table, (0,))
        unify(channels, serving, key.heads, reason)
    channels.tag("heads", query.heads)
    channels.tag("head_dim", query.places)
    channels.tag("head_dim", value.places)
    return Heads(query.heads, value.places)


def unify(channels: Channels, a: LabelArray, b: LabelArray, reason: str) -> None:
    """Say that two rows of labels are the same; where one has none, the other is frozen."""
    if len(a) > 1:
        channels.labels.equate(a, b, reason)
    else:
        for labels in (a, b):
            channels.freeze(labels, reason)


def pair_places(
    channels: Channels, places: LabelArray, rotated: int, interleaved: bool, reason: str
) -> LabelArray:
    """Say that the two places of each rotated pair go together; return the pairs ``[rotated / 2, k]``.

    A rotary embedding turns the plane of places ``d`` and ``d + rotated / 2`` (``2 d`` and ``2 d + 1`` if
    interleaved) by an angle of its own, which is column ``d`` of the tables of sines and cosines.
    """
    first, second = (
        (places[0:rotated:2], places[1:rotated:2])
        if interleaved
        else (places[: rotated // 2], places[rotated // 2 : rotated])
    )
    channels.labels.equate(first, second, reason)
    return first


def meet_heads_of_mask(channels: Channels, node: ir.Node, index: int, heads: LabelArray) -> None:
    """Unify the heads with those of an operand that is broadcast to ``[batch, heads, queries, keys]``."""
    if not channels.has(node, index):
        return
    ref = channels.ref(node, index)
    rank = channels.rank(ref)
    for axis in range(rank):
        if axis == rank - 3 and channels.shape(ref)[axis] > 1:
            channels.meet(ref, axis, heads, f"{node.name} has heads that must stay")
        else:
            channels.freeze_axis(ref, axis, f"{node.name} masks along this axis")


def link_cache(channels: Channels, node: ir.Node, past_index: int, present_index: int, labels: Heads) -> None:
    """Unify keys or values with those of earlier steps, ``[batch, heads, sequence, places]``."""
    if channels.has(node, past_index):
        past = STACKED.read(channels, channels.ref(node, past_index), len(labels.heads), "")
        reason = f"{node.name} joins it to keys and values from outside"
        unify(channels, labels.heads, past.heads, reason)
        unify(channels, labels.places, past.places, reason)
    output = output_at(node, present_index)
    if output is not None:
        STACKED.put(channels, output, labels)


def output_at(node: ir.Node, index: int) -> ir.Value | None:
    """Return an optional output, None if it is left out."""
    return node.outputs[index] if index < len(node.outputs) and node.outputs[index].name else None


# --- after the cut ------------------------------------------------------------------------------------------


def kept_heads(
    kept: Kept, ref: Ref, axis: int, head_count: int, span: slice = slice(None)
) -> tuple[int, int]:
    """Return how many heads, and places in each, are left of a product axis (or of a span of it)."""
    size = kept.channels.shape(ref)[axis]
    mask = kept.masks(ref).get(axis % len(kept.channels.shape(ref)))
    table = (np.ones(size, dtype=np.bool_) if mask is None else mask)[span].reshape(head_count, -1)
    return int(table.any(axis=1).sum()), int(table.any(axis=0).sum())


def keep_scale(kept: Kept, node: ir.Node, places: int, left: int) -> None:
    """Write out the factor ``1 / sqrt(places)`` that was implicit, where places are gone."""
    if left != places and not node.attributes.get_float("scale", 0.0):
        kept.set_attribute(node, ir.AttrFloat32("scale", 1 / math.sqrt(places)))


def set_count(kept: Kept, node: ir.Node, name: str, count: int) -> None:
    """Write a number of heads, if it changed."""
    if node.attributes.get_int(name, count) != count:
        kept.set_attribute(node, ir.AttrInt64(name, count))
