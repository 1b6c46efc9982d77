"""Convolutions: Conv, ConvTranspose."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.ops.base import OpRule, ShapeOf, WeightInput, op_rule
from onnxprune.ops.channels import Channels
from onnxprune.ops.kept import Kept
from onnxprune.ops.labels import LabelArray

_SPACE = "a convolution slides along this axis ({node})"


def _freeze_space(node: ir.Node, channels: Channels, kernel: int = 1, passing: Sequence[int] = ()) -> None:
    x, w = channels.ref(node, 0), channels.ref(node, kernel)
    channels.freeze_axis(x, 0, _SPACE.format(node=node.name))
    for axis in range(2, channels.rank(x)):
        if axis in passing:
            continue
        for ref in (x, w):  # a kernel that is computed from constants has labels along its taps
            channels.freeze_axis(ref, axis, _SPACE.format(node=node.name))


def _pointwise_axes(node: ir.Node, channels: Channels, kernel: int) -> list[int]:
    """Return the axes of x along which each output sees the input at its own place alone."""
    refs = channels.ref(node, 0), channels.ref(node, kernel), node.outputs[0]
    x, w, y = (channels.shape(ref) for ref in refs)
    strides = node.attributes.get_ints("strides", [1] * (len(x) - 2))
    pads = node.attributes.get_ints("pads", [0] * 2 * (len(x) - 2))
    return [
        axis
        for axis in range(2, len(x))
        if w[axis] == strides[axis - 2] == 1
        and pads[axis - 2] == pads[axis + len(x) - 4] == 0
        and x[axis] == y[axis]
    ]


def _input_by_group(
    node: ir.Node, channels: Channels, groups: int
) -> tuple[LabelArray | None, LabelArray | None]:
    """Return the labels of the groups ``[groups, k]`` and of the places in a group ``[inputs, k]``."""
    labels = channels.alone(channels.ref(node, 0), 1)
    if labels is None:
        return None, None
    if groups == 1:
        return None, labels
    table = labels.reshape(groups, -1, labels.shape[-1])
    if table.shape[1] == 1:
        return table[:, 0], None
    return channels.labels.separate(table, (0,))


def _output_by_group(
    channels: Channels, groups: LabelArray | None, group_count: int, outputs: int
) -> LabelArray:
    """Return labels ``[group_count * outputs, k]`` of output channels: a group, and a place in it.

    Groups of an untracked input can't go, so only the place counts; with one output for each group, nothing.
    """
    places = None if outputs == 1 else channels.labels.fresh(outputs)
    columns = [np.zeros((group_count, outputs, 1), dtype=np.int32)]
    if groups is not None:
        columns.append(np.broadcast_to(groups[:, None], (group_count, outputs, groups.shape[-1])))
    if places is not None:
        columns.append(np.broadcast_to(places[None], (group_count, outputs, 1)))
    return np.concatenate(columns, axis=-1).reshape(group_count * outputs, -1)


@op_rule("Conv")
class Conv(OpRule):
    """y[n, (g, o), ...] = sum_i x[n, (g, i), ...] * w[(g, o), i, ...] + b[(g, o)]

    One rule for all: plain (one group), grouped, and depthwise (i has size 1).
    """

    #: Which input holds b.
    bias_index = 2

    #: Each output sees the places that its kernel covers, and no others.
    has_fixed_places = True

    def link(self, node: ir.Node, channels: Channels) -> None:
        """The input is summed over within each group; outputs are new channels of the same groups."""
        vectors = (self.bias_index,)
        link_convolution(node, channels, kernel=1, vectors=vectors, fixed_places=self.has_fixed_places)

    def fix(self, node: ir.Node, kept: Kept) -> None:
        """As many groups as are left: each kept group still sums over all of its kept places."""
        fix_groups(node, kept, kernel=1)

    def macs(self, node: ir.Node, shape_of: ShapeOf) -> int:
        """Outputs times the products summed for each."""
        return math.prod(shape_of(node.outputs[0])) * math.prod(shape_of(_input(node, 1))[1:])

    def weight_inputs(self, node: ir.Node, rank_of: Callable[[ir.Value], int]) -> tuple[WeightInput, ...]:
        """The kernel: rows are outputs, the sum runs over input channels at each tap."""
        return (WeightInput(1, summed_axis=1, output_axis=0),)


@op_rule("DeformConv")
class DeformConv(Conv):
    """As Conv, at places that are moved by offsets, which each group of offset channels has for its own"""

    bias_index = 3
    has_fixed_places = False

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Groups of offsets must stay, and equally large; offsets and their weights are coordinates."""
        reason = f"{node.name} reads offsets from it"
        for index in (2, 4):
            if channels.has(node, index):
                channels.freeze_all(channels.ref(node, index), reason)
        offset_groups = node.attributes.get_int("offset_group", 1)
        if offset_groups > 1:
            groups, _ = _input_by_group(node, channels, offset_groups)
            if groups is not None:
                channels.freeze(groups, f"{node.name} has offsets for each of these groups")
        super().link(node, channels)


@op_rule("FusedConv", domain="com.microsoft")
class FusedConv(Conv):
    """y = activation(Conv(x, w, b) + z)"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """As Conv; what is added has the channels of the result."""
        super().link(node, channels)
        if channels.has(node, 3):
            added, y = channels.ref(node, 3), node.outputs[0]
            channels.separate_all(added)
            for axis in (0, *range(2, channels.rank(y))):
                channels.freeze_axis(added, axis, _SPACE.format(node=node.name))
            labels = channels.alone(y, 1)
            channels.meet(added, 1, labels, f"{node.name} adds a value without channels")


def link_convolution(
    node: ir.Node,
    channels: Channels,
    *,
    kernel: int,
    vectors: Sequence[int],
    zero_point: int | None = None,
    fixed_places: bool = True,
) -> None:
    """Link a convolution of input 0.

    Args:
        node: the convolution.
        channels: all labels.
        kernel: the input ``[(g, o), i, taps...]``.
        vectors: inputs with a number for each output channel, or one for all: biases, scales, zero points.
        zero_point: the input that holds what stands for zero in the kernel.
        fixed_places: each output sees the places that its kernel covers, and no others.
    """
    x, w = channels.ref(node, 0), channels.ref(node, kernel)
    group_count = node.attributes.get_int("group", 1)
    given, taken = channels.shape(x)[1], channels.shape(w)[1] * group_count
    if given != taken:  # found when a model is run, not when it is opened
        raise ValueError(f"it takes {taken} channels and gets {given}")
    passing = _pointwise_axes(node, channels, kernel) if fixed_places else []
    _freeze_space(node, channels, kernel, passing)
    groups, places = _input_by_group(node, channels, group_count)
    outputs = channels.shape(w)[0] // group_count
    y = channels.alone(w, 0) if group_count == 1 else _output_by_group(channels, groups, group_count, outputs)
    reason = f"the input of {node.name} has no channels to remove"
    if group_count > 1:
        channels.meet(w, 0, y, reason)
    if channels.shape(w)[1] > 1:
        channels.meet(w, 1, places, reason)
    for index in vectors:
        link_vector(node, channels, index, y, reason)
    channels.put(node.outputs[0], (1,), y)
    for axis in passing:
        if channels.block_at(x, axis) is not None:
            channels.put(node.outputs[0], (axis,), channels.alone(x, axis))
    channels.sums_over(node, kernel, 1, zero_point=zero_point, zero_axis=0)


def link_vector(
    node: ir.Node, channels: Channels, index: int, labels: LabelArray | None, reason: str
) -> None:
    """Let an optional input with a number for each channel follow them; a single number serves all."""
    if channels.has(node, index):
        vector = channels.ref(node, index)
        if math.prod(channels.shape(vector)) > 1:
            channels.meet(vector, -1, labels, reason)


def fix_groups(node: ir.Node, kept: Kept, *, kernel: int) -> None:
    """Write as many groups as are left of a convolution of input 0."""
    if node.attributes.get_int("group", 1) > 1:
        places = kept.count(kept.ref(node, kernel), 1)
        groups = kept.count(kept.ref(node, 0), 1) // places
        kept.set_attribute(node, ir.AttrInt64("group", groups))


@op_rule("ConvTranspose")
class ConvTranspose(OpRule):
    """y[n, (g, o), ...] = sum_i x[n, (g, i), ...] * w[(g, i), o, ...] + b[(g, o)]"""

    bias_index = 2

    def link(self, node: ir.Node, channels: Channels) -> None:
        """As Conv, with the kernel's axes swapped."""
        w = channels.ref(node, 1)
        group_count = node.attributes.get_int("group", 1)
        _freeze_space(node, channels)
        reason = f"the input of {node.name} has no channels to remove"
        groups, _ = _input_by_group(node, channels, group_count)
        x = channels.alone(channels.ref(node, 0), 1)
        outputs = channels.shape(w)[1]
        channels.meet(w, 0, x, reason)
        if group_count == 1:
            y = channels.alone(w, 1)
        else:
            y = _output_by_group(channels, groups, group_count, outputs)
            if outputs > 1:
                # Only the place in the group is an axis of the kernel: the last column made above.
                channels.meet(w, 1, y.reshape(group_count, outputs, -1)[0][:, -1:], reason)
        if channels.has(node, self.bias_index):
            channels.meet(channels.ref(node, self.bias_index), 0, y, reason)
        channels.put(node.outputs[0], (1,), y)
        channels.sums_over(node, 1, 0)

    def fix(self, node: ir.Node, kept: Kept) -> None:
        """As many groups as are left."""
        if node.attributes.get_int("group", 1) > 1:
            outputs = kept.count(kept.ref(node, 1), 1)
            kept.set_attribute(node, ir.AttrInt64("group", kept.count(node.outputs[0], 1) // outputs))

    def macs(self, node: ir.Node, shape_of: ShapeOf) -> int:
        """Inputs times the products that each takes part in."""
        return math.prod(shape_of(_input(node, 0))) * math.prod(shape_of(_input(node, 1))[1:])

    def weight_inputs(self, node: ir.Node, rank_of: Callable[[ir.Value], int]) -> tuple[WeightInput, ...]:
        """The kernel: the sum runs over its first axis."""
        return (WeightInput(1, summed_axis=0, output_axis=1),)


@op_rule("ConvTransposeWithDynamicPads", domain="com.microsoft")
class ConvTransposeWithDynamicPads(ConvTranspose):
    """As ConvTranspose; the padding is an input, before the bias."""

    bias_index = 3


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise ValueError(f"{node.op_type} {node.name} lacks input {index}")
    return value
