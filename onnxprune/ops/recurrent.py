"""Recurrent layers: LSTM, GRU, RNN."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxprune.ops.base import OpRule, ShapeOf, WeightInput, op_rule
from onnxprune.ops.channels import Channels, Ref, Use
from onnxprune.ops.kept import Kept
from onnxprune.ops.labels import LabelArray

#: Rows of the weights for each hidden unit.
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_PEEPHOLES = 3

_X, _W, _R, _B, _LENGTHS, _H, _C, _P = range(8)


@op_rule("LSTM", "GRU", "RNN")
class Recurrent(OpRule):
    """z[t, d, (g, h)] = sum_i w[d, (g, h), i] * x[t, i] + sum_j r[d, (g, h), j] * y[t - 1, d, j] + b

    and y[t, d, h], with a cell c[t, d, h] in an LSTM, is computed from z[t, d, (g, h)] of all gates g at the
    same unit h alone. So a unit reaches the others by way of its column of r and of nothing else; where that
    is zero (and the readers of y ignore it), it might as well not be there. Both directions d have the same
    number of units, in one attribute; they lose unit h together.
    """

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Units stand once for each gate in the rows of the weights; inputs are summed over."""
        gates = _GATES[node.op_type]
        for index in range(len(node.inputs)):
            if channels.has(node, index):
                _freeze_all_but_last(node, index, channels)
        units = channels.alone(channels.ref(node, _R), 2)
        if units is None and channels.shape(channels.ref(node, _R))[2] > 1:
            units = channels.labels.fresh(channels.shape(channels.ref(node, _R))[2])
            channels.freeze(units, _reason(node, _R))
        for index, axis, repeats in (
            (_R, 1, gates), (_W, 1, gates), (_B, 1, 2 * gates), (_P, 1, _PEEPHOLES), (_H, 2, 1), (_C, 2, 1),
        ):  # fmt: skip
            if channels.has(node, index):
                ref = channels.ref(node, index)
                channels.meet(ref, axis, _repeated(units, repeats), _reason(node, index))
        channels.sums_over(node, _R, 2)
        x, w = channels.ref(node, _X), channels.ref(node, _W)
        computed = not isinstance(w, Use)
        reason = _reason(node, _W) if computed else f"the input of {node.name} has no channels to remove"
        channels.meet(w, 2, channels.alone(x, 2), reason)
        channels.sums_over(node, _W, 2)
        for output in node.outputs:
            if output.name:
                channels.put(output, (channels.rank(output) - 1,), units)

    def fix(self, node: ir.Node, kept: Kept) -> None:
        """As many hidden units as are left."""
        columns = kept.ref(node, _R)
        if 2 in kept.masks(columns):
            kept.set_attribute(node, ir.AttrInt64("hidden_size", kept.count(columns, 2)))

    def macs(self, node: ir.Node, shape_of: ShapeOf) -> int:
        """Every weight, once for each step of each sequence."""
        x, w, r = node.inputs[:3]
        if x is None or w is None or r is None:
            raise ValueError(f"{node.op_type} {node.name} lacks its input or its weights")
        return math.prod(shape_of(x)[:2]) * (math.prod(shape_of(w)) + math.prod(shape_of(r)))

    def weight_inputs(self, node: ir.Node, rank_of: Callable[[ir.Value], int]) -> tuple[WeightInput, ...]:
        """The weights of the input and of the state before: rows are gates, columns are summed over."""
        return (
            WeightInput(_W, summed_axis=2, output_axis=1),
            WeightInput(_R, summed_axis=2, output_axis=1),
        )


def _repeated(units: LabelArray | None, count: int) -> LabelArray | None:
    """Return labels ``[count * units, k]``: the rows of one gate after those of another."""
    return None if units is None else np.tile(units, (count, 1))


def _reason(node: ir.Node, index: int) -> str:
    if index in (_H, _C):
        return f"{node.name} begins with the state {_named(node, index)}, which keeps all its units"
    return f"{node.name} reads {_named(node, index)}, which is computed and keeps its size"


def _named(node: ir.Node, index: int) -> str:
    value = node.inputs[index]
    return "" if value is None else str(value.name)


def _freeze_all_but_last(node: ir.Node, index: int, channels: Channels) -> None:
    """Directions, samples and steps stay: rows and columns are all that can go."""
    ref: Ref = channels.ref(node, index)
    stays = {_X: (0, 1), _LENGTHS: (0,), _H: (0, 1), _C: (0, 1)}.get(index, (0,))
    for axis in stays:
        channels.freeze_axis(ref, axis, f"{node.name} runs along this axis")
