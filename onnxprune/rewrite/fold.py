"""Constants that a cut removes, folded forward: into the bias of the sum they were a term of.

Where a border of zeros makes that sum differ from place to place, a term goes into the weights of another
constant channel that stays: the two see the same borders, and ``w[p] * c[p] = (w[p] * c[p] / c[q]) * c[q]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.model.biases import BiasWriter, numbers_of
from onnxprune.ops.channels import Contraction, Use
from onnxprune.ops.kept import Kept
from onnxprune.ops.sums import SeenConstants, Sums, contribution
from onnxprune.types import BoolArray, IntArray


@dataclass(frozen=True, slots=True)
class Fold:
    """What becomes of the terms that one sum loses.

    Attributes:
        seen: the sum.
        gone: bool ``[dim]``, the positions that are removed.
        into_bias: int32, those of them whose constants go into a bias.
        into_weight: int32, those whose constants go into the weights of ``carrier``.
        carrier: a position that stays, None if nothing goes into weights.
        exact: bool ``[dim]``, the positions whose terms are zero or folded: nothing is lost with them.
    """

    seen: SeenConstants
    gone: BoolArray
    into_bias: IntArray
    into_weight: IntArray
    carrier: int | None
    exact: BoolArray

    @property
    def lossless(self) -> bool:
        """True if every term that goes is zero or folded."""
        return not (self.gone & ~self.exact).any()


def plan_folds(sums: Sums, removed: BoolArray) -> tuple[Fold, ...]:
    """Say for every sum that loses terms what becomes of them.

    Args:
        sums: of the graph that is cut.
        removed: bool ``[labels.count]``, True for each label that goes.
    """
    folds = []
    kept = Kept(sums.channels, removed)
    for seen in sums.seen:
        gone: BoolArray = np.asarray(removed[seen.labels].any(axis=-1))
        if not gone.any():
            continue
        into_weight = gone & seen.into_weight
        carrier = seen.carrier(~gone) if into_weight.any() else None
        if carrier is None:
            into_weight = np.zeros_like(gone)
        into_bias = gone & seen.into_bias
        exact = gone & seen.zero | into_bias | into_weight
        if not exact[gone].all():
            exact |= gone & sums.unread(seen, kept)
        numbers = [np.flatnonzero(where).astype(np.int32) for where in (into_bias, into_weight)]
        folds.append(Fold(seen, gone, numbers[0], numbers[1], carrier, exact))
    return tuple(folds)


def exact_positions(folds: Sequence[Fold]) -> Mapping[Contraction, BoolArray]:
    """Return bool ``[dim]`` by sum: positions that the exact twin keeps, as the cut loses nothing there."""
    return {fold.seen.contraction: fold.exact for fold in folds}


def apply_folds(cut: ir.Model, sums: Sums, folds: Sequence[Fold], removed: BoolArray) -> tuple[int, int]:
    """Write folded constants into a model that was cut.

    Args:
        cut: from `cut`, with the same removed labels; changed in place.
        sums: of the model that was analysed.
        folds: from `plan_folds`.
        removed: bool ``[labels.count]``, True for each label that goes.

    Returns:
        How many numbers the model holds more than before, for biases that were not there, and their bytes.
    """
    writer = _Writer(cut.graph, sums, Kept(sums.channels, removed))
    for fold in folds:
        if len(fold.into_weight):
            writer.write_weight(fold)
        if len(fold.into_bias):
            writer.write_bias(fold)
    return writer.biases.added, writer.biases.added_bytes


class _Writer:
    """Changes tensors of a cut graph without touching other users of the old ones."""

    def __init__(self, graph: ir.Graph, sums: Sums, kept: Kept) -> None:
        self.sums = sums
        self.kept = kept
        self.nodes = {str(output.name): node for node in graph for output in node.outputs}
        self.biases = BiasWriter(graph)

    def write_weight(self, fold: Fold) -> None:
        """Add the weights of folded positions, scaled, to those of the carrier."""
        contraction = fold.seen.contraction
        node, operand, axis = contraction.node, contraction.operand, contraction.one_axis
        copy = self.nodes[str(node.outputs[0].name)]
        weight = self.sums.constants.contents(node.inputs[operand])
        value = copy.inputs[operand]
        if weight is None or value is None or fold.carrier is None:
            raise ValueError(f"the weights of {node.name} are not stored")
        numbers = fold.seen.constants[0]
        shape = [-1 if a == axis else 1 for a in range(weight.ndim)]
        ratios = (numbers[fold.into_weight] / numbers[fold.carrier]).reshape(shape)
        extra = (np.take(weight, fold.into_weight, axis=axis).astype(np.float64) * ratios).sum(axis=axis)
        masks = self.kept.masks(Use(node, operand))
        rows = masks.get(1 - axis)
        if rows is not None:
            extra = extra[rows]
        array = numbers_of(value)
        place: list[Any] = [slice(None)] * array.ndim
        place[axis] = int(np.count_nonzero(~fold.gone[: fold.carrier]))
        array[tuple(place)] += extra
        self.biases.store(copy, operand, array)

    def write_bias(self, fold: Fold) -> None:
        """Add constant terms to the bias that follows the sum; one is made where there is none."""
        node = fold.seen.contraction.node
        delta, axis = contribution(fold.seen, self.sums.constants, fold.into_bias)
        output = node.outputs[0]
        rank = self.sums.channels.rank(output)
        mask = self.kept.masks(output).get(axis % rank)
        delta = delta if mask is None else delta[mask]
        if not delta.any():
            return
        if node.op_type == "Gemm":
            delta = delta * node.attributes.get_float("alpha", 1.0)
        spread = delta.reshape(-1, *(1,) * (rank - 1 - axis % rank))
        self.biases.add_to_result(self.nodes[str(output.name)], spread)
