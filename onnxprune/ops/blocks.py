"""Operators that fold space into channels and back: DepthToSpace, SpaceToDepth, Col2Im."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxprune.ops.base import OpRule, op_rule
from onnxprune.ops.channels import Channels
from onnxprune.ops.labels import LabelArray


@op_rule("DepthToSpace")
class DepthToSpace(OpRule):
    """y[n, c, (h, i), (w, j)] = x[n, (i, j, c), h, w], or x[n, (c, i, j), h, w] in the mode CRD"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """All positions (i, j) of an output channel go together: blocks in space stay whole."""
        x, y = channels.ref(node, 0), node.outputs[0]
        _freeze_space(node, channels)
        labels = channels.alone(x, 1)
        if labels is None:
            return
        block = node.attributes.get_int("blocksize", 1) ** (channels.rank(x) - 2)
        if node.attributes.get_string("mode", "DCR") == "CRD":
            rows = labels.reshape(-1, block, labels.shape[-1])
        else:
            rows = labels.reshape(block, -1, labels.shape[-1]).swapaxes(0, 1)
        channels.put(y, (1,), _whole_rows(rows, channels, f"{node.name} makes space of these channels"))


@op_rule("SpaceToDepth")
class SpaceToDepth(OpRule):
    """y[n, (i, j, c), h, w] = x[n, c, (h, i), (w, j)], or y[n, (c, i, j), h, w] in the mode CRD"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Each position in a block is a copy of the input's channels."""
        x, y = channels.ref(node, 0), node.outputs[0]
        _freeze_space(node, channels)
        labels = channels.alone(x, 1)
        if labels is None:
            return
        block = node.attributes.get_int("blocksize", 1) ** (channels.rank(x) - 2)
        if node.attributes.get_string("mode", "DCR") == "CRD":
            channels.put(y, (1,), np.repeat(labels, block, axis=0))
        else:
            channels.put(y, (1,), np.tile(labels, (block, 1)))


@op_rule("Col2Im")
class Col2Im(OpRule):
    """y[n, c, h, w] = sum of x[n, (c, i, j), l] over the places l whose block covers (h, w)"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """All positions (i, j) of an output channel go together."""
        x, y = channels.ref(node, 0), node.outputs[0]
        channels.freeze_axis(x, 2, f"{node.name} spreads this axis over space")
        labels = channels.alone(x, 1)
        if labels is None:
            return
        block = channels.constant(node, 2)
        if block is None:
            channels.freeze(labels, f"{node.name} has blocks of computed sizes")
            return
        rows = labels.reshape(-1, math.prod(block.ravel().tolist()), labels.shape[-1])
        channels.put(y, (1,), _whole_rows(rows, channels, f"{node.name} makes space of these channels"))


def _freeze_space(node: ir.Node, channels: Channels) -> None:
    x = channels.ref(node, 0)
    for axis in (0, *range(2, channels.rank(x))):
        channels.freeze_axis(x, axis, f"{node.name} moves blocks of this axis into channels or back")


def _whole_rows(rows: LabelArray, channels: Channels, reason: str) -> LabelArray:
    """Let rows of positions go only as a whole.

    Args:
        rows: int32 ``[channels, positions, k]``. A column that names the channel alone is right as it is, one
            that names the position alone is frozen, and in any other the positions of a row become the same.
        channels: where that is recorded.
        reason: why positions can't go alone.

    Returns:
        the labels of the rows, int32 ``[channels, k]``.
    """
    channels.labels.flush()
    rows = channels.labels.resolve(rows)
    for column in np.moveaxis(rows, -1, 0):
        if (column == column[:, :1]).all():
            continue
        if (column == column[:1]).all():
            channels.freeze(column[..., None], reason)
        else:
            first = np.broadcast_to(column[:, :1], column.shape)
            channels.labels.equate(column[..., None], first[..., None], reason)
    return rows[:, 0]
