"""Arithmetic on constants: size 1 stands for equal numbers along an axis, NaN for "varies"."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxprune.types import BoolArray, FloatArray, IntArray

Array: TypeAlias = "np.ndarray[Any, Any]"
_Positions: TypeAlias = npt.NDArray[np.intp]


def same_along(array: FloatArray, axis: int) -> FloatArray:
    """Return an array with one position along an axis: the number that all hold, NaN where they differ."""
    first = np.take(array, [0], axis=axis)
    if array.shape[axis] == 1:
        return first
    return np.where((array == first).all(axis=axis, keepdims=True), first, np.nan)


def along(array: FloatArray | None, axis: int, count: int) -> FloatArray:
    """Return float64 ``[count]``: the constants along one axis, NaN where they vary, along others too.

    All are NaN where there are more or fewer: such a model does not run, and that is told elsewhere.
    """
    if array is None:
        return np.full(count, np.nan)
    if array.ndim == 0:
        return np.full(count, float(array))
    axis %= array.ndim
    for other in set(range(array.ndim)) - {axis}:
        array = same_along(array, other)
    flat = array.reshape(-1)
    return np.broadcast_to(flat if flat.size in (1, count) else np.array([np.nan]), (count,))


def sum_rows(weight: Array, x: FloatArray, bias: FloatArray) -> FloatArray | None:
    """Return float64 ``[outputs]``: the sums that are constant, NaN for the others; None if all vary.

    Args:
        weight: ``[outputs, inputs of a group, taps...]``.
        x: float64 ``[groups, inputs of a group]``, NaN where an input varies.
        bias: float64 ``[outputs]``, NaN where it varies.
    """
    groups, inputs = x.shape
    varies = np.isnan(x)
    if groups == 1:
        rows = zero_rows(weight, np.flatnonzero(varies[0]))
    else:
        taps = (weight != 0).reshape(len(weight), inputs, -1).any(axis=-1)
        rows = np.flatnonzero(~(taps & np.repeat(varies, len(weight) // groups, axis=0)).any(axis=1))
    if not len(rows):
        return None
    result = np.full(len(weight), np.nan)
    numbers = np.repeat(np.nan_to_num(x), len(weight) // groups if groups > 1 else 1, axis=0)
    used = np.flatnonzero(numbers.any(axis=0))
    table = weight[rows[:, None], used[None]].astype(np.float64)
    table = table.sum(axis=tuple(range(2, table.ndim)))
    matched = numbers[:, used] if groups == 1 else numbers[rows][:, used]
    result[rows] = bias[rows] + (table * matched).sum(axis=1)
    return result


def zero_rows(weight: Array, columns: IntArray | _Positions) -> _Positions:
    """Return the rows of ``[rows, columns, ...]`` in which all of the given columns are zero, ascending.

    Most rows are seen not to be zero by their first number, and are not read further.
    """
    alive = np.arange(len(weight))
    start, step = 0, 1
    while start < len(columns) and len(alive):
        block = weight[alive[:, None], columns[None, start : start + step]]
        alive = alive[~(block != 0).reshape(len(alive), -1).any(axis=1)]
        start, step = start + step, min(4 * step, 4096)
    return alive


def zero_positions(array: Array, axis: int) -> BoolArray:
    """Return bool ``[dim]``: the positions along an axis at which a whole array is zero."""
    rows = np.moveaxis(array, axis, 0)
    rows = rows[:, None] if rows.ndim == 1 else rows
    zero = np.zeros(len(rows), dtype=np.bool_)
    zero[zero_rows(rows, np.arange(rows.shape[1]))] = True
    return zero


def wide(array: Array) -> Array:
    """Return floating-point numbers as float64, all others as they are."""
    floating = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return array.astype(np.float64) if floating else array
