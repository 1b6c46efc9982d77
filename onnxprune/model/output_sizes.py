"""Symbolic sizes of what nodes give whose target sizes are computed, or that broadcast."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from onnxprune.model.dims import ONE, Contents, Dim, Dims, factor_of, product_of

#: Operators whose output has the type and the sizes of their first input.
LIKE_FIRST = frozenset({
    "Abs", "Ceil", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "Log", "Neg", "Reciprocal", "Relu", "Sigmoid", "Softplus", "Sqrt", "Tanh",
})  # fmt: skip

#: Operators that broadcast two inputs of one type, which their output has too (from opset 7 on).
BROADCAST = frozenset({"Add", "Div", "Mul", "Sub"})


def broadcast(a: Sequence[Dim], b: Sequence[Dim], output: ir.Value) -> tuple[Dim, ...] | None:
    """Return the sizes after a is broadcast against b as numpy does, None where they do not fit.

    A constant size other than 1 wins over a symbol, which must be 1 or the same then. Two symbols that differ
    give a third one.
    """
    rank = max(len(a), len(b))
    padded = ((*(ONE,) * (rank - len(dims)), *dims) for dims in (a, b))
    result = []
    for axis, (one, other) in enumerate(zip(*padded, strict=True)):
        if one.size != other.size and 1 not in (one.size, other.size):
            return None
        if one == other or other == ONE:
            result.append(one)
        elif one == ONE:
            result.append(other)
        else:
            size = one.size if other.size == 1 else other.size
            constant = one.is_constant or other.is_constant
            result.append(Dim(size) if constant else Dim(size, 1, (f"{output.name}.{axis}",)))
    return tuple(result)


def output_dims(
    node: ir.Node, dims: Dims, contents: Contents, sizes: tuple[int, ...]
) -> tuple[Dim, ...] | None:
    """Return the symbolic shape after a node whose target shape is an input, None for other nodes."""
    if node.op_type == "Slice":
        return _sliced_dims(node, dims, contents, sizes)
    if node.op_type == "Tile":
        return _tiled_dims(node, dims, contents, sizes)
    if node.op_type not in ("Reshape", "Expand", "ConstantOfShape") or any(
        v is None for v in node.inputs[:2]
    ):
        return None
    target = contents.get(node.inputs[-1])  # type: ignore[arg-type]
    if target is None:
        return None
    entries = target.elements()
    if node.op_type == "ConstantOfShape":
        return tuple(entries)
    source = dims[node.inputs[0]]  # type: ignore[index]
    if node.op_type == "Expand":
        return _expanded(source, entries, sizes)
    keep_zero = node.attributes.get_int("allowzero", 0) == 1
    result = [
        source[axis] if dim.is_constant and dim.size == 0 and not keep_zero else dim
        for axis, dim in enumerate(entries)
    ]
    for axis, dim in enumerate(result):
        if dim.is_constant and dim.size == -1:
            result[axis] = _quotient(source, result[:axis] + result[axis + 1 :], sizes[axis], node, axis)
    return tuple(result)


def _sliced_dims(
    node: ir.Node, dims: Dims, contents: Contents, sizes: tuple[int, ...]
) -> tuple[Dim, ...] | None:
    """Return the shape after a Slice at computed bounds: axes that are not sliced keep their size."""
    bounds = [contents.get(value) for value in node.inputs[1:4] if value is not None]
    if len(bounds) < 3 or bounds[2] is None or not bounds[2].is_constant:
        return None
    if all(bound is not None and bound.is_constant for bound in bounds):
        return None  # ONNX tells
    source, output = dims[node.inputs[0]], node.outputs[0]  # type: ignore[index]
    sliced = {int(axis) % len(source) for axis in bounds[2].numbers.ravel()}
    return tuple(
        Dim(size, 1, (f"{output.name}.{axis}",)) if axis in sliced else source[axis]
        for axis, size in enumerate(sizes)
    )


def _tiled_dims(
    node: ir.Node, dims: Dims, contents: Contents, sizes: tuple[int, ...]
) -> tuple[Dim, ...] | None:
    repeats = contents.get(node.inputs[1]) if len(node.inputs) == 2 and node.inputs[1] is not None else None
    if repeats is None:
        return None
    source = dims[node.inputs[0]]  # type: ignore[index]
    tiled = tuple(product_of(dim, times) for dim, times in zip(source, repeats.elements(), strict=True))
    return tiled if tuple(dim.size for dim in tiled) == sizes else None


def _expanded(source: Sequence[Dim], entries: Sequence[Dim], sizes: tuple[int, ...]) -> tuple[Dim, ...]:
    rank = len(sizes)
    padded_source = [Dim(1)] * (rank - len(source)) + list(source)
    padded_target = [Dim(1)] * (rank - len(entries)) + list(entries)
    return tuple(
        given if (given.is_constant and given.size != 1) or target == Dim(1) else target
        for given, target in zip(padded_source, padded_target, strict=True)
    )


def _quotient(source: Sequence[Dim], others: Sequence[Dim], size: int, node: ir.Node, axis: int) -> Dim:
    """The entry that -1 stands for: the product of ``source`` over the product of ``others``."""
    remaining = [symbol for dim in source for symbol in dim.symbols]
    number = math.prod(factor_of(dim) for dim in source)
    for dim in others:
        for symbol in dim.symbols:
            if symbol not in remaining:
                return Dim(size, 1, (f"{node.outputs[0].name}.{axis}",))
            remaining.remove(symbol)
    divisor = math.prod(factor_of(dim) for dim in others)
    if not divisor or number % divisor:
        return Dim(size, 1, (f"{node.outputs[0].name}.{axis}",))
    factor = number // divisor
    return Dim(size, factor, tuple(sorted(remaining))) if remaining else Dim(size)
