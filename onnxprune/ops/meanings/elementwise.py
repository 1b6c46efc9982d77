"""Arithmetic, comparisons, logic and activations: one number of the output from one of each input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from onnxprune.ops.meanings.base import NoMeaning, Run, Static, meaning, scalar_like, torch_dtype

# --- one input ----------------------------------------------------------------------------------------------

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh,
    "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "HardSwish": F.hardswish, "IsNaN": torch.isnan,
    "Log": torch.log, "Mish": F.mish, "Neg": torch.neg, "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid,
    "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh, "Softplus": lambda x: F.softplus(x),
    "Softsign": F.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh,
    "BitwiseNot": torch.bitwise_not,
}  # fmt: skip


@meaning(*_UNARY)
def unary(node: Static) -> Run:
    """Functions that torch has under the same definition."""
    return _UNARY[node.node.op_type]


@meaning("IsInf")
def is_inf(node: Static) -> Run:
    """Infinities of the chosen signs."""
    negative, positive = node.int("detect_negative", 1), node.int("detect_positive", 1)
    if negative and positive:
        return torch.isinf
    if not negative and not positive:
        return lambda x: torch.zeros_like(x, dtype=torch.bool)
    return torch.isneginf if negative else torch.isposinf


@meaning("Elu")
def elu(node: Static) -> Run:
    """``alpha (exp(x) - 1)`` below 0."""
    alpha = node.float("alpha", 1.0)
    return lambda x: F.elu(x, alpha)


@meaning("Celu")
def celu(node: Static) -> Run:
    """``alpha (exp(x / alpha) - 1)`` below 0."""
    alpha = node.float("alpha", 1.0)
    return lambda x: F.celu(x, alpha)


@meaning("Selu")
def selu(node: Static) -> Run:
    """``gamma (alpha exp(x) - alpha)`` below 0, ``gamma x`` above."""
    alpha = node.float("alpha", 1.67326319217681884765625)
    gamma = node.float("gamma", 1.05070102214813232421875)
    return lambda x: gamma * F.elu(x, alpha)


@meaning("LeakyRelu")
def leaky_relu(node: Static) -> Run:
    """``alpha x`` below 0."""
    alpha = node.float("alpha", 0.01)
    return lambda x: F.leaky_relu(x, alpha)


@meaning("ThresholdedRelu")
def thresholded_relu(node: Static) -> Run:
    """0 up to ``alpha``."""
    alpha = node.float("alpha", 1.0)
    return lambda x: F.threshold(x, alpha, 0.0)


@meaning("Shrink")
def shrink(node: Static) -> Run:
    """0 between ``-lambd`` and ``lambd``, nearer to 0 by ``bias`` elsewhere."""
    bias, width = node.float("bias", 0.0), node.float("lambd", 0.5)

    def run(x: Tensor) -> Tensor:
        moved = torch.where(x < -width, x + bias, torch.where(x > width, x - bias, torch.zeros_like(x)))
        return moved.to(x.dtype)

    return run


@meaning("HardSigmoid")
def hard_sigmoid(node: Static) -> Run:
    """``alpha x + beta`` between 0 and 1."""
    alpha, beta = node.float("alpha", 0.2), node.float("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid
    return lambda x: torch.clamp(alpha * x + beta, 0.0, 1.0)


@meaning("Gelu")
def gelu(node: Static) -> Run:
    """``x Phi(x)``, or its approximation by tanh."""
    approximate = node.text("approximate", "none")
    return lambda x: F.gelu(x, approximate=approximate)


@meaning("Swish")
def swish(node: Static) -> Run:
    """``x sigmoid(alpha x)``."""
    alpha = node.float("alpha", 1.0)
    return F.silu if alpha == 1 else lambda x: x * torch.sigmoid(alpha * x)


@meaning("SwiGLU")
def swiglu(node: Static) -> Run:
    """``a sigmoid(alpha a) b`` (Shazeer 2020)."""
    gate = swish(node)
    return lambda a, b: gate(a) * b


@meaning("Clip")
def clip(node: Static) -> Run:
    """Between two limits, attributes before opset 11, scalars from then on."""
    if node.version < 11:
        low = node.float("min") if "min" in node.node.attributes else None
        high = node.float("max") if "max" in node.node.attributes else None
        return _clamp(low, high)
    known = all(not node.has(index) or node.constant(index) is not None for index in (1, 2))
    if known:
        return _clamp(scalar_like(node.constant(1)), scalar_like(node.constant(2)))

    def run(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        if low is not None:
            x = torch.maximum(x, low)
        return x if high is None else torch.minimum(x, high)

    return run


def _clamp(low: float | None, high: float | None) -> Run:
    if low == 0 and high is None:
        return lambda x, *_: torch.relu(x)
    if low is None and high is None:
        return lambda x, *_: x
    if low == 0 and high == 6:
        return lambda x, *_: F.relu6(x)
    return lambda x, *_: torch.clamp(x, low, high)


# --- types --------------------------------------------------------------------------------------------------


@meaning("Cast")
def cast(node: Static) -> Run:
    """Numbers of another type."""
    target = node.dtype("to")
    if target is None:
        raise NoMeaning("without a type")
    return lambda x: _converted(x, target)


@meaning("CastLike")
def cast_like(node: Static) -> Run:
    """Numbers of the type of another value."""
    return lambda x, like: _converted(x, like.dtype)


def _converted(x: Tensor, target: torch.dtype) -> Tensor:
    if x.dtype == target:
        return x
    return x != 0 if target == torch.bool else x.to(target)


# --- two inputs and more ------------------------------------------------------------------------------------

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add, "And": torch.logical_and, "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor, "Equal": torch.eq, "Greater": torch.gt,
    "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le, "Mul": torch.mul,
    "Or": torch.logical_or, "Sub": torch.sub, "Xor": torch.logical_xor,
}  # fmt: skip


@meaning(*_BINARY)
def binary(node: Static) -> Run:
    """Functions that torch has under the same definition."""
    function = _BINARY[node.node.op_type]
    if node.version >= 7 or not node.int("broadcast"):
        return function
    axis = node.int("axis", -1)

    def run(x: Tensor, y: Tensor) -> Tensor:  # before opset 7, the axes of y stood at a given place of x
        if axis >= 0:
            y = y.reshape([*y.shape, *[1] * (x.dim() - axis - y.dim())])
        return function(x, y)

    return run


@meaning("Div")
def div(node: Static) -> Run:
    """Integers are rounded towards 0."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        if x.is_floating_point() or y.is_floating_point():
            return torch.div(x, y)
        return torch.div(x, y, rounding_mode="trunc")

    return run


@meaning("Pow")
def power(node: Static) -> Run:
    """The result has the type of the base."""
    exponent = scalar_like(node.constant(1))
    if exponent is not None and float(exponent).is_integer():
        exponent = int(exponent)
    if exponent == 2:
        return lambda x, *_: x * x
    if exponent is not None:
        return lambda x, *_: (
            torch.pow(x, exponent) if x.is_floating_point() else torch.pow(x.double(), exponent).to(x.dtype)
        )
    return lambda x, y: torch.pow(x, y).to(x.dtype)


@meaning("Mod")
def modulo(node: Static) -> Run:
    """The sign of the divisor, with ``fmod`` that of the dividend."""
    return torch.fmod if node.int("fmod") else torch.remainder


@meaning("BitShift")
def bit_shift(node: Static) -> Run:
    """To the left or to the right; types without a sign."""
    left = node.text("direction") == "LEFT"

    def run(x: Tensor, by: Tensor) -> Tensor:
        wide, bits = x.to(torch.int64), x.dtype.itemsize * 8
        distance = by.to(torch.int64)
        if bits == 64:
            shifted = wide << distance if left else (wide >> distance) & ~((-1 << (63 - distance)) << 1)
        else:
            shifted = (wide << distance) & ((1 << bits) - 1) if left else wide >> distance
        return shifted.to(x.dtype)

    return run


@meaning("PRelu")
def prelu(node: Static) -> Run:
    """``slope x`` below 0; the slope broadcasts to x."""

    def run(x: Tensor, slope: Tensor) -> Tensor:
        return torch.where(x < 0, x * slope, x)

    return run


@meaning("Where")
def where(node: Static) -> Run:
    """One of two values at every place."""
    return torch.where


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def run(first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = function(first, other)
        return first

    return run


_VARIADIC: dict[str, Callable[..., Tensor]] = {
    "Max": _folded(torch.maximum), "Min": _folded(torch.minimum), "Sum": _folded(torch.add),
}  # fmt: skip


@meaning(*_VARIADIC)
def variadic(node: Static) -> Run:
    """Over any number of inputs."""
    return _VARIADIC[node.node.op_type]


@meaning("Mean")
def mean(node: Static) -> Run:
    """Of any number of inputs."""
    count, total = len(node.node.inputs), _VARIADIC["Sum"]
    return lambda *inputs: total(*inputs) / count


@meaning("BitCast")
def bit_cast(node: Static) -> Run:
    """The same bits as another type."""
    target: Any = torch_dtype_of(node)
    return lambda x: x.view(target)


def torch_dtype_of(node: Static) -> torch.dtype:
    """Return the type that a node asks for, whatever precision the module runs in."""
    import onnx_ir as ir

    return torch_dtype(ir.DataType(node.int("to")))
