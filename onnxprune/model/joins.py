"""Weights that a file keeps in pieces, and parts picked from values that were just joined.

Exporters put the weights of a recurrent layer together from slices of what the framework stores, in another
order of the gates; and they join the last states of all layers, to pick one of them again. Neither computes
anything, and both hide which positions belong together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.model.dims import Array
from onnxprune.model.names import Names, add_constant
from onnxprune.model.nodes import nodes_in
from onnxprune.model.shape_values import slice_bounds
from onnxprune.model.shapes import Shapes

_MOVES = ("Squeeze", "Transpose", "Unsqueeze")
_PIECE, _JOINED = "_piece", "_joined"


def join_pieces(graph: ir.Graph) -> None:
    """Do at once what a graph does to pieces of its weights: slices, splits, joins, and moves of these.

    Weights are taken apart only if nothing else reads them and the pieces hold no more elements than the
    whole, so a file never grows; and pieces are joined only where nothing else reads them.

    Args:
        graph: a graph whose constants, those of its bodies too, are its initializers; changed in place.
    """
    names = Names(graph)
    pieces: set[ir.Value] = set()
    for value in list(graph.initializers.values()):
        if _is_weight(value) and (cutters := _cutters(value)):
            for node in cutters:
                pieces.update(_take_apart(graph, node, names))
    for node in list(nodes_in(graph)):
        inputs = [value for value in node.inputs if value is not None]
        if node.op_type == "Concat" and not node.domain:
            foldable = all(_is_weight(value) and len(value.uses()) == 1 for value in inputs)
        else:
            foldable = node.op_type in _MOVES and not node.domain and len(inputs[0].uses()) == 1
        if foldable and pieces.intersection(inputs) and not node.outputs[0].is_graph_output():
            contents = _moved(node, inputs)
            if contents is not None:
                pieces.add(_join(graph, node, inputs, contents, names))


def _is_weight(value: ir.Value) -> bool:
    """Floating-point numbers that nobody outside the graph sets or reads."""
    return (
        value.const_value is not None
        and value.is_initializer()
        and not value.is_graph_input()
        and not value.is_graph_output()
        and value.const_value.dtype.is_floating_point()
    )


def _drop_unused(graph: ir.Graph, value: ir.Value) -> None:
    if value.is_initializer() and not value.uses() and not value.is_graph_output():
        graph.initializers.pop(str(value.name))


# --- taking apart -------------------------------------------------------------------------------------------


def _cutters(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that cut a weight into pieces; none if anything else reads it, or pieces hold more."""
    cutters: list[ir.Node] = []
    elements = 0
    for node, index in value.uses():
        pieces = _pieces_of(node) if index == 0 else None
        if pieces is None or any(output.is_graph_output() for output in node.outputs):
            return []
        cutters.append(node)
        elements += sum(piece.size for piece in pieces)
    whole = 0 if value.const_value is None else value.const_value.size
    return cutters if elements <= whole else []


def _pieces_of(node: ir.Node) -> list[Array] | None:
    """Return what a Slice or Split with constant arguments makes of its first input, None for other nodes."""
    if node.op_type not in ("Slice", "Split") or node.domain:
        return None
    arrays = _constants(node.inputs)
    if arrays is None:
        return None
    whole, *arguments = arrays
    if node.op_type == "Slice":
        index = [slice(None)] * whole.ndim
        for axis, bounds in slice_bounds(node, whole.ndim, arguments).items():
            index[axis] = slice(*bounds)
        return [whole[tuple(index)]]
    axis = node.attributes.get_int("axis", 0)
    sizes = list(arguments[0]) if arguments else list(node.attributes.get_ints("split", ()))
    if not sizes:
        step = math.ceil(whole.shape[axis] / len(node.outputs))
        sizes = [step] * len(node.outputs)
    return np.split(whole, np.cumsum(sizes)[:-1], axis=axis)


def _constants(values: Sequence[ir.Value | None]) -> list[Array] | None:
    """Return the contents of all inputs, None if one is computed or absent before another."""
    arrays = []
    while values and values[-1] is None:
        values = values[:-1]
    for value in values:
        if value is None or value.const_value is None or not value.is_initializer() or value.is_graph_input():
            return None
        arrays.append(value.const_value.numpy())
    return arrays


def _take_apart(graph: ir.Graph, node: ir.Node, names: Names) -> Iterator[ir.Value]:
    source = node.inputs[0]
    if source is None:
        return
    for output, piece in zip(node.outputs, _pieces_of(node) or (), strict=True):
        if output.uses():
            value = _constant_like(graph, source, piece, names.fresh(f"{source.name}{_PIECE}"))
            output.replace_all_uses_with(value)
            yield value
    (node.graph or graph).remove(node, safe=True)
    _drop_unused(graph, source)


# --- joining ------------------------------------------------------------------------------------------------


def _moved(node: ir.Node, inputs: Sequence[ir.Value]) -> Array | None:
    arrays = _constants(inputs)
    if arrays is None:
        return None
    x, *arguments = arrays
    if node.op_type == "Concat":
        return np.concatenate(arrays, axis=node.attributes.get_int("axis", 0))
    if node.op_type == "Transpose":
        return np.transpose(x, node.attributes.get_ints("perm", ()) or None)
    listed = arguments[0].ravel() if arguments else node.attributes.get_ints("axes", ())
    axes = tuple(int(axis) for axis in listed)
    if node.op_type == "Squeeze":
        return np.squeeze(x, axes or None)
    return np.expand_dims(x, tuple(axis % (x.ndim + len(axes)) for axis in axes))


def _join(
    graph: ir.Graph, node: ir.Node, inputs: Sequence[ir.Value], contents: Array, names: Names
) -> ir.Value:
    """Put a constant, named after its first piece, in the place of a node that joins or moves pieces."""
    source = inputs[0]
    wanted = re.sub(rf"{_PIECE}(_\d+)?$", "", str(source.name))
    name = wanted if wanted.endswith(_JOINED) else names.fresh(f"{wanted}{_JOINED}")
    output = node.outputs[0]
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)
    for value in inputs:
        _drop_unused(graph, value)
    value = _constant_like(graph, source, contents, name)
    output.replace_all_uses_with(value)
    (node.graph or graph).remove(node, safe=True)
    return value


def _constant_like(graph: ir.Graph, source: ir.Value, contents: Array, name: str) -> ir.Value:
    dtype = None if source.const_value is None else source.const_value.dtype
    return add_constant(graph, ir.Tensor(contents, dtype=dtype, name=name), name)


# --- picking ------------------------------------------------------------------------------------------------


def pick_before_joining(graph: ir.Graph, shapes: Shapes) -> None:
    """Let a Gather of constant positions that all lie in one part of a Concat read that part alone.

    Args:
        graph: changed in place.
        shapes: of its values; complete afterwards too.
    """
    names = Names(graph)
    for node in nodes_in(graph):
        if node.op_type != "Gather" or node.domain or node.inputs[0] is None or node.inputs[1] is None:
            continue
        joined, positions = node.inputs[0].producer(), shapes.constant(node.inputs[1])
        if joined is None or joined.op_type != "Concat" or joined.domain or positions is None:
            continue
        found = _part_with(joined, node.attributes.get_int("axis", 0), positions, shapes)
        if found is None:
            continue
        part, inside = found
        name = names.fresh(f"{node.inputs[1].name}_inside")
        index = add_constant(graph, ir.Tensor(inside, name=name), name)
        shapes.add_constant(index, inside)
        node.replace_input_with(0, part)
        node.replace_input_with(1, index)


def _part_with(joined: ir.Node, axis: int, positions: Array, shapes: Shapes) -> tuple[ir.Value, Array] | None:
    """Return the only input that holds these positions, and where in it they are."""
    parts = [value for value in joined.inputs if value is not None]
    if positions.size == 0 or any(part not in shapes.dims for part in parts):
        return None
    rank = len(shapes.dims[parts[0]])
    axis %= rank
    if joined.attributes.get_int("axis", 0) % rank != axis:
        return None
    sizes = [shapes.dims[part][axis] for part in parts]
    if not all(size.is_constant for size in sizes):
        return None
    ends = np.cumsum([size.size for size in sizes])
    wanted = positions % ends[-1]
    owners = np.searchsorted(ends, wanted.ravel(), side="right")
    if (owners != owners[0]).any():
        return None
    owner = int(owners[0])
    start = int(ends[owner]) - sizes[owner].size
    return parts[owner], np.asarray(wanted - start, dtype=positions.dtype)
