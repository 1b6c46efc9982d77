"""Normalisation: statistics that are constants, and statistics taken over axes at run time."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.ops.base import OpRule, op_rule
from onnxprune.ops.channels import Channels
from onnxprune.ops.kept import Kept
from onnxprune.ops.labels import LabelArray


@op_rule("BatchNormalization")
class BatchNormalization(OpRule):
    """y[n, c, ...] = (x[n, c, ...] - mean[c]) / sqrt(var[c] + eps) * scale[c] + bias[c]"""

    scale_input = 1

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Four vectors follow the channels of the input."""
        x = channels.ref(node, 0)
        labels = channels.alone(x, 1)
        for index in range(1, 5):
            channels.meet(channels.ref(node, index), 0, labels, f"{node.name} normalises untracked channels")
        channels.copy(x, node.outputs[0])


@op_rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
class LayerNormalization(OpRule):
    """y = (x - mean(x)) / std(x) * scale + bias, with mean and std over the axes from ``axis`` on

    Without mean and bias, it is an RMSNormalization, which ONNX Runtime calls SimplifiedLayerNormalization.
    """

    scale_input = 1

    def link(self, node: ir.Node, channels: Channels) -> None:
        """The statistics change when a position of a normalised axis goes."""
        x = channels.ref(node, 0)
        rank = channels.rank(x)
        first = node.attributes.get_int("axis", -1) % rank
        channels.separate_all(x)
        for axis in range(first, rank):
            labels = channels.alone(x, axis)
            for index in (1, 2):
                if channels.has(node, index):
                    parameter = channels.ref(node, index)
                    own = axis - rank + channels.rank(parameter)
                    if own >= 0 and channels.shape(parameter)[own] > 1:
                        channels.meet(parameter, own, labels, f"{node.name} normalises an untracked axis")
            if labels is not None:
                channels.averages_over(
                    node, labels, f"{node.name} takes mean and deviation over these channels"
                )
        channels.copy(x, node.outputs[0])


@op_rule("InstanceNormalization")
class InstanceNormalization(OpRule):
    """y[n, c, ...] = (x[n, c, ...] - mean[n, c]) / std[n, c] * scale[c] + bias[c], over space"""

    scale_input = 1

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Statistics are taken over space alone, so channels are independent."""
        x = channels.ref(node, 0)
        channels.separate_all(x)
        for axis in range(2, channels.rank(x)):
            labels = None if channels.block_at(x, axis) is None else channels.alone(x, axis)
            if labels is not None:
                channels.averages_over(node, labels, f"{node.name} takes mean and deviation along this axis")
        labels = channels.alone(x, 1)
        for index in (1, 2):
            channels.meet(channels.ref(node, index), 0, labels, f"{node.name} normalises untracked channels")
        channels.copy(x, node.outputs[0])


@op_rule("GroupNormalization")
class GroupNormalization(OpRule):
    """y[n, (g, i), ...] = (x[n, (g, i), ...] - mean[n, g]) / std[n, g] * scale[(g, i)] + bias[(g, i)]

    Until opset 20, scale and bias have one element for each group.
    """

    scale_input = 1

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Whole groups are independent; the statistics change when a place in a group goes."""
        x = channels.ref(node, 0)
        channels.separate_all(x)
        for axis in range(2, channels.rank(x)):
            channels.freeze_axis(x, axis, f"{node.name} takes mean and deviation along this axis")
        labels, groups = channels.alone(x, 1), None
        if labels is not None:
            groups = self._separate_groups(node, channels, labels)
        per_channel = channels.shape(channels.ref(node, 1))[0] == channels.shape(x)[1]
        for index in (1, 2):
            if channels.shape(channels.ref(node, index))[0] > 1:
                mine = labels if per_channel else groups
                channels.meet(
                    channels.ref(node, index), 0, mine, f"{node.name} normalises untracked channels"
                )
        channels.copy(x, node.outputs[0])

    def _separate_groups(self, node: ir.Node, channels: Channels, labels: LabelArray) -> LabelArray | None:
        """Return the labels of the groups ``[groups, k]``, None if there is a single one."""
        table = labels.reshape(node.attributes.get_int("num_groups", 1), -1, labels.shape[-1])
        if table.shape[1] == 1:
            return labels
        groups, places = (None, labels) if len(table) == 1 else channels.labels.separate(table, (0,))
        channels.averages_over(node, places, f"{node.name} takes mean and deviation over these channels")
        return groups

    def fix(self, node: ir.Node, kept: Kept) -> None:
        """As many groups as are left."""
        mask = kept.input(node, 0).get(1)
        if mask is not None:
            table = mask.reshape(node.attributes.get_int("num_groups", 1), -1)
            kept.set_attribute(node, ir.AttrInt64("num_groups", int(table.any(axis=1).sum())))


@op_rule("LRN")
class LRN(OpRule):
    """y[n, c, ...] = x[n, c, ...] / (bias + alpha / size * sum of x**2 over neighbouring channels) ** beta"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Without a channel, others become neighbours."""
        x = channels.ref(node, 0)
        labels = channels.alone(x, 1)
        if labels is not None:
            channels.averages_over(node, labels, f"{node.name} takes squares of neighbouring channels")
        channels.copy(x, node.outputs[0])


@op_rule("MeanVarianceNormalization")
class MeanVarianceNormalization(OpRule):
    """y = (x - mean(x)) / std(x), with mean and std over ``axes``"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """The statistics change when a position of a normalised axis goes."""
        x = channels.ref(node, 0)
        channels.separate_all(x)
        for axis in node.attributes.get_ints("axes", (0, 2, 3)):
            labels = channels.alone(x, axis)
            if labels is not None:
                channels.averages_over(
                    node, labels, f"{node.name} takes mean and deviation over these channels"
                )
        channels.copy(x, node.outputs[0])


@op_rule("Softmax", "LogSoftmax", "Hardmax")
class Softmax(OpRule):
    """y = exp(x) / sum(exp(x)) along one axis (all axes from ``axis`` on before opset 13)"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """A position less changes all others; a choice among experts may do without some."""
        x = channels.ref(node, 0)
        rank = channels.rank(x)
        modern = channels.shapes.opset >= 13
        axis = node.attributes.get_int("axis", -1 if modern else 1) % rank
        for normalised in (axis,) if modern else range(axis, rank):
            labels = None if channels.block_at(x, normalised) is None else channels.alone(x, normalised)
            if labels is not None:
                channels.averages_over(
                    node, labels, f"{node.name} ({node.op_type}) normalises along this axis"
                )
        channels.copy(x, node.outputs[0])


@op_rule("LpNormalization")
class LpNormalization(OpRule):
    """y = x / norm(x) along one axis"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Positions that are zero add nothing to the norm."""
        x = channels.ref(node, 0)
        axis = node.attributes.get_int("axis", -1)
        channels.alone(x, axis)
        channels.sums_over(node, 0, axis)
        channels.copy(x, node.outputs[0])
