"""A working copy in which sizes are constants: what analysis and cutting are done on.

The copy computes the same outputs from the same inputs. Constants are initializers, Identity nodes are gone,
arithmetic on sizes is done where its result is the same for every input, and the targets of Reshape and
Expand say in numbers what they can.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxprune.model.shape_values import Array, Dim
from onnxprune.model.shapes import Shapes, concretise

# The passes log every step at levels that belong to their own users.
logging.getLogger("onnx_ir").setLevel(logging.ERROR)


def prepare(
    model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None = None
) -> tuple[ir.Model, Shapes]:
    """Return a working copy of a model and the sizes of all its values. Tensors are shared, not copied.

    Args:
        model: not changed.
        input_shapes: concrete shapes by input name, for inputs with symbolic axes.

    Raises:
        UsageError, ModelError: see `concretise`.
    """
    work = model.clone()
    work.meta.update(model.meta)
    _name_nodes(work.graph)
    _keep_constant_outputs(work.graph)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(work)
    passes.IdentityEliminationPass()(work)
    shapes = concretise(work, input_shapes)
    _fold(work.graph, shapes)
    for node in list(work.graph):
        if node.op_type == "Reshape" and not node.domain:
            _write_reshape_target(work.graph, node, shapes)
        elif node.op_type == "Expand" and not node.domain:
            _write_expand_target(work.graph, node, shapes)
    passes.RemoveUnusedNodesPass()(work)
    return work, shapes


def _name_nodes(graph: ir.Graph) -> None:
    """Give every node a name of its own: members of channel groups are told apart by their consumers."""
    taken = {node.name for node in graph if node.name}
    seen: set[str] = set()
    for number, node in enumerate(graph):
        if not node.name or node.name in seen:
            name = f"{node.op_type}_{number}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
        seen.add(node.name)


def _keep_constant_outputs(graph: ir.Graph) -> None:
    """Put an Identity behind weights that are outputs as well, so that a cut never reaches an output."""
    for position, value in enumerate(graph.outputs):
        if value.is_initializer() and value.uses():
            copy = ir.Value(name=value.name, shape=value.shape, type=value.type, const_value=value.const_value)
            graph.initializers.pop(str(value.name))
            value.name = f"{copy.name}_weight"
            graph.initializers.add(value)
            graph.outputs[position] = copy
            graph.register_initializer(copy)


def _fold(graph: ir.Graph, shapes: Shapes) -> None:
    """Replace values that are the same for every input, and small, by initializers."""
    for node in list(graph):
        if len(node.outputs) != 1 or node.outputs[0].is_graph_output():
            continue
        contents = shapes.constant(node.outputs[0])
        if contents is None or not node.outputs[0].uses():
            continue
        value = _constant(graph, str(node.outputs[0].name), contents, shapes)
        node.outputs[0].replace_all_uses_with(value)
        graph.remove(node, safe=True)


def _constant(graph: ir.Graph, wanted: str, contents: Array, shapes: Shapes) -> ir.Value:
    """Register an initializer; its name is ``wanted``, or that with a number behind it."""
    name, number = wanted, 0
    while name in graph.initializers:
        number += 1
        name = f"{wanted}_{number}"
    tensor = ir.tensor(contents, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    shapes.add_constant(value, contents)
    return value


def _write_reshape_target(graph: ir.Graph, node: ir.Node, shapes: Shapes) -> None:
    """Write a computed target in numbers: constants, 0 for a kept axis, -1 for one more symbolic size.

    What is left is read from the input's own shape: ``Where(is_constant, sizes, Gather(Shape(x), axes))``.
    """
    source, target = node.inputs[:2]
    if source is None or target is None or target.is_initializer() or node.attributes.get_int("allowzero", 0):
        return
    content = shapes.contents.get(target)
    if content is None or source not in shapes.dims:
        return
    entries = content.elements()
    given = shapes.dims[source]
    sizes: list[int | None] = [
        dim.size if dim.is_constant else 0 if axis < len(given) and given[axis] == dim else None
        for axis, dim in enumerate(entries)
    ]
    missing = [axis for axis, size in enumerate(sizes) if size is None]
    labels = [dim.label for dim in given]
    copied = [axis for axis in missing if entries[axis].label in labels]
    free = [axis for axis in missing if axis not in copied]
    if not free and copied:
        free = [copied.pop()]
    if len(free) > 1 or (free and -1 in sizes):
        return
    for axis in free:
        sizes[axis] = -1
    numbers = np.array([0 if size is None else size for size in sizes], dtype=np.int64)
    constant = _constant(graph, f"{target.name}_sizes", numbers, shapes)
    if not copied:
        node.replace_input_with(1, constant)
        return
    axes = np.array([labels.index(dim.label) if i in copied else 0 for i, dim in enumerate(entries)], np.int64)
    known = np.array([axis not in copied for axis in range(len(entries))])
    _replace_target(graph, node, source, constant, axes, known, shapes)


def _replace_target(
    graph: ir.Graph, node: ir.Node, source: ir.Value, sizes: ir.Value, axes: Array, known: Array, shapes: Shapes
) -> None:
    base = f"{sizes.name}_of"
    whole = ir.node("Shape", [source], name=f"{base}_shape")
    picked = ir.node("Gather", [whole.outputs[0], _constant(graph, f"{base}_axes", axes, shapes)], name=f"{base}_gather")
    mask = _constant(graph, f"{base}_known", known, shapes)
    chosen = ir.node("Where", [mask, sizes, picked.outputs[0]], name=f"{base}_where")
    for new in (whole, picked, chosen):
        new.outputs[0].name = f"{new.name}_out"
        new.outputs[0].dtype = ir.DataType.INT64
        shapes.dims[new.outputs[0]] = (Dim(len(shapes.dims[source]) if new is whole else len(axes)),)
    graph.insert_before(node, [whole, picked, chosen])
    node.replace_input_with(1, chosen.outputs[0])


def _write_expand_target(graph: ir.Graph, node: ir.Node, shapes: Shapes) -> None:
    """Write 1 wherever an Expand repeats nothing, so that only the repeats are left as numbers."""
    source, target = node.inputs[:2]
    if source is None or target is None or source not in shapes.dims or node.outputs[0] not in shapes.dims:
        return
    given, result = shapes.dims[source], shapes.dims[node.outputs[0]]
    shift = len(result) - len(given)
    sizes = []
    for axis, dim in enumerate(result):
        if axis >= shift and given[axis - shift] == dim:
            sizes.append(1)
        elif dim.is_constant:
            sizes.append(dim.size)
        else:
            return
    node.replace_input_with(1, _constant(graph, f"{node.outputs[0].name}_sizes", np.array(sizes, np.int64), shapes))
