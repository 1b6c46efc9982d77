"""Operators on sizes: their results are numbers about a shape, not channels."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.ops.base import OpRule, op_rule
from onnxprune.ops.channels import Channels
from onnxprune.ops.kept import Kept
from onnxprune.ops.reshape import written_target


@op_rule("Constant", "EyeLike", "Range", "Shape", "Size")
class Sizes(OpRule):
    """y = numbers made from sizes; those that are constant were folded before"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """No output has channels. An axis whose size could not be told keeps it: who reads it is unknown.

        Constant sizes were folded before; multiples of a symbol (heads in the batch) shrink as they should.
        """
        if node.op_type not in ("Shape", "Size"):
            return
        x = channels.ref(node, 0)
        for axis, dim in enumerate(channels.shapes.dims[node.inputs[0]]):  # type: ignore[index]
            if not dim.is_constant and dim.factor == 1:
                channels.freeze_axis(x, axis, f"{node.name} reads a size that is not known beforehand")


@op_rule("ConstantOfShape")
class ConstantOfShape(OpRule):
    """y = one number, everywhere: all positions are equal, so any of them may go"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Axes with a written size have new channels."""
        y = node.outputs[0]
        if written_target(node, 0) is not None:
            for axis, dim in enumerate(channels.shapes.dims[y]):
                if dim.is_constant and dim.size > 1:
                    channels.put(y, (axis,), channels.labels.fresh(dim.size))

    def fix(self, node: ir.Node, kept: Kept) -> None:
        """Written sizes become the kept counts."""
        masks = kept.masks(node.outputs[0])
        target = written_target(node, 0)
        sizes = None if target is None else kept.old_ints(*target)
        if not masks or target is None or sizes is None:
            return
        for axis in masks:
            sizes[axis] = kept.count(node.outputs[0], axis)
        kept.set_ints(*target, sizes)


@op_rule(
    "BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix", "RandomNormal", "RandomUniform",
)  # fmt: skip
class Made(OpRule):
    """y = numbers made from a formula or at random, in a shape that is written down"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """The output has no channels; what it meets stays."""
