"""Matrix products: MatMul, Gemm."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.ops.base import OpRule, ShapeOf, WeightInput, op_rule
from onnxprune.ops.channels import Channels, Ref, Use


@op_rule("MatMul")
class MatMul(OpRule):
    """y[..., m, n] = sum_k a[..., m, k] * b[..., k, n]"""

    def stored_axes(self, node: ir.Node, operand: int, rank: int) -> list[int]:
        """Return which axis of an operand stands for each axis of the formula."""
        return list(range(rank))

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Both operands lose the same k; rows, columns and matrices of a stack go on."""
        axes = [
            self.stored_axes(node, operand, channels.rank(channels.ref(node, operand))) for operand in (0, 1)
        ]
        link_product(node, channels, stored_axes=(axes[0], axes[1]))

    def macs(self, node: ir.Node, shape_of: ShapeOf) -> int:
        """Outputs times the length of the sum."""
        a = node.inputs[0]
        if a is None:
            return 0
        shape = shape_of(a)
        return math.prod(shape_of(node.outputs[0])) * shape[self.stored_axes(node, 0, len(shape))[-1]]

    def weight_inputs(self, node: ir.Node, rank_of: Callable[[ir.Value], int]) -> tuple[WeightInput, ...]:
        """Either operand, if it is a matrix: the sum runs over rows of b and columns of a."""
        found = []
        a, b = node.inputs
        if b is not None and (rank := rank_of(b)) >= 2:
            *_, rows, columns = self.stored_axes(node, 1, rank)
            found.append(WeightInput(1, summed_axis=rows, output_axis=columns))
        if a is not None and (rank := rank_of(a)) >= 2:
            *_, rows, columns = self.stored_axes(node, 0, rank)
            found.append(WeightInput(0, summed_axis=columns, output_axis=rows))
        return tuple(found)


@op_rule("FusedMatMul", "TransposeMatMul", domain="com.microsoft")
class FusedMatMul(MatMul):
    """As MatMul, of operands whose axes may be stored in another order, times ``alpha``"""

    def stored_axes(self, node: ir.Node, operand: int, rank: int) -> list[int]:
        """``transBatch``: the rows stand before the stack. ``trans``: rows and columns change places."""
        name = "AB"[operand]
        axes = list(range(rank))
        if rank > 2 and node.attributes.get_int(f"transBatch{name}", 0) != 0:
            axes = [*axes[1:-1], axes[0], axes[-1]]
        if rank > 1 and node.attributes.get_int(f"trans{name}", 0) != 0:
            axes[-2:] = axes[:-3:-1]
        return axes


@dataclass(frozen=True, slots=True)
class _Matrices:
    """An operand, and its axes in the order of the formula."""

    ref: Ref
    axes: list[int]

    @property
    def is_constant(self) -> bool:
        return isinstance(self.ref, Use)


def link_product(
    node: ir.Node,
    channels: Channels,
    operands: tuple[int, int] = (0, 1),
    zero_points: tuple[int | None, int | None] = (None, None),
    stored_axes: tuple[list[int], list[int]] | None = None,
) -> None:
    """Link a product of two matrices, vectors, or stacks of matrices.

    Args:
        node: the product.
        channels: all labels.
        operands: the inputs a ``[..., m, k]`` and b ``[..., k, n]``.
        zero_points: the inputs that hold what stands for zero in them; vectors go along m and n.
        stored_axes: the axes of both operands in this order, where they are stored in another.
    """
    refs = [channels.ref(node, index) for index in operands]
    for ref in refs:
        channels.separate_all(ref)
    orders = stored_axes or tuple(list(range(channels.rank(ref))) for ref in refs)
    a, b = (_Matrices(ref, axes) for ref, axes in zip(refs, orders, strict=True))
    axis_a, axis_b = a.axes[-1], b.axes[-2] if len(b.axes) > 1 else b.axes[-1]
    row, column = a.axes[-2:][0], b.axes[-1]
    reason = f"{node.name} sums over an axis without channels"
    if a.is_constant and not b.is_constant:
        channels.meet(a.ref, axis_a, channels.alone(b.ref, axis_b), reason)
        channels.sums_over(node, operands[0], axis_a, zero_point=zero_points[0], zero_axis=row)
    else:
        channels.meet(b.ref, axis_b, channels.alone(a.ref, axis_a), reason)
        channels.sums_over(node, operands[1], axis_b, zero_point=zero_points[1], zero_axis=column)
    y = node.outputs[0]
    rank_y = channels.rank(y)
    if len(a.axes) > 1:
        channels.put(y, (rank_y - 1 - (len(b.axes) > 1),), channels.alone(a.ref, row))
    if len(b.axes) > 1:
        channels.put(y, (rank_y - 1,), channels.alone(b.ref, column))
    if len(a.axes) > 2 or len(b.axes) > 2:
        _link_stacks(node, channels, a, b)
    constant = channels.is_constant(a.ref) or channels.is_constant(b.ref)
    if not constant and min(len(a.axes), len(b.axes)) > 2:
        _tag_attention(channels, a, b)


def _link_stacks(node: ir.Node, channels: Channels, a: _Matrices, b: _Matrices) -> None:
    """Unify the axes before the matrices, which are broadcast like any operands."""
    y = node.outputs[0]
    stack = len(channels.shape(y)) - 2
    reason = f"an operand of {node.name} has no channels along a stack axis"
    for axis in range(stack):
        found = []
        for matrices in (a, b):
            place = axis - channels.rank(y) + len(matrices.axes)
            if place >= 0 and channels.shape(matrices.ref)[matrices.axes[place]] > 1:
                found.append((matrices.ref, matrices.axes[place]))
        labels = [channels.alone(ref, own) for ref, own in found if channels.block_at(ref, own) is not None]
        constant = [(ref, own) for ref, own in found if isinstance(ref, Use)]
        if not found or (not labels and len(constant) < len(found)):
            continue
        if constant and not labels:
            labels = [channels.alone(*constant[0])]
        if constant and len(constant) < 2:  # one matrix of weights for each position of the stack
            channels.tag("experts", labels[0])
        for ref, own in found:
            channels.meet(ref, own, labels[0], reason)
        channels.put(y, (axis,), labels[0])


def _tag_attention(channels: Channels, a: _Matrices, b: _Matrices) -> None:
    """A product of two computed stacks is attention: stacks are heads, the rest are places in a head.

    Without heads there is nothing to choose between, and places are channels like any others.
    """
    blocks = [
        (block, not set(block.axes).intersection(matrices.axes[-2:]))
        for matrices in (a, b)
        for block in channels.blocks.get(matrices.ref, ())
    ]
    if any(in_stack for _, in_stack in blocks):
        for block, in_stack in blocks:
            channels.tag("heads" if in_stack else "head_dim", block.labels)


@op_rule("Gemm")
@op_rule("FusedGemm", domain="com.microsoft")
class Gemm(OpRule):
    """y[m, n] = alpha * sum_k a'[m, k] * b'[k, n] + beta * c, each of a' and b' transposed or not

    A FusedGemm applies an activation to each result.
    """

    def link(self, node: ir.Node, channels: Channels) -> None:
        """As MatMul of two matrices, and a bias that is broadcast."""
        link_general_product(node, channels)

    def macs(self, node: ir.Node, shape_of: ShapeOf) -> int:
        """Outputs times the length of the sum."""
        a = node.inputs[0]
        axis = 0 if node.attributes.get_int("transA", 0) else 1
        return 0 if a is None else math.prod(shape_of(node.outputs[0])) * shape_of(a)[axis]

    def weight_inputs(self, node: ir.Node, rank_of: Callable[[ir.Value], int]) -> tuple[WeightInput, ...]:
        """Both operands; transposition swaps the axes."""
        transposed_a = node.attributes.get_int("transA", 0)
        transposed_b = node.attributes.get_int("transB", 0)
        return (
            WeightInput(1, summed_axis=1 if transposed_b else 0, output_axis=0 if transposed_b else 1),
            WeightInput(0, summed_axis=0 if transposed_a else 1, output_axis=1 if transposed_a else 0),
        )


def link_general_product(
    node: ir.Node,
    channels: Channels,
    operands: tuple[int, int] = (0, 1),
    bias: int = 2,
    zero_points: tuple[int | None, int | None] = (None, None),
) -> None:
    """Link ``a' b' + c``, each of the matrices transposed or not; arguments as those of `link_product`."""
    (a, b), y = (channels.ref(node, index) for index in operands), node.outputs[0]
    transposed_a = node.attributes.get_int("transA", 0) != 0
    transposed_b = node.attributes.get_int("transB", 0) != 0
    sum_a, sum_b = (0 if transposed_a else 1), (1 if transposed_b else 0)
    for ref in (a, b):
        channels.separate_all(ref)
    reason = f"{node.name} sums over an axis without channels"
    if isinstance(a, Use) and not isinstance(b, Use):
        channels.meet(a, sum_a, channels.alone(b, sum_b), reason)
        channels.sums_over(node, operands[0], sum_a, zero_point=zero_points[0], zero_axis=1 - sum_a)
    else:
        channels.meet(b, sum_b, channels.alone(a, sum_a), reason)
        channels.sums_over(node, operands[1], sum_b, zero_point=zero_points[1], zero_axis=1 - sum_b)
    channels.put(y, (0,), channels.alone(a, 1 - sum_a))
    channels.put(y, (1,), channels.alone(b, 1 - sum_b))
    if channels.has(node, bias):
        _link_bias(node, channels, bias)


def _link_bias(node: ir.Node, channels: Channels, index: int) -> None:
    c, y = channels.ref(node, index), node.outputs[0]
    reason = f"the bias of {node.name} has no channels to remove"
    for axis in range(2):
        own = axis - 2 + channels.rank(c)
        if own >= 0 and channels.shape(c)[own] > 1:
            labels = channels.alone(y, axis)
            if labels is not None or not isinstance(c, Use):
                channels.meet(c, own, labels, reason)
