"""Pooling and reductions."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.ops.base import OpRule, op_rule
from onnxprune.ops.channels import Channels
from onnxprune.ops.kept import Kept


@op_rule("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
class Pool(OpRule):
    """y[n, c, ...] = mean or max of x[n, c, ...] over windows in space"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Space is summed away or strided over; channels pass."""
        x = channels.ref(node, 0)
        for axis in range(2, channels.rank(x)):
            channels.freeze_axis(x, axis, f"{node.name} pools along this axis")
        for output in node.outputs:
            if output.name:
                channels.copy(x, output, {0: 0, 1: 1})


@op_rule("Resize", "Upsample")
class Resize(OpRule):
    """y = x at other sizes in space"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Axes whose size stays pass; the others are interpolated."""
        x, y = channels.ref(node, 0), node.outputs[0]
        same = {}
        for axis, (before, after) in enumerate(zip(channels.shape(x), channels.shape(y), strict=True)):
            if before == after and axis < 2:
                same[axis] = axis
            else:
                channels.freeze_axis(x, axis, f"{node.name} interpolates along this axis")
        channels.copy(x, y, same)

    def fix(self, node: ir.Node, kept: Kept) -> None:
        """Target sizes of axes that were cut become the kept counts."""
        masks = kept.masks(node.outputs[0])
        sizes = kept.old_ints(node, 3) if len(node.inputs) > 3 else None
        if not masks or not sizes:
            return
        named = list(node.attributes.get_ints("axes", ())) or list(range(len(sizes)))
        rank = len(kept.shape(node.outputs[0]))
        new = [
            kept.count(node.outputs[0], axis) if axis % rank in masks else size
            for axis, size in zip(named, sizes, strict=True)
        ]
        kept.set_ints(node, 3, new)


@op_rule(
    "ArgMax", "ArgMin", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
class Reduce(OpRule):
    """y = sum, mean, max ... of x over some axes"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """A sum over channels equals the sum without those that are zero; statistics change."""
        x, y = channels.ref(node, 0), node.outputs[0]
        rank = channels.rank(x)
        axes = reduced_axes(node, channels, rank)
        if axes is None:
            channels.freeze_all(x, f"{node.name} reduces along axes that are computed")
            return
        for axis in axes:
            labels = None if channels.block_at(x, axis) is None else channels.alone(x, axis)
            if labels is None:
                continue
            if node.op_type in _SUMS:
                channels.sums_over(node, 0, axis)
            elif node.op_type in ("ArgMax", "ArgMin"):
                channels.freeze(labels, f"{node.name} ({node.op_type}) counts positions along this axis")
            else:
                what = node.op_type.removeprefix("Reduce").lower()
                channels.averages_over(node, labels, f"{node.name} takes the {what} over these channels")
        keep = node.attributes.get_int("keepdims", 1) == 1
        left = [axis for axis in range(rank) if axis not in axes]
        channels.copy(x, y, {axis: axis if keep else position for position, axis in enumerate(left)})


#: Sums of numbers, sizes or squares: a position that is zero adds nothing.
_SUMS = frozenset({"ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare"})


def reduced_axes(node: ir.Node, channels: Channels, rank: int) -> set[int] | None:
    """Return the axes that a reduction takes together, None if they are computed."""
    if node.op_type in ("ArgMax", "ArgMin"):
        return {node.attributes.get_int("axis", 0) % rank}
    if channels.has(node, 1):
        content = channels.constant(node, 1)
        if content is None:
            return None
        axes = [int(axis) for axis in content.ravel()]
    else:
        axes = list(node.attributes.get_ints("axes", ()))
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        return set()
    return {axis % rank for axis in axes} or set(range(rank))
