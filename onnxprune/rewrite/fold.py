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

from onnxprune.model.names import Names, add_constant
from onnxprune.ops.channels import Contraction, Use
from onnxprune.ops.kept import Kept
from onnxprune.ops.sums import SeenConstants, Sums, contribution
from onnxprune.types import BoolArray, FloatArray, IntArray


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
    return writer.added, writer.added_bytes


class _Writer:
    """Changes tensors of a cut graph without touching other users of the old ones."""

    def __init__(self, graph: ir.Graph, sums: Sums, kept: Kept) -> None:
        self.graph = graph
        self.sums = sums
        self.kept = kept
        self.names = Names(graph)
        self.nodes = {str(output.name): node for node in graph for output in node.outputs}
        self.added = self.added_bytes = 0

    def write_weight(self, fold: Fold) -> None:
        """Add the weights of folded positions, scaled, to those of the carrier."""
        contraction = fold.seen.contraction
        node, operand, axis = contraction.node, contraction.operand, contraction.axis
        copy = self.nodes[str(node.outputs[0].name)]
        weight = self.sums.constants.contents(node.inputs[operand])
        value = copy.inputs[operand]
        if weight is None or value is None or value.const_value is None or fold.carrier is None:
            raise ValueError(f"the weights of {node.name} are not stored")
        numbers = fold.seen.constants[0]
        shape = [-1 if a == axis else 1 for a in range(weight.ndim)]
        ratios = (numbers[fold.into_weight] / numbers[fold.carrier]).reshape(shape)
        extra = (np.take(weight, fold.into_weight, axis=axis).astype(np.float64) * ratios).sum(axis=axis)
        masks = self.kept.masks(Use(node, operand))
        rows = masks.get(1 - axis)
        if rows is not None:
            extra = extra[rows]
        array = value.const_value.numpy().astype(np.float64)
        place: list[Any] = [slice(None)] * array.ndim
        place[axis] = int(np.count_nonzero(~fold.gone[: fold.carrier]))
        array[tuple(place)] += extra
        self._store(copy, operand, value, array)

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
        copy = self.nodes[str(output.name)]
        if node.op_type == "Conv" and self._add_to_input(copy, 2, delta):
            return
        if node.op_type == "Gemm":
            alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
            delta = delta * alpha
            if beta != 0 and self._add_to_input(copy, 2, delta / beta):
                return
        delta = delta.reshape(-1, *(1,) * (rank - 1 - axis % rank))
        if not self._add_to_next(copy.outputs[0], delta):
            self._insert_add(copy, delta)

    def _add_to_input(self, node: ir.Node, index: int, delta: FloatArray) -> bool:
        """Add to a bias that the operator has as an input; False where that is computed."""
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and not _stored(value):
            return False
        if value is None:
            if index >= len(node.inputs):
                node.resize_inputs(index + 1)
            node.replace_input_with(index, self._constant(f"{node.outputs[0].name}_bias", delta, node))
            return True
        self._store(node, index, value, _numbers(value) + delta)
        return True

    def _add_to_next(self, output: ir.Value, delta: FloatArray) -> bool:
        """Add to the stored operand of the only node behind, if that is an Add."""
        uses = output.uses()
        if len(uses) != 1 or output.is_graph_output():
            return False
        (use,) = uses
        is_add = use.node.op_type == "Add" and use.node.domain in ("", "ai.onnx")
        if not is_add or use.node.graph is not self.graph:
            return False
        bias = use.node.inputs[1 - use.idx]
        rank = None if output.shape is None else output.shape.rank()
        if bias is None or not _stored(bias) or rank is None or _numbers(bias).ndim > rank:
            return False
        if _numbers(bias).size < delta.size:
            return False
        self._store(use.node, 1 - use.idx, bias, _numbers(bias) + delta)
        return True

    def _insert_add(self, node: ir.Node, delta: FloatArray) -> None:
        """Put an Add behind a node; its result has the old name."""
        before = node.outputs[0]
        uses = list(before.uses())
        name = str(before.name)
        before.name = self.names.fresh(f"{name}_without_constants")
        constant = self._constant(f"{name}_constants", delta, node)
        add = ir.node("Add", [before, constant], name=self.names.fresh(f"{name}_add_constants"))
        after = add.outputs[0]
        after.name, after.shape, after.type = name, before.shape, before.type
        for user, index in uses:
            user.replace_input_with(index, after)
        for position, value in enumerate(self.graph.outputs):
            if value is before:
                self.graph.outputs[position] = after
        self.graph.insert_after(node, add)

    def _constant(self, wanted: str, array: FloatArray, node: ir.Node) -> ir.Value:
        """Register numbers in the type of a node's result."""
        name = self.names.fresh(wanted)
        dtype = node.outputs[0].dtype or next(v.dtype for v in node.inputs if v is not None and v.dtype)
        tensor = ir.Tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)
        self._count(tensor.size, tensor.nbytes)
        return add_constant(self.graph, tensor, name)

    def _count(self, numbers: int, size_bytes: int) -> None:
        self.added += numbers
        self.added_bytes += size_bytes

    def _store(self, node: ir.Node, index: int, value: ir.Value, array: FloatArray) -> None:
        """Replace a stored tensor for one of its users."""
        old = value.const_value
        if old is None:
            raise ValueError(f"{value.name} is not stored")
        alone = len(value.uses()) == 1 and not value.is_graph_output()
        name = str(value.name) if alone else self.names.fresh(str(value.name))
        tensor = ir.Tensor(array.astype(old.dtype.numpy()), dtype=old.dtype, name=name)
        if alone:
            self._count(tensor.size - old.size, tensor.nbytes - old.nbytes)
            value.const_value, value.shape = tensor, ir.Shape(array.shape)
        else:
            self._count(tensor.size, tensor.nbytes)
            node.replace_input_with(index, add_constant(self.graph, tensor, name))


def _stored(value: ir.Value) -> bool:
    """Return whether a value is a floating-point weight that no run gives anew."""
    tensor = value.const_value
    fixed = value.is_initializer() and not value.is_graph_input()
    return fixed and tensor is not None and tensor.dtype.is_floating_point()


def _numbers(value: ir.Value) -> FloatArray:
    if value.const_value is None:
        raise ValueError(f"{value.name} is not stored")
    return value.const_value.numpy().astype(np.float64)
