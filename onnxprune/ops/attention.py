"""Attention as standard operators: Attention, RotaryEmbedding, TensorScatter."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxprune.ops.base import OpRule, ShapeOf, op_rule
from onnxprune.ops.channels import Channels
from onnxprune.ops.heads import (
    MERGED,
    STACKED,
    keep_scale,
    kept_heads,
    link_cache,
    link_heads,
    meet_heads_of_mask,
    output_at,
    pair_places,
    set_count,
)
from onnxprune.ops.kept import Kept


@op_rule("Attention")
class Attention(OpRule):
    """y[b, h, i] = sum_j softmax_j(scale * (q[b, h, i] . k[b, g, j]) + mask[b, h, i, j]) * v[b, g, j]

    with one head g of keys and values for every row of query heads h. Heads have an axis of their own, or are
    merged with the places: ``[batch, sequence, heads * places]``.
    """

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Heads of queries, keys, values, caches and masks go together; the product sums over places."""
        operands = []
        for index, name in enumerate(("q_num_heads", "kv_num_heads", "kv_num_heads")):
            ref = channels.ref(node, index)
            layout = MERGED if channels.rank(ref) == 3 else STACKED
            count = node.attributes.get_int(name, 0)
            operands.append(layout.read(channels, ref, count, f"{node.name} attends along this axis"))
        query, key, value = operands
        result = link_heads(channels, node, query, key, value)
        channels.sums_over(node, 0, -1)
        meet_heads_of_mask(channels, node, 3, query.heads)
        link_cache(channels, node, 4, 1, key)
        link_cache(channels, node, 5, 2, value)
        layout = MERGED if channels.rank(node.outputs[0]) == 3 else STACKED
        layout.put(channels, node.outputs[0], result)
        scores = output_at(node, 3)
        if scores is not None:
            channels.put(scores, (1,), query.heads)

    def fix(self, node: ir.Node, kept: Kept) -> None:
        """The numbers of heads that are left, and the scale of the places that were there."""
        for index, name in ((1, "kv_num_heads"), (0, "q_num_heads")):
            ref = kept.ref(node, index)
            if len(kept.channels.shape(ref)) == 3:
                count = node.attributes.get_int(name)
                places = kept.channels.shape(ref)[2] // count
                left, places_left = kept_heads(kept, ref, 2, count)
            else:
                places = kept.channels.shape(ref)[3]
                left, places_left = kept.count(ref, 1), kept.count(ref, 3)
            set_count(kept, node, name, left)
        if "scale" not in node.attributes:
            keep_scale(kept, node, places, places_left)

    def macs(self, node: ir.Node, shape_of: ShapeOf) -> int:
        """Every query meets every key, and every weight a value."""
        return attention_macs(node, shape_of, key_index=1, past_index=4)


def attention_macs(node: ir.Node, shape_of: ShapeOf, key_index: int, past_index: int) -> int:
    """Return ``keys * (elements of the queries + elements of the result)``: the two products of an attention.

    Without an input of keys, they are in the first one.
    """
    query = node.inputs[0]
    key = node.inputs[key_index] if key_index < len(node.inputs) else None
    past = node.inputs[past_index] if past_index < len(node.inputs) else None
    if query is None:
        return 0
    shape = shape_of(key if key is not None else query)
    keys = shape[-2] if len(shape) == 4 else shape[1]
    keys += 0 if past is None else shape_of(past)[-2]
    result = math.prod(shape_of(node.outputs[0]))
    packed = key is None
    return keys * (result * 2 if packed else math.prod(shape_of(query)) + result)


class _RotaryEmbedding(OpRule):
    """y[2 places] = x[2 places] turned by an angle that depends on position and places

    Pairs of places stay together, and their column of the tables with them.
    """

    #: inputs that hold cosines and sines, ``[..., rotated places / 2]``
    tables = (1, 2)

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Labels pass; the places of a pair are one channel, which the tables carry too."""
        x = channels.ref(node, 0)
        merged = channels.rank(x) == 3
        layout = MERGED if merged else STACKED
        read = layout.read(channels, x, self._heads(node, channels), f"{node.name} counts along this axis")
        reason = f"{node.name} turns pairs of places, of which one must stay"
        pairs = pair_places(
            channels,
            read.places,
            self._rotated(node, channels),
            node.attributes.get_int("interleaved", 0) == 1,
            reason,
        )
        for index in self.tables:
            table = channels.ref(node, index)
            channels.meet(table, -1, pairs, f"{node.name} turns these places by computed angles")
            for axis in range(channels.rank(table) - 1):
                channels.freeze_axis(table, axis, f"{node.name} picks angles along this axis")
        layout.put(channels, node.outputs[0], read)

    def _rotated(self, node: ir.Node, channels: Channels) -> int:
        return 2 * channels.shape(channels.ref(node, self.tables[0]))[-1]

    def _heads(self, node: ir.Node, channels: Channels) -> int:
        count = node.attributes.get_int("num_heads", 0)
        return count or channels.shape(channels.ref(node, 0))[-1] // self._rotated(node, channels)

    def fix(self, node: ir.Node, kept: Kept) -> None:
        """Heads and rotated places that are left."""
        x = kept.ref(node, 0)
        if node.attributes.get_int("num_heads", 0):
            count = self._heads(node, kept.channels)
            merged = len(kept.channels.shape(x)) == 3
            set_count(
                kept, node, "num_heads", kept_heads(kept, x, 2, count)[0] if merged else kept.count(x, 1)
            )
        if node.attributes.get_int("rotary_embedding_dim", 0):
            set_count(kept, node, "rotary_embedding_dim", 2 * kept.count(kept.ref(node, self.tables[0]), -1))


@op_rule("RotaryEmbedding")
class RotaryEmbedding(_RotaryEmbedding):
    """As it is written in the standard: tables before positions."""


@op_rule("RotaryEmbedding", domain="com.microsoft")
class FusedRotaryEmbedding(_RotaryEmbedding):
    """As ONNX Runtime writes it: positions before tables."""

    tables = (2, 3)


@op_rule("TensorScatter")
class TensorScatter(OpRule):
    """y = a cache in which some positions along ``axis`` are replaced by an update"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Positions are written along the axis; cache and update share the others."""
        cache, update, y = channels.ref(node, 0), channels.ref(node, 1), node.outputs[0]
        rank = channels.rank(y)
        written = node.attributes.get_int("axis", -2) % rank
        for ref in (cache, update):
            channels.separate_all(ref)
            channels.freeze_axis(ref, written, f"{node.name} writes at positions along this axis")
        for axis in range(rank):
            if axis == written or channels.shape(y)[axis] < 2:
                continue
            tracked = [ref for ref in (update, cache) if channels.block_at(ref, axis) is not None]
            if tracked:
                labels = channels.alone(tracked[0], axis)
                for ref in (update, cache):
                    if ref is not tracked[0]:
                        channels.meet(ref, axis, labels, f"{node.name} writes into a cache from outside")
                channels.put(y, (axis,), labels)
