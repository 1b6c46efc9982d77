"""Standard operators on quantized numbers: what is stored is ``q``, what is meant is ``(q - zero) * scale``.

Scales and zero points go along an axis of what they belong to, or serve all of it. A removed position is
neutral where the real number is zero, that is where ``q`` equals the zero point.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxprune.ops.base import OpRule, ShapeOf, WeightInput, op_rule
from onnxprune.ops.channels import Channels, Ref, Use
from onnxprune.ops.conv import fix_groups, link_convolution
from onnxprune.ops.kept import Kept
from onnxprune.ops.labels import LabelArray
from onnxprune.ops.matmul import link_product


@op_rule("QuantizeLinear", "DequantizeLinear")
@op_rule("QuantizeLinear", "DequantizeLinear", domain="com.microsoft")
class Linear(OpRule):
    """y = round(x / scale) + zero, or y = (x - zero) * scale; a scale for all, a position, or a block"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Positions pass; scales and zero points go with the positions that they belong to."""
        x = channels.ref(node, 0)
        if isinstance(x, Use):
            _label_constant(node, channels, x)
        for index in (1, 2):
            if channels.has(node, index):
                self._link_scale(node, channels, x, index)
        channels.copy(x, node.outputs[0])

    def _link_scale(self, node: ir.Node, channels: Channels, x: Ref, index: int) -> None:
        scale = channels.ref(node, index)
        shape, whole = channels.shape(scale), channels.shape(x)
        reason = f"{node.name} has scales along an axis without channels"
        if math.prod(shape) == 1:
            return
        if len(shape) == 1:
            axis = node.attributes.get_int("axis", 1) % len(whole)
            channels.meet(scale, 0, channels.alone(x, axis), reason)
            return
        for axis, (size, all_of_it) in enumerate(zip(shape, whole, strict=True)):
            labels = channels.alone(x, axis) if channels.block_at(x, axis) is not None else None
            if labels is not None and size != all_of_it:
                labels = in_blocks(channels, labels, node.attributes.get_int("block_size", all_of_it))
            if size > 1:
                channels.meet(scale, axis, labels, reason)


def in_blocks(channels: Channels, labels: LabelArray, size: int) -> LabelArray:
    """Let positions that share a block go together; return the labels ``[blocks, k]`` of the blocks."""
    first = labels[::size]
    channels.labels.equate(
        labels,
        np.repeat(first, size, axis=0)[: len(labels)],
        "some positions of a block without channels share its scale",
    )
    return first


def _label_constant(node: ir.Node, channels: Channels, x: Use) -> None:
    """Give a quantized constant labels of its own along the axes that may be channels to its users."""
    rank = channels.rank(x)
    fixed = [_axes_without_channels(user, index, rank) for user, index in node.outputs[0].uses()]
    skipped = set.intersection(*fixed) if fixed else set()
    for axis, size in enumerate(channels.shape(x)):
        if size > 1 and axis not in skipped and channels.block_at(x, axis) is None:
            channels.put(x, (axis,), channels.labels.fresh(size))


def _axes_without_channels(user: ir.Node, index: int, rank: int) -> set[int]:
    """Return the axes of an operand that a node never loses positions of: taps, and rows that it looks up."""
    if user.op_type in ("Conv", "ConvTranspose") and index == 1:
        return set(range(2, rank))
    if user.op_type == "Gather" and index == 0:
        return {user.attributes.get_int("axis", 0) % rank}
    return set()


@op_rule("DynamicQuantizeLinear")
class DynamicQuantizeLinear(OpRule):
    """y = x in 255 steps from min(0, min(x)) to max(0, max(x)); the step and the zero point are outputs"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Positions pass; the range is that of what is left, as it is with zeros in place of what goes."""
        channels.copy(channels.ref(node, 0), node.outputs[0])
        channels.ranges_over(node, 0)


class _Convolution(OpRule):
    """A convolution of quantized numbers, whose kernel has scales and zero points per output channel."""

    kernel: int
    zero_point: int
    vectors: tuple[int, ...]

    def link(self, node: ir.Node, channels: Channels) -> None:
        """As Conv."""
        link_convolution(node, channels, kernel=self.kernel, vectors=self.vectors, zero_point=self.zero_point)

    def fix(self, node: ir.Node, kept: Kept) -> None:
        """As many groups as are left."""
        fix_groups(node, kept, kernel=self.kernel)

    def macs(self, node: ir.Node, shape_of: ShapeOf) -> int:
        """Outputs times the products summed for each."""
        kernel = node.inputs[self.kernel]
        return 0 if kernel is None else math.prod(shape_of(node.outputs[0])) * math.prod(shape_of(kernel)[1:])

    def weight_inputs(self, node: ir.Node, rank_of: Callable[[ir.Value], int]) -> tuple[WeightInput, ...]:
        """The kernel: rows are outputs, the sum runs over input channels at each tap."""
        return (WeightInput(self.kernel, summed_axis=1, output_axis=0, zero_point=self.zero_point),)


@op_rule("QLinearConv")
class QLinearConv(_Convolution):
    """y = quantized(sum_i (x - x_zero) * (w - w_zero[o]) * x_scale * w_scale[o] + b[o])"""

    kernel, zero_point, vectors = 3, 5, (4, 5, 8)


@op_rule("ConvInteger")
class ConvInteger(_Convolution):
    """y[n, o, ...] = sum_i (x[n, i, ...] - x_zero) * (w[o, i, ...] - w_zero[o]), int32"""

    kernel, zero_point, vectors = 1, 3, (3,)


class Product(OpRule):
    """A product of matrices of quantized numbers; scales and zero points go along rows and columns.

    Attributes:
        operands: the two inputs that are multiplied.
        zero_points: the inputs with their zero points.
        row_vectors: inputs with a number for each row of the left operand, or one for all.
        column_vectors: inputs with a number for each column of the right operand, or one for all.
    """

    operands: tuple[int, int] = (0, 1)
    zero_points: tuple[int | None, int | None] = (None, None)
    row_vectors: tuple[int, ...] = ()
    column_vectors: tuple[int, ...] = ()

    def link(self, node: ir.Node, channels: Channels) -> None:
        """As MatMul."""
        link_product(node, channels, self.operands, self.zero_points)
        a, b = (channels.ref(node, index) for index in self.operands)
        for indices, ref, axis in ((self.row_vectors, a, -2), (self.column_vectors, b, -1)):
            for index in indices:
                if channels.has(node, index) and channels.rank(ref) > 1:
                    link_scales(node, channels, index, ref, axis)

    def macs(self, node: ir.Node, shape_of: ShapeOf) -> int:
        """Outputs times the length of the sum."""
        a = node.inputs[self.operands[0]]
        return 0 if a is None else math.prod(shape_of(node.outputs[0])) * shape_of(a)[-1]

    def weight_inputs(self, node: ir.Node, rank_of: Callable[[ir.Value], int]) -> tuple[WeightInput, ...]:
        """The right operand, if it is a matrix: the sum runs over its rows."""
        index = self.operands[1]
        right = node.inputs[index] if index < len(node.inputs) else None
        rank = 0 if right is None else rank_of(right)
        if rank < 2:
            return ()
        return (WeightInput(index, rank - 2, rank - 1, zero_point=self.zero_points[1]),)


def link_scales(node: ir.Node, channels: Channels, index: int, ref: Ref, axis: int) -> None:
    """Let scales or zero points follow an axis of an operand; several along other axes keep it whole."""
    scales = channels.ref(node, index)
    shape = channels.shape(scales)
    if math.prod(shape) == 1:
        return
    reason = f"{node.name} has scales along an axis without channels"
    own = -1 if len(shape) == 1 else axis
    if any(size > 1 for place, size in enumerate(shape) if place != own % len(shape)):
        channels.freeze_all(ref, f"{node.name} has scales along several axes")
    if shape[own] > 1:
        channels.meet(scales, own, channels.alone(ref, axis), reason)


@op_rule("QLinearMatMul")
class QLinearMatMul(Product):
    """y = quantized(sum_k (a - a_zero) * (b - b_zero) * a_scale * b_scale)"""

    operands, zero_points = (0, 3), (2, 5)
    row_vectors, column_vectors = (1, 2), (4, 5)

    def link(self, node: ir.Node, channels: Channels) -> None:
        """As MatMul; results with scales of their own for each row keep their rows."""
        super().link(node, channels)
        for index in (6, 7):
            if channels.has(node, index) and math.prod(channels.shape(channels.ref(node, index))) > 1:
                channels.freeze_all(node.outputs[0], f"{node.name} scales the rows of its result apart")


@op_rule("MatMulInteger")
class MatMulInteger(Product):
    """y[..., m, n] = sum_k (a[..., m, k] - a_zero) * (b[..., k, n] - b_zero), int32"""

    zero_points = (2, 3)
    row_vectors, column_vectors = (2,), (3,)
