"""Matrix products: MatMul, Gemm."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from onnxprune.ops.base import OpRule, ShapeOf, WeightInput, op_rule
from onnxprune.ops.channels import Channels, Ref, Use


@op_rule("MatMul")
class MatMul(OpRule):
    """y[..., m, n] = sum_k a[..., m, k] * b[..., k, n]"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Both operands lose the same k; rows, columns and matrices of a stack go on."""
        a, b = channels.ref(node, 0), channels.ref(node, 1)
        y = node.outputs[0]
        rank_a, rank_b = channels.rank(a), channels.rank(b)
        for ref in (a, b):
            channels.separate_all(ref)
        self._contract(node, channels, a, b)
        rank_y = channels.rank(y)
        if rank_a > 1:
            channels.put(y, (rank_y - 1 - (rank_b > 1),), channels.alone(a, -2))
        if rank_b > 1:
            channels.put(y, (rank_y - 1,), channels.alone(b, -1))
        if rank_a > 2 or rank_b > 2:
            _link_stacks(node, channels, a, b)
        if not channels.is_constant(a) and not channels.is_constant(b) and min(rank_a, rank_b) > 2:
            _tag_attention(channels, a, b)

    def _contract(self, node: ir.Node, channels: Channels, a: Ref, b: Ref) -> None:
        axis_b = -2 if channels.rank(b) > 1 else -1
        reason = f"{node.name} sums over an axis without channels"
        if isinstance(a, Use) and not isinstance(b, Use):
            channels.meet(a, -1, channels.alone(b, axis_b), reason)
        else:
            channels.meet(b, axis_b, channels.alone(a, -1), reason)
        if isinstance(b, Use) or not isinstance(a, Use):
            channels.sums_over(node, 1, axis_b)
        else:
            channels.sums_over(node, 0, -1)

    def macs(self, node: ir.Node, shape_of: ShapeOf) -> int:
        """Outputs times the length of the sum."""
        a = node.inputs[0]
        return 0 if a is None else math.prod(shape_of(node.outputs[0])) * shape_of(a)[-1]

    def weight_inputs(self, node: ir.Node, rank_of: Callable[[ir.Value], int]) -> tuple[WeightInput, ...]:
        """Either operand, if it is a matrix: the sum runs over rows of b and columns of a."""
        found = []
        a, b = node.inputs
        if b is not None and rank_of(b) >= 2:
            found.append(WeightInput(1, summed_axis=rank_of(b) - 2, output_axis=rank_of(b) - 1))
        if a is not None and rank_of(a) >= 2:
            found.append(WeightInput(0, summed_axis=rank_of(a) - 1, output_axis=rank_of(a) - 2))
        return tuple(found)


def _link_stacks(node: ir.Node, channels: Channels, a: Ref, b: Ref) -> None:
    """Unify the axes before the matrices, which are broadcast like any operands."""
    y = node.outputs[0]
    stack = channels.rank(y) - 2
    reason = f"an operand of {node.name} has no channels along a stack axis"
    for axis in range(stack):
        found = []
        for ref in (a, b):
            own = axis - channels.rank(y) + channels.rank(ref)
            if own >= 0 and channels.shape(ref)[own] > 1:
                found.append((ref, own))
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


def _tag_attention(channels: Channels, a: Ref, b: Ref) -> None:
    """A product of two computed stacks is attention: stacks are heads, the rest are places in a head."""
    for ref in (a, b):
        rank = channels.rank(ref)
        for block in channels.blocks.get(ref, ()):
            channels.tag("heads" if max(block.axes) < rank - 2 else "head_dim", block.labels)


@op_rule("Gemm")
class Gemm(OpRule):
    """y[m, n] = alpha * sum_k a'[m, k] * b'[k, n] + beta * c, each of a' and b' transposed or not"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """As MatMul of two matrices, and a bias that is broadcast."""
        a, b, y = channels.ref(node, 0), channels.ref(node, 1), node.outputs[0]
        transposed_a = node.attributes.get_int("transA", 0) == 1
        transposed_b = node.attributes.get_int("transB", 0) == 1
        sum_a, sum_b = (0 if transposed_a else 1), (1 if transposed_b else 0)
        for ref in (a, b):
            channels.separate_all(ref)
        reason = f"{node.name} sums over an axis without channels"
        if isinstance(a, Use) and not isinstance(b, Use):
            channels.meet(a, sum_a, channels.alone(b, sum_b), reason)
            channels.sums_over(node, 0, sum_a)
        else:
            channels.meet(b, sum_b, channels.alone(a, sum_a), reason)
            channels.sums_over(node, 1, sum_b)
        channels.put(y, (0,), channels.alone(a, 1 - sum_a))
        channels.put(y, (1,), channels.alone(b, 1 - sum_b))
        if channels.has(node, 2):
            _link_bias(node, channels)

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


def _link_bias(node: ir.Node, channels: Channels) -> None:
    c, y = channels.ref(node, 2), node.outputs[0]
    reason = f"the bias of {node.name} has no channels to remove"
    for axis in range(2):
        own = axis - 2 + channels.rank(c)
        if own >= 0 and channels.shape(c)[own] > 1:
            labels = channels.alone(y, axis)
            if labels is not None or not isinstance(c, Use):
                channels.meet(c, own, labels, reason)
