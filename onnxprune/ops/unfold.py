"""Rows and columns of linear operators: an input as the rows that a weight matrix is multiplied with.

A form belongs to one node. It turns the weight, as the node sees it, into matrices ``[groups, outputs,
inputs]``, and the input and the result of the node into rows in the same order, so that ``targets == rows @
matrix^T``.
Inputs are unfolded by strided views; nothing is copied before rows are taken.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxprune.ops.windows import Windows

Array = npt.NDArray[Any]


class Form(Protocol):
    """The algebra of one node."""

    def matrix(self, weight: Array) -> Array:
        """Return the weight as the node sees it as ``[groups, outputs, inputs]``."""

    def weight(self, matrix: Array) -> Array:
        """Return the inverse of `matrix`."""

    def windows(self, x: Array) -> Windows:
        """Return the rows of the input."""

    def row_key(self) -> Hashable:
        """Return what is equal for forms that make the same rows of the same input."""

    def copied_elements(self, shape: Sequence[int]) -> int:
        """Return how many numbers `windows` copies for an input of this shape."""

    def targets(self, y: Array) -> Array:
        """Return the result as ``[groups, rows, outputs]``."""


@dataclass(frozen=True, slots=True)
class MatrixAxes:
    """How the axes ``[..., rows, columns]`` of a formula are stored.

    Attributes:
        turned: rows and columns change places.
        batch_behind: the rows stand before the stack.
    """

    turned: bool = False
    batch_behind: bool = False

    def order(self, rank: int) -> list[int]:
        """Return which stored axis stands for each axis of the formula."""
        axes = list(range(rank))
        if rank > 2 and self.batch_behind:
            axes = [*axes[1:-1], axes[0], axes[-1]]
        if rank > 1 and self.turned:
            axes[-2:] = axes[:-3:-1]
        return axes


@dataclass(frozen=True, slots=True)
class Product:
    """y = x w, or w x: matrices or stacks of them, which are broadcast.

    Attributes:
        weight_right: the weight is the right factor ``[..., inputs, outputs]``, else the left one.
        weight_shape: of the weight as the node sees it.
        weight_axes: how it is stored there.
        x_axes: how x is stored.
    """

    weight_right: bool
    weight_shape: tuple[int, ...]
    weight_axes: MatrixAxes = MatrixAxes()
    x_axes: MatrixAxes = MatrixAxes()

    @property
    def _order(self) -> list[int]:
        return self.weight_axes.order(len(self.weight_shape))

    @property
    def _stack(self) -> tuple[int, ...]:
        return tuple(self.weight_shape[axis] for axis in self._order[:-2])

    def row_key(self) -> Hashable:
        """Leading axes of size 1 change nothing."""
        sizes = [number for number, size in enumerate(self._stack) if size > 1]
        return "product", self.weight_right, self.x_axes, self._stack[sizes[0] :] if sizes else ()

    def copied_elements(self, shape: Sequence[int]) -> int:
        """Nothing: the rows are views."""
        return 0

    def matrix(self, weight: Array) -> Array:
        """One group for each matrix of a stack."""
        ordered = weight.transpose(self._order)
        if self.weight_right:
            ordered = ordered.swapaxes(-1, -2)
        return ordered.reshape(math.prod(self._stack), *ordered.shape[-2:])

    def weight(self, matrix: Array) -> Array:
        """See `matrix`."""
        ordered = matrix.reshape(*self._stack, *matrix.shape[-2:])
        if self.weight_right:
            ordered = ordered.swapaxes(-1, -2)
        return ordered.transpose(np.argsort(self._order))

    def windows(self, x: Array) -> Windows:
        """Rows of a left factor or columns of a right one, for every place that the weight is repeated at."""
        ordered = x.transpose(self.x_axes.order(x.ndim))
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

    def row_key(self) -> Hashable:
        """All layers with as many directions see the same rows."""
        return "recurrence", self.directions

    def copied_elements(self, shape: Sequence[int]) -> int:
        """Nothing: the rows are views."""
        return 0

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
        if not self._is_copied(x.shape[2:]):
            return _windows(np.moveaxis(x, 1, -1), self)
        return _windows(channels_last(x, self._margins(x.shape[2:])), self)

    def row_key(self) -> Hashable:
        """All fields count, and the outputs are none of them."""
        return self

    def copied_elements(self, shape: Sequence[int]) -> int:
        """The padded input."""
        space = [size + sum(ends) for size, ends in zip(shape[2:], self._margins(shape[2:]), strict=True)]
        return math.prod(shape[:2]) * math.prod(space) if self._is_copied(shape[2:]) else 0

    def _is_copied(self, space: Sequence[int]) -> bool:
        """Return whether an input is padded, or read more than once."""
        return math.prod(self.kernel) > 1 or any(map(any, self._margins(space)))

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
        spread = [(size - 1) * stride + 1 for size, stride in zip(x.shape[2:], self.strides, strict=True)]
        apart = np.zeros((*x.shape[:2], *spread), x.dtype)
        own = tuple(slice(None, None, stride) for stride in self.strides)
        apart[(slice(None), slice(None), *own)] = x
        ones = (1,) * len(self.kernel)
        dense = Convolution(self.groups, self.kernel, ones, self.dilations, ones)
        windows = _windows(channels_last(apart, self._margins()), dense)
        taps = tuple(range(-1 - len(self.kernel), -1))
        return replace(windows, view=np.flip(windows.view, taps))

    def row_key(self) -> Hashable:
        """All fields count, and the outputs are none of them."""
        return self

    def copied_elements(self, shape: Sequence[int]) -> int:
        """The input with zeros between, and with what is added at the ends."""
        spread = [(size - 1) * stride + 1 for size, stride in zip(shape[2:], self.strides, strict=True)]
        wide = [size + sum(ends) for size, ends in zip(spread, self._margins(), strict=True)]
        return math.prod(shape[:2]) * (math.prod(spread) + math.prod(wide))

    def _margins(self) -> list[tuple[int, int]]:
        rank, margins = len(self.kernel), []
        for axis, (taps, dilation) in enumerate(zip(self.kernel, self.dilations, strict=True)):
            reach = (taps - 1) * dilation
            begin, end = self.pads[axis], self.pads[axis + rank]
            margins.append((reach - begin, reach - end + self.output_padding[axis]))
        return margins

    def targets(self, y: Array) -> Array:
        """See `windows`."""
        return _by_group(y, self.groups)


def channels_last(x: Array, margins: Sequence[tuple[int, int]]) -> Array:
    """Return a copy ``[n, *space, channels]`` of x ``[n, channels, *space]`` with zeros added in space.

    Where a margin is negative, as much is cut off.
    """
    x = np.moveaxis(x, 1, -1)
    sizes = x.shape[1:-1]
    cuts = tuple(
        slice(max(0, -begin), size + min(0, end)) for size, (begin, end) in zip(sizes, margins, strict=True)
    )
    x = x[(slice(None), *cuts)]
    added = [(max(0, begin), max(0, end)) for begin, end in margins]
    wide = [size + begin + end for size, (begin, end) in zip(x.shape[1:-1], added, strict=True)]
    copy = np.zeros((x.shape[0], *wide, x.shape[-1]), x.dtype)
    middle = tuple(slice(b, b + size) for size, (b, _) in zip(x.shape[1:-1], added, strict=True))
    copy[(slice(None), *middle)] = x
    return copy


def _windows(x: Array, convolution: Convolution) -> Windows:
    """Return all windows of x ``[n, *space, channels]``, as a view ``[g, n, *places, *taps, channels]``."""
    rank, groups = len(convolution.kernel), convolution.groups
    reach = tuple(
        (taps - 1) * d + 1 for taps, d in zip(convolution.kernel, convolution.dilations, strict=True)
    )
    x = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(1, 1 + rank)))
    places = tuple(slice(None, None, stride) for stride in convolution.strides)
    taps = tuple(slice(None, None, dilation) for dilation in convolution.dilations)
    view = view[(slice(None), *places, slice(None), slice(None), *taps)]
    order = [1 + rank, *range(1 + rank), *range(3 + rank, 3 + 2 * rank), 2 + rank]
    return Windows(view.transpose(order), 1, 1 + rank)


def _by_group(y: Array, groups: int) -> Array:
    """Return a result ``[n, (g, o), ...]`` of a convolution as ``[g, rows, o]``."""
    parts = y.reshape(y.shape[0], groups, y.shape[1] // groups, -1)
    return parts.transpose(1, 0, 3, 2).reshape(groups, -1, parts.shape[2])
