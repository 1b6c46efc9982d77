"""Quantized models without their rounding: the numbers that were meant, to within what rounding changed."""

import numpy as np
import onnx_ir as ir
import pytest
from cutting import graph
from quantized_models import TINY, integers, steps

from onnxprune.feeds import random_feeds
from onnxprune.model.unrounded import without_rounding
from onnxprune.runtime import open_session

FEED = {"x": (2, 3, 6, 6)}


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    (output,) = open_session(model, optimize="none", prepack=False, label="model").run(feeds).values()
    return output


def compared(model: ir.Model, shape: tuple[int, ...] = (2, 3, 6, 6)) -> float:
    """Return the mean difference to the model without rounding, relative to the spread of its outputs."""
    plain = without_rounding(model)
    assert plain is not None
    kinds = {node.op_type for node in plain.graph}
    assert not kinds & {"QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "DynamicQuantizeMatMul"}
    feeds = random_feeds(model, {"x": shape}, 0)
    rounded, real = run(model, feeds), run(plain, feeds)
    assert len(np.unique(real)) > 0.9 * real.size, "nothing is rounded any more"
    return float(np.abs(rounded - real).mean() / real.std())


def test_pairs_of_quantizers_saturate_and_do_not_round():
    model = graph(
        """h = Conv(x, w) q = QuantizeLinear(h, s, z) r = DequantizeLinear(q, s, z) y = Tanh(r)""",
        constants={"w": (8, 3, 3, 3), "s": np.float32(0.02), "z": np.uint8(100)},
    )
    assert compared(model) < 0.02
    plain, feeds = without_rounding(model), random_feeds(model, FEED, 0)
    assert run(plain, feeds).min() >= np.tanh(-100 * 0.02) - 1e-6
    assert run(plain, feeds).min() == pytest.approx(np.tanh(-2), abs=1e-6), "the test must saturate"


def test_a_scale_for_each_channel():
    model = graph(
        """h = Conv(x, w) q = QuantizeLinear<axis=1>(h, s, z) t = Transpose<perm=[0,2,3,1]>(q)
        r = DequantizeLinear<axis=3>(t, s, z) y = Tanh(r)""",
        constants={"w": (8, 3, 3, 3), "s": steps(8), "z": np.full(8, 3, np.int8)},
    )
    assert compared(model) < 0.02


def test_sums_of_integers_become_sums_of_floats():
    model = graph(
        """q, s, z = DynamicQuantizeLinear(x) h = ConvInteger(q, w, z, wz) f = Cast<to=1>(h) m = Mul(s, ws)
        r = Mul(f, m) p, t, u = DynamicQuantizeLinear(r) g = ConvInteger(p, v, u) k = Cast<to=1>(g)
        y = Mul(k, t)""",
        constants={
            "w": integers(8, 3, 3, 3), "wz": np.int8(3), "ws": steps(8).reshape(8, 1, 1),
            "v": integers(4, 8, 1, 1, seed=2),
        },
    )  # fmt: skip
    assert compared(model) < 0.03


def test_products_of_the_other_domain():
    model = graph(
        """h = com.microsoft.DynamicQuantizeMatMul(x, w, s, z, b) q, t, u = DynamicQuantizeLinear(h)
        y = com.microsoft.MatMulIntegerToFloat(q, v, t, s, u, z, c)""",
        inputs="float[N,4,8] x",
        constants={
            "w": integers(8, 6), "s": steps(6), "z": integers(6, seed=1), "b": (6,),
            "v": integers(6, 6, seed=2), "c": (6,),
        },
    )  # fmt: skip
    assert compared(model, (2, 4, 8)) < 0.03


INSIDE = """h = Conv(x, w) q = QuantizeLinear(h, s, z)
    y = If(flag) <then_branch = yes () => (float[N,8,4,4] o) {{ d = DequantizeLinear(q, s, z) o = Tanh(d) }},
                  else_branch = no () => ({kind}[N,8,4,4] o) {{ {branch} }}>"""


@pytest.mark.parametrize("flag", [True, False])
def test_quantizers_in_a_branch(flag):
    branch = """d = DequantizeLinear(q, s, z) k = Sin(d) p = QuantizeLinear(k, s, z)
        o = DequantizeLinear(p, s, z)"""
    model = graph(
        INSIDE.format(kind="float", branch=branch),
        inputs="float[N,3,6,6] x, bool flag",
        constants={"w": (8, 3, 3, 3), "s": np.float32(0.02), "z": np.uint8(100)},
    )
    plain = without_rounding(model)
    assert not any("Quantize" in node.op_type for node in plain.graph.all_nodes())
    feeds = {**random_feeds(model, {**FEED, "flag": ()}, 0), "flag": np.array(flag)}
    rounded, real = run(model, feeds), run(plain, feeds)
    assert len(np.unique(real)) > 1.5 * len(np.unique(rounded)), "nothing is rounded any more"
    assert np.abs(rounded - real).mean() < 0.02 * real.std()


def test_what_a_branch_returns_in_integers_is_not_followed():
    body = INSIDE.replace("(float[N,8,4,4] o) {{ d = DequantizeLinear(q, s, z) o = Tanh(d) }}",
                          "(uint8[N,8,4,4] o) {{ d = Relu(h) o = QuantizeLinear(d, s, z) }}")  # fmt: skip
    body = body.replace("y = If", "u = If") + " y = DequantizeLinear(u, s, z)"
    model = graph(
        body.format(kind="uint8", branch="t = Tanh(h) o = QuantizeLinear(t, s, z)"),
        inputs="float[N,3,6,6] x, bool flag",
        constants={"w": (8, 3, 3, 3), "s": TINY, "z": np.uint8(100)},
    )
    assert without_rounding(model) is None


def test_a_quantized_output_keeps_its_name():
    model = graph(
        "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", constants={"s": TINY, "z": np.uint8(9)}
    )
    plain = without_rounding(model)
    assert [output.name for output in plain.graph.outputs] == ["y"]
    assert model.graph.outputs[0].producer().op_type == "DequantizeLinear", "the model itself is not changed"


QLINEAR = {
    "QLinearConv": "r = QLinearConv<pads=[1,1,1,1]>(q, s, z, w, ws, wz, ys, yz, b)",
    "QLinearMatMul": "r = QLinearMatMul(q, s, z, m, ms, mz, ys, yz)",
    "QGemm": "g = Reshape(q, rows) r = com.microsoft.QGemm(g, s, z, m, ms, mz, c, ys, yz)",
    "QLinearAdd": "r = com.microsoft.QLinearAdd(q, s, z, k, s, z, ys, yz)",
    "QLinearMul": "r = com.microsoft.QLinearMul(q, s, z, k, s, z, ys, yz)",
    "QLinearSigmoid": "r = com.microsoft.QLinearSigmoid(q, s, z, os, oz)",
    "QLinearLeakyRelu": "r = com.microsoft.QLinearLeakyRelu<alpha=0.1>(q, s, z, ys, yz)",
    "QLinearSoftmax": "r = com.microsoft.QLinearSoftmax<axis=-1, opset=13>(q, s, z, os, oz)",
    "QLinearAveragePool": "r = com.microsoft.QLinearAveragePool<kernel_shape=[2,2]>(q, s, z, ys, yz)",
    "QLinearGlobalAveragePool": "r = com.microsoft.QLinearGlobalAveragePool(q, s, z, ys, yz)",
    "QLinearConcat": "r = com.microsoft.QLinearConcat<axis=1>(ys, yz, q, s, z, q, s, z)",
    "QLinearWhere": "n = Greater(x, zero) r = com.microsoft.QLinearWhere(n, q, s, z, k, s, z, ys, yz)",
}


@pytest.mark.parametrize("operator", QLINEAR)
def test_operators_on_integers_become_those_on_floats(operator):
    body = QLINEAR[operator]
    scale, zero = ("os", "oz") if "os, oz" in body else ("ys", "yz")
    wide = operator in ("QLinearConv", "QLinearMatMul", "QGemm")
    step = np.float32(0.05 if wide else 0.02)
    model = graph(
        f"q = QuantizeLinear(x, s, z) {body} y = DequantizeLinear(r, {scale}, {zero})",
        constants={
            "s": TINY, "z": np.uint8(128), "ys": step, "yz": np.uint8(128), "os": np.float32(1 / 255),
            "oz": np.uint8(0), "w": integers(4, 3, 3, 3), "ws": steps(4) / 50, "wz": integers(4, seed=1),
            "b": integers(4, dtype=np.int32) * 100, "m": integers(6, 4), "ms": steps(4) / 15,
            "mz": integers(4, seed=1), "c": integers(4, dtype=np.int32) * 100,
            "k": integers(3, 1, 1, dtype=np.uint8), "rows": [-1, 6], "zero": np.float32(0),
        },
    )  # fmt: skip
    plain = without_rounding(model)
    assert plain is not None
    assert not any("QLinear" in node.op_type or node.op_type == "QGemm" for node in plain.graph)
    feeds = random_feeds(model, FEED, 0)
    rounded, real = run(model, feeds), run(plain, feeds)
    half = 0.5 * float(step if scale == "ys" else 1 / 255)
    # What comes in was rounded too, so the mean is compared: a wrong scale or zero point moves it by far.
    assert np.abs(rounded - real).mean() < 2 * half
    assert real.std() > 4 * half, "the test must tell numbers apart"
    assert (np.abs(real - rounded) > 1e-6).mean() > 0.1, "nothing is rounded any more"


@pytest.mark.parametrize(
    "body",
    [
        "y = Relu(x)",  # nothing rounds
        "d = DequantizeLinear(w, s, z) y = Conv(x, d)",  # weights alone are quantized
        "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, t, z)",  # other steps
        "q = QuantizeLinear(x, s, z) r = Cast<to=1>(q) y = Mul(r, s)",  # computes with integers
    ],
)
def test_what_is_not_followed(body):
    constants = {
        "w": integers(4, 3, 1, 1, dtype=np.uint8),
        "s": TINY,
        "t": np.float32(0.04),
        "z": np.uint8(9),
    }
    assert without_rounding(graph(body, constants=constants)) is None
