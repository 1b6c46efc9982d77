"""Second moments of what linear nodes take in, in bounded memory.

Inputs are tapped batch by batch and unfolded into rows piece by piece; BLAS adds the products of a few
thousand rows up in float32, and these sums are added up in float64.

Sums inside the graph (ONNX Runtime multiplies X^T and X) were measured beside this, in seconds of CPU of one
thread with every row in use, the model's own among them: a vision transformer on 16 images took 4.2 in the
graph and 4.8 here, a residual network 1.8 and 2.3. But a graph unfolds whole batches of images. Here rows
that are not drawn are never unfolded: on 32 images, the residual network took 3.9 in the graph, and here 4.5
with all rows and 1.4 with 4096 for each node; what the rows cost stops to grow with the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from scipy.linalg.blas import ssyrk

from onnxprune.calibration.activations import BATCH, LIMIT_BYTES, each_batch, left_out
from onnxprune.data import Dataset
from onnxprune.errors import DataError, LimitMissed, UsageError
from onnxprune.messages import quoted
from onnxprune.model.stored import consumer_name
from onnxprune.ops.linear import Linear
from onnxprune.ops.windows import Windows
from onnxprune.types import FloatArray

Array = npt.NDArray[Any]

#: Of one node, by default. A regression of k coefficients on n rows errs by about k / n beyond the best one:
#: by less than a tenth here for up to 6,500 columns, and moments themselves by 1 / sqrt(n) = 0.4 %.
MAX_ROWS = 65_536

#: Rows that are added up in float32. All numbers of one sign, which is the worst case, err by 1.4e-7 then;
#: ten times as many err by 1e-6.
_FLOAT32_ROWS = 8192

#: Rows that are unfolded at once: enough for BLAS to run at full speed.
_PIECE_ROWS = 4096

#: Rows or columns that are moved at once.
_STRIP = 256

#: Share of the limit for what is unfolded at once.
_PIECE_SHARE = 1 / 16


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Sums over the rows x that a node multiplies its weight with.

    Attributes:
        second: float64 ``[groups, inputs, inputs]``, the sum of ``x x^T``; not to be written to.
        first: float64 ``[groups, inputs]``, the sum of x; not to be written to.
        count: rows that were added up.
    """

    second: FloatArray
    first: FloatArray
    count: int


def collect_moments(
    model: ir.Model,
    linears: Sequence[Linear],
    data: Dataset,
    *,
    batch: int = BATCH,
    limit_bytes: int = LIMIT_BYTES,
    threads: int = 1,
    max_rows: int | None = MAX_ROWS,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Iterator[tuple[int, Moments]]:
    """Run a model over data, and yield the moments of what each linear node takes in.

    Nodes that take the same rows (query, key and value) get the same object. Several nodes share a run as
    long as their sums stay within the limit; the rest follows in further passes over the data. The sums agree
    with those in float64 to 1e-5, relative to the roots of the diagonal.

    Args:
        model: a complete model; not changed.
        linears: nodes of this model, from `onnxprune.ops.linear.find_linear`.
        data: the samples.
        batch: samples of one run, where the model's first axis is symbolic.
        limit_bytes: of all sums that are kept at once, of the values that leave one run, and of what is
            unfolded, together.
        threads: of one operator of ONNX Runtime; 0 for one per core.
        max_rows: of one node; where there are more, as many are drawn, evenly over the samples and places.
            None for all.
        seed: of the rows that are drawn.
        progress: called after every run with the share that is done, in (0, 1].

    Yields:
        The number of the node in ``linears``, and its moments.

    Raises:
        UsageError: ``batch`` or ``max_rows`` is not positive, or a node is not in the graph.
        DataError: the data does not fit the model, or an input holds NaN or infinity.
        LimitMissed: the sums of one node, or one sample of its input, exceed the limit.
        RuntimeFailure: ONNX Runtime can't run the model.
    """
    if max_rows is not None and max_rows < 1:
        raise UsageError(f"max_rows must be positive, not {max_rows}")
    tasks: dict[Hashable, list[int]] = {}
    for number, linear in enumerate(linears):
        tasks.setdefault(linear.row_key, []).append(number)
    _check_room(linears, list(tasks.values()), limit_bytes)
    return _add_up(
        model,
        linears,
        data,
        list(tasks.values()),
        batch,
        limit_bytes,
        threads,
        _Draw(max_rows, seed),
        progress,
    )


def _sum_bytes(linear: Linear) -> int:
    """Return what the sums of a node take: in float64, and in float32 those of a few thousand rows."""
    return linear.groups * (12 * linear.inputs**2 + 8 * linear.inputs)


def _check_room(linears: Sequence[Linear], tasks: Sequence[list[int]], limit_bytes: int) -> None:
    """Refuse a limit that the sums of one node exceed.

    Raises:
        LimitMissed: see above.
    """
    for numbers in tasks:
        linear = linears[numbers[0]]
        wanted = _sum_bytes(linear)
        if wanted >= limit_bytes * (1 - _PIECE_SHARE):
            raise LimitMissed(
                f"{quoted(consumer_name(linear.node))} sums over {linear.inputs} inputs, whose moments take "
                f"{wanted} bytes, more than the limit of {limit_bytes} has room for; raise the limit to "
                f"{2 * wanted}"
            )


def _add_up(
    model: ir.Model,
    linears: Sequence[Linear],
    data: Dataset,
    tasks: Sequence[list[int]],
    batch: int,
    limit_bytes: int,
    threads: int,
    draw: _Draw,
    progress: Callable[[float], None] | None,
) -> Iterator[tuple[int, Moments]]:
    samples = len(data) - left_out(model, data)
    piece_bytes = int(limit_bytes * _PIECE_SHARE)
    firsts = [linears[numbers[0]] for numbers in tasks]
    sums: dict[int, _Sums] = {}
    for tapped in each_batch(
        model, [(str(linear.x.name),) for linear in firsts], data,
        batch=batch, limit_bytes=limit_bytes, reserved_bytes=piece_bytes,
        held_bytes=[_sum_bytes(linear) for linear in firsts], threads=threads, progress=progress,
    ):  # fmt: skip
        place = tapped.bundle
        if place not in sums:
            sums[place] = _Sums(firsts[place], tasks[place][0], samples, draw, data.source)
        sums[place].add(tapped.values[0], tapped.samples, piece_bytes)
        if tapped.samples.stop == samples:
            found = sums.pop(place).result()
            for number in tasks[place]:
                yield number, found
            del found  # before the next ones are made


@dataclass(frozen=True, slots=True)
class _Draw:
    """How many rows are used, and from which seed they are drawn."""

    max_rows: int | None
    seed: int


class _Sums:
    """The sums of one node while they are made."""

    def __init__(self, linear: Linear, number: int, samples: int, draw: _Draw, source: str) -> None:
        size = linear.inputs
        self.linear = linear
        self.samples = samples
        self.source = source
        self.max_rows = draw.max_rows
        self.random = np.random.default_rng((draw.seed, number))
        self.second = np.zeros((linear.groups, size, size))
        self.first = np.zeros((linear.groups, size))
        self.count = 0
        self.columns: npt.NDArray[np.intp] = np.arange(size)
        self._part = np.zeros((linear.groups, size, size), np.float32)  # the last few thousand rows
        self._part_rows = 0

    def add(self, x: Array, samples: slice, piece_bytes: int) -> None:
        """Add the rows of one batch, or some of them."""
        if x.size and not (np.isfinite(x.min()) and np.isfinite(x.max())):
            raise self._not_finite()
        most = max(1, min(_PIECE_ROWS, piece_bytes // (4 * self.linear.groups * self.linear.inputs)))
        blocks = self._blocks(x, piece_bytes)
        for number, block in enumerate(blocks, start=1):
            done = samples.start + (samples.stop - samples.start) * number / len(blocks)
            windows = self.linear.windows(block)
            self.columns = windows.columns
            for rows in self._rows(windows, done / self.samples, most):
                self._add_rows(rows)
        self._check()

    def _blocks(self, x: Array, piece_bytes: int) -> list[Array]:
        """Divide a batch, where unfolding copies it: at most so much at once, or one sample."""
        copied = 4 * self.linear.copied_elements(x.shape)
        if copied <= piece_bytes:
            return [x]
        step = max(1, len(x) * piece_bytes // copied)
        return [x[start : start + step] for start in range(0, len(x), step)]

    def _rows(self, windows: Windows, done: float, most: int) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the rows to add, some at a time: all of them, or as many as the samples so far may have."""
        wanted = windows.count if self.max_rows is None else round(self.max_rows * done) - self.count
        if wanted >= windows.count:
            self.count += windows.count
            yield from (piece.packed() for piece in windows.pieces(most))
            return
        self.count += wanted
        # one row at random from each of as many equal parts: every row is as likely as any other
        places = (np.arange(wanted) + self.random.random(wanted)) * (windows.count / max(1, wanted))
        numbers = np.minimum(places.astype(np.intp), windows.count - 1)
        for start in range(0, wanted, most):
            yield windows.packed(numbers[start : start + most])

    def _add_rows(self, rows: npt.NDArray[np.float32]) -> None:
        if self._part_rows + rows.shape[1] > _FLOAT32_ROWS:
            self._flush()
        ones = np.ones(rows.shape[1], np.float32)
        for number, group in enumerate(rows):
            # half of the products of X^T X: BLAS fills one triangle, of arrays in the order of Fortran
            ssyrk(1.0, group.T, beta=1.0, c=self._part[number].T, overwrite_c=1)
            self.first[number] += ones @ group
        self._part_rows += rows.shape[1]

    def _flush(self) -> None:
        self._check()
        self.second += self._part
        self._part[...] = 0
        self._part_rows = 0

    def _check(self) -> None:
        if not (np.isfinite(self.first).all() and np.isfinite(np.einsum("gii->gi", self._part)).all()):
            raise self._not_finite()

    def _not_finite(self) -> DataError:
        return DataError(
            f"{self.source}: on this data the input of {quoted(consumer_name(self.linear.node))} holds NaN, "
            "infinity, or numbers too large to square"
        )

    def result(self) -> Moments:
        """Return the sums, with both triangles, in the order of the columns of the matrix."""
        self._flush()
        del self._part
        order = np.argsort(self.columns)
        sorted_already = np.array_equal(order, np.arange(len(order)))
        for square in self.second:
            _mirror(square)
            if not sorted_already:
                _sort(square, order)
        self.first = self.first[:, order]
        self.second.flags.writeable = self.first.flags.writeable = False
        return Moments(self.second, self.first, self.count)


def _mirror(square: FloatArray) -> None:
    """Copy the lower triangle into the upper one, in place, strip by strip."""
    for start in range(0, len(square), _STRIP):
        stop = min(start + _STRIP, len(square))
        corner = square[start:stop, start:stop]
        corner[...] = np.tril(corner) + np.tril(corner, -1).T
        square[start:stop, stop:] = square[stop:, start:stop].T


def _sort(square: FloatArray, order: npt.NDArray[np.intp]) -> None:
    """Put rows and columns in another order, in place, strip by strip."""
    for start in range(0, len(square), _STRIP):
        square[start : start + _STRIP] = square[start : start + _STRIP, order]
    for start in range(0, len(square), _STRIP):
        square[:, start : start + _STRIP] = square[order, start : start + _STRIP]
