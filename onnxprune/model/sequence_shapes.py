"""Sizes of the elements of sequences. A sequence has the sizes of its elements; an empty one has rank 0.

A rank of 0 gives way to any other: no operator on sequences of scalars has channels to speak of.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxprune.model.contrib_shapes import Dims, shape_function
from onnxprune.model.dims import Dim

#: Elements assumed where their number is not known; the size is a symbol.
_ELEMENTS = 2


def common_dims(known: Sequence[tuple[Dim, ...]], name: str) -> Dims:
    """Return the sizes that hold for every one of several shapes, symbols where they differ.

    Args:
        known: shapes; those of rank 0 are left out where others are there.
        name: prefix of the symbols.
    """
    shapes = [dims for dims in known if dims] or list(known)
    if len({len(dims) for dims in shapes}) != 1:
        return None
    return tuple(
        sizes[0] if len(set(sizes)) == 1 else Dim(max(dim.size for dim in sizes), 1, (f"{name}.{axis}",))
        for axis, sizes in enumerate(zip(*shapes, strict=True))
    )


def is_sequence(value: ir.Value | None) -> bool:
    """Return whether a value is declared to be a sequence, or made by an operator that makes one."""
    if value is None:
        return False
    producer = value.producer()
    return isinstance(value.type, ir.SequenceType) or (producer is not None and producer.op_type in _MAKERS)


_MAKERS = ("SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SplitToSequence")


@shape_function("SequenceEmpty", domain="")
def _empty(_: ir.Node, __: Sequence[Dims]) -> Sequence[Dims]:
    return [()]


@shape_function("SequenceConstruct", domain="")
def _construct(node: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    return [common_dims([dims for dims in inputs if dims is not None], str(node.outputs[0].name))]


@shape_function("SequenceInsert", domain="")
def _insert(node: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    return _construct(node, inputs[:2])


@shape_function("SequenceAt", "SequenceErase", domain="")
def _at(_: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    return [inputs[0]]


@shape_function("SequenceLength", domain="")
def _length(_: ir.Node, __: Sequence[Dims]) -> Sequence[Dims]:
    return [()]


@shape_function("ConcatFromSequence", domain="")
def _concat(node: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    element = inputs[0]
    if not element:
        return [None]
    name = node.outputs[0].name
    new = node.attributes.get_int("new_axis", 0)
    axis = node.attributes.get_int("axis", 0) % (len(element) + new)
    count = Dim((1 if new else element[axis].size) * _ELEMENTS, 1, (f"{name}.{axis}",))
    return [(*element[:axis], count, *element[axis + 1 - new :])]


@shape_function("SplitToSequence", domain="")
def _split(node: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    whole = inputs[0]
    if not whole:
        return [None]
    axis = node.attributes.get_int("axis", 0) % len(whole)
    if len(inputs) > 1 and inputs[1] is not None:
        part: tuple[Dim, ...] = (Dim(max(2, whole[axis].size // 2), 1, (f"{node.outputs[0].name}.{axis}",)),)
    else:
        part = (Dim(1),) if node.attributes.get_int("keepdims", 1) else ()
    return [(*whole[:axis], *part, *whole[axis + 1 :])]
