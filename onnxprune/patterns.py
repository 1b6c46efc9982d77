"""The patterns of zeros a user can ask for by name, and what each of them demands of a tensor."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxprune.errors import UsageError
from onnxprune.messages import quoted
from onnxprune.types import BoolArray, FloatArray

NumberArray: TypeAlias = npt.NDArray[Any]

#: Scores that give a masked tensor new weights in the places that are not zero.
REWRITING_SCORES = frozenset({"obs"})

#: Longest run of N:M and longest side of a block: far beyond any hardware, small enough to be a typing error.
LIMIT = 1024

#: Sums of up to this many elements are taken slice by slice.
_MOST_SLICES = 32

#: Elements that are counted at a time.
_BAND_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern of zeros.

    Attributes:
        kind: single weights, at most ``keep`` of every ``run`` along the summed axis, or whole blocks.
        keep: N of N:M.
        run: M of N:M.
        rows: R of a block, along the output axis.
        columns: C of a block, along the summed axis.
    """

    kind: Literal["unstructured", "N:M", "block"]
    keep: int = 0
    run: int = 0
    rows: int = 0
    columns: int = 0

    def __str__(self) -> str:
        """Return the name that a user types."""
        if self.kind == "N:M":
            return f"{self.keep}:{self.run}"
        return f"block:{self.rows}x{self.columns}" if self.kind == "block" else "unstructured"


def parse_pattern(text: str) -> Pattern:
    """Read ``unstructured``, ``2:4`` (keep 2 of every 4) or ``block:4x8`` (4 outputs by 8 inputs).

    Raises:
        UsageError: the text is none of these, or its numbers make no sense.
    """
    if text == "unstructured":
        return Pattern("unstructured")
    runs = re.fullmatch(r"(\d{1,5}):(\d{1,5})", text)
    if runs:
        keep, run = int(runs[1]), int(runs[2])
        if not 0 < keep < run <= LIMIT:
            raise UsageError(f"pattern {text!r}: N:M keeps N of every M weights, so 0 < N < M <= {LIMIT}")
        return Pattern("N:M", keep=keep, run=run)
    block = re.fullmatch(r"block:(\d{1,5})x(\d{1,5})", text)
    if block:
        rows, columns = int(block[1]), int(block[2])
        if not (0 < rows <= LIMIT and 0 < columns <= LIMIT):
            raise UsageError(f"pattern {text!r}: a block is RxC with 1 <= R, C <= {LIMIT}")
        return Pattern("block", rows=rows, columns=columns)
    raise UsageError(
        f"unknown pattern {quoted(text)}; known: channels, heads, head_dim, experts, layers, dead, "
        "unstructured, N:M such as 2:4, block:RxC such as block:4x8"
    )


def count_bad_runs(kept: BoolArray, pattern: Pattern, summed_axis: int, groups: int = 1) -> int:
    """Return how many runs of M along the summed axis keep more than N.

    Args:
        kept: bool, the shape of the tensor; True where a weight is not zero.
        pattern: an N:M pattern.
        summed_axis: axis that runs go along.
        groups: equal parts of that axis; no run reaches from one into the next.

    Raises:
        ValueError: a part is not a whole number of runs long.
    """
    length, behind = kept.shape[summed_axis], math.prod(kept.shape[summed_axis + 1 :])
    if length % (groups * pattern.run):
        raise ValueError(f"a length of {length} in {groups} parts is no multiple of {pattern.run}")
    runs = np.ascontiguousarray(kept).reshape(-1, pattern.run, behind)
    bad, step = 0, max(1, _BAND_ELEMENTS // max(1, pattern.run * behind))
    for start in range(0, len(runs), step):
        band = runs[start : start + step]
        counts = np.zeros((len(band), behind), dtype=np.uint8 if pattern.run < 256 else np.uint16)
        for place in range(pattern.run):
            counts += band[:, place]
        bad += int(np.count_nonzero(counts > pattern.keep))
    return bad


def count_bad_blocks(kept: BoolArray, pattern: Pattern, output_axis: int, summed_axis: int) -> int:
    """Return how many blocks are neither kept whole nor dropped whole; blocks at the edge are smaller.

    Args:
        kept: bool, the shape of the tensor.
        pattern: a block pattern.
        output_axis: axis that rows go along.
        summed_axis: axis that columns go along; every other axis holds separate matrices.
    """
    counts, sizes = block_sums(kept, pattern, output_axis, summed_axis)
    return int(np.count_nonzero((counts != 0) & (counts != sizes)))


def block_sums(
    values: NumberArray, pattern: Pattern, output_axis: int, summed_axis: int
) -> tuple[FloatArray, FloatArray]:
    """Return the sum over every block, and its number of elements.

    Returns:
        Two arrays float64 [matrix, block row, block column]; one matrix for each position of the other axes.
    """
    matrices = as_matrices(values, output_axis, summed_axis)
    sums = _sums_along(_sums_along(matrices, pattern.rows, 1), pattern.columns, 2)
    heights = _lengths(matrices.shape[1], pattern.rows)
    widths = _lengths(matrices.shape[2], pattern.columns)
    return sums, np.broadcast_to(heights[:, None] * widths, sums.shape).astype(np.float64)


def _sums_along(values: NumberArray, length: int, axis: int) -> FloatArray:
    """Return float64 sums of every ``length`` elements along an axis; the last of them may be fewer."""
    if length > _MOST_SLICES:
        starts = np.arange(0, values.shape[axis], length)
        return np.asarray(np.add.reduceat(values, starts, axis=axis, dtype=np.float64))
    before = (slice(None),) * axis
    sums = values[(*before, slice(0, None, length))].astype(np.float64)
    for place in range(1, length):  # far faster than short sums one by one
        part = values[(*before, slice(place, None, length))]
        sums[(*before, slice(part.shape[axis]))] += part
    return sums


def _lengths(size: int, length: int) -> NumberArray:
    return np.diff(np.append(np.arange(0, size, length), size))


def spread_blocks(
    blocks: BoolArray, pattern: Pattern, shape: tuple[int, ...], output_axis: int, summed_axis: int
) -> BoolArray:
    """Return what `block_sums` undoes: the value of each block at each of its positions, in ``shape``."""
    outputs, inputs = shape[output_axis], shape[summed_axis]
    spread = np.repeat(np.repeat(blocks, pattern.rows, axis=1), pattern.columns, axis=2)
    spread = spread[:, :outputs, :inputs]
    others = [size for axis, size in enumerate(shape) if axis not in (output_axis, summed_axis)]
    return np.moveaxis(spread.reshape(*others, outputs, inputs), (-2, -1), (output_axis, summed_axis))


def as_matrices(values: NumberArray, output_axis: int, summed_axis: int) -> NumberArray:
    """Return ``values`` as [matrix, output, summed]; the matrices go through the other axes in order."""
    moved = np.moveaxis(values, (output_axis, summed_axis), (-2, -1))
    return moved.reshape(-1, *moved.shape[-2:])
