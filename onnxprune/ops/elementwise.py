"""Operators that compute each position from the positions at the same place: activations, sums, products."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxprune.ops.base import OpRule, ShapeOf, op_rule
from onnxprune.ops.channels import Block, Channels, Ref, Use
from onnxprune.ops.labels import LabelArray

_MEETS_UNTRACKED = "an operand of {op} has no channels along this axis ({node})"


@op_rule(
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitCast", "BitwiseNot", "Cast", "CastLike",
    "Ceil", "Celu", "Clip", "Cos", "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid",
    "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal",
    "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt",
    "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
class Unary(OpRule):
    """y[p] = f(x[p]); further inputs are scalars."""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Every output has the labels of the first input."""
        channels.label_constant(channels.ref(node, 0))
        for output in node.outputs:
            if output.name:
                channels.copy(channels.ref(node, 0), output)


@op_rule(
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow",
    "Sub", "Sum", "SwiGLU", "Where", "Xor",
)  # fmt: skip
class Broadcasting(OpRule):
    """y[p] = f(a[p], b[p], ...) with operands repeated along axes where they have size 1."""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Positions at the same place are the same channel."""
        reason = _MEETS_UNTRACKED.format(op=node.op_type, node=node.name)
        refs = [channels.ref(node, index) for index in range(len(node.inputs)) if channels.has(node, index)]
        link_broadcast(channels, refs, node.outputs[0], reason)

    def macs(self, node: ir.Node, shape_of: ShapeOf) -> int:
        """Elementwise work is not counted as multiply-accumulates, as is usual in the field."""
        return 0


def link_broadcast(channels: Channels, refs: list[Ref], output: ir.Value, reason: str) -> None:
    """Unify the aligned axes of operands that are broadcast against each other into ``output``."""
    operands = [_Operand(channels, ref, channels.shape(output)) for ref in refs]
    while (split := _misaligned(operands)) is not None:
        operand, axis = split
        channels.alone(operand.ref, axis - operand.shift)
    tracked = {block for operand in operands for block in operand.blocks()}
    labelled_axes = {axis for axes in tracked for axis in axes}
    for axis in range(len(channels.shape(output))):
        # Constants that meet only each other get labels; beside a computed untracked axis they stay whole.
        active = [operand for operand in operands if axis in operand.active]
        if active and axis not in labelled_axes and all(isinstance(operand.ref, Use) for operand in active):
            channels.alone(active[0].ref, axis - active[0].shift)
            tracked.add((axis,))
    for axes in sorted(tracked):
        channels.put(output, axes, _unify(channels, operands, axes, reason))


class _Operand:
    """An operand seen along the output's axes."""

    def __init__(self, channels: Channels, ref: Ref, target: tuple[int, ...]) -> None:
        self.channels, self.ref = channels, ref
        shape = channels.shape(ref)
        self.shift = len(target) - len(shape)
        #: output axes along which this operand really varies
        self.active = {axis + self.shift for axis, size in enumerate(shape) if size > 1}

    def blocks(self) -> dict[tuple[int, ...], Block]:
        return {
            tuple(axis + self.shift for axis in block.axes): block
            for block in self.channels.blocks.get(self.ref, ())
        }


def _misaligned(operands: list[_Operand]) -> tuple[_Operand, int] | None:
    """Return an operand and an axis of a joint block that another operand cuts across, None if all agree."""
    for operand in operands:
        for axes in operand.blocks():
            if len(axes) == 1:
                continue
            for other in operands:
                shared = other.active.intersection(axes)
                if not shared or other is operand:
                    continue
                theirs = other.blocks()
                if len(shared) < len(axes):
                    return operand, min(shared)
                if axes not in theirs and any(shared.intersection(block) for block in theirs):
                    return operand, axes[0]
    return None


def _unify(
    channels: Channels, operands: list[_Operand], axes: tuple[int, ...], reason: str
) -> LabelArray | None:
    """Equate the labels of all operands over the same axes; return those of the result."""
    result: LabelArray | None = None
    unlabelled = []
    for operand in operands:
        if not operand.active.intersection(axes):
            continue
        block = operand.blocks().get(axes)
        if block is None:
            unlabelled.append(operand)
        elif result is None:
            result = block.labels
        else:
            channels.labels.equate(result, block.labels, reason)
    if result is None or math.prod(result.shape[:-1]) == 0:
        return None
    for operand in unlabelled:
        if isinstance(operand.ref, Use):
            channels.put(operand.ref, [axis - operand.shift for axis in axes], result)
        else:
            channels.freeze(result, reason)
    return result
