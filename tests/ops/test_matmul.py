"""Matrix products: Gemm in all spellings, MatMul with weights on either side and over stacks."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from cutting import check_cut, frozen_groups, graph, group_of, open_groups, positions

SEQUENCE = "float[N,5,6] x"
ROWS = "float[N,6] x"


@pytest.mark.parametrize(("first", "second"), list(product([0, 1], [0, 1])))
@pytest.mark.parametrize("bias", [(8,), (1, 8), (1,), None])
def test_gemm(first: int, second: int, bias: tuple[int, ...] | None) -> None:
    constants = {
        "a_w": (8, 6) if first else (6, 8),
        "c_w": (3, 8) if second else (8, 3),
        **({} if bias is None else {"a_b": bias}),
    }
    operands = "x, a_w" if bias is None else "x, a_w, a_b"
    body = (
        f"h = Gemm<transB = {first}>({operands}) r = Relu(h) y = Gemm<transB = {second}, alpha = 0.5>(r, c_w)"
    )
    analysis = check_cut(graph(body, inputs=ROWS, constants=constants))
    assert open_groups(analysis) == {"a_w": 8}
    group = group_of(analysis, "a_w", 0 if first else 1)
    assert group.kind == "hidden"
    assert ("c_w", 1 if second else 0, True) in positions(group)
    assert (("a_b", len(bias or ()) - 1, False) in positions(group)) == (bias is not None and bias[-1] == 8)


@pytest.mark.parametrize(("first", "second"), list(product([0, 1], [0, 1])))
def test_gemm_with_the_weight_on_the_left(first: int, second: int) -> None:
    """y' = W2 (W1 x'): the channels are the rows."""
    constants = {"a_w": (6, 8) if first else (8, 6), "a_b": (8, 1), "c_w": (8, 3) if second else (3, 8)}
    body = (
        f"h = Gemm<transA = {first}, transB = 1>(a_w, x, a_b) r = Relu(h) y = Gemm<transA = {second}>(c_w, r)"
    )
    analysis = check_cut(graph(body, inputs=ROWS, constants=constants))
    assert open_groups(analysis) == {"a_w": 8}
    assert positions(group_of(analysis, "a_w", 1 if first else 0)) == {
        ("a_w", 1 if first else 0, False),
        ("a_b", 0, False),
        ("c_w", 0 if second else 1, True),
    }


def test_gemm_with_a_computed_bias() -> None:
    constants = {"a_w": (6, 8), "b_w": (6, 8), "c_w": (8, 3)}
    body = "b = MatMul(x, b_w) h = Gemm(x, a_w, b) y = MatMul(h, c_w)"
    analysis = check_cut(graph(body, inputs=ROWS, constants=constants))
    assert list(open_groups(analysis).values()) == [8]
    assert ("b_w", 1, False) in positions(group_of(analysis, "a_w", 1))


def test_matmul_with_the_weight_on_the_right() -> None:
    constants = {"a_w": (6, 8), "a_b": (8,), "c_w": (8, 3)}
    body = "h = MatMul(x, a_w) s = Add(a_b, h) r = Gelu(s) y = MatMul(r, c_w)"
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants, opset=20))
    assert positions(group_of(analysis, "a_w", 1)) == {
        ("a_w", 1, False),
        ("a_b", 0, False),
        ("c_w", 0, True),
    }


def test_matmul_with_the_weight_on_the_left() -> None:
    constants = {"a_w": (8, 5), "a_b": (8, 1), "c_w": (3, 8)}
    body = "h = MatMul(a_w, x) s = Add(h, a_b) r = Relu(s) y = MatMul(c_w, r)"
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    assert positions(group_of(analysis, "a_w", 0)) == {
        ("a_w", 0, False),
        ("a_b", 0, False),
        ("c_w", 1, True),
    }


def test_matmul_with_stacks_of_weights() -> None:
    """Three experts over the same input: their hidden channels go together, and so may whole experts."""
    constants = {"a_w": (3, 6, 8), "a_b": (3, 1, 8), "c_w": (3, 8, 4), "one": [1]}
    body = """
        u = Unsqueeze(x, one) h = MatMul(u, a_w) s = Add(h, a_b) r = Relu(s) m = MatMul(r, c_w)
        y = ReduceSum<keepdims = 0>(m, one)
    """
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    hidden, experts = group_of(analysis, "a_w", 2), group_of(analysis, "a_w", 0)
    assert (hidden.size, hidden.kind, experts.size, experts.kind) == (8, "hidden", 3, "experts")
    assert positions(hidden) == {("a_w", 2, False), ("a_b", 2, False), ("c_w", 1, True)}
    assert positions(experts) == {("a_w", 0, False), ("a_b", 0, False), ("c_w", 0, False)}


ROUTED = """
    u = Unsqueeze(x, one) h = MatMul(u, a_w) r = Relu(h) m = MatMul(r, c_w)
    l = MatMul(x, r_w) p = Softmax(l) q = Unsqueeze(p, last) g = Transpose<perm = [0, 2, 1, 3]>(q)
    v = Mul(m, g) y = ReduceSum<keepdims = 0>(v, one)
"""


def test_experts_go_with_the_rows_of_their_router() -> None:
    """What is left of the experts shares the weight, so this is not exact; the twin does the same."""
    constants = {"a_w": (3, 6, 8), "c_w": (3, 8, 4), "r_w": (6, 3), "one": [1], "last": [3]}
    model = graph(ROUTED, inputs=SEQUENCE, constants=constants)
    frozen = frozen_groups(check_cut(model))
    assert any("(Softmax) normalises along this axis" in reason for reason in frozen.values())
    experts = group_of(check_cut(model, allow_inexact=True), "a_w", 0)
    assert (experts.size, experts.kind, experts.exact, experts.frozen) == (3, "experts", False, None)
    assert ("r_w", 1, False) in positions(experts)


def test_rotary_embedding_of_a_part_of_each_head() -> None:
    """Places 0 and 1 of four are rotated, 2 and 3 pass: heads stay whole, rotated places go in pairs."""
    constants = {
        "q_w": (6, 12), "k_w": (6, 12), "v_w": (6, 12), "o_w": (12, 4), "heads": [0, 0, 3, 4],
        "back": [0, 0, 12], "none": [0], "half": [1], "two": [2], "all": [4], "last": [3],
        "cos": (1, 1, 1, 2), "sin": (1, 1, 1, 2),
    }  # fmt: skip

    def turned(name: str) -> str:
        return f"""
            {name}m = MatMul(x, {name}_w) {name}h = Reshape({name}m, heads)
            {name}t = Transpose<perm = [0, 2, 1, 3]>({name}h)
            {name}r = Slice({name}t, none, two, last) {name}p = Slice({name}t, two, all, last)
            {name}a = Slice({name}r, none, half, last) {name}b = Slice({name}r, half, two, last)
            {name}n = Neg({name}b) {name}c = Concat<axis = -1>({name}n, {name}a)
            {name}u = Mul({name}r, cos) {name}v = Mul({name}c, sin) {name}w = Add({name}u, {name}v)
            {name} = Concat<axis = -1>({name}w, {name}p)
        """

    body = f"""
        {turned("q")} {turned("k")} kk = Transpose<perm = [0, 1, 3, 2]>(k)
        vm = MatMul(x, v_w) vh = Reshape(vm, heads) vt = Transpose<perm = [0, 2, 1, 3]>(vh)
        l = MatMul(q, kk) s = Softmax(l) m = MatMul(s, vt) t = Transpose<perm = [0, 2, 1, 3]>(m)
        f = Reshape(t, back) y = MatMul(f, o_w)
    """
    model = graph(body, inputs=SEQUENCE, constants=constants)
    assert [g.size for g in check_cut(model).groups if g.frozen is None and g.kind == "heads"] == [3]
    places = [g.size for g in check_cut(model, prefer="head_dim").groups if g.frozen is None]
    assert sorted(places) == [2, 4]


def test_query_heads_that_share_a_key() -> None:
    """One key for four query heads: the repeats of the key are heads of their own."""
    constants = {
        "q_w": (6, 12), "k_w": (6, 3), "v_w": (6, 3), "o_w": (12, 4), "split": [0, 0, 4, 3], "one": [1],
        "four": [1, 4, 1, 1], "back": [0, 0, 12],
    }  # fmt: skip
    body = """
        a = MatMul(x, q_w) b = MatMul(x, k_w) c = MatMul(x, v_w)
        r = Reshape(a, split) q = Transpose<perm = [0, 2, 1, 3]>(r)
        s = Unsqueeze(b, one) e = Expand(s, four) k = Transpose<perm = [0, 1, 3, 2]>(e)
        t = Unsqueeze(c, one) v = Expand(t, four)
        w = MatMul(q, k) p = Softmax(w) o = MatMul(p, v) u = Transpose<perm = [0, 2, 1, 3]>(o)
        f = Reshape(u, back) y = MatMul(f, o_w)
    """
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    heads = next(group for group in analysis.groups if group.kind == "heads")
    assert (heads.size, heads.frozen) == (4, None)
    assert positions(heads) == {("q_w", 1, False), ("o_w", 0, True)}
    by_place = check_cut(graph(body, inputs=SEQUENCE, constants=constants), prefer="head_dim")
    assert {group.kind for group in by_place.groups if group.frozen is None} == {"head_dim"}


def test_matmul_with_a_vector() -> None:
    constants = {"a_w": (6, 8), "c_w": (8,)}
    analysis = check_cut(graph("h = MatMul(x, a_w) y = MatMul(h, c_w)", inputs=SEQUENCE, constants=constants))
    assert positions(group_of(analysis, "a_w", 1)) == {("a_w", 1, False), ("c_w", 0, True)}
    left = check_cut(
        graph(
            "h = MatMul(a_w, x) y = MatMul(c_w, h)",
            inputs="float[6,N] x",
            constants={"a_w": (8, 6), "c_w": (8,)},
        )
    )
    assert open_groups(left) == {"a_w": 8}


def test_a_product_of_two_computed_matrices() -> None:
    """Gram matrix: both operands lose the same summed channels; rows and columns are samples."""
    constants = {"a_w": (6, 8), "b_w": (6, 8)}
    body = "q = MatMul(x, a_w) k = MatMul(x, b_w) t = Transpose<perm = [0, 2, 1]>(k) y = MatMul(q, t)"
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    assert list(open_groups(analysis).values()) == [8]
    assert positions(group_of(analysis, "a_w", 1)) == {("a_w", 1, False), ("b_w", 1, False)}


def test_a_weight_behind_a_transpose_makes_no_attention() -> None:
    """Channels, which the channel pattern removes, and not places in a head, which it leaves."""
    body = """
        at = Transpose<perm = [1, 0]>(a_w) ct = Transpose<perm = [1, 0]>(c_w) h = MatMul(x, at) r = Relu(h)
        y = MatMul(r, ct)
    """
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants={"a_w": (8, 6), "c_w": (3, 8)}))
    (group,) = (group for group in analysis.groups if group.frozen is None)
    assert group.size == 8
    assert group.kind in ("hidden", "channels")


ATTENTION = """
    q = Transpose<perm = [0, 2, 1, 3]>(qr)
    k = Transpose<perm = [0, 2, 3, 1]>(kr)
    v = Transpose<perm = [0, 2, 1, 3]>(vr)
    l = MatMul(q, k)
    p = Softmax<axis = -1>(l)
    o = MatMul(p, v)
    t = Transpose<perm = [0, 2, 1, 3]>(o)
    f = Reshape(t, merged)
    y = MatMul(f, o_w)
"""


def test_attention_heads() -> None:
    body = """
        qp = MatMul(x, q_w) kp = MatMul(x, k_w) vp = MatMul(x, v_w)
        qr = Reshape(qp, heads) kr = Reshape(kp, heads) vr = Reshape(vp, heads)
    """
    constants = {
        "q_w": (6, 12), "k_w": (6, 12), "v_w": (6, 12), "o_w": (12, 6),
        "heads": [0, 5, 3, 4], "merged": [0, 5, 12],
    }  # fmt: skip
    analysis = check_cut(graph(body + ATTENTION, inputs=SEQUENCE, constants=constants))
    kinds = {group.kind: group for group in analysis.groups if group.frozen is None}
    assert kinds["heads"].size == 3
    assert {m.tensor for m in kinds["heads"].members} == {"q_w", "k_w", "v_w", "o_w"}
    dims = [group for group in analysis.groups if group.kind == "head_dim"]
    assert {tuple(sorted({m.tensor for m in group.members})) for group in dims} == {
        ("k_w", "q_w"),
        ("o_w", "v_w"),
    }
    assert all("by way of" in str(group.frozen) for group in dims)


@pytest.mark.parametrize("layout", ["3HD", "H3D"])
def test_fused_qkv(layout: str) -> None:
    shape, pick = {"3HD": ([0, 5, 3, 2, 4], 2), "H3D": ([0, 5, 2, 3, 4], 3)}[layout]
    body = f"""
        p = MatMul(x, qkv_w) b = Add(p, qkv_b) j = Reshape(b, joint)
        qr = Gather<axis = {pick}>(j, i0) kr = Gather<axis = {pick}>(j, i1) vr = Gather<axis = {pick}>(j, i2)
    """
    body += (
        ATTENTION.replace("l = MatMul", "logits = MatMul")
        .replace("(l)", "(logits)")
        .replace("p = Softmax", "probabilities = Softmax")
        .replace("MatMul(p, v)", "MatMul(probabilities, v)")
    )
    constants = {
        "qkv_w": (6, 24), "qkv_b": (24,), "o_w": (8, 6), "joint": shape, "merged": [0, 5, 8],
        "i0": np.array(0), "i1": np.array(1), "i2": np.array(2),
    }  # fmt: skip
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    heads = [group for group in analysis.groups if group.kind == "heads" and group.frozen is None]
    assert [group.size for group in heads] == [2]
    (member,) = (m for m in heads[0].members if m.tensor == "qkv_w")
    assert (member.channel_at >= 0).sum() == 24  # a head takes its columns of q, k and v along


def test_batch_times_heads() -> None:
    """The layout of exported multi-head attention: [t, n, h * d] -> [t, n * h, d] -> [n * h, t, d]."""
    body = """
        qp = MatMul(x, q_w) kp = MatMul(x, k_w) vp = MatMul(x, v_w)
        qr = Reshape(qp, flat) kr = Reshape(kp, flat) vr = Reshape(vp, flat)
        q = Transpose<perm = [1, 0, 2]>(qr) k = Transpose<perm = [1, 2, 0]>(kr)
        v = Transpose<perm = [1, 0, 2]>(vr)
        l = MatMul(q, k) p = Softmax<axis = -1>(l) o = MatMul(p, v)
        t = Transpose<perm = [1, 0, 2]>(o) f = Reshape(t, merged) y = MatMul(f, o_w)
    """
    constants = {
        "q_w": (6, 12), "k_w": (6, 12), "v_w": (6, 12), "o_w": (12, 6),
        "flat": [5, 6, 4], "merged": [5, 2, 12],
    }  # fmt: skip
    analysis = check_cut(graph(body, inputs="float[5,2,6] x", constants=constants))
    heads = [group for group in analysis.groups if group.kind == "heads"]
    assert 3 in [group.size for group in heads if group.frozen is None]


def test_a_product_over_a_symbolic_axis_leaves_channels_alone() -> None:
    constants = {"a_w": (6, 8), "b_w": (6, 4), "c_w": (4, 3)}
    body = (
        "a = MatMul(x, a_w) b = MatMul(x, b_w) t = Transpose<perm = [0, 2, 1]>(a)"
        " m = MatMul(t, b) y = MatMul(m, c_w)"
    )
    analysis = check_cut(graph(body, inputs="float[N,T,6] x", constants=constants))
    assert open_groups(analysis) == {"b_w": 4}
    assert "output y" in frozen_groups(analysis)["a_w"]
