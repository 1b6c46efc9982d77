"""Standard operators on quantized numbers: cuts equal their twins, in integers to the last bit."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import check_cut, graph, group_of, open_groups, positions, some_channels
from quantized_models import TINY, integers, random_steps, steps

from onnxprune.analyze import analyze
from onnxprune.feeds import random_feeds
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.twin import make_twin
from onnxprune.runtime import open_session


def largest_difference(model: ir.Model, seed: int = 0) -> float:
    """Cut random channels; return the largest difference to the twin, with all the rounding there is."""
    analysis = analyze(model)
    gone = analysis.removed_labels(some_channels(analysis, seed, 0.4))
    assert gone.any()
    pruned = cut(analysis.model, analysis.channels, gone)
    twin = make_twin(model, analysis.channels, gone)
    feeds = random_feeds(model, analysis.shapes.input_shapes, seed)
    expected = open_session(twin, optimize="none", prepack=False, label="twin").run(feeds)
    actual = open_session(pruned, optimize="none", prepack=False, label="cut").run(feeds)
    for name, values in expected.items():
        assert len(np.unique(values)) > 8, f"{name} is nearly constant: nothing is compared"
    return max(float(np.abs(expected[name] - actual[name]).max()) for name in expected)


# --- QuantizeLinear and DequantizeLinear around float operators ------------------------------------------


def dequantized_convolutions(**constants: object) -> ir.Model:
    return graph(
        """xq = QuantizeLinear(x, xs, xz) xr = DequantizeLinear(xq, xs, xz)
        aw = DequantizeLinear<axis=0>(a_w, a_s, a_z) ab = DequantizeLinear<axis=0>(a_b, a_bs)
        h = Conv<pads=[1,1,1,1]>(xr, aw, ab) hq = QuantizeLinear(h, hs, hz) hr = DequantizeLinear(hq, hs, hz)
        bw = DequantizeLinear<axis=0>(b_w, b_s, b_z)
        y = Conv(hr, bw)""",
        constants={
            "xs": TINY, "xz": np.uint8(120), "hs": np.float32(0.03), "hz": np.uint8(9),
            "a_w": integers(8, 3, 3, 3), "a_s": steps(8), "a_z": integers(8, seed=1),
            "a_b": integers(8, dtype=np.int32), "a_bs": steps(8),
            "b_w": integers(5, 8, 3, 3, seed=2), "b_s": steps(5), "b_z": integers(5, seed=3), **constants,
        },
    )  # fmt: skip


def test_scales_and_zero_points_go_along_with_the_weight():
    analysis = check_cut(dequantized_convolutions())
    assert open_groups(analysis) == {"a_w": 8}
    (tensors,) = ({(t, axis) for t, axis, _ in positions(group_of(analysis, "a_w", 0))},)
    assert tensors == {("a_w", 0), ("a_s", 0), ("a_z", 0), ("a_b", 0), ("a_bs", 0), ("b_w", 1)}


def test_what_is_summed_over_is_told_apart_behind_a_dequantize_linear():
    group = group_of(analyze(dequantized_convolutions()), "a_w", 0)
    assert {(t, axis) for t, axis, contracted in positions(group) if contracted} == {("b_w", 1)}


def test_the_taps_of_a_dequantized_kernel_are_no_channels():
    analysis = analyze(dequantized_convolutions())
    assert {axis for g in analysis.groups for t, axis, _ in positions(g) if t == "a_w"} == {0, 1}


def test_one_scale_for_the_whole_weight():
    check_cut(dequantized_convolutions(a_s=TINY, a_z=np.int8(3), b_s=TINY, b_z=np.int8(-5)))


def test_linear_layers_are_hidden_units_behind_a_dequantize_linear():
    model = graph(
        """aw = DequantizeLinear<axis=1>(a_w, a_s) h = MatMul(x, aw) r = Relu(h)
        bw = DequantizeLinear(b_w, b_s) y = MatMul(r, bw)""",
        inputs="float[N,6] x",
        constants={
            "a_w": integers(6, 12), "a_s": steps(12), "b_w": integers(12, 4, dtype=np.uint8), "b_s": TINY,
        },
    )  # fmt: skip
    analysis = check_cut(model)
    assert [(g.name, g.kind) for g in analysis.groups if g.frozen is None] == [("a_w", "hidden")]


def test_a_dequantized_constant_that_is_shared_ties_nothing():
    model = graph(
        """b = DequantizeLinear(bias, s)
        p = MatMul(x, p_w) pb = Add(p, b) pr = Relu(pb) q = MatMul(x, q_w) qb = Add(q, b) qr = Tanh(qb)
        c = MatMul(pr, c_w) d = MatMul(qr, d_w) y = Add(c, d)""",
        inputs="float[N,6] x",
        constants={
            "bias": integers(10), "s": TINY, "p_w": (6, 10), "q_w": (6, 10), "c_w": (10, 4), "d_w": (10, 4),
        },
    )  # fmt: skip
    assert open_groups(check_cut(model)) == {"p_w": 10, "q_w": 10}


def test_an_activation_with_a_scale_for_each_channel():
    model = graph(
        """h = Conv(x, a_w) q = QuantizeLinear<axis=1>(h, s, z) r = DequantizeLinear<axis=1>(q, s, z)
        y = Conv(r, b_w)""",
        constants={"a_w": (8, 3, 3, 3), "b_w": (4, 8, 1, 1), "s": steps(8), "z": integers(8, dtype=np.uint8)},
    )
    tensors = {t for t, _, _ in positions(group_of(check_cut(model), "a_w", 0))}
    assert tensors == {"a_w", "s", "z", "b_w"}


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.int4, ml_dtypes.uint4])
def test_blocks_that_share_a_scale_go_together(dtype):
    numbers = np.random.default_rng(0).integers(0, 7, (24, 6)).astype(dtype)
    model = graph(
        """h = MatMul(x, a_w) r = Relu(h) bw = DequantizeLinear<axis=0, block_size=4>(b_w, b_s, b_z)
        y = MatMul(r, bw)""",
        inputs="float[N,5] x",
        opset=21,
        constants={
            "a_w": (5, 24), "b_w": numbers, "b_s": steps(6, 6), "b_z": integers(6, 6).astype(dtype),
        },
    )  # fmt: skip
    analysis = check_cut(model)
    assert open_groups(analysis) == {"a_w": 6}
    assert sorted(np.bincount(group_of(analysis, "a_w", 1).members[0].channel_at)) == [4] * 6


@pytest.mark.parametrize("ids", ["ids", "few"])
def test_a_quantized_embedding_keeps_its_rows(ids):
    """Computed positions or constant ones: rows are no channels, as in a float model."""
    model = graph(
        f"""t = DequantizeLinear<axis=1>(t_w, s) e = Gather(t, {ids}) o = Shape(ids) k = Cast<to=1>(o)
        z = ReduceMax<keepdims=0>(k) h = Mul(e, m) g = MatMul(h, w) y = Mul(g, z)""",
        inputs="int64[N,4] ids",
        constants={"t_w": integers(9, 8), "s": steps(8), "m": (8,), "w": (8, 3), "few": np.arange(4)[None]},
    )
    analysis = check_cut(model)
    assert open_groups(analysis) == {"t_w": 8}
    assert {axis for g in analysis.groups for t, axis, _ in positions(g) if t == "t_w"} == {1}


# --- operators on integers ----------------------------------------------------------------------------------


def integer_convolutions(group: int = 1, dtype: type = np.int8) -> ir.Model:
    """Zero points that are not zero: of the input, of each output channel of a kernel, of the results."""
    inner = 12 // group
    return graph(
        f"""xq = QuantizeLinear(x, xs, xz)
        h = QLinearConv<pads=[1,1,1,1]>(xq, xs, xz, a_w, a_s, a_z, hs, hz, a_b)
        g = QLinearConv<group={group}>(h, hs, hz, g_w, g_s, g_z, gs, gz)
        q = QLinearConv(g, gs, gz, b_w, b_s, b_z, ys, yz)
        y = DequantizeLinear(q, ys, yz)""",
        constants={
            "xs": TINY, "xz": np.uint8(120), "hs": np.float32(0.9), "hz": np.uint8(70), "gs": np.float32(9),
            "gz": np.uint8(130), "ys": np.float32(60), "yz": np.uint8(99),
            "a_w": integers(12, 3, 3, 3, dtype=dtype), "a_s": random_steps(12),
            "a_z": integers(12, seed=1, dtype=dtype), "a_b": integers(12, dtype=np.int32),
            "g_w": integers(12, inner, 1, 1, seed=2, dtype=dtype), "g_s": random_steps(12),
            "g_z": integers(12, seed=3, dtype=dtype), "b_w": integers(5, 12, 1, 1, seed=4, dtype=dtype),
            "b_s": random_steps(5), "b_z": integers(5, seed=5, dtype=dtype),
        },
    )  # fmt: skip


@pytest.mark.parametrize("group", [1, 3, 12])
def test_a_convolution_of_integers(group):
    model = integer_convolutions(group, np.int8)
    analysis = check_cut(model)
    assert sum(open_groups(analysis).values()) == {1: 24, 3: 8, 12: 12}[group]
    assert [largest_difference(model, seed) for seed in range(3)] == [0.0] * 3


def test_the_twin_zeroes_weights_at_the_zero_point_of_each_output():
    model = integer_convolutions()
    analysis = analyze(model)
    gone = analysis.removed_labels({name: np.array([1], np.int32) for name in open_groups(analysis)})
    twin = make_twin(model, analysis.channels, gone)
    (last,) = (node for node in twin.graph if node.outputs[0].name == "q")
    weight, zero_point = last.inputs[3].const_value.numpy(), last.inputs[5].const_value.numpy()
    np.testing.assert_array_equal(weight[:, 1, 0, 0], zero_point)
    assert (weight[:, 0, 0, 0] != zero_point).any()


def test_a_product_of_integers():
    model = graph(
        """xq = QuantizeLinear(x, xs, xz) h = QLinearMatMul(xq, xs, xz, a_w, a_s, a_z, hs, hz)
        q = QLinearMatMul(h, hs, hz, b_w, b_s, b_z, ys, yz) y = DequantizeLinear(q, ys, yz)""",
        inputs="float[N,6,8] x",
        constants={
            "xs": TINY, "xz": np.uint8(120), "hs": np.float32(0.5), "hz": np.uint8(70), "ys": np.float32(9),
            "yz": np.uint8(99), "a_w": integers(8, 16), "a_s": random_steps(16), "a_z": integers(16, seed=1),
            "b_w": integers(16, 5, seed=2), "b_s": random_steps(5), "b_z": integers(5, seed=3),
        },
    )  # fmt: skip
    analysis = check_cut(model)
    assert open_groups(analysis) == {"a_w": 16}
    assert {g.kind for g in analysis.groups if g.frozen is None} == {"hidden"}
    assert largest_difference(model) == 0


def test_a_product_of_two_computed_operands():
    """The twin can't zero a weight: it puts zero points on the way to the product."""
    model = graph(
        """xq = QuantizeLinear(x, xs, xz) a = QLinearMatMul(xq, xs, xz, a_w, w_s, w_z, hs, hz)
        b = QLinearMatMul(xq, xs, xz, b_w, w_s, w_z, hs, hz) bt = Transpose<perm=[0,2,1]>(b)
        q = QLinearMatMul(a, hs, hz, bt, hs, hz, ys, yz) y = DequantizeLinear(q, ys, yz)""",
        inputs="float[N,6,8] x",
        constants={
            "xs": TINY, "xz": np.uint8(120), "hs": np.float32(0.5), "hz": np.uint8(70), "ys": np.float32(9),
            "yz": np.uint8(99), "a_w": integers(8, 16), "b_w": integers(8, 16, seed=1), "w_s": TINY,
            "w_z": np.int8(4),
        },
    )  # fmt: skip
    assert open_groups(check_cut(model)) == {"a_w": 16}
    assert largest_difference(model) == 0


def test_weights_in_constant_nodes():
    proto = ir.to_proto(integer_convolutions())
    for tensor in list(proto.graph.initializer):
        node = onnx.helper.make_node("Constant", [], [tensor.name], name=f"{tensor.name}_node", value=tensor)
        proto.graph.initializer.remove(tensor)
        proto.graph.node.insert(0, node)
    model = ir.from_proto(proto)
    check_cut(model)
    assert largest_difference(model) == 0


# --- quantized by the range of the data -----------------------------------------------------------------


def test_the_range_of_what_is_left_is_that_of_the_twin():
    model = graph(
        """xq, xs, xz = DynamicQuantizeLinear(x) h = ConvInteger<pads=[1,1,1,1]>(xq, a_w, xz, a_z)
        hf = Cast<to=1>(h) hm = Mul(xs, a_s) hr = Mul(hf, hm) hb = Add(hr, a_b)
        hq, hs, hz = DynamicQuantizeLinear(hb) q = ConvInteger(hq, b_w, hz, b_z)
        qf = Cast<to=1>(q) qm = Mul(hs, b_s) y = Mul(qf, qm)""",
        constants={
            "a_w": integers(10, 3, 3, 3), "a_s": steps(10).reshape(1, 10, 1, 1), "a_z": np.int8(3),
            "a_b": (1, 10, 1, 1), "b_w": integers(4, 10, 3, 3, seed=1, dtype=np.uint8), "b_s": TINY,
            "b_z": np.uint8(7),
        },
    )  # fmt: skip
    assert open_groups(check_cut(model)) == {"a_w": 10}
    assert [largest_difference(model, seed) for seed in range(3)] == [0.0] * 3


def test_the_range_over_heads_and_places_in_them():
    model = graph(
        """h = MatMul(x, a_w) s = Reshape(h, split) t = Transpose<perm=[0,2,1,3]>(s)
        q, qs, qz = DynamicQuantizeLinear(t) p = MatMulInteger(q, b_w, qz, b_z) f = Cast<to=1>(p)
        r = Mul(f, qs) y = ReduceSum<keepdims=0>(r, one)""",
        inputs="float[N,6,8] x",
        constants={
            "a_w": (8, 12), "split": [0, 0, 3, 4], "b_w": integers(4, 5), "b_z": integers(5, seed=1),
            "one": [1],
        },
    )  # fmt: skip
    analysis = check_cut(model)
    assert open_groups(analysis)
    assert [largest_difference(model, seed) for seed in range(3)] == pytest.approx([0.0] * 3, abs=1e-3)
