"""How a stored constant arrives at its consumer: transposed, reshaped, cast or dequantized on the way.

A Mul that gives integers behind a Cast their scale dequantizes, too.

Every axis that the consumer sees is followed back to an axis of the stored tensor; an axis that a Reshape
merged or split belongs to none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.model.stored import all_nodes, consumer_name, stored_tensor


@dataclass(frozen=True, slots=True)
class ZeroPoint:
    """The integer that stands for zero in a quantized tensor.

    Attributes:
        value: where it is stored; a scalar, a vector along ``axis``, or (blocked) one entry per block.
        axis: axis of the *stored* weight that a vector goes along, None for a scalar.
        block_size: positions of ``axis`` that share an entry; 0 unless blocked.
    """

    value: ir.Value
    axis: int | None
    block_size: int = 0


@dataclass(frozen=True, slots=True)
class ConstantView:
    """A stored constant as it looks after the nodes on its way.

    Attributes:
        stored: the value that holds the tensor.
        shape: shape as seen here.
        axes: for each axis seen here, the whole axis of the stored tensor that it is, or None.
        quantized: a DequantizeLinear lies on the way.
        zero_point: its zero point, None where that is 0 or nothing is quantized.
    """

    stored: ir.Value
    shape: tuple[int, ...]
    axes: tuple[int | None, ...]
    quantized: bool = False
    zero_point: ZeroPoint | None = None


class NotFollowed(Exception):
    """The way from a stored constant can't be followed; the message is the reason. Never leaves ``ops``."""


def view_of(value: ir.Value) -> ConstantView | None:
    """Return how ``value`` is made from one stored constant, None if it is not (see ``computed_constants``).

    Raises:
        NotFollowed: the axes can't be followed.
    """
    source, steps = way_to(value)
    tensor = stored_tensor(source)
    if tensor is None:
        return None
    shape = tuple(int(size) for size in tensor.shape.numpy())
    view = ConstantView(source, shape, tuple(range(len(shape))))
    for node in reversed(steps):
        view = _STEPS[node.op_type](node, view)
    return view


def way_to(value: ir.Value) -> tuple[ir.Value, list[ir.Node]]:
    """Return where ``value`` comes from, and the nodes on the way that only move axes, the last one first."""
    steps: list[ir.Node] = []
    source = value
    while stored_tensor(source) is None:
        node = source.producer()
        first = node.inputs[0] if node is not None and node.inputs else None
        if node is None or first is None or not passes_through(node):
            break
        steps.append(node)
        source = first
    return source, steps


def passes_through(node: ir.Node) -> bool:
    """Return whether a constant passes through a node (as input 0) with its axes in reach."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _STEPS:
        return False
    return node.op_type != "Mul" or _scales_integers(node)


def _scales_integers(node: ir.Node) -> bool:
    """Return whether a Mul gives a stored integer, cast to float before, its stored scale."""
    first, scale = node.inputs[0], node.inputs[1] if len(node.inputs) == 2 else None
    cast = None if first is None else first.producer()
    source = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
    tensor = None if source is None else stored_tensor(source)
    return (
        tensor is not None
        and tensor.dtype.is_integer()
        and scale is not None
        and stored_tensor(scale) is not None
    )


def computed_constants(model: ir.Model) -> set[ir.Value]:
    """Return the values that are computed from constants alone, without looking into bodies and functions."""
    constants: set[ir.Value] = set()
    for node in all_nodes(model):
        for source in node.inputs:
            if source is not None and source not in constants and stored_tensor(source) is None:
                break
        else:
            if _is_pure(node, model):
                constants.update(node.outputs)
    return constants


def _is_pure(node: ir.Node, model: ir.Model) -> bool:
    """Tell whether what comes out depends on what goes in alone, as far as that can be seen from outside."""
    if not node.inputs:
        return node.op_type == "Constant"
    if node.op_type.startswith("Random") or node.op_identifier() in model.functions:
        return False
    bodies = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return all(attribute.type not in bodies for attribute in node.attributes.values())


def constant_numbers(value: ir.Value | None) -> list[int] | None:
    """Return a small integer constant as a list, None if it is absent or computed at run time."""
    if value is None:
        return None
    view = view_of(value)
    tensor = None if view is None else stored_tensor(view.stored)
    if tensor is None or tensor.size > 64:
        return None
    return [int(number) for number in np.asarray(tensor.numpy()).reshape(-1)]


# --- one step of the way: what it does to the axes ------------------------------------------------------


def _same(_: ir.Node, view: ConstantView) -> ConstantView:
    return view


def _transpose(node: ir.Node, view: ConstantView) -> ConstantView:
    order = list(node.attributes.get_ints("perm", tuple(reversed(range(len(view.shape))))) or ())
    if sorted(order) != list(range(len(view.shape))):
        raise NotFollowed(f"Transpose {consumer_name(node)} does not fit its rank")
    return _pick(view, order)


def _pick(view: ConstantView, order: Sequence[int | None]) -> ConstantView:
    """Return the view with axes in a new order; None stands for a new axis of size 1."""
    shape = tuple(1 if axis is None else view.shape[axis] for axis in order)
    axes = tuple(None if axis is None else view.axes[axis] for axis in order)
    return replace(view, shape=shape, axes=axes)


def _listed_axes(node: ir.Node, rank: int) -> list[int] | None:
    """Return the axes of a Squeeze or Unsqueeze (an attribute until opset 12, then an input), or None."""
    listed = node.attributes.get_ints("axes", None)
    if listed is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        listed = constant_numbers(node.inputs[1])
        if listed is None:
            raise NotFollowed(f"the axes of {node.op_type} {consumer_name(node)} are computed at run time")
    if listed is None:
        return None
    return [axis + rank if axis < 0 else axis for axis in listed]


def _squeeze(node: ir.Node, view: ConstantView) -> ConstantView:
    dropped = _listed_axes(node, len(view.shape))
    if dropped is None:
        dropped = [axis for axis, size in enumerate(view.shape) if size == 1]
    return _pick(view, [axis for axis in range(len(view.shape)) if axis not in dropped])


def _unsqueeze(node: ir.Node, view: ConstantView) -> ConstantView:
    rank = len(view.shape) + len(_listed_axes(node, 0) or ())
    added = _listed_axes(node, rank) or []
    old = iter(range(len(view.shape)))
    return _pick(view, [None if axis in added else next(old) for axis in range(rank)])


def _reshape(node: ir.Node, view: ConstantView) -> ConstantView:
    target = constant_numbers(node.inputs[1]) if len(node.inputs) > 1 else None
    if target is None:
        raise NotFollowed(f"the shape that Reshape {consumer_name(node)} asks for is computed at run time")
    if not node.attributes.get_int("allowzero", 0):
        if any(size == 0 and axis >= len(view.shape) for axis, size in enumerate(target)):
            raise NotFollowed(f"Reshape {consumer_name(node)} does not fit its rank")
        target = [view.shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    known = math.prod(size for size in target if size != -1)
    shape = tuple(math.prod(view.shape) // max(known, 1) if size == -1 else size for size in target)
    return _reshaped(node, view, shape)


def _flatten(node: ir.Node, view: ConstantView) -> ConstantView:
    axis = node.attributes.get_int("axis", 1)
    axis = axis + len(view.shape) if axis < 0 else axis
    return _reshaped(node, view, (math.prod(view.shape[:axis]), math.prod(view.shape[axis:])))


def _reshaped(node: ir.Node, view: ConstantView, shape: tuple[int, ...]) -> ConstantView:
    """Keep the axes that come through whole: same size, and as many elements before them as before."""
    if math.prod(shape) != math.prod(view.shape):
        raise NotFollowed(f"{node.op_type} {consumer_name(node)} asks for a shape that does not fit")
    places: dict[tuple[int, int], int | None] = {}
    before = 1
    for size, axis in zip(view.shape, view.axes, strict=True):
        if size > 1:
            places[before, size] = axis
        before *= size
    axes: list[int | None] = []
    before = 1
    for size in shape:
        axes.append(places.get((before, size)) if size > 1 else None)
        before *= size
    return replace(view, shape=shape, axes=_with_unit_axes(view, axes, shape))


def _with_unit_axes(
    view: ConstantView, axes: list[int | None], shape: tuple[int, ...]
) -> tuple[int | None, ...]:
    """Pair the axes of size 1 in order, where there are as many after the Reshape as before."""
    old = [axis for axis, size in zip(view.axes, view.shape, strict=True) if size == 1]
    new = [place for place, size in enumerate(shape) if size == 1]
    if len(old) == len(new):
        for place, axis in zip(new, old, strict=True):
            axes[place] = axis
    return tuple(axes)


def _dequantize(node: ir.Node, view: ConstantView) -> ConstantView:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is None:
        return replace(view, quantized=True)
    stored = view_of(zero)
    if stored is None:
        raise NotFollowed(f"the zero point of {consumer_name(node)} is computed at run time")
    if math.prod(stored.shape) == 1:
        return replace(view, quantized=True, zero_point=ZeroPoint(stored.stored, None))
    axis = node.attributes.get_int("axis", 1)
    own = view.axes[axis] if -len(view.axes) <= axis < len(view.axes) else None
    block_size = node.attributes.get_int("block_size", 0)
    if own is None or (block_size and view.axes != tuple(range(len(view.axes)))):
        raise NotFollowed(f"the axis that {consumer_name(node)} quantizes along can't be followed")
    return replace(view, quantized=True, zero_point=ZeroPoint(stored.stored, own, block_size))


def _scale(_: ir.Node, view: ConstantView) -> ConstantView:
    """A zero stays a zero: a scale is a factor."""
    return replace(view, quantized=True)


_STEPS: dict[str, Callable[[ir.Node, ConstantView], ConstantView]] = {
    "Cast": _same,
    "CastLike": _same,
    "DequantizeLinear": _dequantize,
    "Flatten": _flatten,
    "Identity": _same,
    "Mul": _scale,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
