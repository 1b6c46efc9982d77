"""Attention, RotaryEmbedding, RMSNormalization and TensorScatter of the standard."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from cutting import check_cut, frozen_groups, graph, group_of, open_groups, proved_cut

from onnxprune.analyze import Analysis, analyze
from onnxprune.cost import cost_of
from onnxprune.types import ChannelGroup

SEQUENCE = "float[N,5,6] x"
PROJECTED = "qp = MatMul(x, q_w) kp = MatMul(x, k_w) vp = MatMul(x, v_w)"
WEIGHTS = {"q_w": (6, 12), "k_w": (6, 12), "v_w": (6, 12), "o_w": (12, 6)}
GROUPED = {"q_w": (6, 24), "k_w": (6, 8), "v_w": (6, 8), "o_w": (24, 6)}


def offered(analysis: Analysis, kind: str) -> list[ChannelGroup]:
    """The groups of a kind that may lose channels."""
    return [group for group in analysis.groups if group.kind == kind and group.frozen is None]


def without_heads(analysis: Analysis, group: ChannelGroup, numbers: list[int]) -> ir.Model:
    """Cut given channels of one group alone, and prove it."""
    gone = analysis.removed_labels({group.name: np.array(numbers, np.int32)})
    return proved_cut(analysis, gone, [analysis.shapes.input_shapes])


def the_node(model: ir.Model, op_type: str) -> ir.Node:
    (node,) = (node for node in model.graph if node.op_type == op_type)
    return node


# --- Attention ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("attributes", ["", ", is_causal = 1", ", scale = 0.3", ", softcap = 2.0"])
def test_heads_of_merged_operands(opset: int, attributes: str) -> None:
    body = f"""
        {PROJECTED} a = Attention<q_num_heads = 3, kv_num_heads = 3{attributes}>(qp, kp, vp)
        y = MatMul(a, o_w)
    """
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=WEIGHTS, opset=opset))
    (heads,) = offered(analysis, "heads")
    assert heads.size == 3
    assert {member.tensor for member in heads.members} == set(WEIGHTS)
    places = [group for group in analysis.groups if group.kind == "head_dim"]
    assert {tuple(sorted({member.tensor for member in group.members})) for group in places} == {
        ("k_w", "q_w"),
        ("o_w", "v_w"),
    }
    cut = without_heads(analysis, heads, [1])
    attributes_left = the_node(cut, "Attention").attributes
    assert attributes_left.get_int("q_num_heads") == attributes_left.get_int("kv_num_heads") == 2


def test_heads_on_an_axis_of_their_own() -> None:
    body = """
        qr = Reshape(qp, shape) kr = Reshape(kp, shape) vr = Reshape(vp, shape)
        q = Transpose<perm = [0, 2, 1, 3]>(qr) k = Transpose<perm = [0, 2, 1, 3]>(kr)
        v = Transpose<perm = [0, 2, 1, 3]>(vr) a = Attention(q, k, v)
        t = Transpose<perm = [0, 2, 1, 3]>(a) f = Reshape(t, merged) y = MatMul(f, o_w)
    """
    constants = {**WEIGHTS, "shape": [0, 5, 3, 4], "merged": [0, 5, 12]}
    analysis = check_cut(graph(PROJECTED + body, inputs=SEQUENCE, constants=constants, opset=23))
    (heads,) = offered(analysis, "heads")
    assert heads.size == 3
    assert {member.tensor for member in heads.members} == set(WEIGHTS)


def test_key_heads_go_with_the_query_heads_that_they_serve() -> None:
    """Four heads of keys, two queries for each: whole key heads are more, so they are offered."""
    body = f"{PROJECTED} a = Attention<q_num_heads = 8, kv_num_heads = 4>(qp, kp, vp) y = MatMul(a, o_w)"
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=GROUPED | {"k_w": (6, 12), "v_w": (6, 12)},
                               opset=23))  # fmt: skip
    (heads,) = offered(analysis, "heads")
    assert heads.size == 4
    assert {member.tensor for member in heads.members} == set(WEIGHTS)
    queries = next(member for member in heads.members if member.tensor == "q_w")
    assert queries.channel_at.tolist() == np.repeat([0, 1, 2, 3], 6).tolist()
    left = the_node(without_heads(analysis, heads, [0, 3]), "Attention").attributes
    assert (left.get_int("q_num_heads"), left.get_int("kv_num_heads")) == (4, 2)


def test_query_heads_go_evenly_where_key_heads_are_few() -> None:
    """Two heads of keys, four queries for each: the same place of every row goes."""
    body = f"{PROJECTED} a = Attention<q_num_heads = 8, kv_num_heads = 2>(qp, kp, vp) y = MatMul(a, o_w)"
    constants = {"q_w": (6, 24), "k_w": (6, 6), "v_w": (6, 6), "o_w": (24, 6)}
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants, opset=23))
    (heads,) = offered(analysis, "heads")
    assert heads.size == 4
    assert {member.tensor for member in heads.members} == {"q_w", "o_w"}
    queries = next(member for member in heads.members if member.tensor == "q_w")
    assert queries.channel_at.tolist() == np.tile(np.repeat([0, 1, 2, 3], 3), 2).tolist()
    left = the_node(without_heads(analysis, heads, [1]), "Attention").attributes
    assert (left.get_int("q_num_heads"), left.get_int("kv_num_heads")) == (6, 2)


def test_a_single_head_of_keys_leaves_every_query_head_free() -> None:
    body = f"{PROJECTED} a = Attention<q_num_heads = 5, kv_num_heads = 1>(qp, kp, vp) y = MatMul(a, o_w)"
    constants = {"q_w": (6, 20), "k_w": (6, 4), "v_w": (6, 4), "o_w": (20, 6)}
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants, opset=23))
    (heads,) = offered(analysis, "heads")
    assert heads.size == 5
    assert {member.tensor for member in heads.members} == {"q_w", "o_w"}


def test_places_in_a_head_keep_the_scale_that_was_implicit() -> None:
    """One head: only places can go. Those of the values are others than those of queries and keys."""
    body = f"{PROJECTED} a = Attention<q_num_heads = 1, kv_num_heads = 1>(qp, kp, vp) y = MatMul(a, o_w)"
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=WEIGHTS, opset=23))
    places = offered(analysis, "head_dim")
    assert [group.size for group in places] == [12, 12]
    shared = group_of(analysis, "q_w", 1)
    cut = without_heads(analysis, shared, [2, 5, 7])
    assert the_node(cut, "Attention").attributes.get_float("scale") == pytest.approx(1 / math.sqrt(12))
    values = group_of(analysis, "v_w", 1)
    assert "scale" not in the_node(without_heads(analysis, values, [2, 5]), "Attention").attributes


@pytest.mark.parametrize(("heads", "key_heads"), [(3, 3), (6, 2), (4, 1)])
def test_places_in_every_head(heads: int, key_heads: int) -> None:
    """The same places go in all heads: one set in queries and keys, another in values and what reads them."""
    body = f"""
        {PROJECTED} a = Attention<q_num_heads = {heads}, kv_num_heads = {key_heads}>(qp, kp, vp)
        y = MatMul(a, o_w)
    """
    keys = (6, 4 * key_heads)
    constants = {"q_w": (6, 4 * heads), "k_w": keys, "v_w": keys, "o_w": (4 * heads, 6)}
    model = graph(body, inputs=SEQUENCE, constants=constants, opset=23)
    analysis = check_cut(model, prefer="head_dim")
    assert [group.size for group in offered(analysis, "head_dim")] == [4, 4]
    assert offered(analysis, "heads") == []


def test_cross_attention_with_another_size_of_values() -> None:
    body = """
        qp = MatMul(x, q_w) kp = MatMul(m, k_w) vp = MatMul(m, v_w)
        a = Attention<q_num_heads = 3, kv_num_heads = 3>(qp, kp, vp) y = MatMul(a, o_w)
    """
    constants = {"q_w": (6, 12), "k_w": (4, 12), "v_w": (4, 15), "o_w": (15, 6)}
    model = graph(body, inputs=SEQUENCE + ", float[N,7,4] m", constants=constants, opset=23)
    (heads,) = offered(check_cut(model), "heads")
    assert heads.size == 3


@pytest.mark.parametrize("shape", [(1, 3, 5, 5), (3, 5, 5)])
def test_a_mask_with_an_axis_of_heads(shape: tuple[int, ...]) -> None:
    body = (
        f"{PROJECTED} a = Attention<q_num_heads = 3, kv_num_heads = 3>(qp, kp, vp, bias) y = MatMul(a, o_w)"
    )
    constants = {**WEIGHTS, "bias": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants, opset=23))
    (heads,) = offered(analysis, "heads")
    assert ("bias", len(shape) - 3) in {(member.tensor, member.axis) for member in heads.members}


def test_a_mask_that_all_heads_share() -> None:
    body = (
        f"{PROJECTED} a = Attention<q_num_heads = 3, kv_num_heads = 3>(qp, kp, vp, mask) y = MatMul(a, o_w)"
    )
    constants = {**WEIGHTS, "mask": np.tril(np.ones((5, 5), dtype=bool))}
    (heads,) = offered(check_cut(graph(body, inputs=SEQUENCE, constants=constants, opset=23)), "heads")
    assert heads.size == 3


def test_a_mask_from_outside_keeps_the_heads() -> None:
    body = f"{PROJECTED} a = Attention<q_num_heads = 3, kv_num_heads = 3>(qp, kp, vp, m) y = MatMul(a, o_w)"
    model = graph(body, inputs=SEQUENCE + ", float[N,3,5,5] m", constants=WEIGHTS, opset=23)
    analysis = check_cut(model)
    assert offered(analysis, "heads") == []
    assert any("has heads that must stay" in reason for reason in frozen_groups(analysis).values())


def test_a_cache_from_outside_keeps_heads_and_places() -> None:
    body = f"""
        {PROJECTED}
        a, k2, v2 = Attention<q_num_heads = 3, kv_num_heads = 3>(qp, kp, vp, , pk, pv) h = MatMul(a, o_w)
        r = Relu(h) y = MatMul(r, p_w)
    """
    inputs = SEQUENCE + ", float[N,3,4,4] pk, float[N,3,4,4] pv"
    constants = {**WEIGHTS, "o_w": (12, 8), "p_w": (8, 6)}
    analysis = check_cut(graph(body, inputs=inputs, outputs="y; k2; v2", constants=constants, opset=23))
    assert list(open_groups(analysis).values()) == [8]
    assert any("keys and values from outside" in reason for reason in frozen_groups(analysis).values())


def test_a_cache_that_comes_in_alone_keeps_the_heads() -> None:
    """What goes out is a sum over heads and places, so the output alone would let them go."""
    body = f"""
        {PROJECTED} a, k2, v2 = Attention<q_num_heads = 3, kv_num_heads = 3>(qp, kp, vp, , pk, pv)
        y = MatMul(a, o_w) c = Concat<axis = 2>(k2, v2) z = ReduceSum<keepdims = 0>(c, axes)
    """
    inputs = SEQUENCE + ", float[N,3,4,4] pk, float[N,3,4,4] pv"
    constants = {**WEIGHTS, "axes": [1, 2, 3]}
    model = graph(body, inputs=inputs, outputs="y; z", constants=constants, opset=23)
    assert open_groups(check_cut(model)) == {}


def test_a_cache_that_goes_out_alone_keeps_key_heads() -> None:
    """Three heads of keys are more than two queries for each, and would be offered."""
    body = f"""
        {PROJECTED} a, k2 = Attention<q_num_heads = 6, kv_num_heads = 3>(qp, kp, vp)
        y = MatMul(a, o_w)
    """
    constants = {"q_w": (6, 18), "k_w": (6, 9), "v_w": (6, 9), "o_w": (18, 6)}
    analysis = check_cut(graph(body, inputs=SEQUENCE, outputs="y; k2", constants=constants, opset=23))
    (heads,) = offered(analysis, "heads")
    assert heads.size == 2  # the places in the rows of query heads
    assert {member.tensor for member in heads.members} == {"q_w", "o_w"}


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_scores_as_a_result(mode: int) -> None:
    """A sum over the heads of the scores: what is cut there must be summed over."""
    body = f"""
        {PROJECTED}
        a, , , s = Attention<q_num_heads = 3, kv_num_heads = 3, qk_matmul_output_mode = {mode}>(qp, kp, vp)
        t = ReduceSum<keepdims = 0>(s, one) h = MatMul(a, o_w) y = Concat<axis = 2>(h, t)
    """
    constants = {**WEIGHTS, "one": [1]}
    (heads,) = offered(check_cut(graph(body, inputs=SEQUENCE, constants=constants, opset=23)), "heads")
    assert heads.size == 3


def test_learned_queries() -> None:
    body = """
        kp = MatMul(x, k_w) vp = MatMul(x, v_w)
        a = Attention<q_num_heads = 3, kv_num_heads = 3>(queries, kp, vp) y = MatMul(a, o_w)
    """
    constants = {"queries": (1, 4, 12), "k_w": (6, 12), "v_w": (6, 12), "o_w": (12, 6)}
    model = graph(body, inputs="float[1,5,6] x", constants=constants, opset=23)
    (heads,) = offered(check_cut(model), "heads")
    assert {member.tensor for member in heads.members} == set(constants)


def test_macs_of_attention() -> None:
    body = f"{PROJECTED} y = Attention<q_num_heads = 4, kv_num_heads = 2>(qp, kp, vp)"
    constants = {"q_w": (6, 24), "k_w": (6, 12), "v_w": (6, 12)}
    analysis = analyze(graph(body, inputs="float[N,5,6] x", constants=constants, opset=23))
    projections = 5 * 6 * (24 + 12 + 12)
    assert cost_of(analysis.model.graph, analysis.channels).macs == projections + 2 * 5 * 5 * 24


def test_half_precision() -> None:
    body = f"{PROJECTED} a = Attention<q_num_heads = 3, kv_num_heads = 3>(qp, kp, vp) y = MatMul(a, o_w)"
    random = np.random.default_rng(0)
    constants = {name: random.standard_normal(shape).astype(np.float16) for name, shape in WEIGHTS.items()}
    model = graph(body, inputs="float16[N,5,6] x", outputs="float16[N,5,6] y", constants=constants, opset=23)
    (heads,) = offered(check_cut(model), "heads")
    assert heads.size == 3


# --- RotaryEmbedding ----------------------------------------------------------------------------------------


def tables(positions: int, columns: int) -> dict[str, np.ndarray]:
    angles = np.random.default_rng(3).uniform(0, 6, (positions, columns))
    return {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}


ROTATED = """
    a = Attention<q_num_heads = {heads}, kv_num_heads = {heads}>(qr, kr, vp) y = MatMul(a, o_w)
"""


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rotated", [0, 4])
@pytest.mark.parametrize("heads", [1, 2])
def test_rotated_places_stay_in_pairs(interleaved: int, rotated: int, heads: int) -> None:
    """With two heads these go; with one, pairs of places do, and columns of the tables."""
    rotary = (
        f"RotaryEmbedding<num_heads = {heads}, interleaved = {interleaved}, rotary_embedding_dim = {rotated}>"
    )
    body = f"{PROJECTED} qr = {rotary}(qp, cos, sin, places) kr = {rotary}(kp, cos, sin, places)"
    size = 8 * heads
    constants = {
        "q_w": (6, size), "k_w": (6, size), "v_w": (6, size), "o_w": (size, 6),
        **tables(9, rotated // 2 or 4), "places": np.array([[0, 1, 2, 3, 4]]),
    }  # fmt: skip
    model = graph(body + ROTATED.format(heads=heads), inputs="float[1,5,6] x", constants=constants, opset=23)
    analysis = check_cut(model)
    assert [group.size for group in offered(analysis, "heads")] == ([2] if heads == 2 else [])
    pairs = group_of(analysis, "cos", 1)
    assert pairs.size == (rotated // 2 or 4)
    queries = next(member for member in pairs.members if member.tensor == "q_w")
    expected = np.repeat(np.arange(pairs.size), 2) if interleaved else np.tile(np.arange(pairs.size), 2)
    assert queries.channel_at[: rotated or 8].tolist() == expected.tolist()
    wanted = offered(check_cut(model, prefer="head_dim"), "head_dim")
    assert any("cos" in {member.tensor for member in group.members} for group in wanted)
    if heads == 1:
        assert pairs.frozen is None
        node = next(n for n in without_heads(analysis, pairs, [1]).graph if n.op_type == "RotaryEmbedding")
        assert node.attributes.get_int("rotary_embedding_dim", 0) == (2 if rotated else 0)


def test_rotary_embedding_with_an_axis_of_heads_and_tables_by_batch() -> None:
    body = """
        qs = Reshape(qp, shape) ks = Reshape(kp, shape) vs = Reshape(vp, shape)
        qt = Transpose<perm = [0, 2, 1, 3]>(qs) kt = Transpose<perm = [0, 2, 1, 3]>(ks)
        v = Transpose<perm = [0, 2, 1, 3]>(vs)
        q = RotaryEmbedding(qt, cos, sin) k = RotaryEmbedding(kt, cos, sin)
        a = Attention(q, k, v) t = Transpose<perm = [0, 2, 1, 3]>(a) f = Reshape(t, merged) y = MatMul(f, o_w)
    """
    caches = {name: table[None] for name, table in tables(5, 2).items()}
    constants = {**WEIGHTS, **caches, "shape": [0, 5, 3, 4], "merged": [0, 5, 12]}
    model = graph(PROJECTED + body, inputs="float[1,5,6] x", constants=constants, opset=23)
    (heads,) = offered(check_cut(model), "heads")
    assert heads.size == 3


def test_angles_from_outside_keep_the_places() -> None:
    rotary = "RotaryEmbedding<num_heads = 1>"
    body = f"{PROJECTED} qr = {rotary}(qp, c, s) kr = {rotary}(kp, c, s)" + ROTATED.format(heads=1)
    constants = {"q_w": (6, 8), "k_w": (6, 8), "v_w": (6, 8), "o_w": (8, 6)}
    inputs = SEQUENCE + ", float[N,5,4] c, float[N,5,4] s"
    analysis = check_cut(graph(body, inputs=inputs, constants=constants, opset=23))
    assert "by computed angles" in str(group_of(analysis, "q_w", 1).frozen)
    assert group_of(analysis, "v_w", 1).size == 8


# --- the rest -----------------------------------------------------------------------------------------------


def test_rms_normalization_takes_statistics_of_channels() -> None:
    body = "h = MatMul(x, a_w) n = RMSNormalization<axis = -1>(h, g) y = MatMul(n, c_w)"
    constants = {"a_w": (6, 8), "g": (8,), "c_w": (8, 3)}
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants, opset=23))
    assert open_groups(analysis) == {}
    assert "over these channels" in str(group_of(analysis, "g", 0).frozen)
    model = graph(body, inputs=SEQUENCE, constants=constants, opset=23)
    assert list(open_groups(check_cut(model, allow_inexact=True)).values()) == [8]


def test_rms_normalization_inside_heads_leaves_them_free() -> None:
    """Queries and keys normalised over the places of each head."""
    body = """
        qs = Reshape(qp, shape) ks = Reshape(kp, shape) qn = RMSNormalization<axis = -1>(qs, g)
        kn = RMSNormalization<axis = -1>(ks, g) qm = Reshape(qn, merged) km = Reshape(kn, merged)
        a = Attention<q_num_heads = 3, kv_num_heads = 3>(qm, km, vp) y = MatMul(a, o_w)
    """
    constants = {**WEIGHTS, "g": (4,), "shape": [0, 5, 3, 4], "merged": [0, 5, 12]}
    model = graph(PROJECTED + body, inputs=SEQUENCE, constants=constants, opset=23)
    (heads,) = offered(check_cut(model), "heads")
    assert heads.size == 3
    assert {member.tensor for member in heads.members} == set(WEIGHTS)


def test_tensor_scatter() -> None:
    """A cache that starts as a constant: its channels are those of what is written."""
    body = "h = MatMul(x, a_w) c = TensorScatter<axis = 1>(cache, h, start) r = Relu(c) y = MatMul(r, c_w)"
    constants = {"a_w": (6, 8), "cache": (2, 7, 8), "start": [1, 2], "c_w": (8, 3)}
    analysis = check_cut(graph(body, inputs="float[2,5,6] x", constants=constants, opset=24))
    assert list(open_groups(analysis).values()) == [8]
    assert ("cache", 2) in {(m.tensor, m.axis) for m in group_of(analysis, "a_w", 1).members}


def test_tensor_scatter_into_a_cache_from_outside() -> None:
    body = "h = MatMul(x, a_w) c = TensorScatter<axis = 1>(cache, h) r = Relu(c) y = MatMul(r, c_w)"
    inputs = "float[N,5,6] x, float[N,7,8] cache"
    model = graph(body, inputs=inputs, constants={"a_w": (6, 8), "c_w": (8, 3)}, opset=24)
    assert "a cache from outside" in str(group_of(check_cut(model), "a_w", 1).frozen)


def test_swish() -> None:
    body = "h = MatMul(x, a_w) r = Swish<alpha = 1.5>(h) y = MatMul(r, c_w)"
    model = graph(body, inputs=SEQUENCE, constants={"a_w": (6, 8), "c_w": (8, 3)}, opset=24)
    assert open_groups(check_cut(model)) == {"a_w": 8}
