"""Quantized weights as real numbers, for every operator that reads them, and what has none."""

import numpy as np
import pytest
from cutting import graph
from quantized_models import TINY, integers, random_steps

from onnxprune.analyze import analyze
from onnxprune.model.prepare import prepare
from onnxprune.ops.dequantized import real_numbers
from onnxprune.scores.magnitude import score

WEIGHT, SCALE, ZERO = integers(6, 4), random_steps(4), integers(4, seed=1)
REAL = (WEIGHT.astype(np.float32) - ZERO) * SCALE

READINGS = {
    "DequantizeLinear": "d = DequantizeLinear<axis=1>(w, s, z) y = MatMul(x, d)",
    "QLinearMatMul": "q = QuantizeLinear(x, t, u) r = QLinearMatMul(q, t, u, w, s, z, t, u) "
    "y = DequantizeLinear(r, t, u)",
    "QGemm": "q = QuantizeLinear(x, t, u) y = com.microsoft.QGemm(q, t, u, w, s, z)",
    "MatMulIntegerToFloat": "q, a, b = DynamicQuantizeLinear(x) "
    "y = com.microsoft.MatMulIntegerToFloat(q, w, a, s, b, z)",
    "DynamicQuantizeMatMul": "y = com.microsoft.DynamicQuantizeMatMul(x, w, s, z)",
    "MatMulInteger": "q, a, b = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, b, z) f = Cast<to=1>(i) "
    "m = Mul(a, s) y = Mul(f, m)",
}


@pytest.mark.parametrize("operator", READINGS)
def test_every_operator_that_reads_quantized_weights(operator):
    model = graph(
        READINGS[operator],
        inputs="float[N,6] x",
        constants={"w": WEIGHT, "s": SCALE, "z": ZERO, "t": TINY, "u": np.uint8(120)},
    )
    work, _ = prepare(model)
    np.testing.assert_allclose(real_numbers(work.graph.initializers["w"]), REAL, rtol=1e-6)
    if operator != "MatMulInteger":
        assert real_numbers(work.graph.initializers["s"]) is None, "a scale is no weight"
    assert real_numbers(work.graph.initializers["z"]) is None


def test_along_the_outputs_of_a_kernel():
    kernel, scale, zero = integers(4, 3, 3, 3), random_steps(4), integers(4, seed=1)
    model = graph(
        "q = QuantizeLinear(x, t, u) r = QLinearConv(q, t, u, w, s, z, t, u) y = DequantizeLinear(r, t, u)",
        constants={"w": kernel, "s": scale, "z": zero, "t": TINY, "u": np.uint8(120)},
    )
    expected = np.stack([(kernel[o].astype(np.float32) - zero[o]) * scale[o] for o in range(4)])
    np.testing.assert_allclose(real_numbers(model.graph.initializers["w"]), expected, rtol=1e-6)


def test_in_blocks():
    numbers, scale = integers(12, 5), random_steps(3, 5)
    model = graph(
        "d = DequantizeLinear<axis=0, block_size=4>(w, s) y = MatMul(x, d)",
        inputs="float[N,12] x",
        constants={"w": numbers, "s": scale},
        opset=21,
    )
    expected = numbers * np.repeat(scale, 4, axis=0)
    np.testing.assert_allclose(real_numbers(model.graph.initializers["w"]), expected, rtol=1e-6)


def test_integers_without_a_scale_are_no_weights():
    model = graph(
        "i = Add(x, w) y = Cast<to=1>(i)",
        inputs="int32[N,4] x",
        constants={"w": np.arange(4, dtype=np.int32)},
    )
    assert real_numbers(model.graph.initializers["w"]) is None


def test_scores_are_those_of_the_real_numbers():
    """The channel with the smallest stored numbers is not that with the smallest weights."""
    stored = np.full((5, 3), 100, np.int8)
    stored[:, 0] = 1
    scale = np.array([1.0, 0.001, 0.5], np.float32)
    model = graph(
        "d = DequantizeLinear<axis=1>(a_w, s) h = MatMul(x, d) y = MatMul(h, b_w)",
        inputs="float[N,5] x",
        constants={"a_w": stored, "s": scale, "b_w": np.zeros((3, 2), np.float32)},
    )
    analysis = analyze(model)
    (group,) = (group for group in analysis.groups if group.frozen is None)
    found = score(analysis.model, [group], "l1").channels[group.name]
    np.testing.assert_allclose(found, [5, 0.5, 250], rtol=1e-5)
