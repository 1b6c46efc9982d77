"""Residual branches: which are found, of what kind, what goes with them, and why others can't go."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import Constant, graph

from onnxprune.branches import Removal, find_branches
from onnxprune.model.prepare import prepare
from onnxprune.types import Branch

D, F = 8, 12
SEQUENCE = "float[N,T,8] x"
IMAGE = "float[N,4,6,6] x"

ATTENTION = """
    n = LayerNormalization(x, norm1_g, norm1_b) q = MatMul(n, q_w) k = MatMul(n, k_w) v = MatMul(n, v_w)
    t = Transpose<perm = [0, 2, 1]>(k) s = MatMul(q, t) p = Softmax<axis = -1>(s) c = MatMul(p, v)
    a = MatMul(c, o_w)
"""
FEED_FORWARD = "m = LayerNormalization(h, norm2_g, norm2_b) u = MatMul(m, u_w) r = Relu(u) d = MatMul(r, d_w)"
WEIGHTS: dict[str, Constant] = {
    **dict.fromkeys(("norm1_g", "norm1_b", "norm2_g", "norm2_b"), (D,)),
    **dict.fromkeys(("q_w", "k_w", "v_w", "o_w"), (D, D)),
    "u_w": (D, F),
    "d_w": (F, D),
}
CONVOLUTIONS: dict[str, Constant] = dict.fromkeys(("a_w", "b_w", "c_w", "p_w"), (4, 4, 3, 3))


def find(model: ir.Model) -> tuple[list[Branch], dict[str, str]]:
    work, shapes = prepare(model)
    branches, skipped = find_branches(work.graph, shapes)
    return list(branches), {entry.name: entry.reason for entry in skipped}


def only_used(body: str, constants: dict[str, Constant]) -> dict[str, Constant]:
    return {name: constant for name, constant in constants.items() if name in body}


def sequence(body: str, outputs: str = "y", **more: Constant) -> ir.Model:
    constants = {**only_used(body, WEIGHTS), **more}
    return graph(body, inputs=SEQUENCE, outputs=outputs, constants=constants)


def image(body: str, outputs: str = "y", **more: Constant) -> ir.Model:
    return graph(body, inputs=IMAGE, outputs=outputs, constants={**only_used(body, CONVOLUTIONS), **more})


@pytest.mark.parametrize(
    "sums",
    [
        ("h = Add(x, a)", "y = Add(h, d)"),
        ("h = Add(a, x)", "y = Add(d, h)"),
        ("h = Sum(x, a)", "y = Sum(d, h)"),
    ],
)
def test_pre_norm_blocks_whatever_the_order_of_operands(sums):
    branches, skipped = find(sequence(f"{ATTENTION} {sums[0]} {FEED_FORWARD} {sums[1]}"))
    assert [(b.kind, b.value, b.total, b.axis) for b in branches] == [
        ("attention", "a", "h", 2),
        ("feed_forward", "d", "y", 2),
    ]
    assert [b.operand for b in branches] == [int(s.split("(")[1][0] in "xh") for s in sums]
    assert set(branches[0].freed) == {"q_w", "k_w", "v_w", "o_w", "norm1_g", "norm1_b"}
    assert set(branches[1].freed) == {"u_w", "d_w", "norm2_g", "norm2_b"}
    assert skipped == {}


def test_post_norm_blocks():
    body = """
        u = MatMul(x, u_w) r = Relu(u) d = MatMul(r, d_w) e = Add(d, x)
        h = LayerNormalization(e, norm1_g, norm1_b)
        u2 = MatMul(h, u_w) r2 = Relu(u2) d2 = MatMul(r2, d2_w) e2 = Add(d2, h)
        y = LayerNormalization(e2, norm2_g, norm2_b)
    """
    branches, skipped = find(sequence(body, d2_w=(F, D)))
    assert [(b.value, b.freed) for b in branches] == [("d", ("d_w",)), ("d2", ("d2_w",))]  # u_w is tied
    assert [b.weights for b in branches] == [("u_w", "d_w"), ("u_w", "d2_w")]
    assert skipped == {}


def test_layer_scale_and_biases_belong_to_the_branch():
    body = (
        "u = MatMul(x, u_w) r = Relu(u) d = MatMul(r, d_w) e = Add(d, bias) f = Mul(e, scale) y = Add(x, f)"
    )
    (branch,), _ = find(sequence(body, bias=(D,), scale=(D,)))
    assert branch.value == "f"
    assert set(branch.freed) == {"u_w", "d_w", "bias", "scale"}


@pytest.mark.parametrize(
    "sums", ["e = Add(a, d) y = Add(x, e)", "e = Add(x, a) y = Add(e, d)", "y = Sum(a, x, d)"]
)
def test_parallel_branches_of_one_sum(sums):
    """Attention and feed-forward beside each other, on one norm that goes only with both."""
    feed_forward = "u = MatMul(n, u_w) r = Relu(u) d = MatMul(r, d_w)"
    model = sequence(f"{ATTENTION} {feed_forward} {sums}")
    branches, skipped = find(model)
    assert {(b.kind, b.value) for b in branches} == {("attention", "a"), ("feed_forward", "d")}
    assert not any("norm1_g" in b.freed for b in branches)
    assert {b.total for b in branches} == {"y"}
    assert skipped == {}
    work, _ = prepare(model)
    both = {node.op_type for node in Removal(work.graph).gone_with(branches)}
    assert "LayerNormalization" in both
    assert "LayerNormalization" not in {node.op_type for node in Removal(work.graph).gone_with(branches[:1])}


def test_a_projection_on_the_shortcut_is_no_identity():
    body = "f = Conv<pads = [1, 1, 1, 1]>(x, a_w) p = Conv<pads = [1, 1, 1, 1]>(x, p_w) y = Add(f, p)"
    branches, skipped = find(image(body))
    assert branches == []
    assert list(skipped) == ["n2"]
    assert "projection" in skipped["n2"]


def test_convolutions_have_their_features_on_axis_1():
    body = """
        f = Conv<pads = [1, 1, 1, 1]>(x, a_w) r = Relu(f) g = Conv<pads = [1, 1, 1, 1]>(r, b_w) e = Add(x, g)
        y = Relu(e)
    """
    (branch,), _ = find(image(body))
    assert (branch.kind, branch.axis, branch.freed) == ("convolution", 1, ("a_w", "b_w"))


def test_features_of_images_that_end_in_a_matrix_product():
    body = """
        t = Transpose<perm = [0, 2, 3, 1]>(x) u = MatMul(t, up) g = Relu(u) d = MatMul(g, down)
        f = Transpose<perm = [0, 3, 1, 2]>(d) y = Add(x, f)
    """
    (branch,), _ = find(image(body, up=(4, 9), down=(9, 4)))
    assert (branch.kind, branch.axis) == ("feed_forward", 1)


def test_the_inner_ones_of_nested_branches_are_offered():
    """As in RRDB: a residual around two residuals and a convolution."""
    conv = "Conv<pads = [1, 1, 1, 1]>"
    body = f"""
        f = {conv}(x, a_w) h = Add(x, f) g = {conv}(h, b_w) i = Add(h, g) o = {conv}(i, c_w) y = Add(x, o)
    """
    branches, skipped = find(image(body))
    assert [b.value for b in branches] == ["f", "g"]
    assert skipped == {"n5": "it holds 2 smaller branches, which can go one by one"}


def test_a_sum_with_something_from_outside_is_part_of_its_branch():
    """Scores of attention that are added to those of the layer before are no branch of their own."""
    first = """
        q = MatMul(x, q_w) k = MatMul(x, k_w) t = Transpose<perm = [0, 2, 1]>(k) s = MatMul(q, t)
        p = Softmax<axis = -1>(s) c = MatMul(p, x) a = MatMul(c, o_w) h = Add(x, a)
    """
    second = """
        q2 = MatMul(h, q2_w) k2 = MatMul(h, k2_w) t2 = Transpose<perm = [0, 2, 1]>(k2) s2 = MatMul(q2, t2)
        s3 = Add(s2, s) p2 = Softmax<axis = -1>(s3) c2 = MatMul(p2, h) a2 = MatMul(c2, o2_w) y = Add(h, a2)
    """
    more = dict.fromkeys(("q2_w", "k2_w", "o2_w"), (D, D))
    branches, skipped = find(sequence(first + second, **more))
    assert [b.value for b in branches] == ["a", "a2"]
    assert "q2_w" in branches[1].freed
    assert branches[0].stays == ("n0", "n1")  # the second layer reads the scores
    assert skipped == {}


def test_what_outputs_read_stays():
    """Keys and values that are outputs of the model, as caches are."""
    branches, _ = find(sequence(f"{ATTENTION} y = Add(x, a)", outputs="y; k; v"))
    (branch,) = branches
    assert set(branch.freed) == {"q_w", "o_w"}
    assert branch.stays == ("n2", "n3")


def test_a_branch_that_is_read_elsewhere_too_is_named():
    body = "u = MatMul(x, u_w) d = MatMul(u, d_w) y = Add(x, d) z = Relu(d)"
    branches, skipped = find(sequence(body, outputs="y; z"))
    assert branches == []
    assert "read elsewhere" in skipped["n2"]


def test_a_shortcut_that_the_sum_repeats_can_not_replace_it():
    body = "m = ReduceMean<axes = [1]>(x) f = MatMul(x, q_w) g = Mul(f, m) y = Add(m, g)"
    branches, skipped = find(sequence(body))
    assert branches == []
    assert "repeated" in skipped["n3"]


def test_a_sum_that_is_fused_with_its_norm_is_named():
    body = """
        u = MatMul(x, u_w) r = Relu(u) d = MatMul(r, d_w)
        y = com.microsoft.SkipLayerNormalization(x, d, norm1_g, norm1_b)
    """
    assert find(sequence(body)) == (
        [],
        {"n3": "the sum is fused into a SkipLayerNormalization, which is not taken apart"},
    )


def test_an_unknown_shape_is_the_reason():
    body = "f = MatMul(x, q_w) g = com.microsoft.Mystery(f) y = Add(x, g)"
    branches, skipped = find(sequence(body))
    assert branches == []
    assert "shape of its sum is not known" in skipped["n2"]


@pytest.mark.parametrize(
    "body",
    [
        "c = Pow(x, three) d = Mul(c, half) y = Add(x, d)",  # the inside of a tanh-GELU
        "d = Mul(x, scale) y = Add(x, d)",
        "d = MatMul(x, q_w) y = Add(d, scale)",  # a bias
    ],
)
def test_sums_without_layers_are_no_branches(body):
    constants = {"three": np.float32(3), "half": np.float32(0.5)}
    model = sequence(body, scale=(D,), **{n: np.array(c) for n, c in constants.items() if n in body})
    assert find(model) == ([], {})


def test_a_recurrent_branch():
    body = """
        t = Transpose<perm = [1, 0, 2]>(x) l = LSTM<hidden_size = 8>(t, w, r) o = Squeeze(l, one)
        f = Transpose<perm = [1, 0, 2]>(o) y = Add(x, f)
    """
    (branch,), _ = find(sequence(body, w=(1, 32, 8), r=(1, 32, 8), one=[1]))
    assert (branch.kind, branch.freed) == ("recurrent", ("w", "r"))


@pytest.mark.parametrize("captured", ["x", "u"])
def test_bodies_count_as_readers(captured):
    """What an If captures is needed as long as the If is."""
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> small (float[N,T,8] x, bool b) => (float[N,T,8] y) {{
            u = MatMul(x, u_w) r = Relu(u) d = MatMul(r, d_w) h = Add(x, d)
            s = If (b) <
                then_branch = a () => (float[N,T,M] ta) {{ ta = Abs({captured}) }},
                else_branch = e () => (float[N,T,M] te) {{ te = Neg({captured}) }}>
            m = ReduceMean<axes = [2]>(s) y = Add(h, m)
        }}"""
    )
    random = np.random.default_rng(0)
    for name, shape in (("u_w", (8, 12)), ("d_w", (12, 8))):
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        )
    (branch,), _ = find(ir.from_proto(proto))
    assert branch.freed == (("u_w", "d_w") if captured == "x" else ("d_w",))


def named(prefix: str, body: str) -> str:
    """The names of the branches of a model whose weights have dotted names."""
    proto = ir.to_proto(sequence(body))
    for node in proto.graph.node:
        node.input[:] = [f"{prefix}{name[:-2]}.weight" if name in WEIGHTS else name for name in node.input]
    for tensor in proto.graph.initializer:
        tensor.name = f"{prefix}{tensor.name[:-2]}.weight"
    return ", ".join(branch.name for branch in find(ir.from_proto(proto))[0])


def test_names_are_what_the_weights_have_in_common():
    body = f"{ATTENTION} y = Add(x, a)"
    assert named("layers.3.attn.", body) == "layers.3.attn"
    assert named("", body) == "n9"  # nothing in common: the node that adds


def test_names_of_nodes_help_where_weights_have_none():
    model = sequence("u = MatMul(x, u_w) r = Relu(u) d = MatMul(r, d_w) y = Add(x, d)")
    for node, path in zip(model.graph, ("fc1/MatMul", "Relu", "fc2/MatMul", "Add"), strict=True):
        node.name = f"/blocks/blocks.1/blocks.1.0/{path}"
    assert [b.name for b in find(model)[0]] == ["blocks.1.0"]


def test_equal_names_get_numbers():
    body = "d = MatMul(x, q_w) h = Add(x, d) e = MatMul(h, q_w) y = Add(h, e)"
    model = sequence(body)
    for number, node in enumerate(model.graph):
        node.name = f"/m/layer/{node.op_type}_{number}"
    assert [b.name for b in find(model)[0]] == ["m.layer", "m.layer#2"]


def test_a_long_chain_is_searched_without_recursion():
    lines = "".join(f"d{i} = MatMul(x{i}, w) x{i + 1} = Add(x{i}, d{i}) " for i in range(1500))
    text = f"x0 = Relu(x) {lines} y = Relu(x1500)"
    branches, _ = find(graph(text, inputs="float[N,2] x", constants={"w": (2, 2)}))
    assert len(branches) == 1500


def test_quantized_weights_count():
    body = "w = DequantizeLinear(w8, scale) d = MatMul(x, w) y = Add(x, d)"
    w8 = np.random.default_rng(0).integers(-9, 9, (D, D)).astype(np.int8)
    (branch,), _ = find(sequence(body, w8=w8, scale=np.array(0.1, np.float32)))
    assert branch.freed == ("w8",)


ENCODER_DECODER = """
    u = MatMul(z, u_w) r = Relu(u) d = MatMul(r, d_w) e = Add(z, d)
    q = MatMul(x, q_w) t = Transpose<perm = [0, 2, 1]>(e) s = MatMul(q, t) p = Softmax<axis = -1>(s)
    c = MatMul(p, e) h = Add(x, c) k = MatMul(h, k_w) y = Add(h, k)
"""


def test_what_else_would_be_cut_off():
    """A decoder without its cross-attention needs no encoder, and does not depend on its input."""
    model = graph(
        ENCODER_DECODER,
        inputs="float[N,T,8] x, float[N,S,8] z",
        constants=only_used(ENCODER_DECODER, WEIGHTS),
    )
    work, shapes = prepare(model)
    branches, _ = find_branches(work.graph, shapes)
    encoder, cross, decoder = branches
    removal = Removal(work.graph)
    assert removal.why_not([encoder], [cross, decoder]) is None
    assert removal.why_not([decoder], [encoder, cross]) is None
    assert removal.why_not([cross], [encoder, decoder]) == f"nothing would need {encoder.name} any more"
    assert removal.why_not([cross, encoder], [decoder]) == "nothing would depend on input z any more"
