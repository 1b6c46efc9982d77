"""All rows that a weight matrix is multiplied with, as one strided view of an input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Windows:
    """All rows of an input, as a view that repeats what overlaps.

    Attributes:
        view: ``[*groups, *rows, *taps, channels]``. Columns of a matrix have the taps behind the channels;
            here they stand before, so that the channels of a tap are copied in one stroke.
        group_rank: how many axes number the groups.
        row_rank: how many axes number the rows.
    """

    view: Array
    group_rank: int
    row_rank: int

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Sizes of the axes that number the rows."""
        return self.view.shape[self.group_rank : self.group_rank + self.row_rank]

    @property
    def count(self) -> int:
        """Rows of one group."""
        return math.prod(self.row_shape)

    @property
    def groups(self) -> int:
        """Groups."""
        return math.prod(self.view.shape[: self.group_rank])

    @property
    def columns(self) -> npt.NDArray[np.intp]:
        """The column of the matrix that each column of `packed` rows belongs to, ``[inputs]``."""
        sizes = self.view.shape[self.group_rank + self.row_rank :]
        numbers = np.arange(math.prod(sizes)).reshape(sizes[-1], *sizes[:-1])
        return np.moveaxis(numbers, 0, -1).reshape(-1)

    def rows(self, numbers: npt.NDArray[np.intp] | None = None) -> npt.NDArray[np.float32]:
        """Copy rows out.

        Args:
            numbers: which rows, counted in row-major order of ``row_shape``; None for all.

        Returns:
            float32 ``[groups, rows, inputs]``, contiguous.
        """
        turned = np.moveaxis(self.view, -1, self.group_rank + self.row_rank)
        return replace(self, view=turned).packed(numbers)

    def packed(self, numbers: npt.NDArray[np.intp] | None = None) -> npt.NDArray[np.float32]:
        """As `rows`, several times faster for kernels of many taps: columns are in order of `columns`."""
        view = self.view
        if numbers is not None:
            places = np.unravel_index(numbers, self.row_shape)
            view = view[(slice(None),) * self.group_rank + places]
        rows = self.count if numbers is None else len(numbers)
        inputs = math.prod(self.view.shape[self.group_rank + self.row_rank :])
        return np.ascontiguousarray(view, np.float32).reshape(self.groups, rows, inputs)

    def pieces(self, most: int) -> Iterator[Windows]:
        """Yield the rows in order, at most ``most`` of them at a time."""
        if self.count <= most:
            yield self
            return
        axis, length = self.group_rank, self.row_shape[0]
        step = most // (self.count // length)
        for start in range(0, length, max(1, step)):
            if step:
                part = slice(start, start + step)
                yield replace(self, view=self.view[(slice(None),) * axis + (part,)])
            else:
                one = replace(
                    self, view=self.view[(slice(None),) * axis + (start,)], row_rank=self.row_rank - 1
                )
                yield from one.pieces(most)
