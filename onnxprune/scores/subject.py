"""What scores from data look at, and where in a model sums run over the channels that are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from onnxprune.calibration.activations import USUAL, Running
from onnxprune.data import Dataset
from onnxprune.model.inputs import graph_inputs
from onnxprune.ops.channels import Channels, Contraction
from onnxprune.ops.constant_views import computed_constants
from onnxprune.ops.labels import LabelArray
from onnxprune.types import ChannelGroup, IntArray


@dataclass(frozen=True, slots=True)
class Subject:
    """What a score from data looks at: a model, the groups to score, and the data.

    Attributes:
        model: the working copy in which the groups were found.
        channels: labels of all its values.
        groups: the groups to score, none of them frozen.
        units: int32 [size] by group name: the label of each channel.
        data: samples that fit the model.
        running: batches, threads and memory of runs.
        progress: called after every run with the share that is done, in (0, 1].
        seed: of targets that are drawn.
    """

    model: ir.Model
    channels: Channels
    groups: Sequence[ChannelGroup]
    units: Mapping[str, IntArray]
    data: Dataset
    running: Running = USUAL
    progress: Callable[[float], None] | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Sum:
    """One sum of products ``x_c * w_c`` over channels, in which ``x`` depends on the model's inputs.

    Attributes:
        node: the consumer.
        x: the operand that is measured, and the axis of it that is summed over.
        labels: int32 [dim, k] of that axis.
        other: the other operand; None where x alone is added up.
        other_index: which input of the node that is, and the axis of it that is summed over.
    """

    node: ir.Node
    x: ir.Value
    axis: int
    labels: LabelArray
    other: ir.Value | None = None
    other_index: int = -1
    other_axis: int = -1


def sums_of(subject: Subject) -> Iterator[Sum]:
    """Yield every sum over channels of the groups, once for each operand that depends on the inputs."""
    channels = subject.channels
    wanted = owners_of(subject).group >= 0
    measurable = measurable_values(subject.model)
    for contraction in channels.contractions:
        node = contraction.node
        sides = sides_of(channels, contraction)
        for mine, its in zip(sides, sides[::-1], strict=True):
            x = node.inputs[mine.operand]
            if x is None or x not in measurable or not has_numbers(x) or not wanted[mine.labels].any():
                continue
            if len(sides) == 1:
                yield Sum(node, x, mine.axis, mine.labels)
            else:
                yield Sum(node, x, mine.axis, mine.labels, node.inputs[its.operand], its.operand, its.axis)


def measurable_values(model: ir.Model) -> set[ir.Value]:
    """Return the values of the main graph that depend on the model's inputs."""
    return main_values(model) - computed_constants(model)


def main_values(model: ir.Model) -> set[ir.Value]:
    """Return the values of the main graph, which a run can give back; what bodies compute can't be tapped."""
    return {*graph_inputs(model), *(output for node in model.graph for output in node.outputs)}


class Side(NamedTuple):
    """One operand of a sum: which input of the node, the axis that is summed over, its labels [dim, k]."""

    operand: int
    axis: int
    labels: LabelArray


def sides_of(channels: Channels, contraction: Contraction) -> list[Side]:
    """Return the operands of a sum of products: the one that the rule named, and its partner if it has one.

    The axis of the partner has the same labels or, where each group of a grouped layout sums over its own
    part, some of them beside those of the groups. Operands come first among inputs, and what is added to the
    sum later.
    """
    node = contraction.node
    if contraction.axis is None:  # a range, not a sum
        return []
    labels = _axis_labels(channels, node, contraction.operand, contraction.axis)
    if labels is None:
        return []
    first = Side(contraction.operand, contraction.axis, labels)
    for index in range(len(node.inputs)):
        if index == contraction.operand or not channels.has(node, index):
            continue
        for axis in reversed(range(channels.rank(channels.ref(node, index)))):
            its = _axis_labels(channels, node, index, axis)
            if its is not None and np.isin(its, labels[labels > 0]).any():
                return [first, Side(index, axis, its)]
    return [first]


def _axis_labels(channels: Channels, node: ir.Node, index: int, axis: int) -> LabelArray | None:
    block = channels.block_at(channels.ref(node, index), axis)
    return None if block is None or block.axes != (axis,) else block.labels


def has_numbers(value: ir.Value) -> bool:
    """Tell whether a value holds what it stands for: quantized integers need their scale and zero point."""
    dtype = value.dtype if value.const_value is None else value.const_value.dtype
    return dtype is None or dtype.is_floating_point()


class Owners(NamedTuple):
    """Whom each label belongs to, int32 [labels]: a group by its number, and the channel; -1 for none."""

    group: IntArray
    channel: IntArray

    def of(self, labels: LabelArray) -> Iterator[tuple[int, IntArray]]:
        """Yield the number of each group that some positions belong to, and int32 [dim] their channels or -1.

        Args:
            labels: int32 [dim, k] of an axis.
        """
        numbers = self.group[labels]
        for number in np.unique(numbers[numbers >= 0]).tolist():
            channels = np.where(numbers == number, self.channel[labels], -1).max(axis=1)
            yield number, channels.astype(np.int32)


def owners_of(subject: Subject) -> Owners:
    """Return whom the labels belong to; groups are numbered as in the subject."""
    count = subject.channels.labels.count
    owners = Owners(np.full(count, -1, dtype=np.int32), np.full(count, -1, dtype=np.int32))
    for number, group in enumerate(subject.groups):
        units = subject.units[group.name]
        owners.group[units] = number
        owners.channel[units] = np.arange(group.size)
    return owners
