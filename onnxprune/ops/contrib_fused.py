"""Norms, embeddings, experts and layout forms as ONNX Runtime fuses them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxprune.ops.base import OpRule, ShapeOf, WeightInput, op_rule
from onnxprune.ops.channels import Channels
from onnxprune.ops.elementwise import link_broadcast
from onnxprune.ops.heads import output_at
from onnxprune.ops.labels import LabelArray


def _normalise(
    node: ir.Node, channels: Channels, labels: LabelArray | None, parameters: tuple[int, ...]
) -> None:
    """Give scale and bias the channels that a norm is taken over, and record the statistics."""
    for index in parameters:
        if channels.has(node, index):
            channels.meet(channels.ref(node, index), -1, labels, f"{node.name} normalises untracked channels")
    if labels is not None:
        channels.averages_over(node, labels, f"{node.name} takes mean and deviation over these channels")


@op_rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain="com.microsoft")
class SkipLayerNormalization(OpRule):
    """s = x + skip + bias; y = (s - mean(s)) / std(s) * scale + shift, with mean and std over the last axis

    The simplified form has neither mean nor shift. s itself is another result.
    """

    scale_input = 2

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Sum and result have the channels of both terms; the statistics change when one goes."""
        simplified = node.op_type == "SkipSimplifiedLayerNormalization"
        bias_index = 3 if simplified else 4
        terms = [channels.ref(node, index) for index in (0, 1, bias_index) if channels.has(node, index)]
        for ref in terms:
            channels.separate_all(ref)
        y, total = node.outputs[0], output_at(node, 3)
        link_broadcast(channels, terms, y, f"{node.name} adds a value without channels")
        _normalise(node, channels, channels.alone(y, -1), (2,) if simplified else (2, 3))
        if total is not None:
            channels.copy(y, total)


@op_rule("EmbedLayerNormalization", domain="com.microsoft")
class EmbedLayerNormalization(OpRule):
    """s = words[id] + positions[place] + segments[segment]; y = norm of s over the last axis"""

    scale_input = 5

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Rows of the tables are picked; their columns are channels that share a norm."""
        words = channels.ref(node, 2)
        labels = channels.alone(words, 1)
        tables = [index for index in (2, 3, 4) if channels.has(node, index)]
        for index in tables:
            table = channels.ref(node, index)
            channels.freeze_axis(table, 0, f"{node.name} picks rows by their number")
            if index != 2:
                channels.meet(table, 1, labels, f"{node.name} adds tables without channels")
        _normalise(node, channels, labels, (5, 6))
        for output in (node.outputs[0], output_at(node, 2)):
            if output is not None:
                channels.put(output, (2,), labels)


@op_rule("MoE", domain="com.microsoft")
class MixtureOfExperts(OpRule):
    """y = sum_e gate_e * (activation(x u_e' + b_e) [* (x g_e' + d_e)]) w_e' + c_e, over the best experts

    ``u [experts, hidden, inputs]``, ``w [experts, outputs, hidden]``. A fused swiglu has two rows of u for
    each hidden unit: one after the other (``swiglu_fusion`` 1), or in two halves (2).
    """

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Hidden units go in all experts at once; experts stay, because the router ranks them."""
        x, up, down = (channels.ref(node, index) for index in (0, 2, 4))
        for axis in range(channels.rank(x) - 1):
            channels.freeze_axis(x, axis, f"{node.name} routes along this axis")
        channels.freeze_all(channels.ref(node, 1), f"{node.name} ranks experts")
        inputs, hidden, outputs = channels.alone(x, -1), channels.alone(down, 2), channels.alone(down, 1)
        reason = f"{node.name} sums over an axis without channels"
        self._link_inputs(node, channels, inputs, reason)
        channels.sums_over(node, 4, 2)
        channels.meet(down, 1, inputs, f"{node.name} returns what it takes in: sizes that stay")
        for index, axis, labels in (
            (2, 1, _rows(node, hidden, channels.shape(up)[1])),
            (3, 1, _rows(node, hidden, channels.shape(up)[1])),
            (5, 1, outputs),
            (6, 1, hidden),
            (7, 1, hidden),
        ):
            if channels.has(node, index):
                channels.meet(channels.ref(node, index), axis, labels, reason)
        for index in range(2, 8):
            if channels.has(node, index):
                channels.freeze_axis(channels.ref(node, index), 0, f"{node.name} ranks experts")
        channels.put(node.outputs[0], (channels.rank(x) - 1,), outputs)

    def _link_inputs(self, node: ir.Node, channels: Channels, inputs: LabelArray | None, reason: str) -> None:
        for index in (2, 6):
            if channels.has(node, index):
                channels.meet(channels.ref(node, index), 2, inputs, reason)
                channels.sums_over(node, index, 2)

    def macs(self, node: ir.Node, shape_of: ShapeOf) -> int:
        """Every token goes through ``k`` experts."""
        x = node.inputs[0]
        weights = [node.inputs[index] for index in (2, 4, 6) if index < len(node.inputs)]
        if x is None:
            return 0
        per_expert = sum(math.prod(shape_of(weight)[1:]) for weight in weights if weight is not None)
        return math.prod(shape_of(x)[:-1]) * node.attributes.get_int("k", 1) * per_expert

    def weight_inputs(self, node: ir.Node, rank_of: Callable[[ir.Value], int]) -> tuple[WeightInput, ...]:
        """All stacks of matrices: rows are outputs, the sum runs over the last axis."""
        return tuple(
            WeightInput(index, summed_axis=2, output_axis=1)
            for index in (2, 4, 6)
            if index < len(node.inputs) and node.inputs[index] is not None
        )


def _rows(node: ir.Node, hidden: LabelArray | None, rows: int) -> LabelArray | None:
    """Return the labels of the rows of the first matrices, of which a hidden unit has one or two."""
    if hidden is None or rows == len(hidden):
        return hidden
    together = node.attributes.get_int("swiglu_fusion", 0) == 1
    return np.repeat(hidden, 2, axis=0) if together else np.concatenate([hidden, hidden])


@op_rule("Inverse", "Trilu", domain="com.microsoft")
class OfMatrices(OpRule):
    """y[..., :, :] = a function of the whole matrix x[..., :, :]"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Rows and columns stay; stacks of matrices pass."""
        x, y = channels.ref(node, 0), node.outputs[0]
        channels.separate_all(x)
        rank = channels.rank(x)
        for axis in (rank - 2, rank - 1):
            channels.freeze_axis(x, axis, f"{node.name} ({node.op_type}) needs whole matrices")
        channels.copy(x, y)


@op_rule("NhwcMaxPool", domain="com.microsoft")
class ChannelsLastPool(OpRule):
    """y[n, ..., c] = max of x[n, ..., c] over windows in space"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Channels pass."""
        x = channels.ref(node, 0)
        channels.separate_all(x)
        last = channels.rank(x) - 1
        for axis in range(last):
            channels.freeze_axis(x, axis, f"{node.name} pools along this axis")
        channels.copy(x, node.outputs[0], {last: last})
