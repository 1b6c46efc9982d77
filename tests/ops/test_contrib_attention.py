"""Attention as ONNX Runtime fuses it, in every form that its CPU provider runs."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from cutting import (
    check_cut,
    frozen_groups,
    graph,
    graph_proto,
    group_of,
    open_groups,
    proved_cut,
    value_info,
)

from onnxprune.analyze import Analysis, analyze
from onnxprune.cost import cost_of
from onnxprune.rewrite.cut import cut
from onnxprune.types import ChannelGroup

SEQUENCE = "float[N,5,6] x"
PROJECTED = "q = MatMul(x, q_w) k = MatMul(x, k_w) v = MatMul(x, v_w)"
WEIGHTS = {"q_w": (6, 12), "k_w": (6, 12), "v_w": (6, 12), "o_w": (12, 6)}
OUT = "y = MatMul(a, o_w)"


def offered(analysis: Analysis, kind: str) -> list[ChannelGroup]:
    """The groups of a kind that may lose channels."""
    return [group for group in analysis.groups if group.kind == kind and group.frozen is None]


def tensors(group: ChannelGroup) -> set[str]:
    return {member.tensor for member in group.members}


def without(analysis: Analysis, group: ChannelGroup, numbers: list[int], op_type: str) -> ir.Node:
    """Cut given channels of one group alone, prove it, and return the only node of a type."""
    gone = analysis.removed_labels({group.name: np.array(numbers, np.int32)})
    pruned = proved_cut(analysis, gone, [analysis.shapes.input_shapes])
    (node,) = (node for node in pruned.graph if node.op_type == op_type)
    return node


# --- Attention: the projection is inside --------------------------------------------------------------------

ATTENTION = "com.microsoft.Attention"


@pytest.mark.parametrize("attributes", ["", ", unidirectional = 1", ", scale = 0.4"])
def test_projected_attention(attributes: str) -> None:
    body = f"h = MatMul(x, a_w) a = {ATTENTION}<num_heads = 3{attributes}>(h, w, b) {OUT}"
    constants = {"a_w": (6, 8), "w": (8, 36), "b": (36,), "o_w": (12, 6)}
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    (heads,) = offered(analysis, "heads")
    assert heads.size == 3
    assert tensors(heads) == {"w", "b", "o_w"}
    member = next(member for member in heads.members if member.tensor == "w")
    assert member.channel_at.tolist() == np.tile(np.repeat([0, 1, 2], 4), 3).tolist()
    inputs = group_of(analysis, "a_w", 1)
    assert inputs.size == 8
    assert ("w", 0, True) in {(m.tensor, m.axis, m.contracted) for m in inputs.members}
    assert without(analysis, heads, [1], "Attention").attributes.get_int("num_heads") == 2


def test_projected_attention_without_a_bias() -> None:
    """ONNX Runtime crashes on it, so nothing is run."""
    body = f"a = {ATTENTION}<num_heads = 3>(x, w) {OUT}"
    analysis = analyze(graph(body, inputs=SEQUENCE, constants={"w": (6, 36), "o_w": (12, 6)}))
    (heads,) = offered(analysis, "heads")
    assert tensors(heads) == {"w", "o_w"}


def test_projected_attention_with_sizes() -> None:
    """Values have heads of another size."""
    body = f"a = {ATTENTION}<num_heads = 3, qkv_hidden_sizes = [12, 12, 6]>(x, w, b) {OUT}"
    constants = {"w": (6, 30), "b": (30,), "o_w": (6, 6)}
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    (heads,) = offered(analysis, "heads")
    node = without(analysis, heads, [0], "Attention")
    assert list(node.attributes.get_ints("qkv_hidden_sizes")) == [8, 8, 4]


def test_places_of_projected_attention_keep_the_scale() -> None:
    """A single head: queries and keys lose places, values keep them, so the sizes are written out."""
    body = f"a = {ATTENTION}<num_heads = 1>(x, w, b) {OUT}"
    constants = {"w": (6, 36), "b": (36,), "o_w": (12, 6)}
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    places = offered(analysis, "head_dim")
    assert sorted(len(tensors(group)) for group in places) == [2, 3]
    keys = min(places, key=lambda group: len(tensors(group)))
    node = without(analysis, keys, [3, 4, 7], "Attention")
    assert list(node.attributes.get_ints("qkv_hidden_sizes")) == [9, 9, 12]
    assert node.attributes.get_float("scale") == pytest.approx(1 / math.sqrt(12))


def test_places_in_every_head_of_projected_attention() -> None:
    body = f"a = {ATTENTION}<num_heads = 3>(x, w, b) {OUT}"
    constants = {"w": (6, 36), "b": (36,), "o_w": (12, 6)}
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants), prefer="head_dim")
    assert [group.size for group in offered(analysis, "head_dim")] == [4, 4]


def test_masks_of_projected_attention() -> None:
    bias = np.random.default_rng(0).standard_normal((1, 3, 5, 5)).astype(np.float32)
    body = f"a = {ATTENTION}<num_heads = 3>(x, w, b, mask, , bias) {OUT}"
    constants = {"w": (6, 36), "b": (36,), "o_w": (12, 6), "bias": bias}
    model = graph(body, inputs=SEQUENCE + ", int32[N,5] mask", constants=constants)
    (heads,) = offered(check_cut(model), "heads")
    assert ("bias", 1) in {(member.tensor, member.axis) for member in heads.members}


def test_a_cache_of_projected_attention_keeps_the_heads() -> None:
    body = f"a, present = {ATTENTION}<num_heads = 3, unidirectional = 1>(x, w, b, , past) {OUT}"
    constants = {"w": (6, 36), "b": (36,), "o_w": (12, 6)}
    inputs = SEQUENCE + ", float[2,N,3,4,4] past"
    analysis = check_cut(graph(body, inputs=inputs, outputs="y; present", constants=constants))
    assert open_groups(analysis) == {}
    assert any("keys and values from outside" in reason for reason in frozen_groups(analysis).values())


def test_macs_of_projected_attention() -> None:
    model = graph(f"y = {ATTENTION}<num_heads = 3>(x, w)", inputs=SEQUENCE, constants={"w": (6, 36)})
    analysis = analyze(model)
    assert cost_of(analysis.model.graph, analysis.channels).macs == 5 * 6 * 36 + 2 * 5 * 5 * 12


def test_half_precision() -> None:
    random = np.random.default_rng(0)
    shapes = {"w": (6, 36), "b": (36,), "o_w": (12, 6)}
    constants = {name: random.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}
    body = f"a = {ATTENTION}<num_heads = 3>(x, w, b) {OUT}"
    model = graph(body, inputs="float16[N,5,6] x", outputs="float16[N,5,6] y", constants=constants)
    (heads,) = offered(check_cut(model), "heads")
    assert heads.size == 3


# --- MultiHeadAttention -------------------------------------------------------------------------------------

MULTI_HEAD = "com.microsoft.MultiHeadAttention"


@pytest.mark.parametrize("attributes", ["", ", unidirectional = 1", ", scale = 0.4"])
@pytest.mark.parametrize("bias", [True, False])
def test_multi_head_attention(attributes: str, bias: bool) -> None:
    operands = "q, k, v, b" if bias else "q, k, v"
    body = f"{PROJECTED} a = {MULTI_HEAD}<num_heads = 3{attributes}>({operands}) {OUT}"
    constants = {**WEIGHTS, **({"b": (36,)} if bias else {})}
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    (heads,) = offered(analysis, "heads")
    assert heads.size == 3
    assert tensors(heads) == set(constants)
    assert without(analysis, heads, [2], "MultiHeadAttention").attributes.get_int("num_heads") == 2


def test_cross_attention_with_masks_and_another_size_of_values() -> None:
    """Keys come from a memory of another length, with a mask for padding and a bias for every head."""
    body = f"""
        q = MatMul(x, q_w) k = MatMul(m, k_w) v = MatMul(m, v_w)
        a = {MULTI_HEAD}<num_heads = 3>(q, k, v, , mask, bias) {OUT}
    """
    bias = np.random.default_rng(0).standard_normal((1, 3, 5, 7)).astype(np.float32)
    constants = {"q_w": (6, 12), "k_w": (4, 12), "v_w": (4, 15), "o_w": (15, 6), "bias": bias}
    inputs = SEQUENCE + ", float[N,7,4] m, int32[N,7] mask"
    analysis = check_cut(graph(body, inputs=inputs, constants=constants))
    (heads,) = offered(analysis, "heads")
    assert tensors(heads) == set(constants)


def test_places_of_multi_head_attention_keep_the_scale() -> None:
    body = f"{PROJECTED} a = {MULTI_HEAD}<num_heads = 1>(q, k, v, b) {OUT}"
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants={**WEIGHTS, "b": (36,)}))
    keys = group_of(analysis, "k_w", 1)
    assert tensors(keys) == {"q_w", "k_w", "b"}
    node = without(analysis, keys, [0, 5], "MultiHeadAttention")
    assert node.attributes.get_float("scale") == pytest.approx(1 / math.sqrt(12))
    values = without(analysis, group_of(analysis, "v_w", 1), [0, 5], "MultiHeadAttention")
    assert "scale" not in values.attributes


@pytest.mark.parametrize("bias", [True, False])
def test_places_in_every_head(bias: bool) -> None:
    body = f"{PROJECTED} a = {MULTI_HEAD}<num_heads = 3>({'q, k, v, b' if bias else 'q, k, v'}) {OUT}"
    constants = {**WEIGHTS, **({"b": (36,)} if bias else {})}
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants), prefer="head_dim")
    assert [group.size for group in offered(analysis, "head_dim")] == [4, 4]


def test_scores_as_a_result() -> None:
    body = f"""
        {PROJECTED} a, , , s = {MULTI_HEAD}<num_heads = 3>(q, k, v) t = ReduceSum<keepdims = 0>(s, one)
        h = MatMul(a, o_w) y = Concat<axis = 2>(h, t)
    """
    proto = graph_proto(body, inputs=SEQUENCE, constants={**WEIGHTS, "one": [1]})
    proto.graph.value_info.append(value_info("s", "N", 3, 5, 5))
    (heads,) = offered(check_cut(ir.from_proto(proto)), "heads")
    assert heads.size == 3


def test_a_cache_of_multi_head_attention_keeps_the_heads() -> None:
    body = f"{PROJECTED} a, pk, pv = {MULTI_HEAD}<num_heads = 3>(q, k, v, , , , ck, cv) {OUT}"
    inputs = SEQUENCE + ", float[N,3,4,4] ck, float[N,3,4,4] cv"
    analysis = check_cut(graph(body, inputs=inputs, outputs="y; pk; pv", constants=WEIGHTS))
    assert open_groups(analysis) == {}
    assert any("keys and values from outside" in reason for reason in frozen_groups(analysis).values())


def test_keys_of_a_cross_attention_that_were_stacked_before() -> None:
    """Keys and values as [batch, heads, sequence, places]."""
    body = f"""
        {PROJECTED} kr = Reshape(k, shape) vr = Reshape(v, shape) kt = Transpose<perm = [0, 2, 1, 3]>(kr)
        vt = Transpose<perm = [0, 2, 1, 3]>(vr) a = {MULTI_HEAD}<num_heads = 3>(q, kt, vt) {OUT}
    """
    constants = {**WEIGHTS, "shape": [0, 5, 3, 4]}
    (heads,) = offered(check_cut(graph(body, inputs=SEQUENCE, constants=constants)), "heads")
    assert tensors(heads) == set(WEIGHTS)


@pytest.mark.parametrize("packed", ["queries too", "keys and values"])
def test_packed_operands(packed: str) -> None:
    """[batch, sequence, heads, 2 or 3, places]; no CPU kernel runs it, so only the shapes are checked."""
    parts = 3 if packed == "queries too" else 2
    query, operands = ("", "p") if parts == 3 else ("q = MatMul(x, q_w)", "q, p")
    body = f"""
        {query} h = MatMul(x, p_w) p = Reshape(h, shape) a = {MULTI_HEAD}<num_heads = 3>({operands}) {OUT}
    """
    constants = {"p_w": (6, 12 * parts), "o_w": (12, 6), "shape": [0, 5, 3, parts, 4]}
    if parts == 2:
        constants["q_w"] = (6, 12)
    analysis = analyze(graph(body, inputs=SEQUENCE, constants=constants))
    (heads,) = offered(analysis, "heads")
    assert heads.size == 3
    assert tensors(heads) == set(constants) - {"shape"}
    assert all(group.size != parts for group in analysis.groups if group.frozen is None and group != heads)
    gone = analysis.removed_labels({heads.name: np.array([1], np.int32)})
    pruned = cut(analysis.model, analysis.channels, gone)
    (node,) = (node for node in pruned.graph if node.op_type == "MultiHeadAttention")
    assert node.attributes.get_int("num_heads") == 2
    weight = pruned.graph.initializers["p_w"]
    assert list(weight.const_value.shape) == [6, 8 * parts]


def test_decoder_masked_attention() -> None:
    """One query against a memory."""
    body = f"""
        q = MatMul(x, q_w) k = MatMul(m, k_w) v = MatMul(m, v_w) kr = Reshape(k, shape) vr = Reshape(v, shape)
        kt = Transpose<perm = [0, 2, 1, 3]>(kr) vt = Transpose<perm = [0, 2, 1, 3]>(vr)
        a = com.microsoft.DecoderMaskedMultiHeadAttention<num_heads = 3>(q, kt, vt) {OUT}
    """
    constants = {"q_w": (6, 12), "k_w": (4, 12), "v_w": (4, 12), "o_w": (12, 6), "shape": [0, 7, 3, 4]}
    model = graph(body, inputs="float[N,1,6] x, float[N,7,4] m", constants=constants)
    analysis = check_cut(model)
    (heads,) = offered(analysis, "heads")
    assert tensors(heads) == set(constants) - {"shape"}
    node = without(analysis, heads, [0], "DecoderMaskedMultiHeadAttention")
    assert node.attributes.get_int("num_heads") == 2


# --- GroupQueryAttention ------------------------------------------------------------------------------------

GROUPED = "com.microsoft.GroupQueryAttention"
#: a prompt as long as it can be: sequence - 1 for every sample, and the sequence
LENGTHS = """
    shape = Shape(x) batch = Gather(shape, zero1) last = Expand(four, batch) total = Identity(five)
"""
LENGTH_CONSTANTS = {
    "zero1": [0], "four": np.array([4], np.int32), "five": np.array(5, np.int32),
}  # fmt: skip


def grouped(
    heads: int, key_heads: int, places: int, more: str = "", attributes: str = "", packed: bool = False,
    extra: dict[str, np.ndarray] | None = None,
) -> ir.Model:  # fmt: skip
    """A model of one GroupQueryAttention, between projections."""
    constants = {
        "q_w": (6, heads * places), "k_w": (6, key_heads * places), "v_w": (6, key_heads * places),
        "o_w": (heads * places, 6), **LENGTH_CONSTANTS, **(extra or {}),
    }  # fmt: skip
    projections, operands = PROJECTED, "q, k, v"
    if packed:
        projections, operands = "p = MatMul(x, p_w)", "p, , "
        for name in ("q_w", "k_w", "v_w"):
            constants.pop(name)
        constants["p_w"] = (6, (heads + 2 * key_heads) * places)
    body = f"""
        {LENGTHS} {projections}
        a = {GROUPED}<num_heads = {heads}, kv_num_heads = {key_heads}{attributes}>
            ({operands}, , , last, total{more})
        {OUT}
    """
    return graph(body, inputs=SEQUENCE, constants=constants)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("attributes", ["", ", scale = 0.4", ", softcap = 3.0", ", local_window_size = 2"])
def test_key_heads_and_the_queries_that_they_serve(packed: bool, attributes: str) -> None:
    analysis = check_cut(grouped(6, 3, 8, attributes=attributes, packed=packed))
    (heads,) = offered(analysis, "heads")
    assert heads.size == 3
    assert tensors(heads) == {"o_w", "p_w"} if packed else {"q_w", "k_w", "v_w", "o_w"}
    node = without(analysis, heads, [1], "GroupQueryAttention")
    assert (node.attributes.get_int("num_heads"), node.attributes.get_int("kv_num_heads")) == (4, 2)


@pytest.mark.parametrize("packed", [False, True])
def test_query_heads_evenly(packed: bool) -> None:
    analysis = check_cut(grouped(6, 2, 8, packed=packed))
    (heads,) = offered(analysis, "heads")
    assert heads.size == 3
    assert tensors(heads) == {"o_w", "p_w" if packed else "q_w"}
    node = without(analysis, heads, [0, 2], "GroupQueryAttention")
    assert (node.attributes.get_int("num_heads"), node.attributes.get_int("kv_num_heads")) == (2, 2)


def test_multi_query() -> None:
    (heads,) = offered(check_cut(grouped(5, 1, 8)), "heads")
    assert heads.size == 5
    assert tensors(heads) == {"q_w", "o_w"}


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotation_inside_leaves_the_heads_free(interleaved: int) -> None:
    angles = np.random.default_rng(0).uniform(0, 6, (5, 8))
    tables = {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    attributes = f", do_rotary = 1, rotary_interleaved = {interleaved}"
    analysis = check_cut(grouped(6, 3, 16, ", cos, sin", attributes, extra=tables))
    (heads,) = offered(analysis, "heads")
    assert heads.size == 3
    places = [group for group in analysis.groups if group.size == 16]
    assert places
    assert all("takes certain sizes of heads only" in str(group.frozen) for group in places)


def test_bias_and_sinks_of_every_head() -> None:
    random = np.random.default_rng(0)
    extra = {
        "bias": random.standard_normal((1, 6, 5, 5)).astype(np.float32),
        "sink": random.standard_normal(6).astype(np.float32),
    }
    analysis = check_cut(grouped(6, 3, 8, ", , , , bias, sink", extra=extra))
    (heads,) = offered(analysis, "heads")
    assert tensors(heads) == {"q_w", "k_w", "v_w", "o_w", "bias", "sink"}
    sinks = next(member for member in heads.members if member.tensor == "sink")
    assert sinks.channel_at.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_cache_of_grouped_attention() -> None:
    """As it is written for generation: the key heads of the cache stay, queries go evenly."""
    body = f"""
        sum = ReduceSum<keepdims = 0>(mask, one1) last64 = Sub(sum, one) last = Cast<to = 6>(last64)
        shape = Shape(mask) total64 = Gather(shape, one) total = Cast<to = 6>(total64) {PROJECTED}
        a, pk, pv = {GROUPED}<num_heads = 6, kv_num_heads = 2>(q, k, v, ck, cv, last, total) {OUT}
    """
    constants = {
        "q_w": (6, 48), "k_w": (6, 16), "v_w": (6, 16), "o_w": (48, 6), "one1": [1], "one": np.array(1),
    }  # fmt: skip
    inputs = "float[N,S,6] x, int64[N,T] mask, float[N,2,P,8] ck, float[N,2,P,8] cv"
    model = graph(body, inputs=inputs, outputs="y; pk; pv", constants=constants)
    sizes = {"x": (2, 1, 6), "mask": (2, 4), "ck": (2, 2, 3, 8), "cv": (2, 2, 3, 8)}
    analysis = analyze(model, input_shapes=sizes)
    (heads,) = offered(analysis, "heads")
    assert heads.size == 3
    assert tensors(heads) == {"q_w", "o_w"}
    gone = analysis.removed_labels({heads.name: np.array([1], np.int32)})
    proved_cut(analysis, gone, [sizes, {**sizes, "mask": (2, 6), "ck": (2, 2, 5, 8), "cv": (2, 2, 5, 8)}])


# --- RotaryEmbedding ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rotated", [0, 4])
@pytest.mark.parametrize("heads", [1, 3])
def test_rotary_embedding(interleaved: int, rotated: int, heads: int) -> None:
    angles = np.random.default_rng(0).uniform(0, 6, (9, rotated // 2 or 4))
    size = 8 * heads
    constants = {
        "cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32), "start": [2],
        "q_w": (6, size), "k_w": (6, size), "v_w": (6, size), "o_w": (size, 6),
    }  # fmt: skip
    count = heads if rotated else 0  # the operator can tell the number of heads from the tables
    rotary = (
        f"com.microsoft.RotaryEmbedding<interleaved = {interleaved}, num_heads = {count}, "
        f"rotary_embedding_dim = {rotated}>"
    )
    body = f"""
        {PROJECTED} qr = {rotary}(q, start, cos, sin) kr = {rotary}(k, start, cos, sin)
        a = {MULTI_HEAD}<num_heads = {heads}>(qr, kr, v) {OUT}
    """
    model = graph(body, inputs=SEQUENCE, constants=constants)
    analysis = check_cut(model)
    assert [group.size for group in offered(analysis, "heads")] == ([3] if heads == 3 else [])
    pairs = group_of(analysis, "cos", 1)
    assert pairs.size == (rotated // 2 or 4)
    assert (pairs.frozen is None) == (heads == 1)
    places = offered(check_cut(model, prefer="head_dim"), "head_dim")
    assert any("cos" in tensors(group) for group in places)
