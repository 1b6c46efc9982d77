"""What the sums over channels see: which terms are zero, which are constant, and where constants can go.

A term ``w[o, i] * x[i]`` whose ``x[i]`` is the same number for every input can leave the sum for good: it is
added to a bias; or, where borders of zeros make the sum differ from place to place, to the weights of another
constant channel, which sees the same borders. Both are exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxprune.ops.channels import Channels, Contraction
from onnxprune.ops.constant_arrays import Array, along, zero_positions, zero_rows
from onnxprune.ops.constants import Constants, pads_input
from onnxprune.ops.kept import Kept
from onnxprune.types import BoolArray, FloatArray, IntArray

Place = Literal["bias", "weight", "nowhere"]


@dataclass(frozen=True, slots=True)
class SeenConstants:
    """What one sum over channels sees at each position of its axis.

    Attributes:
        contraction: the sum.
        labels: int32 ``[dim, k]``, the labels of each position.
        zero: bool ``[dim]``: the terms are zero, because all weights or all inputs there are.
        constants: float64 ``[groups, dim]``: the input, NaN where it varies, and everywhere if it is not
            known how the operator multiplies.
        place: where constants other than zero can go.
    """

    contraction: Contraction
    labels: IntArray
    zero: BoolArray
    constants: FloatArray
    place: Place

    @property
    def constant(self) -> BoolArray:
        """Bool ``[dim]``: the input is constant in every group."""
        return np.asarray(~np.isnan(self.constants).any(axis=0))

    @property
    def into_bias(self) -> BoolArray:
        """Bool ``[dim]``: terms that are not zero and fit into a bias."""
        return self.constant & ~self.zero & (self.place == "bias")

    @property
    def into_weight(self) -> BoolArray:
        """Bool ``[dim]``: terms that are not zero and fit into the weights of another constant channel."""
        return self.constant & ~self.zero & (self.place == "weight")

    def carrier(self, staying: BoolArray) -> int | None:
        """Return the position that can take the terms of others: the largest constant that stays, or None.

        Args:
            staying: bool ``[dim]``.
        """
        if self.place != "weight" or len(self.constants) != 1:
            return None
        size = np.where(staying & self.constant, np.abs(np.nan_to_num(self.constants[0])), 0.0)
        best = int(np.argmax(size))
        return best if size[best] > 0 else None


class Sums:
    """All sums over channels of an analysed graph, and the constants that they see.

    Args:
        graph: the graph that was analysed.
        channels: its labels, solved.
    """

    def __init__(self, graph: ir.Graph, channels: Channels) -> None:
        self.channels = channels
        self.constants = Constants(graph, channels)
        found = (_look(c, channels, self.constants) for c in channels.contractions)
        # What a body sums over is cut like anything else, but nothing is folded into the body.
        self.seen = tuple(
            seen if seen.contraction.node.graph is graph else replace(seen, place="nowhere") for seen in found
        )

    def unread(self, seen: SeenConstants, kept: Kept) -> BoolArray:
        """Return bool ``[dim]``: positions of a sum whose weights are zero in all outputs that a cut keeps.

        Args:
            seen: one of the sums.
            kept: what the cut keeps.
        """
        if seen.contraction.axis is None or seen.contraction.zero_point is not None:
            return seen.zero
        node, operand = seen.contraction.node, seen.contraction.operand
        masks = dict(kept.input(node, operand))
        masks.pop(seen.contraction.axis, None)
        weight = self.constants.contents(node.inputs[operand]) if masks else None
        if weight is None:
            return seen.zero
        (axis, mask), *others = masks.items()
        for other, narrower in others:
            weight = np.compress(narrower, weight, axis=other)
        rows = np.moveaxis(weight, (seen.contraction.axis, axis), (0, 1))
        unread = seen.zero.copy()
        unread[zero_rows(rows, np.flatnonzero(mask))] = True
        return unread


def _look(contraction: Contraction, channels: Channels, constants: Constants) -> SeenConstants:
    node, operand = contraction.node, contraction.operand
    if contraction.axis is None or contraction.zero_point is not None:
        return _unseen(contraction, channels)
    labels = channels.alone(channels.ref(node, operand), contraction.axis)
    if labels is None:
        raise ValueError(f"{node.name} sums over an axis without labels")
    size = len(labels)
    weight = constants.contents(node.inputs[operand])
    zero = np.zeros(size, dtype=np.bool_)
    if weight is not None:
        zero |= zero_positions(weight, contraction.axis)
    else:  # both operands are computed, or the operator sums over its only operand
        zero |= along(constants.array(node.inputs[operand]), contraction.axis, size) == 0
    seen, place = _other_operand(contraction, constants, size, weight)
    zero |= (seen == 0).all(axis=0)
    return SeenConstants(contraction, labels, zero, seen, place)


def _unseen(contraction: Contraction, channels: Channels) -> SeenConstants:
    """Return what is known of a range, or of a sum of quantized numbers: nothing, so nothing is dead."""
    ref = channels.ref(contraction.node, contraction.operand)
    blocks = [block for block in channels.blocks.get(ref, ()) if contraction.axis in (None, *block.axes)]
    rows = [block.labels.reshape(-1, block.labels.shape[-1]) for block in blocks]
    width = max(labels.shape[1] for labels in rows)
    padded = np.concatenate([np.pad(labels, ((0, 0), (0, width - labels.shape[1]))) for labels in rows])
    unknown = np.full((1, len(padded)), np.nan)
    return SeenConstants(contraction, padded, np.zeros(len(padded), dtype=np.bool_), unknown, "nowhere")


def _other_operand(
    contraction: Contraction, constants: Constants, size: int, weight: Array | None
) -> tuple[FloatArray, Place]:
    """Return what the weight is multiplied with, float64 ``[groups, dim]``, and where it can go."""
    node, operand = contraction.node, contraction.operand
    domain_known = node.domain in ("", "ai.onnx")
    if domain_known and weight is not None and node.op_type in ("Conv", "ConvTranspose") and operand == 1:
        groups = node.attributes.get_int("group", 1)
        transposed = node.op_type == "ConvTranspose"
        inputs = size if transposed else size * groups
        bordered = constants.bordered(node.inputs[0])
        known = constants.array(node.inputs[0]) if bordered is None else bordered
        seen = along(known, 1, inputs).reshape(1 if transposed else groups, size)
        if not transposed and not pads_input(node) and bordered is None:
            return seen, "bias"
        stored = node.inputs[1] is not None and node.inputs[1].is_initializer()
        return seen, "weight" if groups == 1 and stored else "nowhere"
    if domain_known and node.op_type in ("Gemm", "MatMul"):
        other = 1 - operand
        transposed = node.attributes.get_int("transA" if other == 0 else "transB", 0) != 0
        summed = -1 if (other == 0) != transposed else -2
        array = constants.array(node.inputs[other])
        seen = along(array, summed, size)[None]
        matrices = array is not None and array.ndim >= 2 and weight is not None and weight.ndim == 2
        return seen, "bias" if matrices and (node.op_type == "MatMul" or operand == 1) else "nowhere"
    return np.full((1, size), np.nan), "nowhere"


def contribution(seen: SeenConstants, constants: Constants, positions: IntArray) -> tuple[FloatArray, int]:
    """Return what the terms at some positions add to the output, and along which axis of it.

    Args:
        seen: a sum whose constants go into a bias.
        constants: of its graph.
        positions: of its axis; their constants are known.

    Returns:
        float64 ``[outputs]``, before a Gemm multiplies with its alpha; the axis of a matrix is negative.
    """
    node, operand, axis = seen.contraction.node, seen.contraction.operand, seen.contraction.one_axis
    weight = constants.contents(node.inputs[operand])
    if weight is None:
        raise ValueError(f"the weights of {node.name} are not known")
    terms = np.moveaxis(weight, axis, 1)[:, positions].astype(np.float64)  # [outputs, positions, taps...]
    terms = terms.sum(axis=tuple(range(2, terms.ndim)))
    numbers = np.repeat(seen.constants[:, positions], len(terms) // len(seen.constants), axis=0)
    return (terms * numbers).sum(axis=1), 1 if node.op_type == "Conv" else -1 if operand == 1 else -2
