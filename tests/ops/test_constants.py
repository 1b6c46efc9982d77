"""What is found to be constant is that number in every run; and what is constant is found."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from cutting import Constant, graph_proto
from masking import half_masked, masked
from onnx.reference import ReferenceEvaluator

from onnxprune.analyze import Analysis, analyze
from onnxprune.ops.constants import Constants

DEAD = [1, 3, 4]
CONV = "h = Conv(x, a_w, a_b)"
WEIGHTS: dict[str, Constant] = {"a_w": (6, 3, 1, 1), "a_b": (6,)}


def constants_of(proto: onnx.ModelProto) -> tuple[Analysis, Constants]:
    """Find the constants of a model, and compare each with what two runs compute."""
    analysis = analyze(ir.from_proto(proto))
    constants = Constants(analysis.model.graph, analysis.channels)
    whole = ir.to_proto(analysis.model)
    names = [name for node in whole.graph.node for name in node.output if name]
    del whole.graph.output[:]
    whole.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in names)
    random = np.random.default_rng(0)
    values = {v.name: v for node in analysis.model.graph for v in node.outputs}
    for _ in range(2):
        shapes = analysis.shapes.input_shapes
        feeds = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        for name, actual in zip(names, ReferenceEvaluator(whole).run(None, feeds), strict=True):
            known = constants.array(values[name])
            if known is not None:
                expected = np.broadcast_to(known, actual.shape)
                there = ~np.isnan(expected)
                np.testing.assert_allclose(actual[there], expected[there], rtol=1e-4, atol=1e-5, err_msg=name)
    return analysis, constants


def channels_known(
    body: str, constants: dict[str, Constant], value: str = "v", **options: object
) -> list[int]:
    """Return where a value is constant along axis 1, in a model whose first layer is masked."""
    proto = masked(graph_proto(body, constants={**WEIGHTS, **constants}, **options), {"a_w": DEAD})  # type: ignore[arg-type]
    analysis, found = constants_of(proto)
    values = {v.name: v for node in analysis.model.graph for v in node.outputs}
    known = found.array(values[value])
    if known is None:
        return []
    assert known.shape[2:] == (1,) * (known.ndim - 2)
    size = analysis.channels.shape(values[value])[1]
    return np.flatnonzero(~np.isnan(np.broadcast_to(known, (1, size, *known.shape[2:])).ravel())).tolist()


LAST = "y = Conv(v, z_w)"


@pytest.mark.parametrize(
    "through",
    [
        "v = Relu(h)",
        "v = Sigmoid(h)",
        "v = HardSwish(h)",
        "s = Sigmoid(h) v = Mul(h, s)",
        "v = Add(h, six)",
        "v = Clip(h, zero, one)",
        "v = PRelu(h, six)",
        "g = Greater(h, six) v = Where(g, h, six)",
        "v = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(h)",
        "v = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(h)",
        "v = GlobalAveragePool(h)",
        "v = ReduceMean<axes = [2, 3]>(h)",
        "v = Resize(h, , scales)",
        "v = BatchNormalization(h, s6, b6, m6, v6)",
        "v = InstanceNormalization(h, s6, b6)",
        "t = Transpose<perm = [0, 2, 3, 1]>(h) v = Transpose<perm = [0, 3, 1, 2]>(t)",
        "a = Slice(h, b, m, c) z = Slice(h, m, e, c) v = Concat<axis = 1>(a, z)",
        "v = Conv<group = 6>(h, d_w, b6)",
        "v = Reshape(h, same)",
        'v = Pad<mode = "edge">(h, pads)',
    ],
)
def test_constants_pass_through(through: str) -> None:
    random = np.random.default_rng(5)
    constants: dict[str, Constant] = {
        "six": (6, 1, 1), "zero": np.float32(0), "one": np.float32(1), "s6": (6,), "b6": (6,), "m6": (6,),
        "v6": random.uniform(1, 2, 6).astype(np.float32), "scales": np.array([1, 1, 2, 2], np.float32),
        "b": [0], "m": [2], "e": [6], "c": [1], "d_w": (6, 1, 3, 3), "same": [0, 0, -1, 2],
        "pads": [0, 0, 1, 1, 0, 0, 1, 1], "z_w": (2, 6, 1, 1),
    }  # fmt: skip
    assert channels_known(f"{CONV} {through} {LAST}", constants) == DEAD


@pytest.mark.parametrize(
    "through",
    [
        "v = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(h)",
        "v = Conv<group = 6, pads = [1, 1, 1, 1]>(h, d_w, b6)", "v = Pad(h, pads)", "v = Add(h, x2)",
        "v = Softmax<axis = 1>(h)", "v = ConvTranspose<group = 6>(h, d_w, b6)", "v = Conv(h, f_w, b6)",
    ],
)  # fmt: skip
def test_borders_and_mixtures_vary(through: str) -> None:
    constants: dict[str, Constant] = {
        "b6": (6,), "d_w": (6, 1, 3, 3), "f_w": (6, 6, 1, 1), "pads": [0, 0, 1, 1, 0, 0, 1, 1],
        "z_w": (2, 6, 1, 1),
    }  # fmt: skip
    inputs = "float[N,3,6,6] x, float[N,6,6,6] x2"
    assert channels_known(f"{CONV} {through} {LAST}", constants, inputs=inputs) == []


def test_zero_is_constant_at_borders_too() -> None:
    body = f"h = Conv(x, a_w) {'v = Conv<group = 6, pads = [1, 1, 1, 1]>(h, d_w, b6)'} {LAST}"
    constants: dict[str, Constant] = {"b6": (6,), "d_w": (6, 1, 3, 3), "z_w": (2, 6, 1, 1)}
    assert channels_known(body, constants) == DEAD


def test_zero_times_what_varies_is_zero() -> None:
    body = f"h = Conv(x, a_w) g = Sigmoid(x2) v = Mul(g, h) {LAST}"
    assert channels_known(body, {"z_w": (2, 6, 1, 1)}, inputs="float[N,3,6,6] x, float[N,6,6,6] x2") == DEAD


def test_a_scale_of_zero_leaves_the_bias() -> None:
    scale = np.array([0, 1, 2, 0, 1, 1], np.float32)
    body = f"{CONV} v = BatchNormalization(h, s6, b6, b6, v6) {LAST}"
    constants: dict[str, Constant] = {
        "s6": scale,
        "b6": (6,),
        "v6": np.ones(6, np.float32),
        "z_w": (2, 6, 1, 1),
    }
    assert channels_known(body, constants) == [0, 1, 3, 4]


def test_a_sum_over_constants_alone_is_constant() -> None:
    matrix = np.zeros((5, 6, 1, 1), np.float32)
    matrix[0, [1, 3]], matrix[1, [0, 3]], matrix[2, 5], matrix[3, 4] = 2, 1, 1, 3
    body = f"{CONV} r = Sigmoid(h) v = Conv(r, w, b5) {LAST}"
    assert channels_known(body, {"w": matrix, "b5": (5,), "z_w": (2, 5, 1, 1)}) == [0, 3, 4]


def test_statistics_over_merged_channels_vary() -> None:
    """GroupNorm as exporters write it: a group holds constants and what varies."""
    body = f"{CONV} r = Reshape(h, groups) n = InstanceNormalization(r, s2, b2) v = Reshape(n, back) {LAST}"
    constants: dict[str, Constant] = {
        "groups": [0, 2, -1], "s2": (2,), "b2": (2,), "back": [0, 6, 6, 6], "z_w": (2, 6, 1, 1)
    }  # fmt: skip
    assert channels_known(body, constants) == []


def test_an_initializer_that_is_an_input_varies() -> None:
    proto = masked(
        graph_proto(f"{CONV} v = Relu(h) {LAST}", constants={**WEIGHTS, "z_w": (2, 6, 1, 1)}), {"a_w": DEAD}
    )
    proto.graph.input.append(onnx.helper.make_tensor_value_info("a_b", 1, [6]))
    analysis = analyze(ir.from_proto(proto))
    constants = Constants(analysis.model.graph, analysis.channels)
    assert all(constants.array(v) is None for node in analysis.model.graph for v in node.outputs)


def test_weights_behind_moves_are_read() -> None:
    body = "t = Transpose<perm = [1, 0]>(w) h = MatMul(x, t) v = Add(h, b) r = Relu(v) y = MatMul(r, z)"
    proto = graph_proto(body, inputs="float[N,4] x", constants={"w": (6, 4), "b": (6,), "z": (6, 2)})
    analysis, found = constants_of(masked(proto, {"w": DEAD}))
    values = {v.name: v for node in analysis.model.graph for v in node.outputs}
    known = found.array(values["r"])
    assert known is not None
    assert np.flatnonzero(~np.isnan(known[0])).tolist() == DEAD


ATTENTION = """
    q = MatMul(x, q_w) k = MatMul(x, k_w) u = MatMul(x, v_w) w = Add(u, v_b)
    q4 = Reshape(q, split) k4 = Reshape(k, split) v4 = Reshape(w, split)
    qt = Transpose<perm = [0, 2, 1, 3]>(q4) kt = Transpose<perm = [0, 2, 3, 1]>(k4)
    vt = Transpose<perm = [0, 2, 1, 3]>(v4)
    s = MatMul(qt, kt) {mask} p = Softmax<axis = -1>(m) {guard}
    o = MatMul(g, vt) ot = Transpose<perm = [0, 2, 1, 3]>(o) c = Reshape(ot, join) y = MatMul(c, o_w)
"""


@pytest.mark.parametrize(
    ("mask", "guard", "found"),
    [
        ("m = Identity(s)", "g = Identity(p)", True),
        ("m = Identity(s)", "n = IsNaN(p) g = Where(n, zero, p)", True),
        ("m = Add(s, hidden)", "n = IsNaN(p) g = Where(n, zero, p)", False),
        ("m = Identity(s)", "g = Relu(p)", False),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")  # a hidden row of a softmax
def test_attention_passes_constant_values(mask: str, guard: str, found: bool) -> None:
    """Rows of a softmax sum to one; where a mask may hide a whole row, a guarded one sums to zero."""
    hidden = np.zeros((6, 6), np.float32)
    hidden[0] = -np.inf
    proto = graph_proto(
        ATTENTION.format(mask=mask, guard=guard), inputs="float[N,6,8] x",
        constants={"q_w": (8, 8), "k_w": (8, 8), "v_w": (8, 8), "v_b": (8,), "o_w": (8, 8),
                   "split": [0, 0, 2, 4], "join": [0, 0, 8], "zero": np.float32(0), "hidden": hidden},
    )  # fmt: skip
    analysis, constants = constants_of(masked(proto, {"v_w": range(4, 8)}, axis=1))
    values = {v.name: v for node in analysis.model.graph for v in node.outputs}
    known = constants.array(values["c"])
    assert (np.flatnonzero(~np.isnan(known[0, 0])).tolist() if known is not None else []) == (
        [4, 5, 6, 7] if found else []
    )


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["residual_net", "depthwise_net", "concat_net", "mlp", "attention"])
def test_networks_compute_the_constants_that_were_found(name: str, axis: int) -> None:
    constants_of(half_masked(getattr(small_models, name)(), axis))
