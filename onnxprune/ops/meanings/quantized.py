"""Quantized numbers: what is stored is ``q``, what is meant is ``(q - zero) * scale``.

Gradients go straight through a rounding, as if it were not there, and stop where a number is saturated
(Bengio et al., 1308.3432; with respect to the scale, Esser et al., 1902.08153). torch has no gradients of
integers, so a quantized number that carries one is a float that holds a whole number; without gradients it
has its own type. Products of integers are computed in float64, which is exact below 2 ** 53, has gradients,
and works on every device.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune.ops.meanings.base import NoMeaning, Run, Static, meaning, torch_dtype
from onnxprune.ops.meanings.conv import convolution

#: Bits and sign of the integers that a quantized number may be.
_BITS = {
    ir.DataType.UINT2: (2, False), ir.DataType.INT2: (2, True), ir.DataType.UINT4: (4, False),
    ir.DataType.INT4: (4, True), ir.DataType.UINT8: (8, False), ir.DataType.INT8: (8, True),
    ir.DataType.UINT16: (16, False), ir.DataType.INT16: (16, True), ir.DataType.INT32: (32, True),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kind:
    """An element type of quantized numbers.

    Attributes:
        dtype: what holds it in torch.
        lowest: the least whole number, or None of a float8.
        highest: the greatest one.
    """

    dtype: torch.dtype
    lowest: int | None
    highest: int

    @property
    def is_float(self) -> bool:
        """Whether numbers are not rounded to whole ones."""
        return self.lowest is None


def kind_of(dtype: ir.DataType | None) -> Kind:
    """Return the limits of an element type; uint8 if it is not known.

    Raises:
        NoMeaning: it is no type of quantized numbers.
    """
    dtype = dtype or ir.DataType.UINT8
    if dtype in _BITS:
        bits, signed = _BITS[dtype]
        low = -(2 ** (bits - 1)) if signed else 0
        return Kind(torch_dtype(dtype), low, low + 2**bits - 1)
    found = torch_dtype(dtype)
    if not found.is_floating_point or found.itemsize != 1:
        raise NoMeaning(f"numbers quantized to {dtype.name.lower()}")
    return Kind(found, None, 0)


def rounded(x: Tensor) -> Tensor:
    """Return x rounded to whole numbers, halves to even; its gradient is that of x."""
    return x + (torch.round(x) - x).detach() if _carries(x) else torch.round(x)


def _carries(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


def as_kind(x: Tensor, kind: Kind) -> Tensor:
    """Return whole numbers within the limits of a type: of this type, or floats if they carry a gradient."""
    if kind.is_float:
        limit = torch.finfo(kind.dtype).max
        held = x.float().clamp(-limit, limit).to(kind.dtype)
        return x + (held.to(x.dtype) - x).detach() if _carries(x) else held
    x = x.clamp(kind.lowest, kind.highest)
    return x if _carries(x) else x.to(kind.dtype)


def quantize(x: Tensor, scale: Tensor, zero: Tensor | None, kind: Kind) -> Tensor:
    """Return ``saturated(round(x / scale) + zero)``; scale and zero are of a shape that is broadcast."""
    ratio = x / scale
    if kind.is_float:
        return as_kind(ratio, kind)
    whole = rounded(ratio)
    return as_kind(whole if zero is None else whole + zero.to(whole.dtype), kind)


def dequantize(q: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Return ``(q - zero) * scale`` in the type of the scale, computed in float32 at least."""
    wide = torch.promote_types(scale.dtype, torch.float32)
    x = q.to(wide)
    if zero is not None:
        x = x - zero.to(wide)
    return (x * scale.to(wide)).to(scale.dtype)


def along(parameter: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Return scales or zero points in a shape that broadcasts with x: for all of it, an axis, or blocks."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    if parameter.dim() == 1 and not block:
        shape = [1] * x.dim()
        shape[axis] = -1
        return parameter.reshape(shape)
    size = block or -(-x.shape[axis] // parameter.shape[axis])
    return parameter.repeat_interleave(size, dim=axis).narrow(axis, 0, x.shape[axis])


def _type_of(node: Static, attribute: str, index: int) -> ir.DataType | None:
    """Return the element type that an attribute gives, or an input has."""
    given = node.int(attribute)
    if given:
        return ir.DataType(given)
    value = node.node.inputs[index] if node.has(index) else None
    return None if value is None else value.dtype


@meaning("QuantizeLinear")
@meaning("QuantizeLinear", domain="com.microsoft")
def quantize_linear(node: Static) -> Run:
    """Gives saturated(round(x / scale) + zero); a scale for all, a position of an axis, or a block"""
    axis, block = node.int("axis", 1), node.int("block_size")
    kind = kind_of(_type_of(node, "output_dtype", 2))

    def run(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        place = axis % max(x.dim(), 1)
        wide = torch.promote_types(scale.dtype, torch.float32)
        scale = along(scale.to(wide), x, place, block)
        zero = None if zero is None else along(zero, x, place, block)
        return quantize(x.to(wide), scale, zero, kind)

    return run


@meaning("DequantizeLinear")
@meaning("DequantizeLinear", domain="com.microsoft")
def dequantize_linear(node: Static) -> Run:
    """Gives (q - zero) * scale; a scale for all, a position of an axis, or a block"""
    axis, block, dtype = node.int("axis", 1), node.int("block_size"), node.dtype("output_dtype")

    def run(q: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        place = axis % max(q.dim(), 1)
        zero = None if zero is None else along(zero, q, place, block)
        y = dequantize(q, along(scale, q, place, block), zero)
        return y if dtype is None else y.to(dtype)

    return run


_BYTE = Kind(torch.uint8, 0, 255)


def range_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scale and the zero point of 255 steps from min(0, min(x)) to max(0, max(x))."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = torch.where(high > low, (high - low) / 255, 1)
    return scale, torch.round((-low / scale).detach()).clamp(0, 255)


@meaning("DynamicQuantizeLinear")
def dynamic_quantize_linear(node: Static) -> Run:
    """Gives x in 255 steps from min(0, min(x)) to max(0, max(x)); the step and the zero point are outputs"""

    def run(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale, zero = range_of(x)
        return quantize(x, scale, zero, _BYTE), scale, zero.to(torch.uint8)

    return run


def shifted(q: Tensor, zero: Tensor | None) -> Tensor:
    """Return ``q - zero`` in float64."""
    x = q.double()
    return x if zero is None else x - zero.double()


def of_rows(parameter: Tensor) -> Tensor:
    """Return scales or zero points of rows, or one for all, in a shape that broadcasts with a matrix."""
    return parameter[:, None] if parameter.dim() == 1 and len(parameter) > 1 else parameter


def _whole(x: Tensor) -> Tensor:
    """Return sums of products as int32, or as they are if they carry a gradient."""
    return x if _carries(x) else x.to(torch.int32)


@meaning("MatMulInteger")
def matmul_integer(node: Static) -> Run:
    """y[..., m, n] = sum_k (a[..., m, k] - a_zero) * (b[..., k, n] - b_zero), int32"""

    def run(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
        return _whole(shifted(a, None if a_zero is None else of_rows(a_zero)) @ shifted(b, b_zero))

    return run


def of_channels(parameter: Tensor | None, rank: int) -> Tensor | None:
    """Return scales or zero points of the rows of a kernel in a shape that broadcasts with it."""
    if parameter is None or parameter.numel() == 1:
        return None if parameter is None else parameter.reshape(())
    return parameter.reshape(-1, *[1] * (rank - 1))


@meaning("ConvInteger")
def conv_integer(node: Static) -> Run:
    """y[n, o, ...] = sum_i (x[n, i, ...] - x_zero) * (w[o, i, ...] - w_zero[o]), int32"""
    convolve = convolution(node)

    def run(x: Tensor, weight: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None) -> Tensor:
        return _whole(convolve(shifted(x, x_zero), shifted(weight, of_channels(w_zero, weight.dim()))))

    return run


def requantize(total: Tensor, factor: Tensor, zero: Tensor, kind: Kind) -> Tensor:
    """Return exact sums times ``factor``, rounded and saturated; the product is rounded to float32 first."""
    return as_kind(rounded(total.float() * factor) + zero.float(), kind)


@meaning("QLinearConv")
def qlinear_conv(node: Static) -> Run:
    """Gives quantized(sum_i (x - x_zero) * (w - w_zero[o]) * x_scale * w_scale[o] + b[o])"""
    convolve, kind = convolution(node), kind_of(_type_of(node, "", 7))

    def run(
        x: Tensor, x_scale: Tensor, x_zero: Tensor, weight: Tensor, w_scale: Tensor, w_zero: Tensor,
        y_scale: Tensor, y_zero: Tensor, bias: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        total = convolve(
            shifted(x, x_zero),
            shifted(weight, of_channels(w_zero, weight.dim())),
            None if bias is None else bias.double(),
        )
        factor = x_scale * w_scale / y_scale
        if factor.numel() > 1:
            factor = factor.reshape(-1, *[1] * (total.dim() - 2))
        return requantize(total, factor.reshape(()) if factor.numel() == 1 else factor, y_zero, kind)

    return run


@meaning("QLinearMatMul")
def qlinear_matmul(node: Static) -> Run:
    """Gives quantized(sum_k (a - a_zero) * (b - b_zero) * a_scale * b_scale)"""
    kind = kind_of(_type_of(node, "", 7))

    def run(
        a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor,
        y_scale: Tensor, y_zero: Tensor,
    ) -> Tensor:  # fmt: skip
        total = shifted(a, of_rows(a_zero)) @ shifted(b, b_zero)
        rows = [of_rows(scale) for scale in (a_scale, y_scale, y_zero)]
        return requantize(total, (rows[0] * b_scale / rows[1]).float(), rows[2], kind)

    return run
