"""Optimal Brain Surgeon for masks: which weights of a matrix go, and how the others make up for them.

For ``y = W x`` with Hessian H of its inputs (see `onnxprune.cholesky`) the columns of W are settled from left
to right. A column that is settled stays; all behind it are free. With ``H^-1 = U^T U``, the inverse Hessian
of the free columns is ``U_F^T U_F``, where U_F is the lower right part of U. So one factorisation serves
every row of W and every step (Frantar & Alistarh 2023, "SparseGPT: Massive Language Models Can be Accurately
Pruned in One-Shot", sections 3.3 and 3.4).

Columns that are decided together are a segment S: one column (unstructured), the M of N:M, the C of a block.
With ``A = U_S^T U_S``, leaving out the weights G of a segment costs ``w_G (A_GG)^-1 w_G^T``, and the free
columns F change by ``-e A_GF`` with ``e = w_G (A_GG)^-1``. For single columns that is the paper's
``w_j^2 / U_jj^2`` and its update; for N:M every choice inside a segment is compared, and the weights of a
segment that stay are free as well, where the paper drops the lowest of M single costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy

from onnxprune.cholesky import DAMPING, Damping, InverseFactor, damped_hessian, inverse_factor
from onnxprune.patterns import Pattern
from onnxprune.scores.refinement import affordable_steps, refine
from onnxprune.types import BoolArray, FloatArray, IntArray

Array: TypeAlias = npt.NDArray[Any]

#: Columns that are settled before the columns behind them are updated, in one product of matrices.
BAND = 128

#: Choices of a segment that are compared with each other; with more, the lowest single costs go.
_MOST_CHOICES = 100


@dataclass(frozen=True, slots=True)
class PrunedMatrix:
    """A matrix with zeros, and weights that make up for them.

    Attributes:
        kept: bool [outputs, inputs]; False where the weight is zero.
        weights: [outputs, inputs], float32, or float64 for float64 weights.
        error: the estimated mean of ``|y - y'|**2`` over rows of the data, in units of y squared, damping
            included.
        damping: of the Hessian; dead inputs.
    """

    kept: BoolArray
    weights: Array
    error: float
    damping: Damping


def prune_matrix(
    weights: Array,
    second: FloatArray,
    count: float,
    pattern: Pattern,
    share: float,
    *,
    taps: int = 1,
    damping: float = DAMPING,
    layer: str = "a layer",
    steps: int | None = None,
) -> PrunedMatrix:
    """Choose the weights of a matrix that become zero, and change the others so that the outputs stay close.

    A weight of a dead input costs as little as damping lets any weight cost: such weights go before others of
    their size, the smallest first. Those that stay are not changed.

    Args:
        weights: [outputs, inputs] of ``y = W x``; not changed.
        second: float64 [inputs, inputs], the sum of x x^T over rows.
        count: rows.
        pattern: N:M runs and the columns of blocks go along the channels of one tap.
        share: of the weights that go; N:M says it itself.
        taps: columns of one channel: column = channel * taps + tap.
        damping: lambda of the Hessian.
        layer: for warnings and errors.
        steps: of the refinement afterwards, which lets columns make up for those behind them as well; None
            for as many as are worth their time.

    Raises:
        DataError: as of `onnxprune.cholesky.inverse_factor`.
        ValueError: the channels are no multiple of M.
    """
    inputs = weights.shape[1]
    channels = inputs // taps
    if pattern.kind == "N:M" and channels % pattern.run:
        raise ValueError(f"{channels} channels are no multiple of {pattern.run}")
    order = np.arange(inputs).reshape(channels, taps).T.reshape(-1)  # by tap, then by channel
    ordered = second[order[:, None], order] if taps > 1 else second
    factor = inverse_factor(ordered, count, damping=damping, layer=layer)
    dtype = np.float64 if weights.dtype == np.float64 else np.float32
    sweep = _Sweep.of(np.ascontiguousarray(weights.T[order], dtype=dtype), factor)
    if pattern.kind == "unstructured":
        sweep.prune_singly(share)
    elif pattern.kind == "N:M":
        sweep.prune_runs(pattern.keep, pattern.run)
    else:
        sweep.prune_blocks(pattern.rows, _segments(channels, taps, pattern.columns), share)
    back = np.argsort(order)
    kept = np.ascontiguousarray(sweep.kept[back].T)
    settled = np.ascontiguousarray(sweep.work[back].T)
    dead = order[factor.damping.dead]
    settled[:, dead] = np.where(kept[:, dead], weights[:, dead], 0)
    damped = Damping(np.sort(dead).astype(np.int32), factor.damping.asked, factor.damping.used)
    if steps is None:
        steps = affordable_steps(*weights.shape)
    error = sweep.cost / 2
    del factor, sweep  # each as large as the Hessian
    if steps and not kept.all():
        hessian, _ = damped_hessian(second, count, damping=damped.used)
        settled, error = refine(weights.astype(dtype), settled, kept, hessian.astype(dtype), steps)
    return PrunedMatrix(kept, settled, error, damped)


@dataclass(slots=True)
class _Sweep:
    """The state of one pass over the columns; they are rows here, so that each lies in one piece of memory.

    Attributes:
        work: [inputs, outputs], the weights.
        upper: U [inputs, inputs], of the same type.
        kept: bool [inputs, outputs].
        cost: sum of ``e A_GG e^T`` so far: twice the mean squared change of the outputs.
    """

    work: Array
    upper: Array
    kept: BoolArray
    cost: float = 0.0

    @classmethod
    def of(cls, work: Array, factor: InverseFactor) -> _Sweep:
        upper = np.ascontiguousarray(factor.upper, dtype=work.dtype)
        dead = factor.damping.dead
        if 0 < len(dead) < len(upper):
            # the least that damping lets a live weight cost, and so by magnitude: data may come to life
            upper[dead, dead] = np.delete(np.diagonal(upper), dead).max()
        return cls(work, upper, np.ones(work.shape, dtype=np.bool_))

    def prune_singly(self, share: float) -> None:
        """Drop a share of every band of columns: the lowest ``w_j^2 / U_jj^2``."""
        done = 0
        for start in range(0, len(self.work), BAND):
            end = min(start + BAND, len(self.work))
            band = self.work[start:end]
            target = round(share * self.work[:end].size) - done
            done += target
            diagonal = np.diagonal(self.upper)[start:end, None]
            self.kept[start:end] = _all_but_lowest(np.square(band / diagonal), target)
            errors = np.zeros_like(band)
            for column in range(start, end):
                self._catch_up(errors, start, column, column + 1)
                gone = ~self.kept[column]
                errors[column - start] = np.where(gone, self.work[column] / self.upper[column, column], 0)
            self._finish(errors, start, end)

    def prune_runs(self, keep: int, run: int) -> None:
        """Keep the best N of every M weights, given what was settled before them."""
        width = max(1, BAND // run) * run
        choices = _choices(run, run - keep)
        for start in range(0, len(self.work), width):
            end = min(start + width, len(self.work))
            errors = np.zeros_like(self.work[start:end])
            for first in range(start, end, run):
                last = first + run
                self._catch_up(errors, start, first, last)
                root = self.upper[first:last, first:last]
                segment = self.work[first:last]
                if choices is None:
                    single = np.square(segment / np.diagonal(root)[:, None])
                    gone = _lowest_of_each(single, run - keep)
                    change = _change_in_turn(segment, root, gone)
                else:
                    gone, change = _best_choice(segment, root, choices)
                self.kept[first:last] = ~gone
                errors[first - start : last - start] = root @ change
                segment -= root.T @ errors[first - start : last - start]
            self._finish(errors, start, end)

    def prune_blocks(self, rows: int, segments: Sequence[tuple[int, int]], share: float) -> None:
        """Drop a share of every band of columns: the blocks that cost the least for each of their weights."""
        done = 0
        starts = np.arange(0, self.work.shape[1], rows)
        heights = np.diff(np.append(starts, self.work.shape[1]))
        for band in _bands(segments):
            start, end = band[0][0], band[-1][1]
            costs = []
            for first, last in band:
                each = np.square(self._whole_errors(first, last)).sum(axis=0)
                costs.append(np.add.reduceat(each, starts) / (heights * (last - first)))
            sizes = np.array([last - first for first, last in band])[:, None] * heights
            target = round(share * self.work[:end].size) - done
            stay = _all_but_cheapest(np.array(costs), sizes, target)
            done += int(sizes[~stay].sum())
            errors = np.zeros_like(self.work[start:end])
            for (first, last), mine in zip(band, stay, strict=True):
                self._catch_up(errors, start, first, last)
                kept = np.repeat(mine, heights)
                self.kept[first:last] = kept
                errors[first - start : last - start] = np.where(kept, 0, self._whole_errors(first, last))
            self._finish(errors, start, end)

    def _whole_errors(self, first: int, last: int) -> Array:
        """Return ``w_S U_S^-1``, transposed: the errors of rows that lose a whole segment."""
        root = self.upper[first:last, first:last]
        return np.asarray(
            scipy.linalg.solve_triangular(
                root, self.work[first:last], trans=1, lower=False, check_finite=False
            )
        )

    def _catch_up(self, errors: Array, start: int, first: int, last: int) -> None:
        """Bring columns of a band up to date with what was settled before them in the band."""
        if first > start:
            self.work[first:last] -= self.upper[start:first, first:last].T @ errors[: first - start]

    def _finish(self, errors: Array, start: int, end: int) -> None:
        """Write the zeros of a band, and update the columns behind it."""
        self.work[start:end][~self.kept[start:end]] = 0
        self.cost += float(np.einsum("ij,ij->", errors, errors, dtype=np.float64))
        if end < len(self.work):
            blas = scipy.linalg.blas
            product = blas.dgemm if self.work.dtype == np.float64 else blas.sgemm
            behind = self.work[end:].T  # in Fortran order, so that it is updated in place
            product(-1.0, errors.T, self.upper[start:end, end:], beta=1.0, c=behind, overwrite_c=1)


# --- choosing -----------------------------------------------------------------------------------------------


def _all_but_lowest(scores: Array, target: int) -> BoolArray:
    """Return bool: False for the ``target`` lowest scores; of equal ones, the first."""
    flat = scores.reshape(-1)
    kept = np.ones(flat.size, dtype=np.bool_)
    if target > 0:
        threshold = np.partition(flat, target - 1)[target - 1]
        np.greater_equal(flat, threshold, out=kept)
        below = flat.size - int(np.count_nonzero(kept))
        kept[np.flatnonzero(flat == threshold)[: target - below]] = False
    return kept.reshape(scores.shape)


def _all_but_cheapest(costs: Array, sizes: Array, target: int) -> BoolArray:
    """Return bool: False for the cheapest blocks that together have at most ``target`` weights."""
    order = np.argsort(costs, axis=None, kind="stable")
    taken = np.cumsum(sizes.reshape(-1)[order])
    kept = np.ones(costs.size, dtype=np.bool_)
    kept[order[: int(np.searchsorted(taken, target, side="right"))]] = False
    return kept.reshape(costs.shape)


def _lowest_of_each(scores: Array, drop: int) -> BoolArray:
    """Return bool [run, outputs]: True for the ``drop`` lowest of every column."""
    gone = np.zeros(scores.shape, dtype=np.bool_)
    np.put_along_axis(gone, np.argsort(scores, axis=0, kind="stable")[:drop], True, axis=0)
    return gone


def _choices(run: int, drop: int) -> IntArray | None:
    """Return every way to drop some of a run, int32 [choices, drop]; None if there are too many."""
    if math.comb(run, drop) > _MOST_CHOICES:
        return None
    return np.array(list(combinations(range(run), drop)), dtype=np.int32)


def _best_choice(segment: Array, root: Array, choices: IntArray) -> tuple[BoolArray, Array]:
    """Return for every column of a segment what to drop, and ``e`` in its places, [run, outputs]."""
    run = len(segment)
    inverse = (root.T.astype(np.float64) @ root).astype(np.float64)
    inside = np.linalg.inv(inverse[choices[:, :, None], choices[:, None, :]])
    spread = np.zeros((len(choices), run, run))
    numbers = np.arange(len(choices))[:, None, None]
    spread[numbers, choices[:, :, None], choices[:, None, :]] = inside
    changes = (spread.reshape(-1, run).astype(segment.dtype) @ segment).reshape(len(choices), run, -1)
    costs = np.einsum("cio,io->co", changes, segment)
    best = np.argmin(costs, axis=0)
    dropped = np.zeros((len(choices), run), dtype=np.bool_)
    np.put_along_axis(dropped, choices, True, axis=1)
    change = np.take_along_axis(changes, best[None, None, :], axis=0)[0]
    return np.ascontiguousarray(dropped[best].T), change


def _change_in_turn(segment: Array, root: Array, gone: BoolArray) -> Array:
    """As the second result of `_best_choice`, for columns that each drop something else."""
    inverse = root.T.astype(np.float64) @ root
    change = np.zeros_like(segment)
    drop = int(gone[:, 0].sum())
    places = np.argsort(~gone, axis=0, kind="stable")[:drop].T  # [outputs, drop]
    for start in range(0, len(places), BAND):
        mine = places[start : start + BAND]
        outputs = np.arange(start, start + len(mine))[:, None]
        inside = inverse[mine[:, :, None], mine[:, None, :]]
        weights = segment[mine, outputs].astype(np.float64)
        change[mine, outputs] = np.linalg.solve(inside, weights[:, :, None])[:, :, 0]
    return change


# --- columns that are decided together ----------------------------------------------------------------------


def _segments(channels: int, taps: int, columns: int) -> list[tuple[int, int]]:
    """Return the columns of every block: a tap's channels in parts, the last of them smaller."""
    starts = range(0, channels, columns)
    return [
        (tap * channels + start, tap * channels + min(start + columns, channels))
        for tap in range(taps)
        for start in starts
    ]


def _bands(segments: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield segments, as many as fit into a band, at least one."""
    band: list[tuple[int, int]] = []
    for first, last in segments:
        if band and last - band[0][0] > BAND:
            yield band
            band = []
        band.append((first, last))
    if band:
        yield band
