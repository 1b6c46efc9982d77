"""Operators on quantized numbers that ONNX Runtime adds: every tensor has a scale beside it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.ops.meanings.attention import apart, attend, together
from onnxprune.ops.meanings.base import NoMeaning, Run, Static, meaning
from onnxprune.ops.meanings.contrib_attention import mask_scores
from onnxprune.ops.meanings.pool import average_pool
from onnxprune.ops.meanings.quantized import (
    Kind,
    dequantize,
    kind_of,
    of_rows,
    quantize,
    range_of,
    requantize,
    shifted,
)

_DOMAIN = "com.microsoft"


def _type_at(node: Static, index: int) -> Kind:
    value = node.node.inputs[index] if node.has(index) else None
    return kind_of(None if value is None else value.dtype)


_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"QLinearAdd": torch.add, "QLinearMul": torch.mul}


@meaning(*_BINARY, domain=_DOMAIN)
def qlinear_binary(node: Static) -> Run:
    """Gives quantized(f(a, b)), operands broadcast"""
    function, kind = _BINARY[node.node.op_type], _type_at(node, 0)

    def run(
        a: Tensor, a_scale: Tensor, a_zero: Tensor | None, b: Tensor, b_scale: Tensor, b_zero: Tensor | None,
        y_scale: Tensor, y_zero: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        y = function(dequantize(a, a_scale, a_zero), dequantize(b, b_scale, b_zero))
        return quantize(y, y_scale, y_zero, kind)

    return run


@meaning("QLinearWhere", domain=_DOMAIN)
def qlinear_where(node: Static) -> Run:
    """Gives quantized(a where a condition holds, else b)"""
    kind = _type_at(node, 1)

    def run(
        condition: Tensor, a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor,
        b_zero: Tensor, y_scale: Tensor, y_zero: Tensor,
    ) -> Tensor:  # fmt: skip
        y = torch.where(condition, dequantize(a, a_scale, a_zero), dequantize(b, b_scale, b_zero))
        return quantize(y, y_scale, y_zero, kind)

    return run


def _on_real(node: Static, function: Callable[[Tensor], Tensor]) -> Run:
    """Return ``quantized(function(x))`` of inputs x, x_scale, x_zero, y_scale, y_zero."""
    kind = _type_at(node, 0)

    def run(
        x: Tensor, x_scale: Tensor, x_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None
    ) -> Tensor:
        return quantize(function(dequantize(x, x_scale, x_zero)), y_scale, y_zero, kind)

    return run


@meaning("QLinearSigmoid", domain=_DOMAIN)
def qlinear_sigmoid(node: Static) -> Run:
    """Gives quantized(sigmoid(x))"""
    return _on_real(node, torch.sigmoid)


@meaning("QLinearLeakyRelu", domain=_DOMAIN)
def qlinear_leaky_relu(node: Static) -> Run:
    """Gives quantized(x, or alpha x below 0)"""
    slope = node.float("alpha", 0.01)
    return _on_real(node, lambda x: functional.leaky_relu(x, slope))


@meaning("QLinearReduceMean", domain=_DOMAIN)
def qlinear_reduce_mean(node: Static) -> Run:
    """Gives quantized(mean of x over ``axes``)"""
    axes, keeps = node.ints("axes"), node.int("keepdims", 1) == 1
    return _on_real(node, lambda x: x.mean(axes or list(range(x.dim())), keepdim=keeps))


def _channels_first(node: Static, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    if not node.int("channels_last"):
        return function
    return lambda x: function(x.movedim(-1, 1)).movedim(1, -1)


@meaning("QLinearAveragePool", domain=_DOMAIN)
def qlinear_average_pool(node: Static) -> Run:
    """Gives quantized(mean of x over windows in space)"""
    return _on_real(node, _channels_first(node, average_pool(node)))


@meaning("QLinearGlobalAveragePool", domain=_DOMAIN)
def qlinear_global_average_pool(node: Static) -> Run:
    """Gives quantized(mean of x over space)"""
    return _on_real(node, _channels_first(node, lambda x: x.mean(dim=tuple(range(2, x.dim())), keepdim=True)))


@meaning("QLinearSoftmax", domain=_DOMAIN)
def qlinear_softmax(node: Static) -> Run:
    """Gives quantized(softmax(x)) along one axis (all axes from it on before opset 13)"""
    modern = node.int("opset", 13) >= 13
    axis = node.int("axis", -1 if modern else 1)

    def softmax(x: Tensor) -> Tensor:
        if modern:
            return torch.softmax(x, dim=axis)
        return torch.softmax(x.flatten(axis % x.dim()), dim=-1).reshape(x.shape)

    return _on_real(node, softmax)


@meaning("QLinearConcat", domain=_DOMAIN)
def qlinear_concat(node: Static) -> Run:
    """Gives quantized(inputs one after another along ``axis``); scale and zero point follow each"""
    axis, kind = node.int("axis"), _type_at(node, 2)

    def run(y_scale: Tensor, y_zero: Tensor, *inputs: Tensor) -> Tensor:
        parts = [dequantize(*inputs[place : place + 3]) for place in range(0, len(inputs), 3)]
        return quantize(torch.cat(parts, dim=axis), y_scale, y_zero, kind)

    return run


@meaning("QGemm", domain=_DOMAIN)
def qgemm(node: Static) -> Run:
    """Gives quantized(alpha * a' b' + c), a' and b' quantized matrices, transposed or not; c is int32

    c has the scale ``alpha * a_scale * b_scale``. Without a scale of y, the result is float.
    """
    alpha, swap_a, swap_b = node.float("alpha", 1.0), node.int("transA"), node.int("transB")
    kind = _type_at(node, 8) if node.has(8) else _type_at(node, 0)

    def run(
        a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor,
        c: Tensor | None = None, y_scale: Tensor | None = None, y_zero: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        left, right = shifted(a, a_zero), b.double()
        right = (right.mT if swap_b else right) - b_zero.double()
        total = (left.mT if swap_a else left) @ right
        total = total if c is None else total + c.double()
        factor = alpha * a_scale * b_scale
        if y_scale is None:
            return total.float() * factor
        zero = torch.zeros((), device=a.device) if y_zero is None else y_zero
        return requantize(total, factor / y_scale, zero, kind)

    return run


@meaning("MatMulIntegerToFloat", domain=_DOMAIN)
def matmul_integer_to_float(node: Static) -> Run:
    """Gives sum_k (a - a_zero) * (b - b_zero) * a_scale * b_scale[n] + bias[n], float"""

    def run(
        a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, a_zero: Tensor | None = None,
        b_zero: Tensor | None = None, bias: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        total = shifted(a, None if a_zero is None else of_rows(a_zero))
        scale = of_rows(a_scale)
        y = (total @ shifted(b, b_zero)).to(a_scale.dtype) * (scale * b_scale)
        return y if bias is None else y + bias

    return run


@meaning("DynamicQuantizeMatMul", domain=_DOMAIN)
def dynamic_quantize_matmul(node: Static) -> Run:
    """Gives sum_k q(a) * (b - b_zero) * b_scale[n] + bias[n], a quantized by its own range"""
    byte = kind_of(None)

    def run(
        a: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        scale, zero = range_of(a)
        total = shifted(quantize(a, scale, zero, byte), zero) @ shifted(b, b_zero)
        y = total.float() * (scale * b_scale)
        return y if bias is None else y + bias

    return run


def unpacked(packed: Tensor, bits: int) -> Tensor:
    """Return whole numbers of 2, 4 or 8 bits that lie in bytes along the last axis, the lowest bits first."""
    if bits == 8:
        return packed
    each = 8 // bits
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    parts = torch.bitwise_and(torch.bitwise_right_shift(packed[..., None], shifts), 2**bits - 1)
    return parts.reshape(*packed.shape[:-1], packed.shape[-1] * each)


@meaning("MatMulNBits", domain=_DOMAIN)
def matmul_nbits(node: Static) -> Run:
    """y[..., n] = sum_k a[..., k] * (q[n, k] - zero[n, k // block]) * scale[n, k // block] + bias[n]"""
    rows, columns = node.int("N"), node.int("K")
    bits, block = node.int("bits", 4), node.int("block_size", 32)
    if bits not in (2, 4, 8) or node.has(4):
        raise NoMeaning("an order of its own, or other than 2, 4 or 8 bits")

    def run(
        a: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor | None = None, _order: None = None,
        bias: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        blocks = -(-columns // block)
        q = unpacked(packed.reshape(rows, blocks, -1), bits).to(scales.dtype)
        if zeros is None:
            zero: Tensor | float = float(2 ** (bits - 1))
        elif zeros.dtype == torch.uint8:
            zero = unpacked(zeros.reshape(rows, -1), bits)[:, :blocks, None].to(scales.dtype)
        else:
            zero = zeros.reshape(rows, blocks, 1)
        weight = ((q - zero) * scales.reshape(rows, blocks, 1)).flatten(1)[:, :columns]
        return functional.linear(a, weight.to(a.dtype), bias)

    return run


@meaning("QAttention", domain=_DOMAIN)
def qattention(node: Static) -> Run:
    """Gives softmax(q k^T * scale) v for each head, with q, k, v = x * w + b; x and w are quantized"""
    heads, scale = node.int("num_heads"), node.float("scale", 0.0)
    causal, filtered = node.int("unidirectional") == 1, node.float("mask_filter_value", -10000.0)
    if node.int("do_rotary") or node.int("past_present_share_buffer"):
        raise NoMeaning("do_rotary and past_present_share_buffer")

    def run(
        x: Tensor, weight: Tensor, bias: Tensor, x_scale: Tensor, w_scale: Tensor, mask: Tensor | None = None,
        x_zero: Tensor | None = None, w_zero: Tensor | None = None, past: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        product = (shifted(x, x_zero) @ shifted(weight, w_zero)).to(x_scale.dtype)
        parts = (product * (x_scale * w_scale) + bias).chunk(3, dim=2)
        query, key, value = (apart(part, heads) for part in parts)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        added = mask_scores(query, key.shape[2], mask, None, causal, filtered)
        y = attend(query, key, value, added, scale or 1 / math.sqrt(query.shape[-1]))
        return together(y), torch.stack([key, value])

    return run


@meaning("QEmbedLayerNormalization", domain=_DOMAIN)
def qembed_layer_normalization(node: Static) -> Run:
    """Gives layer norm of the sum of three looked-up rows; tables, scale and bias are quantized"""
    epsilon = node.float("epsilon", 1e-12)

    def run(ids: Tensor, segment_ids: Tensor | None, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        tables, mask, scales, zeros = inputs[:5], inputs[5], inputs[6:11], inputs[11:16]
        words, places, segments, gain, shift = (
            None if table is None or scale is None else dequantize(table, scale, zero)
            for table, scale, zero in zip(tables, scales, zeros, strict=True)
        )
        if words is None or places is None or gain is None:
            raise ValueError("a table is missing")
        total = words[ids.long()] + places[: ids.shape[1]]
        if segments is not None and segment_ids is not None:
            total = total + segments[segment_ids.long()]
        y = functional.layer_norm(total, gain.shape, gain, shift, epsilon)
        counts = torch.zeros(len(ids), dtype=torch.int32, device=ids.device)
        return y, counts if mask is None else mask.sum(dim=1, dtype=torch.int32)

    return run


@meaning("GatherBlockQuantized", domain=_DOMAIN)
def gather_block_quantized(node: Static) -> Run:
    """Gives rows of a table that is packed in blocks, dequantized"""
    gathered, along_axis = node.int("gather_axis"), node.int("quantize_axis", 1)
    block, bits = node.int("block_size", 128), node.int("bits", 4)
    table = node.node.inputs[0]
    packs = table is not None and table.dtype is not None and table.dtype.name == "UINT8"

    def run(packed: Tensor, indices: Tensor, scales: Tensor, zeros: Tensor | None = None) -> Tensor:
        q = unpacked(packed, bits) if packs else packed
        axis = along_axis % q.dim()
        if zeros is None:
            zero: Tensor = torch.tensor(2.0 ** (bits - 1) if packs else 0.0, device=scales.device)
        else:
            zero = unpacked(zeros, bits) if packs else zeros
            zero = zero.narrow(-1, 0, scales.shape[-1]).repeat_interleave(block, dim=axis)
            zero = zero.narrow(axis, 0, q.shape[axis])
        scale = scales.repeat_interleave(block, dim=axis).narrow(axis, 0, q.shape[axis])
        y = (q.to(scales.dtype) - zero.to(scales.dtype)) * scale
        first = gathered % q.dim()
        size = y.shape[first]
        places = indices.long()
        places = torch.where(places < 0, places + size, places)
        picked = y.index_select(first, places.flatten())
        return picked.reshape(*y.shape[:first], *indices.shape, *y.shape[first + 1 :])

    return run
