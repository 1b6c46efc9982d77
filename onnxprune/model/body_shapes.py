"""Sizes through If, Loop and Scan: what enters their bodies, and what comes out.

A body is walked as if it stood in the outer graph. What differs from one iteration to the next, or from one
branch to the other, is never a constant: a size that both branches of an If agree on is that size, any other
is a symbol of its own, and so is a size of a state that does not stay the same while a loop runs. Where even
the rank is not the same, nothing is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnx_ir as ir

from onnxprune.model.dims import Dim, ShapeValue
from onnxprune.model.sequence_shapes import is_sequence

if TYPE_CHECKING:
    from onnxprune.model.shapes import Shapes

#: Iterations assumed where a loop ends by what it computes; the size is a symbol.
_ITERATIONS = 2

Dims = tuple[Dim, ...]


class Walk(Protocol):
    """What walks over the nodes of a graph and notes the sizes of their outputs."""

    shapes: Shapes
    types: dict[ir.Value, int]

    def visit_graph(self, graph: ir.Graph) -> None:
        """Note the sizes of everything in a graph; its inputs are known."""

    def element_type(self, value: ir.Value) -> int:
        """Return the type of the elements of a value."""

    def fail(self, output: ir.Value, reason: str) -> None:
        """Note that the sizes of a value are not known beyond what the file declares."""


def has_bodies(node: ir.Node) -> bool:
    """Return whether a node is an If, Loop or Scan."""
    return node.domain in ("", "ai.onnx") and node.op_type in ("If", "Loop", "Scan")


def branches(node: ir.Node) -> tuple[ir.Graph, ir.Graph]:
    """Return what an If runs where its condition holds, and what it runs else."""
    return node.attributes["then_branch"].as_graph(), node.attributes["else_branch"].as_graph()


def taken_branch(node: ir.Node, shapes: Shapes) -> ir.Graph | None:
    """Return the branch that an If runs for every input of the model, None if that depends on the input."""
    condition = shapes.constant(node.inputs[0])
    if condition is None or condition.size != 1:
        return None
    return branches(node)[0 if condition.item() else 1]


def scan_axes(node: ir.Node, name: str, ranks: Sequence[int]) -> list[int]:
    """Return the axes that a Scan runs along, one for each scanned input or output (``name`` says which).

    Args:
        node: the Scan.
        name: ``scan_input_axes`` or ``scan_output_axes``.
        ranks: of the outer values.
    """
    given = node.attributes.get_ints(name, (0,) * len(ranks))
    return [axis % rank if rank else 0 for axis, rank in zip(given, ranks, strict=True)]


def tell(node: ir.Node, walk: Walk) -> None:
    """Note the sizes of everything in the bodies of a node, and those of its outputs."""
    {"If": _tell_if, "Loop": _tell_loop, "Scan": _tell_scan}[node.op_type](node, walk)


def _tell_if(node: ir.Node, walk: Walk) -> None:
    taken = taken_branch(node, walk.shapes)
    run = branches(node) if taken is None else (taken,)
    for branch in run:
        walk.visit_graph(branch)
    for position, output in enumerate(node.outputs):
        _join(node, [branch.outputs[position] for branch in run], output, walk)


def _join(node: ir.Node, values: Sequence[ir.Value], output: ir.Value, walk: Walk) -> None:
    """Note what is known of an output that is one of several values."""
    shapes = walk.shapes
    walk.types[output] = walk.element_type(values[0])
    known = [shapes.dims[value] for value in values if value in shapes.dims]
    if len(known) < len(values):
        missing = next(value for value in values if value not in shapes.dims)
        walk.fail(output, shapes.unknown.get(missing, f"the shape of {missing.name} is not known"))
        return
    if len({len(dims) for dims in known}) > 1:
        # What the file declares is not asked: ONNX's own inference declares such outputs to be scalars.
        shapes.unknown[output] = f"the branches of {node.name or node.op_type} return different ranks"
        return
    shapes.dims[output] = tuple(
        same[0] if len(set(same)) == 1 else _symbol(same[0].size, output, axis)
        for axis, same in enumerate(zip(*known, strict=True))
    )
    contents = [shapes.contents[value] for value in values if value in shapes.contents]
    if len(values) == 1 and contents:
        shapes.contents[output] = contents[0]


def _symbol(size: int, value: ir.Value, axis: int) -> Dim:
    return Dim(size, 1, (f"{value.name}.{axis}",))


def _tell_loop(node: ir.Node, walk: Walk) -> None:
    body = node.attributes["body"].as_graph()
    shapes = walk.shapes
    for value in body.inputs[:2]:
        declared = () if value.shape is None else value.shape
        shapes.dims[value] = tuple(Dim(1) for _ in declared)  # scalars, or vectors of one element
    condition = body.inputs[1]
    # An iteration runs only where the condition holds, so in the body it does.
    shapes.contents[condition] = ShapeValue(np.ones([1] * len(shapes.dims[condition]), np.bool_))
    states = len(node.inputs) - 2
    _iterate(node, node.inputs[2:], body.inputs[2:], body, body.outputs[1 : 1 + states], walk)
    for returned, output in zip(body.outputs[1 + states :], node.outputs[states:], strict=False):
        walk.types[output] = walk.element_type(returned)
        dims = shapes.dims.get(returned)
        if dims is None:
            walk.fail(output, shapes.unknown.get(returned, f"the shape of {returned.name} is not known"))
        else:
            count = loop_count(node, shapes) or _symbol(_ITERATIONS, output, 0)
            shapes.dims[output] = (count, *dims)


def loop_count(node: ir.Node, shapes: Shapes) -> Dim | None:
    """Return how often a Loop runs, None if that depends on what it computes."""
    limit, condition = node.inputs[:2]
    body = node.attributes["body"].as_graph()
    if not body.outputs:
        return None  # a runtime would not take it
    goes_on = shapes.constant(body.outputs[0])
    starts = np.True_ if condition is None else shapes.constant(condition)
    content = None if limit is None else shapes.contents.get(limit)
    if content is None or starts is None or goes_on is None or not (goes_on.all() and starts.all()):
        return None
    (count,) = content.elements()
    return count


def _tell_scan(node: ir.Node, walk: Walk) -> None:
    body = node.attributes["body"].as_graph()
    shapes = walk.shapes
    if shapes.opset < 9:
        for output in node.outputs:
            walk.fail(output, f"{node.name or node.op_type} is a Scan of opset 8, with a batch of its own")
        return
    states = len(node.inputs) - node.attributes.get_int("num_scan_inputs", 0)
    scanned = node.inputs[states:]
    ranks = [len(shapes.dims.get(value, ())) if value is not None else 0 for value in scanned]
    count: Dim | None = None
    axes = scan_axes(node, "scan_input_axes", ranks)
    for outer, inner, axis in zip(scanned, body.inputs[states:], axes, strict=True):
        if outer is None or outer not in shapes.dims:
            shapes.dims.pop(inner, None)
            shapes.unknown[inner] = f"the shape of {outer.name if outer else 'an input'} is not known"
            continue
        dims = shapes.dims[outer]
        count = count or dims[axis]
        shapes.dims[inner] = dims[:axis] + dims[axis + 1 :]
        walk.types[inner] = walk.element_type(outer)
    _iterate(node, node.inputs[:states], body.inputs[:states], body, body.outputs[:states], walk)
    returned_by = list(zip(body.outputs[states:], node.outputs[states:], strict=False))
    ranks = [len(shapes.dims.get(returned, ())) + 1 for returned, _ in returned_by]
    axes = scan_axes(node, "scan_output_axes", ranks) if returned_by else []
    for (returned, output), axis in zip(returned_by, axes, strict=True):
        walk.types[output] = walk.element_type(returned)
        inner_dims = shapes.dims.get(returned)
        if inner_dims is None or count is None:
            walk.fail(output, shapes.unknown.get(returned, f"the shape of {returned.name} is not known"))
        else:
            shapes.dims[output] = (*inner_dims[:axis], count, *inner_dims[axis:])


def _iterate(
    node: ir.Node,
    initial: Sequence[ir.Value | None],
    entering: Sequence[ir.Value],
    body: ir.Graph,
    returned: Sequence[ir.Value],
    walk: Walk,
) -> None:
    """Walk over a body until the sizes of its states are those that it returns, and note the final states."""
    shapes = walk.shapes
    first = [None if value is None else shapes.dims.get(value) for value in initial]
    states = list(first)
    for outer, inner in zip(initial, entering, strict=True):
        if outer is not None:
            walk.types[inner] = walk.element_type(outer)
    changed = True
    while changed:
        _forget(body, shapes)
        for outer, inner, dims in zip(initial, entering, states, strict=True):
            shapes.dims.pop(inner, None)
            if dims is not None:
                shapes.dims[inner] = dims
            elif outer in shapes.unknown:
                shapes.unknown[inner] = shapes.unknown[outer]
            else:
                shapes.unknown[inner] = (
                    f"the shape of {inner.name} changes while {node.name or 'a loop'} runs"
                )
        walk.visit_graph(body)
        after = [
            _elements(shapes.dims.get(value), inner)
            if dims == () and is_sequence(outer)
            else _invariant(dims, shapes.dims.get(value), inner)
            for dims, value, inner, outer in zip(states, returned, entering, initial, strict=True)
        ]
        changed, states = after != states, after
    for output, start, dims, inner in zip(node.outputs, first, states, entering, strict=False):
        walk.types[output] = walk.element_type(inner)
        if start is None or dims is None:
            walk.fail(output, shapes.unknown[inner])
        elif len(start) < len(dims):  # a sequence that began without elements
            shapes.dims[output] = _elements(dims, output) or ()
        else:
            shapes.dims[output] = tuple(
                dim if dim == begin else _symbol(dim.size, output, axis)
                for axis, (dim, begin) in enumerate(zip(dims, start, strict=True))
            )


def _elements(dims: Dims | None, value: ir.Value) -> Dims | None:
    """Return the sizes of what a sequence gets in any iteration: a symbol of one is not that of all."""
    if dims is None:
        return None
    return tuple(dim if dim.is_constant else _symbol(dim.size, value, axis) for axis, dim in enumerate(dims))


def _invariant(state: Dims | None, returned: Dims | None, value: ir.Value) -> Dims | None:
    """Return the sizes of a state that hold in every iteration, None where its rank is not the same.

    Sizes that change are symbols. An axis that grows is taken to have as many positions as after one
    iteration, and two at least, since an axis of one position is broadcast.
    """
    if state is None or returned is None or len(state) != len(returned):
        return None
    dims = []
    for axis, (dim, other) in enumerate(zip(state, returned, strict=True)):
        if dim == other or dim.symbols == (f"{value.name}.{axis}",):
            dims.append(dim)
        else:
            size = dim.size if dim.size == other.size else max(dim.size, other.size, 2)
            dims.append(_symbol(size, value, axis))
    return tuple(dims)


def _forget(body: ir.Graph, shapes: Shapes) -> None:
    """Drop what an earlier walk found out about the values of a body."""
    for node in body.all_nodes():
        for output in node.outputs:
            shapes.dims.pop(output, None)
            shapes.contents.pop(output, None)
            shapes.unknown.pop(output, None)
