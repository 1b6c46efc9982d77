"""Model -> channel groups: what can be removed together, what can't, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.model.collector import collector_paused
from onnxprune.model.functions import without_functions
from onnxprune.model.nodes import nodes_in
from onnxprune.model.prepare import prepare
from onnxprune.model.shapes import Shapes
from onnxprune.ops.channels import Block, Channels, Use
from onnxprune.ops.groups import constant_along, group_labels
from onnxprune.ops.labels import by_axis, looked_up
from onnxprune.ops.registry import link_graph, rule_for
from onnxprune.ops.transforms import fixed_transforms
from onnxprune.types import BoolArray, ChannelGroup, IntArray, Kind, Skipped


@dataclass(frozen=True, slots=True)
class Analysis:
    """Everything the later stages need to know of a model.

    Attributes:
        given: the model that was given.
        original: the same, or a copy with the calls of its functions written out.
        model: its working copy, which was analysed; cuts are made on clones of it.
        shapes: sizes of all its values.
        channels: labels of all its values, solved.
        groups: channel groups, in order of the graph.
        units: int32 [size] by group name: the label of each channel.
        unknown: operators that were frozen because nothing is known of them, with reasons.
    """

    given: ir.Model
    original: ir.Model
    model: ir.Model
    shapes: Shapes
    channels: Channels
    groups: tuple[ChannelGroup, ...]
    units: Mapping[str, IntArray]
    unknown: tuple[Skipped, ...]

    def removed_labels(self, removed: Mapping[str, IntArray]) -> BoolArray:
        """Return bool ``[labels.count]``, True for every label of a removed channel.

        Args:
            removed: int32 channel numbers by group name.
        """
        gone = np.zeros(self.channels.labels.count, dtype=np.bool_)
        for name, numbers in removed.items():
            gone[self.units[name][numbers]] = True
        return gone


def find_groups(
    model: ir.Model, *, input_shapes: Mapping[str, Sequence[int]] | None = None
) -> tuple[ChannelGroup, ...]:
    """Return the channel groups of a model, the frozen ones too.

    Args:
        model: any ONNX model; not changed.
        input_shapes: concrete shapes by input name for symbolic axes; sensible sizes are tried otherwise.

    Raises:
        UsageError, ModelError: an input shape is missing or does not fit.
    """
    return analyze(model, input_shapes=input_shapes).groups


def analyze(
    model: ir.Model,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    allow_inexact: bool = False,
    prefer: Kind = "heads",
) -> Analysis:
    """Label every position of every value, and group the labels that compete.

    Args:
        model: any ONNX model; not changed.
        input_shapes: concrete shapes by input name for symbolic axes; sensible sizes are tried otherwise.
        allow_inexact: leave groups open whose removal changes statistics (the width of a transformer); they
            are marked.
        prefer: what is offered where positions belong to heads and to places in a head: ``heads`` or
            ``head_dim``.
    """
    with collector_paused():
        return _analyze(model, input_shapes, allow_inexact, prefer)


def _analyze(
    model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None, allow_inexact: bool, prefer: Kind
) -> Analysis:
    original = without_functions(model)
    work, shapes = prepare(original, input_shapes)
    channels = Channels(shapes)
    link_graph(work.graph, channels)
    _tie_shared_weights(work.graph, channels)
    for (node, index), what in fixed_transforms(nodes_in(work.graph), work.graph.inputs).items():
        use = Use(node, index)
        channels.freeze_all(use, f"{use.value.name} is left alone: it looks like {what}")
    _freeze_borders(work, channels)
    _freeze_statistics(channels, allow_inexact)
    _make_rectangular(channels)
    channels.finish()
    groups, units = group_labels(work.graph, channels, prefer)
    return Analysis(model, original, work, shapes, channels, groups, units, tuple(channels.unknown))


# --- linking ------------------------------------------------------------------------------------------------


def _freeze_statistics(channels: Channels, allow_inexact: bool) -> None:
    """Freeze channels that statistics are taken over. Nothing but experts may leave a softmax."""
    experts = channels.tagged("experts")
    for statistic in channels.statistics:
        reason = f"{statistic.reason}: cutting them is not exact"
        if not allow_inexact:
            channels.freeze(statistic.labels, reason)
        elif statistic.node.op_type in _SOFTMAX:
            labels = channels.labels.resolve(statistic.labels)
            channels.freeze(np.where(np.isin(labels, experts), 0, labels), reason)


_SOFTMAX = ("Softmax", "LogSoftmax", "Hardmax")


def _tie_shared_weights(graph: ir.Graph, channels: Channels) -> None:
    """Let all uses of a weight lose the same positions, so that one copy of it is enough.

    Vectors, constant tensors and tables that are added are left alone: exporters store equal ones once,
    whoever they belong to, and the biases of positions that all layers add need not tie these together.
    """
    nodes = set(nodes_in(graph))
    for value in graph.initializers.values():
        uses = [Use(node, index) for node, index in value.uses() if node in nodes]
        blocks = [channels.blocks.get(use, []) for use in uses]
        shapes = [[(block.axes, block.labels.shape[:-1]) for block in of_use] for of_use in blocks]
        if len(uses) < 2 or any(shape != shapes[0] for shape in shapes) or not _is_matrix(value):
            continue  # where the axes differ, a copy is needed in any case
        if not all(_is_multiplied(use.node, use.index, channels) for use in uses):
            continue
        for others in blocks[1:]:
            for first, other in zip(blocks[0], others, strict=True):
                channels.labels.equate(
                    first.labels, other.labels, f"{value.name} is shared, and one use of it stays whole"
                )


def _is_multiplied(node: ir.Node, index: int, channels: Channels) -> bool:
    """Return whether an input reaches a product that sums over it, or is a table whose rows are read."""
    if node.op_type in _MOVES:
        return any(_is_multiplied(user, place, channels) for user, place in node.outputs[0].uses())
    rule = rule_for(node)
    weights = (
        ()
        if rule is None
        else rule.weight_inputs(node, lambda value: len(channels.shapes.shape(value) or ()))
    )
    return node.op_type == "Gather" or index in {weight.index for weight in weights}


#: Operators that hand a weight on to its product.
_MOVES = frozenset({"Cast", "DequantizeLinear", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


def _is_matrix(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or sum(size != 1 for size in tensor.shape) < 2:
        return False
    array = tensor.numpy().ravel()[:_SAMPLE]
    return bool((array != array[0]).any())


#: Elements that tell a trained tensor from a constant one.
_SAMPLE = 65536


def _freeze_borders(model: ir.Model, channels: Channels) -> None:
    for value in model.graph.outputs:
        channels.freeze_all(value, f"output {value.name} of the model")


def _make_rectangular(channels: Channels) -> None:
    """Couple positions of joint blocks until every cut leaves rectangles.

    A tensor with a joint block exists at run time, so the rows of that block must lose the same positions. A
    column that varies along several of its axes is made to vary along the longest of them alone; where that
    can't be, it is frozen.
    """
    labels = channels.labels
    blocks = [block for of_value in channels.blocks.values() for block in of_value if len(block.axes) > 1]
    joint = list({id(block.labels): block for block in blocks}.values())  # most values share their labels
    changed = True
    while changed:
        changed = False
        labels.flush()
        table: IntArray | None = labels.table() if joint else None
        seen: set[tuple[tuple[int, ...], bytes]] = set()  # most blocks stand for the same positions as others
        for block in joint:
            sets = _movable(block, channels, table)
            key = (sets.shape, sets.tobytes())
            if key in seen:
                continue
            ragged = _ragged_columns(sets)
            for column, axes in ragged:
                _couple(column, axes, channels)
                changed, table = True, None
            for column, _ in _ragged_columns(_movable(block, channels)) if ragged else ():
                labels.freeze(column[..., None], "rows of one tensor would lose different positions")
            seen.add(key)
    labels.flush()


def _movable(block: Block, channels: Channels, table: IntArray | None = None) -> IntArray:
    """Return the sets of a block without frozen labels: what never goes makes no row shorter."""
    sets = channels.labels.resolve(block.labels) if table is None else looked_up(table, block.labels)
    return np.where(channels.labels.is_frozen(sets), 0, sets)


def _ragged_columns(sets: IntArray) -> list[tuple[IntArray, list[int]]]:
    """Return the columns of a joint block that vary along several axes, and these axes."""
    found = []
    for column in np.moveaxis(by_axis(sets), -1, 0):
        axes = [axis for axis in range(column.ndim) if not constant_along(column, axis)]
        if len(axes) > 1:
            found.append((column, axes))
    return found


def _couple(column: IntArray, axes: Sequence[int], channels: Channels) -> None:
    longest = max(axes, key=lambda axis: (column.shape[axis], axis))
    first = column[tuple(slice(None) if axis == longest else slice(0, 1) for axis in range(column.ndim))]
    channels.labels.equate(
        column[..., None],
        np.broadcast_to(first, column.shape)[..., None],
        "rows of one tensor must stay equally long",
    )
    channels.labels.flush()
