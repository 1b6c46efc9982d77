"""What has become of every layer: its width, weights, multiply-accumulates, zeros and bits, before and after.

The layers of two models are matched by the names of their nodes, then by those of their weights, and what is
left by structure: in the order in which they run, each with one of its kind that is no larger.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.analyze import Analysis, analyze
from onnxprune.branches import find_branches
from onnxprune.model.body_shapes import branches, has_bodies
from onnxprune.model.functions import without_functions
from onnxprune.model.nodes import nodes_in
from onnxprune.model.prepare import prepare
from onnxprune.model.shapes import Shapes
from onnxprune.ops.constant_views import ZeroPoint
from onnxprune.ops.control import body_runs
from onnxprune.ops.packed import is_packed_product, nonzero_weight
from onnxprune.ops.registry import rule_for
from onnxprune.ops.weights import FoundWeight, locate_weights
from onnxprune.record import LayerRecord, Skip
from onnxprune.verification.zeros import nonzero

#: Where a layer lost nothing and no stage told why: not a guess.
NO_REASON = "nothing was removed from it, and no stage gave a reason"

#: Pairs of layers that are weighed against each other, at most: a matrix of some 30 MB.
_MOST_PAIRS = 1 << 22

#: Reasons that a layer is given, at most.
_MOST_REASONS = 8

#: A stored weight, and the axis that something is about; None for all of it.
_Weight: TypeAlias = tuple[str, int | None]

#: What tools put behind the name of a node or weight whose numbers they make smaller.
_SUFFIXES = ("_quantized", "_quant", "_Q4", "_Q8", "_fp16", "_output_quantized")


@dataclass(slots=True)
class _Layer:
    """A node with weights, and all that is recorded of it.

    ``tensors`` has the axis of each stored weight that indexes outputs.
    """

    node: ir.Node
    name: str
    family: str
    width: int
    summed: int
    tensors: dict[str, int] = field(default_factory=dict)
    params: int = 0
    zeros: int = 0
    bits: int = 0
    macs: int = 0

    @property
    def taps(self) -> int:
        """How many weights there are for each pair of what is summed and what comes out."""
        return self.params // max(1, self.width * self.summed)


def layer_changes(
    before: ir.Model,
    after: ir.Model,
    skipped: Sequence[Skip],
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    in_place: bool = False,
) -> tuple[LayerRecord, ...]:
    """Return every layer with weights of a model, and what another one made from it has left of it.

    Args:
        before: the original; not changed, unless ``in_place``.
        after: pruned, quantized (with QuantizeLinear around the layers or in their operators, or with
            MatMulNBits), in float16, or without some of the layers; likewise.
        skipped: what the stages between them left alone: names of layers, weights, channel groups or
            branches of the original, with the reason. What is named otherwise is passed over.
        input_shapes: concrete shapes by input name for symbolic axes; sensible sizes are tried otherwise.
            Both models are looked at with the same ones.
        in_place: nobody needs the models afterwards: they are changed, not copied.

    Returns:
        The layers of the original in its order. A tied weight counts for each layer that uses it.

    Raises:
        ModelError, UsageError: an input shape is missing or does not fit.
    """
    own = [_own_names(model) for model in (before, after)]
    analysis = analyze(before, input_shapes=input_shapes) if skipped else None
    if analysis is None:
        work, shapes = prepare(before, input_shapes, in_place=in_place)
    else:
        work, shapes = analysis.model, analysis.shapes
    names = {value.name for value in after.graph.inputs}
    same = {name: sizes for name, sizes in shapes.input_shapes.items() if name in names}
    old = _layers(own[0], work, shapes)
    new = _layers(own[1], *prepare(after, same, in_place=in_place))
    partners = _matched(old, new)
    reasons = {} if analysis is None else _reasons(analysis, old, skipped)
    return tuple(
        _record(layer, partners.get(place), reasons.get(place, [])) for place, layer in enumerate(old)
    )


def _record(old: _Layer, new: _Layer | None, reasons: Sequence[str]) -> LayerRecord:
    lost = new is None or new.width < old.width or new.params < old.params or new.zeros > old.zeros
    told = "; ".join(reasons) if new is not None and new.width == old.width else ""
    return LayerRecord(
        name=old.name,
        op_type=old.node.op_type,
        width=old.width,
        width_left=0 if new is None else new.width,
        params=old.params,
        params_left=0 if new is None else new.params,
        macs=old.macs,
        macs_left=0 if new is None else new.macs,
        sparsity=0.0 if new is None else new.zeros / max(1, new.params),
        bits=old.bits if new is None else new.bits,
        reason=told or (None if lost else NO_REASON),
    )


# --- layers -------------------------------------------------------------------------------------------------


def _own_names(model: ir.Model) -> Set[str | None]:
    """Return the names that nodes of a model have to themselves."""
    counts = Counter(node.name for node in nodes_in(without_functions(model).graph))
    return {name for name, count in counts.items() if count == 1}


def _layers(own_names: Set[str | None], work: ir.Model, shapes: Shapes) -> list[_Layer]:
    """Return the layers of a model in the order in which they run.

    Args:
        own_names: of the model as it was given.
        work: its working copy.
        shapes: of the working copy.
    """
    weights: dict[ir.Node, list[FoundWeight]] = defaultdict(list)
    for weight in locate_weights(work)[0]:
        weights[weight.node].append(weight)
    layers = []
    zeros: dict[tuple[ir.Value, ZeroPoint | None], int] = {}  # many layers may share a weight
    for node, runs in _with_runs(work.graph, shapes):
        if node not in weights and not is_packed_product(node):
            continue
        name = str(node.name) if node.name in own_names else str(node.outputs[0].name)
        layer = _Layer(node, name, _family(node), *_sizes(node, weights[node]))
        if is_packed_product(node):
            _read_packed(layer)
        for weight in weights[node]:
            key = weight.stored, weight.zero_point
            if key not in zeros:
                kept = nonzero(weight.tensor, weight.zero_point)
                zeros[key] = kept.size - int(np.count_nonzero(kept))
            _read(layer, weight, zeros[key])
        layer.macs = _macs(node, shapes, runs)
        layers.append(layer)
    return layers


def _with_runs(graph: ir.Graph, shapes: Shapes, runs: int = 1) -> Iterator[tuple[ir.Node, int]]:
    """Yield the nodes of a graph and of its bodies, with how often they run."""
    for node in graph:
        yield node, runs
        if not has_bodies(node):
            continue
        if node.op_type == "If":
            for branch in branches(node):
                yield from _with_runs(branch, shapes, runs)
        else:
            body = node.attributes["body"].as_graph()
            yield from _with_runs(body, shapes, runs * body_runs(node, shapes))


def _family(node: ir.Node) -> str:
    """Return what kind of layer a node is, whatever numbers it works on."""
    if "Transpose" in node.op_type and "Conv" in node.op_type:
        return "transposed convolution"
    if "Conv" in node.op_type:
        return "convolution"
    return "product" if "MatMul" in node.op_type or "Gemm" in node.op_type else node.op_type


def _sizes(node: ir.Node, weights: Sequence[FoundWeight]) -> tuple[int, int]:
    """Return how many channels come out of a layer, and over how many one of them sums."""
    if is_packed_product(node):
        return node.attributes.get_int("N"), node.attributes.get_int("K")
    first = weights[0]
    width, summed = first.shape[first.use.output_axis], first.shape[first.use.summed_axis]
    if node.op_type == "ConvTranspose":  # [inputs, outputs of one group, ...]
        groups = node.attributes.get_int("group", 1)
        return width * groups, summed // groups
    return node.attributes.get_int("hidden_size", width), summed


def _read_packed(layer: _Layer) -> None:
    packed = layer.node.inputs[1]
    if packed is not None:
        layer.tensors[str(packed.name)] = 0
    layer.params, layer.bits = layer.width * layer.summed, layer.node.attributes.get_int("bits", 4)
    kept = nonzero_weight(layer.node)
    layer.zeros = 0 if kept is None else kept.size - int(np.count_nonzero(kept))


def _read(layer: _Layer, weight: FoundWeight, zeros: int) -> None:
    layer.tensors[weight.use.tensor] = weight.use.output_axis
    layer.params += weight.tensor.size
    layer.zeros += zeros
    layer.bits = max(layer.bits, weight.tensor.dtype.bitwidth)


def _macs(node: ir.Node, shapes: Shapes, runs: int) -> int:
    """Return the multiply-accumulates of a node for one sample; 0 where they are not known."""
    rule = rule_for(node)
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name]
    if rule is None or any(value not in shapes.dims for value in values):
        return 0
    count = rule.macs(node, lambda value: tuple(dim.size for dim in shapes.dims[value]))
    return round(runs * count / shapes.samples)


# --- matching -----------------------------------------------------------------------------------------------


def _matched(old: Sequence[_Layer], new: Sequence[_Layer]) -> dict[int, _Layer]:
    """Return what has become of the layers of ``old``, by their places; those that are gone are left out."""
    pairs: dict[int, int] = {}
    for key in (_by_name, _by_weight):
        matched = set(pairs.values())
        free = [place for place in range(len(new)) if place not in matched]
        there = _unique({place: key(new[place]) for place in free})
        here = _unique({place: key(old[place]) for place in range(len(old)) if place not in pairs})
        for text, place in here.items():
            other = there.get(text)
            if other is not None and _may_become(old[place], new[other]):
                pairs[place] = other
    for places, others in _gaps(pairs, len(old), len(new)):
        pairs |= _aligned(old, new, places, others)
    return {place: new[other] for place, other in pairs.items()}


def _by_name(layer: _Layer) -> str:
    return _bare(layer.name)


def _by_weight(layer: _Layer) -> str:
    return "\n".join(map(_bare, layer.tensors))


def _bare(name: str) -> str:
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _unique(texts: Mapping[int, str]) -> dict[str, int]:
    """Return places by text, for texts that stand at one place alone."""
    counts = Counter(texts.values())
    return {text: place for place, text in texts.items() if counts[text] == 1}


def _may_become(old: _Layer, new: _Layer) -> bool:
    """Return whether a layer can be what is left of another: of its kind, and nowhere larger."""
    return (
        old.family == new.family
        and new.width <= old.width
        and new.summed <= old.summed
        and new.params <= old.params
        and new.taps == old.taps
    )


def _gaps(pairs: Mapping[int, int], old: int, new: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the unmatched places of both sides that lie between the same matched ones.

    Where the order of the matched ones differs, there is one gap, of all that are not matched.
    """
    anchors = sorted(pairs.items())
    others = [other for _, other in anchors]
    if others != sorted(others):
        anchors = []
    matched = set(pairs.values())
    start = begin = 0
    for end, stop in [*anchors, (old, new)]:
        places = [place for place in range(start, end) if place not in pairs]
        between = [place for place in range(begin, stop) if place not in matched]
        if places and between:
            yield places, between
        start, begin = end, stop


def _aligned(
    old: Sequence[_Layer], new: Sequence[_Layer], places: Sequence[int], others: Sequence[int]
) -> dict[int, int]:
    """Match two lists in order, so that as many as possible have a partner, and these differ little.

    The alignment with the largest sum, by dynamic programming over both lists (Needleman and Wunsch, 1970),
    where a pair counts 1 and up to a half more the closer its sizes are. All pairs of thousands of layers
    would take minutes: such lists are walked once, each layer with the next that may have become of it.
    """
    old, new = [old[place] for place in places], [new[other] for other in others]
    if len(old) == len(new) and all(map(_may_become, old, new)):
        return dict(zip(places, others, strict=True))
    if len(old) * len(new) > _MOST_PAIRS:
        return {places[row]: others[column] for row, column in _first_fits(old, new)}
    gains = _likeness(old, new)
    best = np.zeros((len(old) + 1, len(new) + 1))
    for row in range(len(old)):
        taken = np.where(gains[row] > 0, best[row, :-1] + gains[row], 0.0)
        best[row + 1, 1:] = np.maximum.accumulate(np.maximum(best[row, 1:], taken))
    pairs = {}
    row, column = len(old), len(new)
    while row and column:
        if best[row, column] == best[row - 1, column]:
            row -= 1
        elif best[row, column] == best[row, column - 1]:
            column -= 1
        else:
            row, column = row - 1, column - 1
            pairs[places[row]] = others[column]
    return pairs


def _first_fits(old: Sequence[_Layer], new: Sequence[_Layer]) -> Iterator[tuple[int, int]]:
    """Yield pairs in order; an old layer that does not fit is passed over, since layers go, and none come."""
    column = 0
    for row, layer in enumerate(old):
        if column < len(new) and _may_become(layer, new[column]):
            yield row, column
            column += 1


def _likeness(old: Sequence[_Layer], new: Sequence[_Layer]) -> npt.NDArray[np.float64]:
    """Return for each pair 0 if the one can't have become the other, else 1 to 1.5."""
    families = {layer.family: number for number, layer in enumerate((*old, *new))}
    columns = [
        np.array(
            [[families[layer.family], layer.width, layer.summed, layer.params, layer.taps] for layer in side]
        )
        for side in (old, new)
    ]
    (family, width, summed, params, taps), (others, wide, sums, left, same) = (
        columns[0].T[:, :, None], columns[1].T[:, None, :],
    )  # fmt: skip
    may = (family == others) & (wide <= width) & (sums <= summed) & (left <= params) & (same == taps)
    likeness = 1 + 0.5 * (wide / np.maximum(1, width)) * (sums / np.maximum(1, summed))
    return np.where(may, likeness, 0.0)


# --- reasons ------------------------------------------------------------------------------------------------


def _reasons(analysis: Analysis, layers: Sequence[_Layer], skipped: Sequence[Skip]) -> dict[int, list[str]]:
    """Return why layers were left alone, by their places, each reason once, and not more than a few."""
    weights = _weights_by_name(analysis)
    said: dict[str | _Weight, dict[str, int]] = defaultdict(dict)
    for number, skip in enumerate(skipped):
        for key in (skip.name, *weights.get(skip.name, ())):
            if len(said[key]) <= _MOST_REASONS:  # one more, to know that there are others
                said[key].setdefault(skip.reason, number)
    reasons = {}
    for place, layer in enumerate(layers):
        keys: list[str | _Weight] = [layer.name, *(str(value.name) for value in layer.node.outputs)]
        for tensor, axis in layer.tensors.items():
            keys += [tensor, (tensor, axis), (tensor, None)]
        own = [pair for key in keys for pair in said.get(key, {}).items()]
        told = sorted(own, key=lambda pair: pair[1])
        unique = list(dict.fromkeys(reason for reason, _ in told))
        reasons[place] = unique[:_MOST_REASONS] + ["and others"] * (len(unique) > _MOST_REASONS)
    return reasons


def _weights_by_name(analysis: Analysis) -> dict[str, set[_Weight]]:
    """Return the weights of every group, with the axis that is its, and of every branch.

    Layers that share a weight are found by it: a list of them for each group would grow with their square.
    """
    weights: dict[str, set[_Weight]] = defaultdict(set)
    for group in analysis.groups:
        weights[group.name].update((member.tensor, member.axis) for member in group.members)
    for branch in find_branches(analysis.model.graph, analysis.shapes)[0]:
        weights[branch.name].update((tensor, None) for tensor in branch.weights)
    return weights
