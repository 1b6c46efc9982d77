"""Arithmetic on sizes: small integer tensors whose elements are constants or products of symbolic axes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from onnx import reference

from onnxprune.model.dims import Array, Contents, Dim, Dims, ShapeValue, factor_of, product_of

_LOG = logging.getLogger(__name__)

#: Types whose contents are followed: sizes, flags, and the scalars that scale them.
FOLLOWED = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.FLOAT})
#: Float tensors beyond this many elements are weights, not sizes.
FLOAT_LIMIT = 16


def evaluate(node: ir.Node, dims: Dims, contents: Contents, opset: int) -> ShapeValue | None:
    """Return the contents of a node's only output, or None if they cannot be followed."""
    try:
        with np.errstate(all="ignore"):
            return _evaluate(node, dims, contents, opset)
    # numpy and ONNX's reference raise whatever occurs to them where inputs or attributes make no sense, and
    # what can't be followed is always unknown.
    except Exception as error:  # noqa: BLE001
        _LOG.debug("%s (%s) is not followed: %s", node.name, node.op_type, error)
        return None


def _evaluate(node: ir.Node, dims: Dims, contents: Contents, opset: int) -> ShapeValue | None:
    if node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
        return None
    if node.op_type in ("Shape", "Size"):
        return _sizes_of(node, dims)
    inputs = [None if value is None else contents.get(value) for value in node.inputs]
    if not inputs or any(
        content is None and value is not None for content, value in zip(inputs, node.inputs, strict=True)
    ):
        return None
    if node.op_type in _MOVES:
        return _move(node, inputs)
    if node.op_type not in _EVALUATED:
        return None
    constant = all(content is None or content.is_constant for content in inputs)
    if node.op_type in ("Range", "ConstantOfShape", "OneHot") and not constant:
        return None  # how many elements there are depends on the input: only the shape is symbolic
    numbers = _reference(node, inputs, opset)
    if numbers is None or (numbers.dtype.kind == "f" and numbers.size > FLOAT_LIMIT):
        return None
    if constant:
        return ShapeValue(numbers)
    return ShapeValue(numbers, _symbolic(node, inputs, numbers))


def _sizes_of(node: ir.Node, dims: Dims) -> ShapeValue | None:
    source = dims.get(node.inputs[0]) if node.inputs[0] is not None else None
    if source is None:
        return None
    if node.op_type == "Size":
        total = Dim(1)
        for dim in source:
            total = product_of(total, dim)
        return _from_dims([total], ())
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", len(source))
    part = source[start:end]
    return _from_dims(part, (len(part),))


def _from_dims(dims: Sequence[Dim], shape: tuple[int, ...]) -> ShapeValue:
    numbers = np.array([dim.size for dim in dims], dtype=np.int64).reshape(shape)
    if all(dim.is_constant for dim in dims):
        return ShapeValue(numbers)
    symbolic = np.empty(len(dims), dtype=object)
    symbolic[:] = [None if dim.is_constant else dim for dim in dims]
    return ShapeValue(numbers, symbolic.reshape(shape))


# --- moves: the same indexing for the numbers and for the symbols -------------------------------------------


def _axes(node: ir.Node, arguments: Sequence[Array]) -> tuple[int, ...]:
    if len(arguments) > 0:
        return tuple(int(axis) for axis in arguments[0].ravel())
    return tuple(node.attributes.get_ints("axes", ()))


def _unsqueeze(node: ir.Node, x: Array, arguments: Sequence[Array]) -> Array:
    axes = _axes(node, arguments)
    rank = x.ndim + len(axes)
    return np.expand_dims(x, tuple(axis % rank for axis in axes))


def _squeeze(node: ir.Node, x: Array, arguments: Sequence[Array]) -> Array:
    axes = _axes(node, arguments)
    return np.squeeze(x, axes or None)


def _slice(node: ir.Node, x: Array, arguments: Sequence[Array]) -> Array:
    index = [slice(None)] * x.ndim
    for axis, bounds in slice_bounds(node, x.ndim, arguments).items():
        index[axis] = slice(*bounds)
    return x[tuple(index)]


def slice_bounds(
    node: ir.Node, rank: int, arguments: Sequence[Array]
) -> dict[int, tuple[int | None, int | None, int]]:
    """Return Python slice bounds by axis for a Slice node.

    Args:
        node: the Slice node.
        rank: rank of the sliced value.
        arguments: contents of the inputs after the first; empty before opset 10, where they are attributes.
    """
    if arguments:
        starts, ends = (argument.ravel().tolist() for argument in arguments[:2])
        axes = arguments[2].ravel().tolist() if len(arguments) > 2 else list(range(len(starts)))
        steps = arguments[3].ravel().tolist() if len(arguments) > 3 else [1] * len(starts)
    else:
        starts = list(node.attributes.get_ints("starts", ()))
        ends = list(node.attributes.get_ints("ends", ()))
        axes = list(node.attributes.get_ints("axes", range(len(starts))))
        steps = [1] * len(starts)
    bounds: dict[int, tuple[int | None, int | None, int]] = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # With a negative step, an end below every index means "through the first element".
        stop = None if step < 0 and end < -(2**30) else int(end)
        bounds[int(axis) % rank] = (int(start), stop, int(step))
    return bounds


def _reshape(node: ir.Node, x: Array, arguments: Sequence[Array]) -> Array:
    target = [int(size) for size in arguments[0].ravel()]
    if node.attributes.get_int("allowzero", 0) != 1:
        target = [x.shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    return x.reshape(target)


def _expand(_: ir.Node, x: Array, arguments: Sequence[Array]) -> Array:
    target = np.broadcast_shapes(x.shape, tuple(int(size) for size in arguments[0].ravel()))
    _check_size(target)
    return np.broadcast_to(x, target)


def _gather(node: ir.Node, x: Array, arguments: Sequence[Array]) -> Array:
    return np.asarray(np.take(x, arguments[0], axis=node.attributes.get_int("axis", 0)))


def _transpose(node: ir.Node, x: Array, _: Sequence[Array]) -> Array:
    return np.transpose(x, node.attributes.get_ints("perm", ()) or None)


def _identity(_: ir.Node, x: Array, __: Sequence[Array]) -> Array:
    return x


_MOVES: dict[str, Callable[[ir.Node, Array, Sequence[Array]], Array]] = {
    "Cast": _identity,
    "Expand": _expand,
    "Gather": _gather,
    "Identity": _identity,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Concat": _identity,  # the only move of several tensors: joined before
}


def _move(node: ir.Node, inputs: Sequence[ShapeValue | None]) -> ShapeValue | None:
    if node.op_type == "Concat":
        parts = [content for content in inputs if content is not None]
        axis = node.attributes.get_int("axis", 0)
        joined = np.concatenate([part.numbers for part in parts], axis)
        return _tidy(joined, np.concatenate([_symbols(part) for part in parts], axis))
    source, *rest = inputs
    if source is None or any(content is not None and not content.is_constant for content in rest):
        return None
    arguments = [content.numbers for content in rest if content is not None]
    move = _MOVES[node.op_type]
    try:
        numbers = move(node, source.numbers, arguments)
        symbols = None if source.dims is None else move(node, source.dims, arguments)
    except (ValueError, IndexError):
        return None  # the sizes do not fit; shape inference will say so
    if node.op_type == "Cast":
        dtype = ir.DataType(node.attributes.get_int("to", 1))
        if dtype not in FOLLOWED or (dtype == ir.DataType.FLOAT and numbers.size > FLOAT_LIMIT):
            return None
        numbers = numbers.astype(dtype.numpy())
    return _tidy(numbers, symbols)


def split(node: ir.Node, dims: Dims, contents: Contents) -> list[ShapeValue]:
    """Return the contents of all outputs of a Split, whose shapes are known by now; none if not followed."""
    source = contents.get(node.inputs[0])  # type: ignore[arg-type]
    axis = node.attributes.get_int("axis", 0)
    if source is None or not all(
        output in dims and dims[output][axis].is_constant for output in node.outputs
    ):
        return []
    ends = np.cumsum([dims[output][axis].size for output in node.outputs])[:-1]
    numbers, symbols = np.split(source.numbers, ends, axis), np.split(_symbols(source), ends, axis)
    return [_tidy(part, names) for part, names in zip(numbers, symbols, strict=True)]


def _symbols(content: ShapeValue) -> Array:
    if content.dims is not None:
        return content.dims
    return np.full(content.numbers.shape, None, dtype=object)


def _tidy(numbers: Array, symbols: Array | None) -> ShapeValue:
    numbers = np.ascontiguousarray(numbers).reshape(numbers.shape)
    if symbols is None or all(dim is None for dim in symbols.ravel().tolist()):
        return ShapeValue(numbers)
    return ShapeValue(numbers, np.array(symbols, dtype=object).reshape(numbers.shape))


# --- arithmetic ---------------------------------------------------------------------------------------------

_EVALUATED = frozenset((
    "Abs", "Add", "And", "Ceil", "Clip", "ConstantOfShape", "CumSum", "Div", "Equal", "Floor", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "OneHot", "Or", "Pow",
    "Range", "Reciprocal", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Round", "Sqrt", "Sub",
    "Where", "Xor",
))  # fmt: skip


def _reference(node: ir.Node, inputs: Sequence[ShapeValue | None], opset: int) -> Array | None:
    """Compute a node's output with numpy, or with ONNX's reference for the rarer operators."""
    arrays = [None if content is None else content.numbers for content in inputs]
    given = [array for array in arrays if array is not None]
    quick = _QUICK.get(node.op_type)
    if node.op_type in _BROADCASTING:
        _check_size(np.broadcast_shapes(*(array.shape for array in given)))
    if quick is not None and len(given) == len(arrays):
        return np.asarray(quick(*given))
    if node.op_type == "ConstantOfShape":
        _check_size(given[0].ravel().tolist())
    if node.op_type == "Range" and not abs(float((given[1] - given[0]) / given[2])) <= _MADE_LIMIT:
        return None
    if node.op_type == "OneHot":
        _check_size((*given[0].shape, int(given[1].ravel()[0])))
    evaluator = reference.ReferenceEvaluator(ir.serde.serialize_node(node), opsets={"": opset})
    feeds = {
        str(value.name): array for value, array in zip(node.inputs, arrays, strict=True) if value is not None
    }
    (result,) = evaluator.run(None, feeds)
    return np.asarray(result)


#: Elements that an operator may make out of a few numbers.
_MADE_LIMIT = 4096


#: Operators whose result may be larger than all of their inputs together, by broadcasting.
_BROADCASTING = frozenset((
    "Add", "And", "Clip", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min",
    "Mod", "Mul", "Or", "Pow", "Sub", "Where", "Xor",
))  # fmt: skip


def _check_size(shape: Sequence[int]) -> None:
    """Raise ValueError if an array of that shape is no size or index any more."""
    if math.prod(shape) > _MADE_LIMIT:
        raise ValueError(f"{list(shape)} are too many elements")


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    return np.trunc(a / np.where(b == 0, 1, b)).astype(a.dtype)  # ONNX truncates integer division toward zero


_QUICK: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Div": _divide,
    "Equal": np.equal,
    "Mul": np.multiply,
    "Sub": np.subtract,
    "Where": np.where,
}


def _symbolic(node: ir.Node, inputs: Sequence[ShapeValue | None], numbers: Array) -> Array | None:
    """One symbolic size for each element of the result, None for those that are constant."""
    combine = _ELEMENTWISE.get(node.op_type)
    operands = [
        (np.broadcast_to(content.numbers, numbers.shape), np.broadcast_to(_symbols(content), numbers.shape))
        for content in inputs
        if content is not None and _broadcasts(content.numbers.shape, numbers.shape)
    ]
    symbols = np.full(numbers.shape, None, dtype=object)
    for index in np.ndindex(numbers.shape):
        result = Dim(int(numbers[index]), 1, (f"{node.outputs[0].name}{list(index)}",))
        if combine is not None and len(operands) == len(inputs):
            dims = [
                Dim(int(values[index])) if known[index] is None else cast(Dim, known[index])
                for values, known in operands
            ]
            constant = all(dim.is_constant for dim in dims)
            result = Dim(result.size) if constant else combine(dims, result)
        symbols[index] = None if result.is_constant else result
    return symbols if any(dim is not None for dim in symbols.ravel().tolist()) else None


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    return len(shape) <= len(target) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(target), strict=False)
    )


def _mul(dims: Sequence[Dim], opaque: Dim) -> Dim:
    return product_of(dims[0], dims[1]) if min(factor_of(dim) for dim in dims) > 0 else opaque


def _div(dims: Sequence[Dim], opaque: Dim) -> Dim:
    a, b = dims
    if b.is_constant and b.size > 0 and a.factor % b.size == 0:
        return Dim(a.size // b.size, a.factor // b.size, a.symbols)
    if a.symbols == b.symbols and b.factor and a.factor % b.factor == 0:
        return Dim(a.factor // b.factor)
    return Dim(opaque.size, 1, (f"({a.label}/{b.label})",))


def _equal(dims: Sequence[Dim], opaque: Dim) -> Dim:
    a, b = dims
    if any(dim.is_constant and dim.size < 0 for dim in dims):
        return Dim(0)  # a size is never negative
    return Dim(1) if a == b else opaque


def _where(dims: Sequence[Dim], opaque: Dim) -> Dim:
    condition, yes, no = dims
    if condition.is_constant:
        return yes if condition.size else no
    return yes if yes == no else opaque


def _named(sign: str) -> Callable[[Sequence[Dim], Dim], Dim]:
    def combine(dims: Sequence[Dim], opaque: Dim) -> Dim:
        return Dim(opaque.size, 1, ("(" + sign.join(dim.label for dim in dims) + ")",))

    return combine


_ELEMENTWISE: dict[str, Callable[[Sequence[Dim], Dim], Dim]] = {
    "Add": _named("+"),
    "Div": _div,
    "Equal": _equal,
    "Max": _named(" max "),
    "Min": _named(" min "),
    "Mod": _named("%"),
    "Mul": _mul,
    "Sub": _named("-"),
    "Where": _where,
}
