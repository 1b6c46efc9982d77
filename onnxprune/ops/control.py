"""Control flow: If, Loop, Scan. Bodies are linked in place; what crosses a border keeps its channels."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxprune.model.body_shapes import branches, loop_count, scan_axes
from onnxprune.model.shapes import Shapes
from onnxprune.ops.base import OpRule, op_rule
from onnxprune.ops.channels import Channels, Use
from onnxprune.ops.elementwise import link_broadcast
from onnxprune.ops.linking import link_graph


@op_rule("If")
class If(OpRule):
    """outputs = those of one of two bodies"""

    needs_shapes = False

    def link(self, node: ir.Node, channels: Channels) -> None:
        """What both branches return at one place is the same channel, whichever of them runs."""
        run = branches(node)
        for branch in run:
            link_graph(branch, channels)
        for position, output in enumerate(node.outputs):
            reason = f"one branch of {node.name} returns no channels along this axis"
            _same(channels, [branch.outputs[position] for branch in run], output, reason)


@op_rule("Loop")
class Loop(OpRule):
    """state = initial; repeat: state, parts = body(state); outputs = last state, and all parts stacked"""

    needs_shapes = False

    def link(self, node: ir.Node, channels: Channels) -> None:
        """A state has the same channels before, in and after each iteration; a stack those of its parts."""
        body = node.attributes["body"].as_graph()
        states = len(node.inputs) - 2
        for index, inner in enumerate(body.inputs[2:], start=2):
            _enter(node, index, inner, channels)
        link_graph(body, channels)
        _come_round(node, body.inputs[2:], body.outputs[1 : 1 + states], channels)
        for returned, output in zip(body.outputs[1 + states :], node.outputs[states:], strict=True):
            _stack(channels, returned, output, 0, node)


@op_rule("Scan")
class Scan(OpRule):
    """As Loop, with an iteration for each slice of the scanned inputs"""

    needs_shapes = False

    def link(self, node: ir.Node, channels: Channels) -> None:
        """As Loop; the axis that is scanned is kept whole."""
        body = node.attributes["body"].as_graph()
        if channels.shapes.opset < 9:
            _freeze_scan_8(node, body, channels)
            return
        states = len(node.inputs) - node.attributes.get_int("num_scan_inputs", 0)
        for index, inner in enumerate(body.inputs[:states]):
            _enter(node, index, inner, channels)
        _enter_slices(node, states, body, channels)
        link_graph(body, channels)
        _come_round(node, body.inputs[:states], body.outputs[:states], channels)
        stacks = list(zip(body.outputs[states:], node.outputs[states:], strict=True))
        ranks = [len(channels.shapes.dims.get(output, ())) for _, output in stacks]
        axes = scan_axes(node, "scan_output_axes", ranks) if stacks else []
        for (returned, output), axis in zip(stacks, axes, strict=True):
            _stack(channels, returned, output, axis, node)


def body_runs(node: ir.Node, shapes: Shapes) -> int:
    """Return how often the body of a Loop or Scan runs; 1 where that depends on what a Loop computes."""
    if node.op_type == "Loop":
        count = loop_count(node, shapes)
        return 1 if count is None else count.size
    scanned = node.attributes.get_int("num_scan_inputs", 0)
    last = node.inputs[-1] if scanned else None
    shape = None if last is None else shapes.shape(last)
    if shape is None:
        return 1
    axes = scan_axes(node, "scan_input_axes", [len(shape)] * scanned)
    return shape[axes[-1]]


# --- borders ------------------------------------------------------------------------------------------------


def _known(channels: Channels, *values: ir.Value) -> bool:
    return all(value in channels.shapes.dims for value in values)


def _enter(node: ir.Node, index: int, inner: ir.Value, channels: Channels) -> None:
    """Give the input of a body the labels of the initial state."""
    if not channels.has(node, index):
        return
    outer = channels.ref(node, index)
    if not _known(channels, inner, outer.value if isinstance(outer, Use) else outer):
        channels.freeze_all(outer, f"the shape of {inner.name} in {node.name} is not known")
        return
    before, inside = channels.shape(outer), channels.shape(inner)
    same = [axis for axis, sizes in enumerate(zip(before, inside, strict=False)) if len(set(sizes)) == 1]
    changing = [axis for axis in range(len(before)) if axis not in same]
    channels.label_constant(outer, same)
    for axis in changing:
        channels.freeze_axis(outer, axis, f"its size changes while {node.name} runs")
    channels.copy(outer, inner, {axis: axis for axis in same})
    if len(before) < len(inside):  # a sequence without elements yet: whatever comes in may have any channels
        for axis, dim in enumerate(channels.shapes.dims[inner]):
            if dim.is_constant and dim.size > 1:
                channels.put(inner, (axis,), channels.labels.fresh(dim.size))


def _enter_slices(node: ir.Node, states: int, body: ir.Graph, channels: Channels) -> None:
    """Give the inputs of a Scan's body the labels of what they are slices of."""
    shapes = channels.shapes
    scanned = [value for value in node.inputs[states:] if value is not None]
    axes = scan_axes(node, "scan_input_axes", [len(shapes.dims.get(value, ())) for value in scanned])
    for index, (inner, axis) in enumerate(zip(body.inputs[states:], axes, strict=True), start=states):
        outer = channels.ref(node, index)
        if not _known(channels, inner):
            channels.freeze_all(outer, f"the shape of {inner.name} in {node.name} is not known")
            continue
        channels.freeze_axis(outer, axis, f"{node.name} runs along this axis")
        others = [other for other in range(channels.rank(outer)) if other != axis]
        channels.label_constant(outer, others)
        channels.copy(outer, inner, {other: place for place, other in enumerate(others)})


def _come_round(
    node: ir.Node, entering: Sequence[ir.Value], returned: Sequence[ir.Value], channels: Channels
) -> None:
    """Say that each state is the same channels when an iteration begins and when it ends."""
    for inner, after, output in zip(entering, returned, node.outputs, strict=False):
        reason = f"a state of {node.name} has no channels along this axis when it begins or ends"
        _same(channels, [inner, after], output, reason)


def _same(channels: Channels, values: Sequence[ir.Value], output: ir.Value, reason: str) -> None:
    """Say that several values stand for one: they, and the output, have the same channels."""
    shapes = [channels.shapes.shape(value) for value in (*values, output)]
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes) or len({len(shape) for shape in known}) > 1:
        for value in values:
            channels.freeze_all(value, f"{reason}: a shape is not known")
        return
    for axis, sizes in enumerate(zip(*known, strict=True)):
        if len(set(sizes)) > 1:
            for value in values:
                _keep_whole(channels, value, axis, f"the sizes that {output.name} may have differ")
    link_broadcast(channels, list(values), output, reason)


def _keep_whole(channels: Channels, value: ir.Value, axis: int, reason: str) -> None:
    """Freeze an axis, and forget its labels: from here on it is an axis without channels."""
    channels.freeze_axis(value, axis, reason)
    channels.blocks[value] = [block for block in channels.blocks.get(value, ()) if axis not in block.axes]


def _stack(channels: Channels, returned: ir.Value, output: ir.Value, axis: int, node: ir.Node) -> None:
    """Give a stack the labels of its parts."""
    if not _known(channels, returned, output):
        channels.freeze_all(returned, f"the shape of {output.name}, made by {node.name}, is not known")
        return
    rank = channels.rank(returned)
    channels.copy(returned, output, {a: a if a < axis else a + 1 for a in range(rank)})


def _freeze_scan_8(node: ir.Node, body: ir.Graph, channels: Channels) -> None:
    reason = f"{node.name} is a Scan of opset 8, with a batch of its own"
    for index in range(len(node.inputs)):
        if channels.has(node, index):
            channels.freeze_all(channels.ref(node, index), reason)
    for value in (value for inner in body.all_nodes() for value in inner.inputs):
        if value is not None and not value.is_initializer():
            channels.freeze_all(value, reason)
