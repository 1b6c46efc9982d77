"""What quantized weights are worth as real numbers: ``(q - zero) * scale``, from the nodes that read them."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.model.stored import stored_tensor
from onnxprune.ops.packed import is_packed_product, real_weight

Array: TypeAlias = npt.NDArray[Any]


class _Reading(NamedTuple):
    """The inputs that hold the scale and the zero point of a weight, and the axis that vectors go along."""

    scale: int | None
    zero_point: int
    axis: int


#: How an operator reads one of its inputs, by (domain, operator, input).
_READINGS = {
    ("", "ConvInteger", 1): _Reading(None, 3, 0),
    ("", "MatMulInteger", 1): _Reading(None, 3, -1),
    ("", "QLinearConv", 3): _Reading(4, 5, 0),
    ("", "QLinearMatMul", 3): _Reading(4, 5, -1),
    ("com.microsoft", "DynamicQuantizeMatMul", 1): _Reading(2, 3, -1),
    ("com.microsoft", "MatMulIntegerToFloat", 1): _Reading(3, 5, -1),
    ("com.microsoft", "QAttention", 1): _Reading(4, 7, -1),
    ("com.microsoft", "QGemm", 3): _Reading(4, 5, -1),
}


def real_numbers(value: ir.Value) -> Array | None:
    """Return a stored weight as floating-point numbers, in its own shape; None if it holds no weights.

    Weights are floats, and integers that a node reads with a scale beside them; where that scale can't be
    found, in units of it. Scales and zero points are none. A packed weight gets its blocks unpacked.
    """
    tensor = stored_tensor(value)
    if tensor is None:
        return None
    readings = [(node, _reading(node, index)) for node, index in value.uses()]
    if tensor.dtype.is_floating_point():
        return None if readings and all(_is_scale(node, value) for node, _ in readings) else tensor.numpy()
    for node, reading in readings:
        if is_packed_product(node) and node.inputs[1] is value:
            return real_weight(node)
        if reading is not None:
            zero = _constant(node, reading.zero_point)
            scale = _scale_behind(node) if reading.scale is None else _constant(node, reading.scale)
            numbers = tensor.numpy().astype(np.float32)
            if zero is not None:
                numbers -= _spread(zero.astype(np.float32), numbers.shape, reading.axis)
            return numbers if scale is None else numbers * _spread(scale, numbers.shape, reading.axis)
    return None


def _reading(node: ir.Node, index: int) -> _Reading | None:
    if node.op_type == "DequantizeLinear" and index == 0:
        return _Reading(1, 2, node.attributes.get_int("axis", 1))
    reading = _READINGS.get((_domain(node), node.op_type, index))
    if reading is not None and node.op_type == "QGemm" and node.attributes.get_int("transB", 0) != 0:
        return reading._replace(axis=0)
    return reading


def _is_scale(node: ir.Node, value: ir.Value) -> bool:
    """Return whether a node reads a value as the scale of something that it dequantizes."""
    if is_packed_product(node):
        return node.inputs[2] is value
    for index, operand in enumerate(node.inputs):
        reading = None if operand is None else _reading(node, index)
        if reading is not None and reading.scale is not None and node.inputs[reading.scale] is value:
            return True
    return False


def _domain(node: ir.Node) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


def _constant(node: ir.Node, index: int) -> Array | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = None if value is None else stored_tensor(value)
    return None if tensor is None else tensor.numpy()


def _scale_behind(node: ir.Node) -> Array | None:
    """Return the constant that the integer result of a node is multiplied with, behind a Cast, if any."""
    value, seen = node.outputs[0], 0
    while len(value.uses()) == 1 and seen < 4:
        (user, index), seen = next(iter(value.uses())), seen + 1
        if user.op_type == "Mul":
            return _constant_factor(user.inputs[1 - index])
        if user.op_type not in ("Cast", "Reshape"):
            return None
        value = user.outputs[0]
    return None


def _constant_factor(value: ir.Value | None) -> Array | None:
    """Return a scale: the value itself if it is constant, or the constant side of a product."""
    if value is None:
        return None
    producer = value.producer()
    if producer is not None and producer.op_type == "Mul":
        factors = [_constant(producer, index) for index in (0, 1)]
        return next((factor for factor in factors if factor is not None), None)
    tensor = stored_tensor(value)
    return None if tensor is None else tensor.numpy()


def _spread(numbers: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Return scales or zero points so that they broadcast against what they belong to."""
    if numbers.size == 1:
        return numbers.reshape(())
    if numbers.ndim == 1:
        return numbers.reshape([-1 if place == axis % len(shape) else 1 for place in range(len(shape))])
    if numbers.ndim != len(shape) or numbers.shape == shape:
        return numbers
    for place, (size, whole) in enumerate(zip(numbers.shape, shape, strict=True)):
        if 1 < size < whole:  # blocks
            numbers = np.repeat(numbers, -(-whole // size), axis=place).take(range(whole), axis=place)
    return numbers
