"""Quantized numbers against ONNX Runtime, and gradients that go straight through roundings."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

import torch
from cutting import graph
from executing import by_runtime, check_forward, in_torch, one_node
from quantized_models import integers, random_steps

from onnxprune.executor.module import OnnxModule

MICROSOFT = "com.microsoft"
RANDOM = np.random.default_rng(11)


def f(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def within_a_step(model: Any, inputs: dict[str, np.ndarray]) -> None:
    """Quantized outputs may differ by one step where a float lies between two; on average hardly ever."""
    for found, expected in zip(in_torch(model, inputs), by_runtime(model, inputs), strict=True):
        assert found.dtype == expected.dtype
        steps = np.abs(found.astype(np.int64) - expected.astype(np.int64))
        assert steps.max(initial=0) <= 1
        assert steps.mean() < 0.05
        assert len(np.unique(expected)) > 3


X = {"x": 3 * f(3, 4, 5)}
BYTE, SIGNED = np.uint8(120), np.int8(-3)
STEP = np.float32(0.04)


@pytest.mark.parametrize("zero", [BYTE, SIGNED, None])
@pytest.mark.parametrize("opset", [10, 13, 21])
def test_one_scale(zero, opset):
    constants = {"s": STEP, **({} if zero is None else {"z": zero})}
    check_forward(one_node("QuantizeLinear", X, constants=constants, opset=opset), X)
    q = {"q": RANDOM.integers(0, 100, (3, 4)).astype(np.uint8 if zero is None else zero.dtype)}
    check_forward(one_node("DequantizeLinear", q, constants=constants, opset=opset), q)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_scale_for_each_position(axis):
    size = X["x"].shape[axis]
    constants = {"s": random_steps(size), "z": integers(size)}
    check_forward(one_node("QuantizeLinear", X, constants=constants, opset=13, axis=axis), X)
    q = {"q": integers(3, 4, 5)}
    check_forward(one_node("DequantizeLinear", q, constants=constants, opset=13, axis=axis), q)


def test_a_scale_for_each_block():
    x = {"x": 3 * f(4, 6)}
    constants = {"s": np.abs(f(4, 3)) + 0.1, "z": integers(4, 3)}
    options: dict[str, Any] = {"constants": constants, "opset": 21, "axis": 1, "block_size": 2}
    check_forward(one_node("QuantizeLinear", x, **options), x)
    q = {"q": integers(4, 6)}
    check_forward(one_node("DequantizeLinear", q, **options), q)


def test_its_own_range():
    for x in (X["x"], np.abs(X["x"]), np.zeros((2, 3), np.float32)):
        check_forward(one_node("DynamicQuantizeLinear", {"x": x}, outputs=3), {"x": x})


def test_products_of_integers():
    a, b = {"a": integers(2, 3, 4, dtype=np.uint8)}, integers(4, 5)
    for constants in ({"b": b}, {"b": b, "az": BYTE}, {"b": b, "az": BYTE, "bz": integers(5)}):
        check_forward(one_node("MatMulInteger", a, constants=constants), a)
    x = {"x": integers(2, 4, 6, 6, dtype=np.uint8)}
    constants = {"w": integers(6, 2, 3, 3, dtype=np.uint8), "xz": BYTE, "wz": np.uint8(100)}
    check_forward(one_node("ConvInteger", x, constants=constants, group=2, pads=[1, 1, 1, 1]), x)


@pytest.mark.parametrize("per_channel", [False, True])
def test_quantized_convolution(per_channel):
    x = {"x": integers(2, 4, 6, 6, dtype=np.uint8)}
    constants = {
        "xs": STEP, "xz": BYTE, "w": integers(6, 4, 3, 3),
        "ws": random_steps(6) if per_channel else np.float32(0.02),
        "wz": np.zeros(6, np.int8) if per_channel else np.int8(0),
        "ys": np.float32(0.9), "yz": np.uint8(99), "b": RANDOM.integers(-900, 900, 6).astype(np.int32),
    }  # fmt: skip
    within_a_step(one_node("QLinearConv", x, constants=constants, strides=[2, 2], pads=[1, 0, 0, 1]), x)


def test_quantized_product():
    a = {"a": integers(3, 4, dtype=np.uint8)}
    constants = {
        "as": STEP, "az": BYTE, "b": integers(4, 5), "bs": np.float32(0.05), "bz": np.int8(4),
        "ys": np.float32(0.4), "yz": np.uint8(99),
    }  # fmt: skip
    within_a_step(one_node("QLinearMatMul", a, constants=constants), a)


SCALED = {"xs": np.float32(0.0497), "xz": BYTE, "ys": np.float32(0.0613), "yz": np.uint8(77)}
UNIT = {"us": np.float32(1 / 256), "uz": np.uint8(0)}


@pytest.mark.parametrize(
    "line",
    [
        "y = com.microsoft.QLinearAdd(x, xs, xz, w, xs, xz, ys, yz)",
        "y = com.microsoft.QLinearMul(x, xs, xz, w, xs, xz, ys, yz)",
        "y = com.microsoft.QLinearLeakyRelu<alpha=0.2>(x, xs, xz, ys, yz)",
        "y = com.microsoft.QLinearSigmoid(x, xs, xz, us, uz)",
        "y = com.microsoft.QLinearSoftmax<axis=-1, opset=13>(x, xs, xz, us, uz)",
        "y = com.microsoft.QLinearAveragePool<kernel_shape=[2,2], strides=[2,1]>(x, xs, xz, ys, yz)",
        "y = com.microsoft.QLinearGlobalAveragePool(x, xs, xz, ys, yz)",
        "y = com.microsoft.QLinearConcat<axis=1>(ys, yz, x, xs, xz, w, ys, xz)",
        "y = com.microsoft.QLinearWhere(c, x, xs, xz, w, ys, xz, ys, yz)",
    ],
)
def test_quantized_operators_of_onnx_runtime(line):
    constants = {
        **SCALED,
        **UNIT,
        "w": integers(2, 3, 4, 4, dtype=np.uint8),
        "c": RANDOM.random((2, 1, 4, 4)) > 0.5,
    }
    model = graph(line, inputs="uint8[2,3,4,4] x", outputs="uint8[a,b,c,d] y", constants=constants)
    within_a_step(model, {"x": integers(2, 3, 4, 4, dtype=np.uint8, seed=5)})


def test_general_products():
    a = {"a": integers(3, 4, dtype=np.uint8)}
    constants = {
        "as": STEP, "az": BYTE, "b": integers(5, 4), "bs": random_steps(5), "bz": np.zeros(5, np.int8),
        "c": RANDOM.integers(-99, 99, 5).astype(np.int32),
    }  # fmt: skip
    real = one_node("QGemm", a, constants=constants, domain=MICROSOFT, transB=1)
    check_forward(real, a)
    whole = {**constants, "ys": np.float32(0.4), "yz": np.uint8(99)}
    within_a_step(one_node("QGemm", a, constants=whole, domain=MICROSOFT, transB=1), a)
    parts = {"b": integers(4, 5), "as": STEP, "bs": random_steps(5), "az": BYTE, "bz": integers(5), "c": f(5)}
    check_forward(one_node("MatMulIntegerToFloat", a, constants=parts, domain=MICROSOFT), a)
    x = {"x": f(3, 4)}
    dynamic = {"b": integers(4, 5), "bs": random_steps(5), "bz": integers(5), "c": f(5)}
    check_forward(one_node("DynamicQuantizeMatMul", x, constants=dynamic, domain=MICROSOFT), x)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("bits", "rows"), [(4, 6), (8, 5)])
def test_packed_products(zeros, bits, rows):
    x = {"x": f(2, 3, 40)}
    blocks, size = 3, 16 * bits // 8
    constants = {
        "w": RANDOM.integers(0, 256, (rows, blocks, size)).astype(np.uint8), "s": np.abs(f(rows, blocks))
    }  # fmt: skip
    if zeros:
        constants["z"] = RANDOM.integers(0, 256, (rows, -(-blocks * bits // 8))).astype(np.uint8)
    model = one_node(
        "MatMulNBits", x, constants=constants, domain=MICROSOFT, K=40, N=rows, bits=bits, block_size=16
    )
    check_forward(model, x)


def test_quantized_attention():
    x = {"x": integers(2, 5, 8, dtype=np.uint8)}
    constants = {
        "w": integers(8, 24), "b": f(24), "xs": np.float32(0.02), "ws": np.float32(0.01),
        "m": np.array([3, 5], np.int32), "xz": BYTE, "wz": np.int8(2),
    }  # fmt: skip
    check_forward(one_node("QAttention", x, constants=constants, domain=MICROSOFT, num_heads=2), x)


def test_gradients_go_straight_through():
    model = graph(
        """q = QuantizeLinear(x, s, z) m = MaxPool<kernel_shape=[1], strides=[1]>(q)
        h = DequantizeLinear(m, s, z) y = Mul(h, w)""",
        inputs="float[1,2,3] x",
        constants={"s": np.float32(0.5), "z": np.int8(1), "w": np.array([1, 2, 3], np.float32)},
    )
    module = OnnxModule(model)
    x = torch.tensor([[[0.1, 0.6, -1.3], [999.0, -999.0, 4.4]]], requires_grad=True)
    y = module({"x": x})["y"]
    np.testing.assert_allclose(y.detach().numpy(), by_runtime(model, {"x": x.detach().numpy()})[0])
    y.sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad[0], [[1, 2, 3], [0, 0, 3]])  # none where it is saturated


def test_gradients_of_a_scale_are_those_of_a_learned_step_size():
    model = graph(
        "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
        inputs="float[4] x, float s",
        constants={"z": np.int8(0)},
    )
    x, scale = torch.tensor([0.3, 1.2, -77.0, 99.0]), torch.tensor(0.5, requires_grad=True)
    OnnxModule(model)({"x": x, "s": scale})["y"].sum().backward()
    ratio = x / 0.5
    inside = torch.round(ratio) - ratio  # Esser et al., 1902.08153, equation 3
    expected = torch.where(ratio < -128, -128.0, torch.where(ratio > 127, 127.0, inside)).sum()
    torch.testing.assert_close(scale.grad, expected)


def test_gradients_pass_a_dynamically_quantized_layer():
    model = graph(
        """q, s, z = DynamicQuantizeLinear(x) p = MatMulInteger(q, w, z, wz) r = Cast<to=1>(p)
        f = Mul(s, ws) y = Mul(r, f)""",
        inputs="float[2,4] x",
        constants={"w": integers(4, 3), "wz": np.int8(0), "ws": np.float32(0.02)},
    )
    x = torch.from_numpy(f(2, 4)).requires_grad_()
    y = OnnxModule(model)({"x": x})["y"]
    y.sum().backward()
    np.testing.assert_allclose(y.detach().numpy(), by_runtime(model, {"x": x.detach().numpy()})[0], rtol=1e-5)
    weights = ir.from_proto(ir.to_proto(model)).graph.initializers["w"].const_value
    assert weights is not None
    assert x.grad is not None
    expected = 0.02 * weights.numpy().astype(np.float32).sum(axis=1)
    middle = (x > x.min()) & (x < x.max())  # the ends move the scale, too
    np.testing.assert_allclose(x.grad[middle], np.broadcast_to(expected, (2, 4))[middle.numpy()], rtol=1e-4)
