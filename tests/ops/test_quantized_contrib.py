"""ONNX Runtime's operators on quantized numbers: cuts equal their twins, told shapes are those computed."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from cutting import check_cut, graph, group_of, open_groups, positions
from onnx import helper
from quantized_models import TINY, integers, random_steps, steps

from onnxprune.analyze import Analysis, analyze
from onnxprune.feeds import random_feeds
from onnxprune.runtime import open_session

XQ = "xq = QuantizeLinear(x, xs, xz)"
SCALES = {
    "xs": TINY, "xz": np.uint8(120), "hs": np.float32(0.9), "hz": np.uint8(70), "gs": np.float32(0.7),
    "gz": np.uint8(130), "ys": np.float32(40), "yz": np.uint8(99), "one_s": np.float32(1 / 255),
    "one_z": np.uint8(0), "b_s": np.float32(0.01), "b_z": np.int8(5),
}  # fmt: skip


def kernels(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return int8 weights ``NAME_w`` with scales ``NAME_s`` and zero points ``NAME_z`` for each output."""
    found = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        found[f"{name}_w"] = integers(*shape, seed=seed)
        found[f"{name}_s"] = random_steps(shape[0], seed=seed)
        found[f"{name}_z"] = integers(shape[0], seed=seed + 10)
    return found


def check(model: ir.Model) -> Analysis:
    """Check the cut, and that every shape that was told is the one that the runtime computes."""
    analysis = check_cut(model)
    proto = ir.to_proto(analysis.model)
    known = {output.name for output in proto.graph.output}
    for node in proto.graph.node:
        for name in node.output:
            if name and name not in known:
                proto.graph.output.append(helper.make_empty_tensor_value_info(name))
    session = open_session(ir.from_proto(proto), optimize="none", prepack=False, label="all values")
    computed = session.run(random_feeds(model, analysis.shapes.input_shapes, 0))
    told = {value.name: analysis.shapes.shape(value) for n in analysis.model.graph for value in n.outputs}
    assert {name: array.shape for name, array in computed.items()} == {n: told[n] for n in computed}
    return analysis


def test_sums_and_products_of_quantized_tensors():
    model = graph(
        f"""{XQ} a = QLinearConv(xq, xs, xz, a_w, a_s, a_z, hs, hz)
        b = QLinearConv(xq, xs, xz, b_w, b_cs, b_cz, gs, gz)
        s = com.microsoft.QLinearAdd(a, hs, hz, b, gs, gz, hs, hz)
        l = com.microsoft.QLinearLeakyRelu<alpha=0.1>(s, hs, hz, hs, hz)
        g = com.microsoft.QLinearSigmoid(l, hs, hz, one_s, one_z)
        p = com.microsoft.QLinearMul(s, hs, hz, g, one_s, one_z, gs, gz)
        c = com.microsoft.QLinearMul(p, gs, gz, k_w, one_s, one_z, gs, gz)
        q = QLinearConv(c, gs, gz, c_w, c_s, c_z, ys, yz) y = DequantizeLinear(q, ys, yz)""",
        constants=SCALES | kernels(a=(8, 3, 3, 3), c=(4, 8, 1, 1)) | {
            "b_w": integers(8, 3, 3, 3, seed=7), "b_cs": TINY, "b_cz": np.int8(1),
            "k_w": integers(1, 8, 1, 1, dtype=np.uint8),
        },
    )  # fmt: skip
    analysis = check(model)
    assert open_groups(analysis) == {"a_w": 8}
    assert {("b_w", 0), ("k_w", 1), ("c_w", 1)} < {p[:2] for p in positions(group_of(analysis, "a_w", 0))}


def test_joined_and_pooled():
    model = graph(
        f"""{XQ} a = QLinearConv(xq, xs, xz, a_w, a_s, a_z, hs, hz)
        b = QLinearConv(xq, xs, xz, b_w, b_s, b_z, hs, hz)
        j = com.microsoft.QLinearConcat<axis=1>(gs, gz, a, hs, hz, b, hs, hz)
        p = com.microsoft.QLinearAveragePool<kernel_shape=[2,2], pads=[1,1,0,0]>(j, gs, gz, gs, gz)
        m = QLinearConv(p, gs, gz, c_w, c_s, c_z, ys, yz)
        g = com.microsoft.QLinearGlobalAveragePool(p, gs, gz, gs, gz)
        f = Flatten(g) q = com.microsoft.QGemm<transB=1>(f, gs, gz, d_w, d_s, d_z, d_b, ys, yz)
        y = DequantizeLinear(q, ys, yz) z = DequantizeLinear(m, ys, yz)""",
        outputs="y; z",
        constants=SCALES | kernels(a=(6, 3, 3, 3), b=(4, 3, 3, 3), c=(4, 10, 1, 1), d=(5, 10)) | {
            "d_b": integers(5, dtype=np.int32)
        },
    )  # fmt: skip
    assert open_groups(check(model)) == {"a_w": 6, "b_w": 4}


def test_a_general_product_follows_its_columns():
    model = graph(
        f"""{XQ} h = com.microsoft.QGemm<transB=1>(xq, xs, xz, a_w, a_s, a_z, a_b, hs, hz)
        y = com.microsoft.QGemm(h, hs, hz, c_w, c_s, c_z, c_b)""",
        inputs="float[N,7] x",
        constants=SCALES | kernels(a=(12, 7)) | {
            "a_b": integers(12, dtype=np.int32), "c_w": integers(12, 5, seed=3), "c_s": random_steps(5),
            "c_z": integers(5, seed=4), "c_b": integers(5, dtype=np.int32),
        },
    )  # fmt: skip
    analysis = check(model)
    assert {p[:2] for p in positions(group_of(analysis, "a_w", 0))} == {
        ("a_w", 0), ("a_s", 0), ("a_z", 0), ("a_b", 0), ("c_w", 0)
    }  # fmt: skip
    assert group_of(analysis, "a_w", 0).kind == "hidden"


def test_a_choice_between_quantized_tensors():
    model = graph(
        f"""{XQ} a = QLinearConv(xq, xs, xz, a_w, a_s, a_z, hs, hz)
        b = QLinearConv(xq, xs, xz, b_w, b_s, b_z, gs, gz) n = QLinearConv(xq, xs, xz, a_w, a_s, a_z, hs, hz)
        l = DequantizeLinear(n, hs, hz) c = Greater(l, zero)
        s = com.microsoft.QLinearWhere(c, a, hs, hz, b, gs, gz, hs, hz)
        q = QLinearConv(s, hs, hz, c_w, c_s, c_z, ys, yz) y = DequantizeLinear(q, ys, yz)""",
        constants=SCALES | kernels(a=(8, 3, 3, 3), b=(8, 3, 3, 3), c=(4, 8, 1, 1)) | {"zero": np.float32(0)},
    )
    assert open_groups(check(model)) == {"a_w": 8}


def test_a_softmax_over_channels_freezes_them():
    model = graph(
        f"""{XQ} a = QLinearMatMul(xq, xs, xz, a_w, a_s, a_z, hs, hz)
        s = com.microsoft.QLinearSoftmax<axis=-1, opset=13>(a, hs, hz, one_s, one_z)
        b = QLinearMatMul(s, one_s, one_z, c_w, b_s, b_z, hs, hz) y = DequantizeLinear(b, hs, hz)""",
        inputs="float[N,4,6] x",
        constants=SCALES
        | {"a_w": integers(6, 8), "a_s": steps(8), "a_z": integers(8, seed=1), "c_w": integers(8, 5, seed=2)},
    )
    assert "normalises" in str(group_of(check(model), "a_w", 1).frozen)


def test_a_mean_over_channels_freezes_them():
    """The runtime has no kernel for it on CPU, so nothing is run."""
    model = graph(
        f"""{XQ} a = QLinearMatMul(xq, xs, xz, a_w, a_s, a_z, hs, hz)
        m = com.microsoft.QLinearReduceMean<axes=[-1], keepdims=0>(a, hs, hz, hs, hz)
        y = DequantizeLinear(m, hs, hz)""",
        inputs="float[N,4,6] x",
        constants=SCALES | {"a_w": integers(6, 8), "a_s": steps(8), "a_z": integers(8, seed=1)},
    )
    analysis = analyze(model)
    assert "takes the mean" in str(group_of(analysis, "a_w", 1).frozen)
    assert [analysis.shapes.shape(node.outputs[0]) for node in analysis.model.graph][2] == (2, 4)


# --- by the range of the data -----------------------------------------------------------------------------


def test_a_dynamically_quantized_product():
    model = graph(
        """h = com.microsoft.DynamicQuantizeMatMul(x, a_w, a_s, a_z, a_b) r = Relu(h)
        y = com.microsoft.DynamicQuantizeMatMul(r, b_w, b_s)""",
        inputs="float[N,6,8] x",
        constants={
            "a_w": integers(8, 16), "a_s": random_steps(16), "a_z": integers(16, seed=1), "a_b": (16,),
            "b_w": integers(16, 5, seed=2), "b_s": random_steps(5),
        },
    )  # fmt: skip
    analysis = check(model)
    assert open_groups(analysis) == {"a_w": 16}
    (kind,) = {group.kind for group in analysis.groups if group.frozen is None}
    assert kind == "hidden"


def test_a_product_of_integers_that_becomes_float():
    model = graph(
        """xq, xs, xz = DynamicQuantizeLinear(x)
        h = com.microsoft.MatMulIntegerToFloat(xq, a_w, xs, a_s, xz, a_z, a_b) r = Relu(h)
        rq, rs, rz = DynamicQuantizeLinear(r)
        y = com.microsoft.MatMulIntegerToFloat(rq, b_w, rs, b_s, rz)""",
        inputs="float[N,6,8] x",
        constants={
            "a_w": integers(8, 16), "a_s": random_steps(16), "a_z": integers(16, seed=1), "a_b": (16,),
            "b_w": integers(16, 5, seed=2), "b_s": TINY,
        },
    )  # fmt: skip
    assert open_groups(check(model)) == {"a_w": 16}


def test_a_quantized_lstm_keeps_its_sizes():
    model = graph(
        """h = MatMul(x, a_w)
        s, t, u = com.microsoft.DynamicQuantizeLSTM<hidden_size=5>(h, w, r, , , , , , ws, wz, rs, rz)
        q = Squeeze(s, axes) y = MatMul(q, b_w)""",
        inputs="float[4,N,6] x",
        constants={
            "a_w": (6, 8), "w": integers(1, 8, 20), "r": integers(1, 5, 20), "ws": steps(1),
            "wz": integers(1), "rs": steps(1), "rz": integers(1), "axes": [1], "b_w": (5, 3),
        },
    )  # fmt: skip
    analysis = analyze(model)
    assert open_groups(analysis) == {}
    assert "DynamicQuantizeLSTM" in str(group_of(analysis, "a_w", 1).frozen)


# --- packed in blocks -------------------------------------------------------------------------------------


def packed(rows: int, length: int, block: int, bits: int = 4, seed: int = 0) -> np.ndarray:
    return integers(rows, -(-length // block), block * bits // 8, seed=seed, dtype=np.uint8)


def packed_layers(
    length: int = 64, block: int = 16, bits: int = 4, extra: str = "", **constants: np.ndarray
) -> ir.Model:
    how = f"bits={bits}, block_size={block}"
    return graph(
        f"""h = com.microsoft.MatMulNBits<K=32, N={length}, {how}>(x, a_w, a_s) r = Relu(h)
        y = com.microsoft.MatMulNBits<K={length}, N=6, {how}>(r, b_w, b_s{extra})""",
        inputs="float[N,3,32] x",
        constants={
            "a_w": packed(length, 32, block, bits), "a_s": random_steps(length * (32 // block)),
            "b_w": packed(6, length, block, bits, seed=1),
            "b_s": random_steps(6 * -(-length // block), seed=1), **constants,
        },
    )  # fmt: skip


@pytest.mark.parametrize(("length", "bits"), [(64, 4), (64, 8), (96, 4), (72, 4)])
def test_packed_weights_lose_rows_and_blocks(length, bits):
    analysis = check(packed_layers(length, bits=bits))
    group = group_of(analysis, "a_w", 0)
    assert group.size == -(-length // 16)
    assert {("a_s", 0), ("b_w", 1), ("b_s", 0)} < {p[:2] for p in positions(group)}


@pytest.mark.parametrize("flat", [True, False])
def test_packed_zero_points_go_in_bytes(flat):
    """Two blocks of four bits share a byte of zero points: they go together."""
    shape = (6, 3)
    zeros = integers(*shape, dtype=np.uint8)
    model = packed_layers(96, extra=", b_z", b_z=zeros.ravel() if flat else zeros, b_s=random_steps(6, 6))
    assert group_of(check(model), "a_w", 0).size == 3


def test_zero_points_that_are_floats_are_not_packed():
    model = packed_layers(96, extra=", b_z", b_z=random_steps(6, 6))
    assert group_of(check(model), "a_w", 0).size == 6


def test_a_packed_product_of_one_block_keeps_what_it_sums_over():
    analysis = check(packed_layers(16))
    assert open_groups(analysis) == {}


def test_an_order_of_the_sum_freezes_it():
    index = np.arange(64, dtype=np.int32) // 16
    analysis = analyze(packed_layers(64, extra=", , b_i", b_i=index))
    assert "orders" in str(group_of(analysis, "a_w", 0).frozen)


def test_rows_behind_a_float_layer_go_one_by_one():
    model = graph(
        """h = com.microsoft.MatMulNBits<K=32, N=24, bits=4, block_size=16>(x, a_w, a_s, a_z, , a_b)
        r = Relu(h) y = MatMul(r, b_w)""",
        inputs="float[N,3,32] x",
        constants={
            "a_w": packed(24, 32, 16), "a_s": random_steps(48), "a_z": integers(24, dtype=np.uint8),
            "a_b": (24,), "b_w": (24, 5),
        },
    )  # fmt: skip
    assert group_of(check(model), "a_w", 0).size == 24


def test_a_packed_table_has_no_channels():
    model = graph(
        """e = com.microsoft.GatherBlockQuantized<block_size=16, quantize_axis=1, gather_axis=0>(t, i, s)
        h = MatMul(e, a_w) r = Relu(h) y = MatMul(r, b_w)""",
        inputs="int64[N,4] i",
        opset=21,
        constants={
            "t": integers(9, 16, dtype=np.uint8), "s": random_steps(9, 2), "a_w": (32, 10), "b_w": (10, 3),
        },
    )  # fmt: skip
    assert open_groups(check(model)) == {"a_w": 10}


# --- attention and embeddings ------------------------------------------------------------------------------


def attention(**constants: np.ndarray) -> ir.Model:
    return graph(
        """h = MatMul(x, a_w) q, s, z = DynamicQuantizeLinear(h)
        t = com.microsoft.QAttention<num_heads=4>(q, w, b, s, ws, , z, wz) y = MatMul(t, c_w)""",
        inputs="float[N,5,6] x",
        constants={
            "a_w": (6, 8), "w": integers(8, 48), "b": (48,), "ws": steps(48), "wz": integers(48, seed=1),
            "c_w": (16, 3), **constants,
        },
    )  # fmt: skip


def test_quantized_attention_loses_heads_and_inputs():
    analysis = check(attention())
    heads = group_of(analysis, "c_w", 0)
    assert (heads.kind, heads.size, heads.frozen) == ("heads", 4, None)
    assert {("w", 1), ("b", 0), ("ws", 0), ("wz", 0)} < {p[:2] for p in positions(heads)}
    assert group_of(analysis, "a_w", 1).size == 8


def test_quantized_attention_with_one_scale():
    check(attention(ws=TINY, wz=np.int8(4)))


def test_a_quantized_embedding_layer_freezes_its_columns():
    constants: Mapping[str, np.ndarray] = {
        "w": integers(9, 8, dtype=np.uint8), "p": integers(6, 8, dtype=np.uint8),
        "g": integers(8, dtype=np.uint8), "b": integers(8, dtype=np.uint8), "s": TINY,
        "z": np.uint8(120), "c_w": (8, 5), "d_w": (5, 3),
    }  # fmt: skip
    model = graph(
        """e, m = com.microsoft.QEmbedLayerNormalization(i, , w, p, , g, b, , s, s, , s, s, z, z, , z, z)
        h = MatMul(e, c_w) r = Relu(h) y = MatMul(r, d_w)""",
        inputs="int32[N,4] i",
        constants=constants,
    )
    analysis = check(model)
    assert open_groups(analysis) == {"c_w": 5}
    assert "mean and deviation" in str(group_of(analysis, "w", 1).frozen)


def test_sixteen_bits_in_the_other_domain():
    model = graph(
        """h = Conv(x, a_w) q = com.microsoft.QuantizeLinear<axis=1>(h, s, z)
        r = com.microsoft.DequantizeLinear<axis=1>(q, s, z)
        bw = com.microsoft.DequantizeLinear<axis=0>(b_w, b_s, b_z) y = Conv(r, bw)""",
        constants={
            "a_w": (8, 3, 3, 3), "s": steps(8) / 100, "z": integers(8, dtype=np.uint16),
            "b_w": integers(4, 8, 1, 1, dtype=np.int16), "b_s": steps(4), "b_z": integers(4, dtype=np.int16),
        },
    )  # fmt: skip
    assert {p[0] for p in positions(group_of(check(model), "a_w", 0))} == {"a_w", "s", "z", "b_w"}
