"""Attention as ONNX Runtime fuses it: Attention, MultiHeadAttention, GroupQueryAttention and their kin."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxprune.ops.attention import attention_macs
from onnxprune.ops.base import OpRule, ShapeOf, WeightInput, op_rule
from onnxprune.ops.channels import Channels, Ref
from onnxprune.ops.heads import (
    MERGED,
    PACKED,
    STACKED,
    Heads,
    keep_scale,
    kept_heads,
    link_cache,
    link_heads,
    meet_heads_of_mask,
    output_at,
    set_count,
    split_parts,
    unify,
)
from onnxprune.ops.kept import Kept
from onnxprune.ops.labels import LabelArray

_AXIS = "{name} attends along this axis"


def join(parts: list[LabelArray]) -> LabelArray:
    """Return labels ``[dim, k]`` one after another, padded to the same k."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts])


def _freeze_others(channels: Channels, node: ir.Node, ref: Ref, *axes: int) -> None:
    for axis in range(channels.rank(ref)):
        if axis not in axes:
            channels.freeze_axis(ref, axis, _AXIS.format(name=node.name))


@op_rule("Attention", domain="com.microsoft")
class ProjectedAttention(OpRule):
    """q, k, v = x w + b, three parts of one product; y = attention of these"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """The projection sums over inputs; its outputs are heads, three times."""
        x, weight = channels.ref(node, 0), channels.ref(node, 1)
        _freeze_others(channels, node, x, 2)
        channels.meet(weight, 0, channels.alone(x, 2), f"{node.name} sums over an axis without channels")
        channels.sums_over(node, 1, 0)
        columns = channels.alone(weight, 1)
        heads = node.attributes.get_int("num_heads")
        sizes = _projected_sizes(node, channels)
        query, key, value = split_parts(channels, columns, [(heads, size // heads) for size in sizes])
        result = link_heads(channels, node, query, key, value)
        # The product of queries and keys sums over places, which are zero if weight and bias are.
        channels.sums_over(node, 1, 1)
        if channels.has(node, 2):
            merged = join([part.merged() for part in (query, key, value)])
            channels.meet(channels.ref(node, 2), 0, merged, f"{node.name} adds a bias without channels")
            channels.sums_over(node, 2, 0)
        if node.attributes.get_int("do_rotary", 0):
            channels.freeze(query.places, f"{node.name} turns pairs of places")
        present = output_at(node, 1)
        if channels.has(node, 4) or present is not None:
            unify(channels, query.places, value.places, f"{node.name} keeps keys and values in one tensor")
        if channels.has(node, 4):
            past = channels.ref(node, 4)
            reason = f"{node.name} joins it to keys and values from outside"
            channels.meet(past, 2, query.heads, reason)
            channels.meet(past, 4, query.places, reason)
            _freeze_others(channels, node, past, 2, 4)
        if present is not None:
            channels.put(present, (2,), query.heads)
            channels.put(present, (4,), query.places)
        meet_heads_of_mask(channels, node, 5, query.heads)
        MERGED.put(channels, node.outputs[0], result)

    def fix(self, node: ir.Node, kept: Kept) -> None:
        """Heads, sizes of the three parts, and the scale of the places that were there."""
        weight = kept.ref(node, 1)
        if 1 not in kept.masks(weight):
            return
        heads = node.attributes.get_int("num_heads")
        sizes = _projected_sizes(node, kept.channels)
        left, start = [], 0
        for size in sizes:
            left.append(kept_heads(kept, weight, 1, heads, slice(start, start + size)))
            start += size
        set_count(kept, node, "num_heads", left[0][0])
        if "qkv_hidden_sizes" in node.attributes or len(set(left)) > 1:
            new_sizes = [count * places for count, places in left]
            kept.set_attribute(node, ir.AttrInt64s("qkv_hidden_sizes", new_sizes))
        keep_scale(kept, node, sizes[0] // heads, left[0][1])

    def macs(self, node: ir.Node, shape_of: ShapeOf) -> int:
        """The projection, and every query against every key, and every weight against a value."""
        x, weight, past = node.inputs[0], node.inputs[1], _input(node, 4)
        if x is None or weight is None:
            return 0
        batch, queries, _ = shape_of(x)
        _, columns = shape_of(weight)
        result = shape_of(node.outputs[0])[2]
        keys = queries + (0 if past is None else shape_of(past)[3])
        return batch * queries * (math.prod(shape_of(weight)) + keys * ((columns - result) // 2 + result))

    def weight_inputs(self, node: ir.Node, rank_of: Callable[[ir.Value], int]) -> tuple[WeightInput, ...]:
        """The projection: rows are summed over."""
        return (WeightInput(1, summed_axis=0, output_axis=1),)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _projected_sizes(node: ir.Node, channels: Channels) -> list[int]:
    columns = channels.shape(channels.ref(node, 1))[1]
    return list(node.attributes.get_ints("qkv_hidden_sizes", ())) or [columns // 3] * 3


@op_rule("MultiHeadAttention", domain="com.microsoft")
class MultiHeadAttention(OpRule):
    """y = attention of queries, keys and values, to which a bias may be added first

    Queries, keys and values are apart, or packed into ``[batch, sequence, heads, 2 or 3, places]``, or one
    after another along the last axis. Keys and values may come from a cache, with an axis for the heads.
    """

    #: inputs: bias, what is added to the scores, past keys, past values
    bias_index, added_index, key_index, value_index = 3, 5, 6, 7

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Heads go together, queries and keys share places."""
        query, key, value = self._operands(node, channels)
        result = link_heads(channels, node, query, key, value)
        channels.sums_over(node, 0, -1)
        if channels.has(node, self.bias_index):
            merged = join([part.merged() for part in (query, key, value)])
            bias = channels.ref(node, self.bias_index)
            channels.meet(bias, 0, merged, f"{node.name} adds a bias without channels")
            channels.sums_over(node, self.bias_index, 0)  # a query is zero if its bias is, too
        meet_heads_of_mask(channels, node, self.added_index, query.heads)
        link_cache(channels, node, self.key_index, 1, key)
        link_cache(channels, node, self.value_index, 2, value)
        MERGED.put(channels, node.outputs[0], result)
        scores = output_at(node, 3)
        if scores is not None:
            channels.put(scores, (1,), query.heads)

    def _operands(self, node: ir.Node, channels: Channels) -> tuple[Heads, Heads, Heads]:
        heads = node.attributes.get_int("num_heads")
        reason = _AXIS.format(name=node.name)
        x = channels.ref(node, 0)
        if channels.rank(x) == 5:
            packed = PACKED.read(channels, x, heads, reason)
            return packed, packed, packed
        if not channels.has(node, 1):
            value_size = channels.shape(node.outputs[0])[2]
            size = (channels.shape(x)[2] - value_size) // 2
            _freeze_others(channels, node, x, 2)
            parts = [(heads, part // heads) for part in (size, size, value_size)]
            query, key, value = split_parts(channels, channels.alone(x, 2), parts)
            return query, key, value
        query = MERGED.read(channels, x, heads, reason)
        read = []
        for index in (1, 2):
            if channels.has(node, index):
                ref = channels.ref(node, index)
                layout = {3: MERGED, 4: STACKED, 5: PACKED}[channels.rank(ref)]
                read.append(layout.read(channels, ref, heads, reason))
        return query, read[0], read[-1]

    def fix(self, node: ir.Node, kept: Kept) -> None:
        """Heads, and the scale of the places that were there."""
        heads = node.attributes.get_int("num_heads")
        x = kept.ref(node, 0)
        shape = kept.channels.shape(x)
        if len(shape) == 5:
            places, left, places_left = shape[4], kept.count(x, 2), kept.count(x, 4)
        else:
            size = shape[2]
            if _input(node, 1) is None:
                size = (shape[2] - kept.channels.shape(node.outputs[0])[2]) // 2
            places = size // heads
            left, places_left = kept_heads(kept, x, 2, heads, slice(0, size))
        set_count(kept, node, "num_heads", left)
        keep_scale(kept, node, places, places_left)

    def macs(self, node: ir.Node, shape_of: ShapeOf) -> int:
        """Every query meets every key, and every weight a value."""
        return attention_macs(node, shape_of, 1, self.key_index)


@op_rule("DecoderMaskedMultiHeadAttention", domain="com.microsoft")
class DecoderMaskedMultiHeadAttention(MultiHeadAttention):
    """As MultiHeadAttention, for one query; its inputs stand in another order."""

    bias_index, added_index, key_index, value_index = 10, 4, 5, 6


@op_rule("GroupQueryAttention", domain="com.microsoft")
class GroupQueryAttention(OpRule):
    """y = causal attention, one head of keys and values for every row of query heads; rotated first if asked

    Places in a head stay: the operator takes multiples of 8 or 16 only.
    """

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Key heads go with their rows of query heads, or all rows lose the same places."""
        heads, key_heads = (node.attributes.get_int(name) for name in ("num_heads", "kv_num_heads"))
        reason = _AXIS.format(name=node.name)
        x = channels.ref(node, 0)
        if channels.has(node, 1):
            query = MERGED.read(channels, x, heads, reason)
            key, value = (
                MERGED.read(channels, channels.ref(node, index), key_heads, reason) for index in (1, 2)
            )
        else:
            _freeze_others(channels, node, x, 2)
            places = channels.shape(x)[2] // (heads + 2 * key_heads)
            parts = [(heads, places), (key_heads, places), (key_heads, places)]
            query, key, value = split_parts(channels, channels.alone(x, 2), parts)
        result = link_heads(channels, node, query, key, value)
        for part in (query, key, value):
            channels.freeze(part.places, f"{node.name} takes certain sizes of heads only")
        channels.sums_over(node, 0, -1)
        meet_heads_of_mask(channels, node, 10, query.heads)
        if channels.has(node, 11):
            channels.meet(channels.ref(node, 11), 0, query.heads, f"{node.name} has heads that must stay")
        link_cache(channels, node, 3, 1, key)
        link_cache(channels, node, 4, 2, value)
        for index in (*range(7, 9), *range(12, 16)):
            if channels.has(node, index):
                channels.freeze_all(channels.ref(node, index), f"{node.name} reads places of a head from it")
        MERGED.put(channels, node.outputs[0], result)
        scores = output_at(node, 3)
        if scores is not None:
            channels.put(scores, (1,), query.heads)

    def fix(self, node: ir.Node, kept: Kept) -> None:
        """The numbers of heads that are left."""
        heads, key_heads = (node.attributes.get_int(name) for name in ("num_heads", "kv_num_heads"))
        x, size = kept.ref(node, 0), kept.channels.shape(node.outputs[0])[2]
        places = size // heads
        if _input(node, 1) is None:
            keys = slice(size, size + key_heads * places)
            key_heads_left, _ = kept_heads(kept, x, 2, key_heads, keys)
        else:
            key_heads_left, _ = kept_heads(kept, kept.ref(node, 1), 2, key_heads)
        set_count(kept, node, "kv_num_heads", key_heads_left)
        set_count(kept, node, "num_heads", kept_heads(kept, x, 2, heads, slice(0, size))[0])

    def macs(self, node: ir.Node, shape_of: ShapeOf) -> int:
        """Every query meets every key, and every weight a value."""
        return attention_macs(node, shape_of, 1, 3)
