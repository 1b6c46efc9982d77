"""Output shapes of attention: results, caches, scores.

Those of ONNX Runtime, and the standard one, of whose optional results ONNX tells no shape. How long a cache
becomes is partly told by numbers that are fed; where it can't be computed, its size is a symbol of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxprune.model.contrib_shapes import Dims, shape_function, sum_of
from onnxprune.model.dims import Dim


def _at(inputs: Sequence[Dims], index: int) -> Dims:
    return inputs[index] if index < len(inputs) else None


def _output(node: ir.Node, index: int) -> ir.Value:
    return node.outputs[min(index, len(node.outputs) - 1)]


@shape_function("Attention", domain="")
def _attention(node: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    query, key, value, past = inputs[0], inputs[1], inputs[2], _at(inputs, 4)
    if query is None or key is None or value is None:
        return []
    (batch, queries), heads, _ = _stacked(query, node, "q_num_heads")
    (_, length), key_heads, places = _stacked(key, node, "kv_num_heads")
    _, _, value_places = _stacked(value, node, "kv_num_heads")
    if past is not None:
        length = sum_of(_output(node, 1), 2, past[2], length)
    merged = (batch, queries, Dim(heads * value_places))
    y = merged if len(query) == 3 else (batch, Dim(heads), queries, Dim(value_places))
    caches = [(batch, Dim(key_heads), length, Dim(size)) for size in (places, value_places)]
    return [y, *caches, (batch, Dim(heads), queries, length)]


def _stacked(dims: tuple[Dim, ...], node: ir.Node, name: str) -> tuple[tuple[Dim, Dim], int, int]:
    """Return batch and sequence, heads, and places in a head of ``[b, s, h * d]`` or ``[b, h, s, d]``."""
    if len(dims) == 4:
        return (dims[0], dims[2]), dims[1].size, dims[3].size
    heads = node.attributes.get_int(name)
    return (dims[0], dims[1]), heads, dims[2].size // heads


@shape_function("Attention")
def _projected_attention(node: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    x, weight, past = inputs[0], inputs[1], _at(inputs, 4)
    if x is None or weight is None:
        return []
    heads = node.attributes.get_int("num_heads")
    sizes = list(node.attributes.get_ints("qkv_hidden_sizes", ())) or [weight[1].size // 3] * 3
    shared = past is not None and node.attributes.get_int("past_present_share_buffer", 0) == 1
    length = past[3] if past is not None and shared else x[1]
    if past is not None and not shared:
        length = sum_of(_output(node, 1), 3, past[3], x[1])
    return [(*x[:2], Dim(sizes[2])), (Dim(2), x[0], Dim(heads), length, Dim(sizes[0] // heads))]


@shape_function("MultiHeadAttention")
def _multi_head_attention(node: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    return _heads_apart(node, inputs, past_index=6)


@shape_function("DecoderMaskedMultiHeadAttention")
def _decoder_attention(node: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    return _heads_apart(node, inputs, past_index=5)


def _heads_apart(node: ir.Node, inputs: Sequence[Dims], past_index: int) -> Sequence[Dims]:
    query, key, value = inputs[0], _at(inputs, 1), _at(inputs, 2)
    past = _at(inputs, past_index)
    if query is None:
        return []
    heads = node.attributes.get_int("num_heads")
    if len(query) == 5 or key is None:  # queries, keys and values in one tensor
        places = value_places = query[-1].size if len(query) == 5 else query[-1].size // 3 // heads
        length = query[1]
    else:
        places = query[2].size // heads
        last = value if value is not None else key
        value_places = last[-1].size if len(last) > 3 else last[-1].size // heads
        length = key[2] if len(key) == 4 else key[1]
    share = node.attributes.get_int("past_present_share_buffer", 0)
    if past is not None:
        length = past[2] if share else sum_of(_output(node, 1), 2, past[2], length)
    caches = [(query[0], Dim(heads), length, Dim(size)) for size in (places, value_places)]
    scores = (query[0], Dim(heads), query[1], length)
    return [(*query[:2], Dim(heads * value_places)), *caches, scores]


@shape_function("GroupQueryAttention")
def _group_query_attention(node: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    query, key, past = inputs[0], _at(inputs, 1), _at(inputs, 3)
    if query is None:
        return []
    heads, key_heads = (node.attributes.get_int(name) for name in ("num_heads", "kv_num_heads"))
    places = query[2].size // (heads if key is not None else heads + 2 * key_heads)
    output = _output(node, 1)
    new = query[1] if key is None else key[1]
    # A cache that is written in place is as long after as before; which one it is, the shapes don't tell.
    length = new if past is None else Dim(past[2].size + new.size, 1, (f"{output.name}.2",))
    cache = (query[0], Dim(key_heads), length, Dim(places))
    scores = (query[0], Dim(heads), query[1], length)
    return [(*query[:2], Dim(heads * places)), cache, cache, scores]
