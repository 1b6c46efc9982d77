"""What ONNX Runtime's optimizer writes besides attention."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import check_cut, graph, graph_proto, group_of, open_groups, positions, value_info

from onnxprune.analyze import analyze
from onnxprune.cost import cost_of
from onnxprune.model.shapes import concretise
from onnxprune.rewrite.cut import cut

SEQUENCE = "float[N,5,6] x"
IMAGE = "float[N,3,6,6] x"
FUSED = "com.microsoft"

# --- matrix products ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [0, 1])
def test_fused_matmul_with_a_weight(transposed: int) -> None:
    body = f"""
        h = {FUSED}.FusedMatMul<transB = {transposed}, alpha = 0.5>(x, a_w) r = Relu(h)
        y = {FUSED}.FusedMatMul<transB = {transposed}>(r, c_w)
    """
    shapes = {"a_w": (6, 8), "c_w": (8, 3)}
    constants = {name: shape[::-1] if transposed else shape for name, shape in shapes.items()}
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    assert open_groups(analysis) == {"a_w": 8}
    assert positions(group_of(analysis, "a_w", 1 - transposed)) == {
        ("a_w", 1 - transposed, False),
        ("c_w", transposed, True),
    }
    assert cost_of(analysis.model.graph, analysis.channels).macs == 5 * 8 * (6 + 3)


def test_fused_matmul_with_the_weight_on_the_left() -> None:
    body = f"h = {FUSED}.FusedMatMul<transA = 1>(a_w, x) r = Relu(h) y = {FUSED}.FusedMatMul(c_w, r)"
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants={"a_w": (5, 8), "c_w": (3, 8)}))
    assert positions(group_of(analysis, "a_w", 1)) == {("a_w", 1, False), ("c_w", 1, True)}


def test_fused_matmul_of_stacks_is_attention() -> None:
    """The transposition and the scale of decomposed attention are fused into the product."""
    body = f"""
        qp = MatMul(x, q_w) kp = MatMul(x, k_w) vp = MatMul(x, v_w)
        qr = Reshape(qp, shape) kr = Reshape(kp, shape) vr = Reshape(vp, shape)
        q = Transpose<perm = [0, 2, 1, 3]>(qr) k = Transpose<perm = [0, 2, 1, 3]>(kr)
        v = Transpose<perm = [0, 2, 1, 3]>(vr) s = {FUSED}.FusedMatMul<transB = 1, alpha = 0.5>(q, k)
        p = Softmax<axis = -1>(s) o = MatMul(p, v) t = Transpose<perm = [0, 2, 1, 3]>(o)
        f = Reshape(t, merged) y = MatMul(f, o_w)
    """
    constants = {
        "q_w": (6, 12), "k_w": (6, 12), "v_w": (6, 12), "o_w": (12, 6),
        "shape": [0, 5, 3, 4], "merged": [0, 5, 12],
    }  # fmt: skip
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    (heads,) = (group for group in analysis.groups if group.kind == "heads" and group.frozen is None)
    assert heads.size == 3


@pytest.mark.parametrize("rows_first", [True, False])
def test_fused_matmul_with_the_stack_behind_the_rows(rows_first: bool) -> None:
    """Operands stored as [rows, stack, columns], as by a Transpose that was fused."""
    body = f"""
        h = MatMul(x, a_w) g = Reshape(h, shape)
        m = {FUSED}.FusedMatMul<transBatchA = 1, transA = {0 if rows_first else 1}>(g, b_w)
        r = Relu(m) y = MatMul(r, c_w)
    """
    constants = {
        "a_w": (6, 12), "shape": [-1, 3, 4], "b_w": (3, 4, 7) if rows_first else (3, 10, 7), "c_w": (7, 2)
    }  # fmt: skip
    analysis = check_cut(graph(body, inputs="float[2,5,6] x", constants=constants))
    assert 7 in open_groups(analysis).values()
    # Places are summed over if the rows come first. Else they become rows of the output, which stay.
    assert len(open_groups(analysis)) == (2 if rows_first else 1)


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu"])
def test_fused_gemm(activation: str) -> None:
    more = ", activation_alpha = 0.1" if activation == "LeakyRelu" else ""
    body = f"""
        h = {FUSED}.FusedGemm<transB = 1, activation = "{activation}"{more}>(x, a_w, a_b) y = Gemm(h, c_w)
    """
    constants = {"a_w": (8, 6), "a_b": (8,), "c_w": (8, 3)}
    analysis = check_cut(graph(body, inputs="float[N,6] x", constants=constants))
    assert open_groups(analysis) == {"a_w": 8}


# --- convolutions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 2, 8])
def test_fused_conv(group: int) -> None:
    body = f"""
        h = {FUSED}.FusedConv<activation = "Relu", pads = [1, 1, 1, 1]>(x, a_w, a_b)
        g = {FUSED}.FusedConv<activation = "LeakyRelu", activation_params = [0.1], group = {group}>
            (h, b_w, b_b)
        y = Conv(g, c_w)
    """
    constants = {
        "a_w": (8, 3, 3, 3), "a_b": (8,), "b_w": (16, 8 // group, 3, 3), "b_b": (16,), "c_w": (4, 16, 1, 1)
    }  # fmt: skip
    analysis = check_cut(graph(body, inputs=IMAGE, constants=constants))
    plain = body.replace(f"{FUSED}.FusedConv", "Conv").replace('activation = "Relu", ', "")
    plain = plain.replace('activation = "LeakyRelu", activation_params = [0.1], ', "")
    assert open_groups(analysis) == open_groups(analyze(graph(plain, inputs=IMAGE, constants=constants)))
    assert open_groups(analysis)


def test_fused_conv_adds_a_shortcut() -> None:
    body = f"""
        h = Conv(x, s_w) r = Relu(h)
        z = {FUSED}.FusedConv<activation = "Relu", pads = [1, 1, 1, 1]>(r, a_w, a_b, h) y = Conv(z, c_w)
    """
    constants = {"s_w": (8, 3, 1, 1), "a_w": (8, 8, 3, 3), "a_b": (8,), "c_w": (2, 8, 1, 1)}
    analysis = check_cut(graph(body, inputs=IMAGE, constants=constants))
    assert open_groups(analysis) == {"s_w": 8}
    assert {tensor for tensor, _, _ in positions(group_of(analysis, "s_w", 0))} == set(constants)


def test_fused_conv_adds_a_value_from_outside() -> None:
    body = f'z = {FUSED}.FusedConv<activation = "Relu">(x, a_w, a_b, m) y = Conv(z, c_w)'
    constants = {"a_w": (8, 3, 1, 1), "a_b": (8,), "c_w": (2, 8, 1, 1)}
    analysis = check_cut(graph(body, inputs=IMAGE + ", float[N,8,6,6] m", constants=constants))
    assert "adds a value without channels" in str(group_of(analysis, "a_w", 0).frozen)


@pytest.mark.parametrize("group", [1, 2])
def test_transposed_convolution_with_computed_pads(group: int) -> None:
    """What the file declares is all that is known of the output's size."""
    body = f"""
        h = Conv(x, a_w)
        t = {FUSED}.ConvTransposeWithDynamicPads<strides = [2, 2], group = {group}>(h, b_w, pads, b_b)
        y = Conv(t, c_w)
    """
    constants = {
        "a_w": (8, 3, 1, 1), "b_w": (8, 10 // group, 3, 3), "b_b": (10,), "pads": [1, 1, 1, 1],
        "c_w": (2, 10, 1, 1),
    }  # fmt: skip
    proto = graph_proto(body, inputs="float[2,3,6,6] x", constants=constants)
    proto.graph.value_info.append(value_info("t", 2, 10, 11, 11))
    analysis = check_cut(ir.from_proto(proto))
    assert sorted(open_groups(analysis).values()) == ([8, 10] if group == 1 else [4, 5])


# --- activations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "activation", ["BiasGelu(h, b)", "FastGelu(h, b)", "FastGelu(h)", "Gelu(h)", "QuickGelu<alpha = 1.7>(h)"]
)
def test_activations(activation: str) -> None:
    constants = {"a_w": (6, 8), "c_w": (8, 3), **({"b": (8,)} if "h, b" in activation else {})}
    body = f"h = MatMul(x, a_w) r = {FUSED}.{activation} y = MatMul(r, c_w)"
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    assert open_groups(analysis) == {"a_w": 8}
    assert {tensor for tensor, _, _ in positions(group_of(analysis, "a_w", 1))} == set(constants)


# --- norms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("simplified", [False, True])
def test_skip_norms_take_statistics(simplified: bool) -> None:
    """The width is frozen; what a norm adds first is part of it, and the sum is a second result."""
    operator = "SkipSimplifiedLayerNormalization" if simplified else "SkipLayerNormalization"
    operands = "h, x8, g, s" if simplified else "h, x8, g, t, s"
    body = f"""
        x8 = MatMul(x, i_w) h = MatMul(x8, a_w) n, , , total = {FUSED}.{operator}({operands})
        f = MatMul(n, f_w) r = Relu(f) d = MatMul(r, d_w) m = Add(d, total) y = MatMul(m, c_w)
    """
    constants = {
        "i_w": (6, 8), "a_w": (8, 8), "g": (8,), "s": (8,), "f_w": (8, 16), "d_w": (16, 8), "c_w": (8, 3),
        **({} if simplified else {"t": (8,)}),
    }  # fmt: skip
    model = graph(body, inputs=SEQUENCE, constants=constants)
    analysis = check_cut(model)
    assert open_groups(analysis) == {"f_w": 16}
    width = group_of(analysis, "g", 0)
    assert "over these channels" in str(width.frozen)
    assert {tensor for tensor, _, _ in positions(width)} == set(constants)
    assert 8 in open_groups(check_cut(model, allow_inexact=True)).values()


@pytest.mark.parametrize("operator", ["LayerNormalization", "SimplifiedLayerNormalization"])
def test_norms_that_the_runtime_writes_into_old_opsets(operator: str) -> None:
    operands = "h, g, t" if operator == "LayerNormalization" else "h, g"
    body = f"h = MatMul(x, a_w) n = {operator}<axis = -1>({operands}) f = MatMul(n, f_w) y = MatMul(f, c_w)"
    constants = {
        "a_w": (6, 8),
        "g": (8,),
        "f_w": (8, 16),
        "c_w": (16, 3),
        **({"t": (8,)} if "t" in operands else {}),
    }
    proto = graph_proto(body, inputs=SEQUENCE, constants=constants, opset=13)
    analysis = check_cut(ir.from_proto(proto))
    assert open_groups(analysis) == {"f_w": 16}
    assert "over these channels" in str(group_of(analysis, "g", 0).frozen)
    assert 8 in open_groups(check_cut(ir.from_proto(proto), allow_inexact=True)).values()


def test_embeddings_and_their_norm() -> None:
    body = f"""
        e, , total = {FUSED}.EmbedLayerNormalization(ids, kinds, words, places, segments, g, t)
        f = MatMul(e, f_w) r = Relu(f) d = MatMul(r, d_w) m = Add(d, total) y = MatMul(m, c_w)
    """
    constants = {
        "words": (20, 8), "places": (9, 8), "segments": (2, 8), "g": (8,), "t": (8,),
        "f_w": (8, 16), "d_w": (16, 8), "c_w": (8, 3),
    }  # fmt: skip
    inputs = "int32[N,5] ids, int32[N,5] kinds"
    model = graph(body, inputs=inputs, constants=constants)
    analysis = check_cut(model)
    assert open_groups(analysis) == {"f_w": 16}
    width = group_of(analysis, "words", 1)
    assert "over these channels" in str(width.frozen)
    assert {tensor for tensor, _, _ in positions(width)} == set(constants)
    assert 8 in open_groups(check_cut(model, allow_inexact=True)).values()


# --- experts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "swiglu"])
def test_hidden_units_of_experts(activation: str) -> None:
    """Router and experts read the same stream; hidden units go in all experts at once.

    The stream is read once more after the experts: else the runtime puts their result into its memory, and
    clears that before it is read.
    """
    fused = activation == "swiglu"
    more = ", swiglu_fusion = 1" if fused else ""
    rows = 14 if fused else 7
    body = f"""
        h = MatMul(x, a_w) p = MatMul(h, router_w) flat = Reshape(p, shape)
        m = {FUSED}.MoE<k = 2, activation_type = "{activation}"{more}>(h, flat, u, u_b, w, w_b)
        r = Add(m, h) y = MatMul(r, c_w)
    """
    constants = {
        "a_w": (6, 8), "router_w": (8, 3), "shape": [-1, 3], "u": (3, rows, 8), "u_b": (3, rows),
        "w": (3, 8, 7), "w_b": (3, 8), "c_w": (8, 3),
    }  # fmt: skip
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    hidden, stream = group_of(analysis, "w", 2), group_of(analysis, "u", 2)
    assert (hidden.size, stream.size, hidden.frozen, stream.frozen) == (7, 8, None, None)
    assert ("w", 1, False) in positions(stream)  # the operator returns as many channels as it takes in
    units = next(member for member in hidden.members if member.tensor == "u")
    expected = np.repeat(np.arange(7), 2) if fused else np.arange(7)
    assert units.channel_at.tolist() == expected.tolist()
    assert "ranks experts" in str(group_of(analysis, "router_w", 1).frozen)
    macs = 5 * 8 * (6 + 3 + 3) + 5 * 2 * (rows * 8 + 8 * 7)
    assert cost_of(analysis.model.graph, analysis.channels).macs == macs


@pytest.mark.parametrize("gated", [True, False])
def test_experts_in_forms_without_a_kernel(gated: bool) -> None:
    """A third stack of matrices, or swiglu in two halves: only the shapes are checked."""
    more, rows, operands = (
        ('activation_type = "silu"', 7, "u, , w, , g") if gated
        else ('activation_type = "swiglu", swiglu_fusion = 2', 14, "u, , w")
    )  # fmt: skip
    body = f"m = {FUSED}.MoE<k = 2, {more}>(x, p, {operands}) y = MatMul(m, c_w)"
    constants = {"u": (3, rows, 6), "w": (3, 6, 7), "c_w": (6, 3), **({"g": (3, 7, 6)} if gated else {})}
    inputs = "float[N,5,6] x, float[M,3] p"
    analysis = analyze(graph(body, inputs=inputs, constants=constants))
    hidden = group_of(analysis, "w", 2)
    assert (hidden.size, hidden.frozen) == (7, None)
    units = next(member for member in hidden.members if member.tensor == "u")
    assert units.channel_at.tolist() == (list(range(7)) if gated else [*range(7), *range(7)])
    pruned = cut(analysis.model, analysis.channels, analysis.removed_labels({hidden.name: np.array([0, 3])}))
    assert list(pruned.graph.initializers["u"].const_value.shape) == [3, 5 if gated else 10, 6]
    if gated:
        assert list(pruned.graph.initializers["g"].const_value.shape) == [3, 5, 6]


# --- the rest -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["Inverse", "Trilu"])
def test_functions_of_whole_matrices(operator: str) -> None:
    """Rows and columns stay; the stack of matrices loses positions."""
    body = f"""
        h = Conv(x, a_w) m = Reshape(h, shape) z = {FUSED}.{operator}(m) r = Reshape(z, image)
        y = Conv(r, c_w)
    """
    constants = {"a_w": (8, 3, 1, 1), "c_w": (2, 8, 1, 1), "shape": [0, 0, 6, 6], "image": [0, 0, 6, 6]}
    assert open_groups(check_cut(graph(body, inputs=IMAGE, constants=constants))) == {"a_w": 8}


def test_channels_last_pool() -> None:
    """Its only kernel takes integers: shapes and groups are checked, nothing is run."""
    body = f"""
        h = Conv(x, a_w) t = Transpose<perm = [0, 2, 3, 1]>(h)
        p = {FUSED}.NhwcMaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(t)
        b = Transpose<perm = [0, 3, 1, 2]>(p) y = Conv(b, c_w)
    """
    model = graph(body, inputs="float[N,3,7,7] x", constants={"a_w": (8, 3, 1, 1), "c_w": (2, 8, 1, 1)})
    assert open_groups(analyze(model)) == {"a_w": 8}
    shapes = concretise(model)
    pool = next(node for node in model.graph if node.op_type == "NhwcMaxPool")
    assert shapes.shape(pool.outputs[0]) == (2, 4, 4, 8)


def test_other_attributes_stay_as_they_were() -> None:
    """A cut changes sizes, and no activation."""
    body = f'h = {FUSED}.FusedConv<activation = "Relu">(x, a_w) y = Conv(h, c_w)'
    analysis = analyze(graph(body, inputs=IMAGE, constants={"a_w": (8, 3, 1, 1), "c_w": (2, 8, 1, 1)}))
    (name,) = open_groups(analysis)
    pruned = cut(analysis.model, analysis.channels, analysis.removed_labels({name: np.array([0, 3])}))
    node = onnx.helper.printable_node(ir.to_proto(pruned).graph.node[0])
    assert "activation = 'Relu'" in node
