"""Rows and columns of linear operators: an input as the rows that a weight matrix is multiplied with.

A form belongs to one node. It turns the weight, as the node sees it, into matrices ``[groups, outputs,
inputs]``, and the input and the result of the node into rows in the same order, so that ``targets == rows @
matrix^T``.
Inputs are unfolded by strided views; nothing is copied before rows are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Windows:
    """All rows of an input, as a view that repeats what overlaps.

    Attributes:
        view: ``[*groups, *rows, *inputs]``.
        group_rank: how many axes number the groups.
        row_rank: how many axes number the rows.
    """

    view: Array
    group_rank: int
    row_rank: int

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Sizes of the axes that number the rows; samples come first where the operator knows them."""
        return self.view.shape[self.group_rank : self.group_rank + self.row_rank]

    @property
    def count(self) -> int:
        """Rows of one group."""
        return math.prod(self.row_shape)

    def rows(self, numbers: npt.NDArray[np.intp] | None = None) -> npt.NDArray[np.float32]:
        """Copy rows out.

        Args:
            numbers: which rows, counted in row-major order of ``row_shape``; None for all.

        Returns:
            float32 ``[groups, rows, inputs]``, contiguous.
        """
        view = self.view
        if numbers is not None:
            places = np.unravel_index(numbers, self.row_shape)
            view = view[(slice(None),) * self.group_rank + places]
        rows = len(numbers) if numbers is not None else self.count
        groups = math.prod(self.view.shape[: self.group_rank])
        inputs = math.prod(self.view.shape[self.group_rank + self.row_rank :])
        copy = np.ascontiguousarray(view, np.float32)
        return copy.reshape(groups, rows, inputs)


class Form(Protocol):
    """The algebra of one node."""

    def matrix(self, weight: Array) -> Array:
        """Return the weight as the node sees it as ``[groups, outputs, inputs]``."""

    def weight(self, matrix: Array) -> Array:
        """Return the inverse of `matrix`."""

    def windows(self, x: Array) -> Windows:
        """Return the rows of the input."""

    def targets(self, y: Array) -> Array:
        """Return the result as ``[groups, rows, outputs]``."""


@dataclass(frozen=True, slots=True)
class Product:
    """y = x w, or w x: matrices or stacks of them, which are broadcast.

    Attributes:
        weight_right: the weight is the right factor ``[..., inputs, outputs]``, else the left one.
        weight_axes: which axis of the weight stands for each axis of the formula.
        weight_shape: of the weight as the node sees it.
        x_axes: from the rank of x to the same for x.
    """

    weight_right: bool
    weight_axes: tuple[int, ...]
    weight_shape: tuple[int, ...]
    x_axes: Callable[[int], Sequence[int]]

    @property
    def _stack(self) -> tuple[int, ...]:
        return tuple(self.weight_shape[axis] for axis in self.weight_axes[:-2])

    def matrix(self, weight: Array) -> Array:
        """One group for each matrix of a stack."""
        ordered = weight.transpose(self.weight_axes)
        if self.weight_right:
            ordered = ordered.swapaxes(-1, -2)
        return ordered.reshape(math.prod(self._stack), *ordered.shape[-2:])

    def weight(self, matrix: Array) -> Array:
        """See `matrix`."""
        ordered = matrix.reshape(*self._stack, *matrix.shape[-2:])
        if self.weight_right:
            ordered = ordered.swapaxes(-1, -2)
        return ordered.transpose(np.argsort(self.weight_axes))

    def windows(self, x: Array) -> Windows:
        """Rows of a left factor or columns of a right one, for every place that the weight is repeated at."""
        ordered = x.transpose(self.x_axes(x.ndim))
        if x.ndim == 1:
            ordered = ordered[None] if self.weight_right else ordered[:, None]
        if not self.weight_right:
            ordered = ordered.swapaxes(-1, -2)
        stack = np.broadcast_shapes(ordered.shape[:-2], self._stack)
        view = np.broadcast_to(ordered, (*stack, *ordered.shape[-2:]))
        groups = self._group_axes(len(stack))
        view = np.moveaxis(view, groups, range(len(groups)))
        return Windows(view, len(groups), view.ndim - 1 - len(groups))

    def targets(self, y: Array) -> Array:
        """See `windows`."""
        if y.ndim == len(self.weight_shape) - 1:  # x is a vector
            y = y[..., None, :] if self.weight_right else y[..., None]
        if not self.weight_right:
            y = y.swapaxes(-1, -2)
        groups = self._group_axes(y.ndim - 2)
        view = np.moveaxis(y, groups, range(len(groups)))
        return view.reshape(math.prod(self._stack), -1, y.shape[-1])

    def _group_axes(self, stack_rank: int) -> list[int]:
        """Return the axes of a stack of ``stack_rank`` axes along which the weight has several matrices."""
        first = stack_rank - len(self._stack)
        return [first + place for place, size in enumerate(self._stack) if size > 1]


@dataclass(frozen=True, slots=True)
class Recurrence:
    """gates = x w' for each direction of a recurrent layer: w ``[directions, gates, inputs]``."""

    directions: int

    def matrix(self, weight: Array) -> Array:
        """One group for each direction."""
        return weight

    def weight(self, matrix: Array) -> Array:
        """See `matrix`."""
        return matrix

    def windows(self, x: Array) -> Windows:
        """All directions see the same rows."""
        return Windows(np.broadcast_to(x, (self.directions, *x.shape)), 1, x.ndim - 1)

    def targets(self, y: Array) -> Array:
        """Never asked for.

        Raises:
            ValueError: the gates are no result of the node.
        """
        raise ValueError("the gates are no result of the node")


@dataclass(frozen=True, slots=True)
class Convolution:
    """y[n, (g, o), p] = sum over i, t of x[n, (g, i), strides * p + dilations * t - pads] * w[(g, o), i, t]

    Attributes:
        groups: blocks of channels that see each other.
        kernel: taps along each axis in space.
        strides: one for each axis in space.
        dilations: one for each axis in space.
        pads: at the begin of each axis in space, then at the end of each.
        auto_pad: "NOTSET" (``pads`` count), "VALID", "SAME_UPPER" or "SAME_LOWER".
    """

    groups: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str = "NOTSET"

    def matrix(self, weight: Array) -> Array:
        """Columns are channels of a group, each with all of its taps."""
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def weight(self, matrix: Array) -> Array:
        """See `matrix`."""
        return matrix.reshape(matrix.shape[0] * matrix.shape[1], -1, *self.kernel)

    def windows(self, x: Array) -> Windows:
        """One row for each sample and place, in this order."""
        return _windows(padded(x, self._margins(x.shape[2:])), self)

    def targets(self, y: Array) -> Array:
        """See `windows`."""
        return _by_group(y, self.groups)

    def _margins(self, space: Sequence[int]) -> list[tuple[int, int]]:
        """Return what is added at both ends of each axis (SAME: as many outputs as strides in the input)."""
        rank = len(space)
        if self.auto_pad == "NOTSET":
            return [(self.pads[axis], self.pads[axis + rank]) for axis in range(rank)]
        if self.auto_pad == "VALID":
            return [(0, 0)] * rank
        margins = []
        for size, taps, stride, dilation in zip(
            space, self.kernel, self.strides, self.dilations, strict=True
        ):
            total = max(0, (-(-size // stride) - 1) * stride + (taps - 1) * dilation + 1 - size)
            small, large = total // 2, total - total // 2
            margins.append((small, large) if self.auto_pad == "SAME_UPPER" else (large, small))
        return margins


@dataclass(frozen=True, slots=True)
class TransposedConvolution:
    """y[n, (g, o), strides * q + dilations * t - pads] += x[n, (g, i), q] * w[(g, i), o, t]

    The same as a convolution of x with zeros between its elements by the kernel in reverse.

    Attributes:
        groups: blocks of channels that see each other.
        kernel: taps along each axis in space.
        strides: one for each axis in space.
        dilations: one for each axis in space.
        pads: what is cut off y at the begin of each axis in space, then at the end of each.
        output_padding: what is added to y at the end of each axis in space.
    """

    groups: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    output_padding: tuple[int, ...]

    def matrix(self, weight: Array) -> Array:
        """Columns are channels of a group, each with all of its taps."""
        inputs, outputs = weight.shape[:2]
        parts = weight.reshape(self.groups, inputs // self.groups, outputs, -1)
        return parts.swapaxes(1, 2).reshape(self.groups, outputs, -1)

    def weight(self, matrix: Array) -> Array:
        """See `matrix`."""
        groups, outputs, _ = matrix.shape
        parts = matrix.reshape(groups, outputs, -1, math.prod(self.kernel)).swapaxes(1, 2)
        return parts.reshape(-1, outputs, *self.kernel)

    def windows(self, x: Array) -> Windows:
        """One row for each sample and place of the result, in this order."""
        space = x.shape[2:]
        spread = [(size - 1) * stride + 1 for size, stride in zip(space, self.strides, strict=True)]
        apart = np.zeros((*x.shape[:2], *spread), x.dtype)
        own = tuple(slice(None, None, stride) for stride in self.strides)
        apart[(slice(None), slice(None), *own)] = x
        margins = []
        for axis, (taps, dilation) in enumerate(zip(self.kernel, self.dilations, strict=True)):
            reach = (taps - 1) * dilation
            begin, end = self.pads[axis], self.pads[axis + len(space)]
            margins.append((reach - begin, reach - end + self.output_padding[axis]))
        ones = (1,) * len(space)
        dense = Convolution(self.groups, self.kernel, ones, self.dilations, ones)
        windows = _windows(padded(apart, margins), dense)
        backwards = np.flip(windows.view, tuple(range(-len(space), 0)))
        return Windows(backwards, windows.group_rank, windows.row_rank)

    def targets(self, y: Array) -> Array:
        """See `windows`."""
        return _by_group(y, self.groups)


def padded(x: Array, margins: Sequence[tuple[int, int]]) -> Array:
    """Add zeros at both ends of the axes of x ``[n, channels, ...]`` in space; cut where that is negative."""
    cuts = [
        slice(max(0, -begin), size + min(0, end))
        for size, (begin, end) in zip(x.shape[2:], margins, strict=True)
    ]
    x = x[(slice(None), slice(None), *cuts)]
    added = [(max(0, begin), max(0, end)) for begin, end in margins]
    if not any(map(any, added)):
        return x
    sizes = [size + begin + end for size, (begin, end) in zip(x.shape[2:], added, strict=True)]
    wide = np.zeros((*x.shape[:2], *sizes), x.dtype)
    middle = (slice(begin, begin + size) for size, (begin, _) in zip(x.shape[2:], added, strict=True))
    wide[(slice(None), slice(None), *middle)] = x
    return wide


def _windows(x: Array, convolution: Convolution) -> Windows:
    """Return all windows of a padded input, as a view ``[g, n, *places, channels, *taps]``."""
    rank = len(convolution.kernel)
    reach = tuple(
        (taps - 1) * d + 1 for taps, d in zip(convolution.kernel, convolution.dilations, strict=True)
    )
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(2, 2 + rank)))
    places = (slice(None, None, stride) for stride in convolution.strides)
    taps = (slice(None, None, dilation) for dilation in convolution.dilations)
    view = view[(slice(None), slice(None), *places, *taps)]
    samples, channels = view.shape[:2]
    view = view.reshape(samples, convolution.groups, channels // convolution.groups, *view.shape[2:])
    order = [1, 0, *range(3, 3 + rank), 2, *range(3 + rank, 3 + 2 * rank)]
    return Windows(view.transpose(order), 1, 1 + rank)


def _by_group(y: Array, groups: int) -> Array:
    """Return a result ``[n, (g, o), ...]`` of a convolution as ``[g, rows, o]``."""
    parts = y.reshape(y.shape[0], groups, y.shape[1] // groups, -1)
    return parts.transpose(1, 0, 3, 2).reshape(groups, -1, parts.shape[2])
