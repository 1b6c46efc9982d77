"""Which stored tensors train, and why the others do not.

A tensor is judged by what reads it: its way is followed through nodes that compute from constants alone (a
Transpose, a weight normalisation) to the nodes where it meets what depends on the inputs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxprune.model.inputs import graph_inputs
from onnxprune.model.nodes import nodes_in
from onnxprune.ops.constant_views import computed_constants
from onnxprune.ops.meanings.base import Array
from onnxprune.ops.registry import rule_for
from onnxprune.ops.transforms import fixed_transforms

TRAINED_TYPES = frozenset((ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16))

#: Inputs that hold what was learned, besides those that a rule calls weights.
_LEARNED: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "Attention"): (),
    ("", "BatchNormalization"): (1, 2),
    ("", "Conv"): (1, 2),
    ("", "ConvTranspose"): (1, 2),
    ("", "DeformConv"): (1, 2, 3),
    ("", "GRU"): (1, 2, 3, 5),
    ("", "Gather"): (0,),
    ("", "Gemm"): (0, 1, 2),
    ("", "GridSample"): (0,),
    ("", "GroupNormalization"): (1, 2),
    ("", "InstanceNormalization"): (1, 2),
    ("", "LSTM"): (1, 2, 3, 5, 6, 7),
    ("", "LayerNormalization"): (1, 2),
    ("", "MatMul"): (0, 1),
    ("", "PRelu"): (1,),
    ("", "RMSNormalization"): (1,),
    ("", "RNN"): (1, 2, 3, 5),
    ("com.microsoft", "Attention"): (1, 2),
    ("com.microsoft", "BiasAdd"): (1,),
    ("com.microsoft", "BiasGelu"): (1,),
    ("com.microsoft", "BiasSplitGelu"): (1,),
    ("com.microsoft", "EmbedLayerNormalization"): (2, 3, 4, 5, 6),
    ("com.microsoft", "FastGelu"): (1,),
    ("com.microsoft", "FusedConv"): (1, 2),
    ("com.microsoft", "FusedGemm"): (0, 1, 2),
    ("com.microsoft", "FusedMatMul"): (0, 1),
    ("com.microsoft", "GroupNorm"): (1, 2),
    ("com.microsoft", "MultiHeadAttention"): (3,),
    ("com.microsoft", "QuickGelu"): (),
    ("com.microsoft", "SimplifiedLayerNormalization"): (1,),
    ("", "SimplifiedLayerNormalization"): (1,),
    ("com.microsoft", "SkipGroupNorm"): (1, 2, 4),
    ("com.microsoft", "SkipLayerNormalization"): (2, 3, 4),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): (2, 3),
    ("com.microsoft", "TransposeMatMul"): (0, 1),
}

#: Where a constant is an operand like any other: learned offsets, scales, tokens; or constants of a formula.
_OPERANDS = frozenset({"Add", "Concat", "Div", "Einsum", "Max", "Min", "Mul", "Sub", "Sum", "Where"})

#: What numbers are read for here was never learned.
_ANGLES = frozenset({"Cos", "Sin"})

_WAVE_TOLERANCE = 2e-3
_FEWEST_POSITIONS = 4
_LARGEST_LOOKED_AT = 1 << 24
#: Additive masks are no smaller; the softmax of what they are added to is zero there.
_MASKING = -1e3


@dataclass(slots=True)
class Tensors:
    """Stored tensors by what becomes of them; keys are initializers of the model that was written out.

    Attributes:
        trained: what trains, with the stored name.
        statistics: running statistics of a normalisation, with the stored name.
        frozen: float tensors that do not train, by stored name: the reason.
    """

    trained: dict[ir.Value, str] = field(default_factory=dict)
    statistics: dict[ir.Value, str] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)


def sort_tensors(work: ir.Model, stored_names: Mapping[int, str], shared: Collection[str]) -> Tensors:
    """Sort the float tensors of a model that was written out.

    Args:
        work: as `written_out` makes it; not changed.
        stored_names: the names in the file by ``id`` of the tensor.
        shared: names that several tensors of the file have.
    """
    judge = _Judge(work)
    known = set(stored_names.values())
    found = Tensors()
    for name, values in _by_stored_name(work, stored_names, known).items():
        # what is stored once changes everywhere: a weight that is an output too has a copy there
        reasons = [judge.reason(value) for value in values]
        if name not in known:
            reasons = [_UNSTORED if reason in (None, _STATISTIC) else reason for reason in reasons]
        elif name in shared:
            reasons = ["several tensors have this name; rename those in subgraphs"]
        if _STATISTIC in reasons:
            found.statistics.update(dict.fromkeys(values, name))
            found.frozen[name] = _STATISTIC
        elif None in reasons:
            found.trained.update(dict.fromkeys(values, name))
        else:
            found.frozen[name] = str(reasons[0])
    return found


def _by_stored_name(
    work: ir.Model, stored_names: Mapping[int, str], known: Collection[str]
) -> dict[str, list[ir.Value]]:
    """Return the float initializers by their names in the file; by their own where the file has no tensor."""
    found: dict[str, list[ir.Value]] = {}
    for value in work.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype not in TRAINED_TYPES:
            continue
        name = str(value.name)
        if name not in known:  # renamed, so that names of bodies differ
            name = stored_names.get(id(tensor), name)
        found.setdefault(name, []).append(value)
    return found


_SINGLE = "a single number: a constant of the formula, for all the file says"
_UNSTORED = "the file holds no tensor of that name: its numbers are an attribute of a node"
_STATISTIC = "a running statistic: it moves in training, by no gradient"


class _Judge:
    """Says why a tensor does not train."""

    def __init__(self, work: ir.Model) -> None:
        self.computed = computed_constants(work)
        nodes = list(nodes_in(work.graph))
        inputs = graph_inputs(work)
        self.transforms = fixed_transforms(nodes, inputs)
        self.inputs = set(inputs)

    def reason(self, value: ir.Value) -> str | None:
        """Return why an initializer does not train, None if it does."""
        if value.is_graph_output():
            return "it is an output of the model"
        if value.const_value is not None and not len(value.const_value.shape):
            return _SINGLE
        reasons: list[str] = []
        trains = False
        for node, index, seen in self._readers(value):
            why = self._role(node, index, value, seen)
            if why == _STATISTIC:
                return why
            if why is None:
                trains = True
            else:
                reasons.append(why)
        if trains:
            return None
        return reasons[0] if reasons else "nothing that depends on the inputs reads it"

    def _readers(self, value: ir.Value) -> Iterator[tuple[ir.Node, int, ir.Value]]:
        """Yield where a constant meets what varies: node, input, and the constant value that arrives."""
        waiting, seen = [value], {value}
        while waiting:
            here = waiting.pop()
            for node, index in here.uses():
                if node.op_type in ("Shape", "Size"):
                    continue
                computed = bool(node.outputs) and node.outputs[0] in self.computed
                moved = index == 0 and node.op_type in _MOVED
                if (computed or moved) and node.op_type not in _ANGLES:
                    waiting.extend(output for output in node.outputs if output not in seen)
                    seen.update(node.outputs)
                else:
                    yield node, index, here

    def _role(self, node: ir.Node, index: int, value: ir.Value, seen: ir.Value) -> str | None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        kind = node.op_type
        if kind == "BatchNormalization" and index in (3, 4):
            return _STATISTIC
        if (node, index) in self.transforms:
            return f"it looks like {self.transforms[node, index]}"
        if kind in _ANGLES or self._becomes_angle(node):
            return "angles of sines and cosines are computed from it"
        if kind == "RotaryEmbedding":
            return "a table of sines and cosines"
        if kind == "InstanceNormalization" and index > 0 and _spells_groups(node, value, float(index == 1)):
            return "a group normalisation is spelled with it, and scales its result elsewhere"
        if index in _LEARNED.get((domain, kind), ()):
            return self._table(value) if kind == "Gather" else None
        rule = rule_for(node)
        if rule is not None and any(w.index == index for w in rule.weight_inputs(node, _rank)):
            return None
        if kind in _OPERANDS and not domain:
            return self._operand(node, index, value)
        return f"{kind} reads it as a setting, not as something learned"

    def _becomes_angle(self, node: ir.Node) -> bool:
        """Whether all that a product of this constant is for is sines and cosines, behind moves."""
        if node.op_type not in ("Mul", "MatMul", "Einsum", "Div"):
            return False
        waiting, found = list(node.outputs), False
        for _ in range(32):
            if not waiting:
                return found
            for user, _index in waiting.pop().uses():
                if user.op_type in _ANGLES:
                    found = True
                elif user.op_type in _MOVES:
                    waiting.extend(user.outputs)
                elif user.op_type not in ("Shape", "Size"):
                    return False
        return False

    def _operand(self, node: ir.Node, index: int, value: ir.Value) -> str | None:
        tensor = value.const_value
        if tensor is None or tensor.size <= 1:
            return _SINGLE
        others = [other for place, other in enumerate(node.inputs) if place != index]
        scaled_input = any(other in self.inputs for other in others) and tensor.size <= 4
        if scaled_input and node.op_type in ("Add", "Div", "Mul", "Sub"):
            return "it brings an input to a scale"
        if tensor.size > _LARGEST_LOOKED_AT:
            return None
        return self._table(value)

    def _table(self, value: ir.Value) -> str | None:
        """Say what a table of numbers that nobody learned is; None if it may have been learned."""
        tensor = value.const_value
        if tensor is None or tensor.size > _LARGEST_LOOKED_AT:
            return None
        array = np.asarray(tensor.numpy())
        if tensor.size > 1 and is_mask(array):
            return "a mask"
        if is_wave_table(array):
            return "a table of sines and cosines"
        if is_grid(array):
            return "a grid of places"
        return None


#: Operators that only move their first input, to places that may depend on sizes.
_MOVED = frozenset({
    "Cast", "CastLike", "Dropout", "Expand", "Flatten", "Identity", "Pad", "Reshape", "Slice", "Split",
    "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
_MOVES = _MOVED | {"Concat", "Gather"}


def _rank(value: ir.Value) -> int:
    tensor = value.const_value
    return len(tensor.shape) if tensor is not None else len(value.shape or ())


def _spells_groups(node: ir.Node, value: ir.Value, neutral: float) -> bool:
    """Whether a scale or offset that changes nothing belongs to groups that a Reshape made channels of."""
    before = None if node.inputs[0] is None else node.inputs[0].producer()
    tensor = value.const_value
    if before is None or before.op_type != "Reshape" or tensor is None:
        return False
    return bool((np.asarray(tensor.numpy(), np.float64) == neutral).all())


def is_mask(array: Array) -> bool:
    """Return whether numbers are a mask: 0 and something very negative, or a matrix of both 0 and 1 alone."""
    numbers = np.asarray(array, np.float64)
    if not np.isfinite(numbers).all() or (numbers <= _MASKING).any():
        return bool(((numbers == 0) | (numbers <= _MASKING)).all())
    matrix = sum(size > 1 for size in numbers.shape) > 1
    return matrix and bool(((numbers == 0) | (numbers == 1)).all()) and len(np.unique(numbers)) == 2


def is_wave_table(array: Array) -> bool:
    """Return whether all columns are sines or cosines of the row's number.

    Such a column holds ``x[p + 1] + x[p - 1] = 2 cos(w) x[p]`` for one w (Chebyshev's recurrence). A straight
    line does so as well, with w = 0; a table of these alone is none.
    """
    sizes = [size for size in array.shape if size > 1]
    if len(sizes) != 2 or sizes[0] < _FEWEST_POSITIONS:
        return False
    table = np.asarray(array, np.float64).reshape(sizes)
    if np.abs(table).max(initial=0.0) > 1 + _WAVE_TOLERANCE:
        return False
    middle, around = table[1:-1], table[2:] + table[:-2]
    energy = (middle**2).sum(axis=0)
    twice = np.divide((middle * around).sum(axis=0), energy, out=np.zeros_like(energy), where=energy > 0)
    error = np.abs(around - twice * middle).max(axis=0)
    curved = np.abs(np.diff(table, n=2, axis=0)).max(axis=0) > 10 * _WAVE_TOLERANCE
    return bool((error < _WAVE_TOLERANCE).all() and curved.any())


def is_grid(array: Array) -> bool:
    """Return whether numbers are several whole and half numbers: coordinates, anchors, counts."""
    numbers = np.unique(np.asarray(array, np.float64))
    return len(numbers) > 3 and bool((numbers * 2 == np.round(numbers * 2)).all())
