"""Sequences of tensors: all elements have the same channels, and a sequence carries the labels of one."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.ops.base import OpRule, op_rule
from onnxprune.ops.channels import Channels, Use
from onnxprune.ops.elementwise import link_broadcast


@op_rule("SequenceConstruct", "SequenceInsert")
class SequenceInsert(OpRule):
    """y = the elements of a sequence and one more, or the elements that are given"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """All elements are the same channels. An empty sequence has no elements that could differ."""
        output = node.outputs[0]
        given = range(2) if node.op_type == "SequenceInsert" else range(len(node.inputs))
        refs = [channels.ref(node, index) for index in given]
        shapes = [channels.shape(ref) for ref in refs]
        if node.op_type == "SequenceInsert" and not shapes[0]:
            refs, shapes = refs[1:], shapes[1:]
        for axis, sizes in enumerate(zip(*shapes, strict=True)):
            if len(set(sizes)) > 1:
                for ref in refs:
                    channels.freeze_axis(ref, axis, f"elements of {output.name} have different sizes")
                    channels.blocks[ref] = [b for b in channels.blocks.get(ref, ()) if axis not in b.axes]
        reason = f"an element of {output.name} has no channels along this axis"
        link_broadcast(channels, refs, output, reason)


@op_rule("SequenceAt", "SequenceErase")
class SequenceAt(OpRule):
    """y = one element of a sequence, or all but one"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Elements and sequences carry the same labels."""
        channels.copy(channels.ref(node, 0), node.outputs[0])


@op_rule("ConcatFromSequence")
class ConcatFromSequence(OpRule):
    """y = all elements, joined along an axis or stacked along a new one"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """As Concat; how many elements there are, and so what is joined, is not known."""
        sequence, output = channels.ref(node, 0), node.outputs[0]
        rank = channels.rank(output)
        axis = node.attributes.get_int("axis", 0) % rank
        if node.attributes.get_int("new_axis", 0):
            channels.copy(sequence, output, {a: a if a < axis else a + 1 for a in range(rank - 1)})
            return
        channels.freeze_axis(sequence, axis, f"{node.name} joins elements along this axis")
        channels.copy(sequence, output, {a: a for a in range(rank) if a != axis})


@op_rule("SplitToSequence")
class SplitToSequence(OpRule):
    """y = parts of x along an axis"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """The axis is kept whole; the others pass to every part."""
        x, output = channels.ref(node, 0), node.outputs[0]
        rank = channels.rank(x)
        axis = node.attributes.get_int("axis", 0) % rank
        if isinstance(x, Use):
            for other in range(rank):
                channels.alone(x, other)
        channels.freeze_axis(x, axis, f"{node.name} splits this axis into elements")
        gone = channels.rank(output) < rank
        channels.copy(x, output, {a: a - (gone and a > axis) for a in range(rank) if a != axis})


@op_rule("SequenceEmpty", "SequenceLength")
class SequenceLength(OpRule):
    """y = no elements, or their number"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """No channels are made, and none is lost by being counted."""
