"""Operators on quantized numbers that ONNX Runtime adds: every tensor has a scale beside it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxprune.ops.base import OpRule, ShapeOf, WeightInput, op_rule
from onnxprune.ops.channels import Channels, Ref, Use
from onnxprune.ops.conv import link_vector
from onnxprune.ops.elementwise import link_broadcast
from onnxprune.ops.kept import Kept
from onnxprune.ops.matmul import link_general_product
from onnxprune.ops.move import link_joined
from onnxprune.ops.quantized import Product, in_blocks

_DOMAIN = "com.microsoft"


@op_rule("QLinearAdd", "QLinearMul", "QLinearWhere", domain=_DOMAIN)
class QLinearBroadcasting(OpRule):
    """y[p] = quantized(f(a[p], b[p])), operands broadcast; one scale and one zero point for each tensor"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Positions at the same place are the same channel."""
        operands = (0, 1, 4) if node.op_type == "QLinearWhere" else (0, 3)
        refs = [channels.ref(node, index) for index in operands]
        reason = f"an operand of {node.op_type} has no channels along this axis ({node.name})"
        link_broadcast(channels, refs, node.outputs[0], reason)


@op_rule("QLinearLeakyRelu", "QLinearSigmoid", domain=_DOMAIN)
class QLinearUnary(OpRule):
    """y[p] = quantized(f(x[p]))"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """The output has the labels of the input."""
        channels.copy(channels.ref(node, 0), node.outputs[0])


@op_rule("QLinearAveragePool", "QLinearGlobalAveragePool", domain=_DOMAIN)
class QLinearPool(OpRule):
    """y[n, c, ...] = quantized(mean of x[n, c, ...] over windows in space); channels may be the last axis"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Space is summed away or strided over; channels pass."""
        x = channels.ref(node, 0)
        own = channels.rank(x) - 1 if node.attributes.get_int("channels_last", 0) else 1
        for axis in range(1, channels.rank(x)):
            if axis != own:
                channels.freeze_axis(x, axis, f"{node.name} pools along this axis")
        channels.copy(x, node.outputs[0], {0: 0, own: own})


@op_rule("QLinearConcat", domain=_DOMAIN)
class QLinearConcat(OpRule):
    """y = inputs, each with a scale and a zero point behind it, one after another along ``axis``"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """As Concat."""
        link_joined(node, channels, range(2, len(node.inputs), 3))


@op_rule("QLinearSoftmax", domain=_DOMAIN)
class QLinearSoftmax(OpRule):
    """y = quantized(exp(x) / sum(exp(x))) along one axis (all axes from it on before opset 13)"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """A position less changes all others."""
        x = channels.ref(node, 0)
        rank = channels.rank(x)
        modern = node.attributes.get_int("opset", channels.shapes.opset) >= 13
        axis = node.attributes.get_int("axis", -1 if modern else 1) % rank
        for normalised in (axis,) if modern else range(axis, rank):
            channels.freeze_axis(x, normalised, f"{node.name} ({node.op_type}) normalises along this axis")
        channels.copy(x, node.outputs[0])


@op_rule("QLinearReduceMean", domain=_DOMAIN)
class QLinearReduceMean(OpRule):
    """y = quantized(mean of x over ``axes``)"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """The mean changes when a position of a reduced axis goes."""
        x = channels.ref(node, 0)
        rank = channels.rank(x)
        axes = {axis % rank for axis in node.attributes.get_ints("axes", ())} or set(range(rank))
        for axis in axes:
            labels = None if channels.block_at(x, axis) is None else channels.alone(x, axis)
            if labels is not None:
                channels.averages_over(node, labels, f"{node.name} takes the mean over these channels")
        keep = node.attributes.get_int("keepdims", 1) == 1
        left = [axis for axis in range(rank) if axis not in axes]
        channels.copy(
            x, node.outputs[0], {axis: axis if keep else position for position, axis in enumerate(left)}
        )


@op_rule("QGemm", domain=_DOMAIN)
class QGemm(OpRule):
    """y = quantized(alpha * a' b' + c), a' and b' quantized matrices, transposed or not; c is int32"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """As Gemm; scales and zero points go along the columns of b'."""
        link_general_product(node, channels, operands=(0, 3), bias=6, zero_points=(2, 5))
        labels = channels.alone(node.outputs[0], 1)
        for index in (4, 5):
            link_vector(node, channels, index, labels, f"{node.name} has scales without channels")

    def macs(self, node: ir.Node, shape_of: ShapeOf) -> int:
        """Outputs times the length of the sum."""
        a = node.inputs[0]
        axis = 0 if node.attributes.get_int("transA", 0) else 1
        return 0 if a is None else math.prod(shape_of(node.outputs[0])) * shape_of(a)[axis]

    def weight_inputs(self, node: ir.Node, rank_of: Callable[[ir.Value], int]) -> tuple[WeightInput, ...]:
        """The right operand; transposition swaps its axes."""
        transposed = node.attributes.get_int("transB", 0)
        return (WeightInput(3, 1 if transposed else 0, 0 if transposed else 1, zero_point=5),)


@op_rule("MatMulIntegerToFloat", domain=_DOMAIN)
class MatMulIntegerToFloat(Product):
    """y = sum_k (a - a_zero) * (b - b_zero) * a_scale * b_scale[n] + bias[n], float"""

    zero_points = (4, 5)
    row_vectors, column_vectors = (2, 4), (3, 5, 6)


@op_rule("DynamicQuantizeMatMul", domain=_DOMAIN)
class DynamicQuantizeMatMul(Product):
    """y = sum_k q(a) * (b - b_zero) * b_scale[n] + bias[n], a quantized by its own range"""

    zero_points = (None, 3)
    column_vectors = (2, 3, 4)

    def link(self, node: ir.Node, channels: Channels) -> None:
        """As MatMul, and as DynamicQuantizeLinear of the left operand."""
        super().link(node, channels)
        channels.ranges_over(node, 0)


@op_rule("DynamicQuantizeLSTM", domain=_DOMAIN)
class DynamicQuantizeLSTM(OpRule):
    """An LSTM with quantized weights, whose input and state are quantized by their own ranges"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Nothing that enters or leaves it may go."""
        reason = f"{node.name} (com.microsoft.DynamicQuantizeLSTM) packs its gates: its sizes are not changed"
        for index in range(len(node.inputs)):
            if channels.has(node, index):
                channels.freeze_all(channels.ref(node, index), reason)


@op_rule("MatMulNBits", domain=_DOMAIN)
class MatMulNBits(OpRule):
    """y[..., n] = sum_k a[..., k] * (q[n, k] - zero[n, k // block]) * scale[n, k // block] + bias[n]

    ``q`` is packed: uint8 ``[n, blocks of k, bytes of a block]``. Scales are ``[n * blocks]`` or
    ``[n, blocks]``, as are zero points, which are packed along each row (8 / bits in a byte) or floats.
    """

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Rows go one by one; what is summed over goes in blocks, or in as many as share a byte."""
        a, packed, y = channels.ref(node, 0), channels.ref(node, 1), node.outputs[0]
        channels.separate_all(a)
        for axis in range(channels.rank(a) - 1):
            channels.put(y, (axis,), channels.alone(a, axis) if channels.block_at(a, axis) else None)
        rows = channels.labels.fresh(channels.shape(packed)[0])
        channels.put(packed, (0,), rows)
        channels.put(y, (channels.rank(y) - 1,), rows)
        if channels.has(node, 5):
            channels.meet(channels.ref(node, 5), -1, rows, f"{node.name} has a bias without channels")
        self._link_blocks(node, channels, a, rows)
        channels.sums_over(node, 0, -1)

    def _link_blocks(self, node: ir.Node, channels: Channels, a: Ref, rows: np.ndarray) -> None:
        block_size, bits = node.attributes.get_int("block_size", 32), node.attributes.get_int("bits", 4)
        summed = channels.alone(a, -1)
        blocks = None
        if summed is not None and channels.has(node, 4):
            channels.freeze(summed, f"{node.name} orders what it sums over by an index")
        elif summed is not None:
            zeros = node.inputs[3] if channels.has(node, 3) else None
            shared = 1 if zeros is None or zeros.dtype != ir.DataType.UINT8 else max(1, 8 // bits)
            in_blocks(channels, summed, block_size * shared)
            blocks = summed[::block_size]
            channels.meet(channels.ref(node, 1), 1, blocks, f"{node.name} sums over an axis without channels")
        for index in (2, 3):
            if channels.has(node, index):
                self._link_table(node, channels, index, rows, blocks)

    def _link_table(
        self, node: ir.Node, channels: Channels, index: int, rows: np.ndarray, blocks: np.ndarray | None
    ) -> None:
        """Link scales or zero points, a table of rows and blocks, which may be flat, and packed in bytes."""
        ref = channels.ref(node, index)
        shape = channels.shape(ref)
        columns = math.prod(shape) // len(rows)
        if blocks is not None and columns != len(blocks):
            blocks = blocks[:: -(-len(blocks) // columns)]  # the first block of each byte
        if len(shape) > 1:
            channels.meet(ref, 0, rows, f"{node.name} has scales without channels")
            if blocks is not None and shape[1] > 1:
                channels.meet(ref, 1, blocks, f"{node.name} has scales without channels")
            return
        table = np.repeat(rows, columns, axis=0)
        if blocks is not None and columns > 1:
            table = np.concatenate([table, np.tile(blocks, (len(rows), 1))], axis=1)
        channels.meet(ref, 0, table, f"{node.name} has scales without channels")

    def fix(self, node: ir.Node, kept: Kept) -> None:
        """Both sizes are attributes."""
        kept.set_attribute(node, ir.AttrInt64("K", kept.count(kept.ref(node, 0), -1)))
        kept.set_attribute(node, ir.AttrInt64("N", kept.count(node.outputs[0], -1)))

    def macs(self, node: ir.Node, shape_of: ShapeOf) -> int:
        """Outputs times the length of the sum."""
        a = node.inputs[0]
        return 0 if a is None else math.prod(shape_of(node.outputs[0])) * shape_of(a)[-1]


@op_rule("QAttention", domain=_DOMAIN)
class QAttention(OpRule):
    """y = softmax(q k^T * scale) v for each head, with q, k, v = x * w + b; x and w are quantized"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """A head is the same places of q, k and v; the input is summed over."""
        x, w, y = channels.ref(node, 0), channels.ref(node, 1), node.outputs[0]
        channels.separate_all(x)
        channels.meet(w, 0, channels.alone(x, -1), f"{node.name} sums over an axis without channels")
        for axis in (0, 1):
            channels.freeze_axis(x, axis, f"{node.name} attends along this axis")
        head_count = node.attributes.get_int("num_heads", 1)
        places = channels.shape(w)[1] // (3 * head_count)
        reason = f"{node.name} splits its weight into heads"
        if places * 3 * head_count != channels.shape(w)[1]:
            channels.freeze_all(w, reason)
            return
        heads = channels.labels.fresh(head_count)
        channels.tag("heads", heads)
        columns = np.tile(np.repeat(heads, places, axis=0), (3, 1))
        channels.meet(w, 1, columns, reason)
        for index in (2, 4, 7):
            link_vector(node, channels, index, columns, reason)
        if channels.has(node, 8):
            channels.meet(channels.ref(node, 8), 2, heads, f"the past of {node.name} has all heads")
        channels.put(y, (2,), np.repeat(heads, places, axis=0))
        if len(node.outputs) > 1 and node.outputs[1].name:
            channels.put(node.outputs[1], (2,), heads)
        channels.sums_over(node, 1, 0, zero_point=7, zero_axis=1)

    def fix(self, node: ir.Node, kept: Kept) -> None:
        """As many heads as are left, of the size they had."""
        before = kept.channels.shape(node.outputs[0])[2] // node.attributes.get_int("num_heads", 1)
        kept.set_attribute(node, ir.AttrInt64("num_heads", kept.count(node.outputs[0], 2) // before))

    def macs(self, node: ir.Node, shape_of: ShapeOf) -> int:
        """Those of the projection, and of both products over the sequence."""
        x, w = node.inputs[0], node.inputs[1]
        if x is None or w is None:
            return 0
        batch, length, width = shape_of(x)
        columns = shape_of(w)[1]
        return batch * length * (width * columns + 2 * length * columns // 3)

    def weight_inputs(self, node: ir.Node, rank_of: Callable[[ir.Value], int]) -> tuple[WeightInput, ...]:
        """The projection ``[width, q k v]``."""
        return (WeightInput(1, summed_axis=0, output_axis=1, zero_point=7),)


@op_rule("QEmbedLayerNormalization", domain=_DOMAIN)
class QEmbedLayerNormalization(OpRule):
    """y = layer norm of the sum of three looked-up rows; tables, scale and bias are quantized"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """All tables share their columns, over which mean and deviation are taken."""
        labels = channels.labels.fresh(channels.shape(channels.ref(node, 2))[-1])
        for index in range(2, 7):
            link_vector(node, channels, index, labels, f"a table of {node.name} has no columns to remove")
        channels.averages_over(node, labels, f"{node.name} takes mean and deviation over these channels")
        channels.put(node.outputs[0], (2,), labels)


@op_rule("GatherBlockQuantized", domain=_DOMAIN)
class GatherBlockQuantized(OpRule):
    """y = rows of a table that is packed in blocks, dequantized"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """A packed table keeps its sizes: neither it nor the result has channels."""
        for index in range(len(node.inputs)):
            ref = channels.ref(node, index) if channels.has(node, index) else None
            if ref is not None and not isinstance(ref, Use):
                channels.freeze_all(ref, f"{node.name} reads positions from it")
