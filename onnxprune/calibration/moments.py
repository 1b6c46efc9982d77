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

import contextlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import scipy
from threadpoolctl import ThreadpoolController

from onnxprune.calibration.activations import BATCH, LIMIT_BYTES, Tapped, course_of
from onnxprune.data import Dataset
from onnxprune.errors import DataError, LimitMissed, UsageError
from onnxprune.messages import quoted
from onnxprune.model.stored import consumer_name
from onnxprune.ops.linear import Linear, find_linear
from onnxprune.ops.windows import Windows
from onnxprune.types import FloatArray
from onnxprune.workers import ALONE, Workers

Array = npt.NDArray[Any]

#: Of one node, by default. A regression of k coefficients on n rows errs by about k / n beyond the best one:
#: by less than a tenth here for up to 6,500 columns, and moments themselves by 1 / sqrt(n) = 0.4 %.
MAX_ROWS = 65_536

#: Rows that are added up in float32. All numbers of one sign, which is the worst case, err by 1.4e-7 then;
#: ten times as many err by 1e-6.
_FLOAT32_ROWS = 8192

#: Parts of the data, at most, that are added up each by itself.
SHARDS = 8

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
    workers: Workers = ALONE,
    progress: Callable[[float], None] | None = None,
) -> Iterator[tuple[int, Moments]]:
    """Run a model over data, and yield the moments of what each linear node takes in.

    Nodes that take the same rows (query, key and value) get the same object. Several nodes share a run as
    long as their sums stay within the limit; the rest follows in further passes over the data. The sums agree
    with those in float64 to 1e-5, relative to the roots of the diagonal.

    The batches are divided into `SHARDS` parts, whoever works. Rows are drawn for each part by itself, and
    what they sum up to is added in the order of the parts: the same bits come out for any number of workers.

    Args:
        model: a complete model; not changed.
        linears: nodes of this model, from `onnxprune.ops.linear.find_linear`.
        data: the samples.
        batch: samples of one run, where the model's first axis is symbolic.
        limit_bytes: of all sums that are kept at once, of the values that leave one run, and of what is
            unfolded, together.
        threads: of one operator of ONNX Runtime, and of BLAS; 0 for one per core.
        max_rows: of one node; where there are more, as many are drawn, evenly over the samples and places.
            None for all.
        seed: of the rows that are drawn.
        workers: who runs the shards. They have the limit each. A model that is run in stretches, and a graph
            whose nodes have no names of their own, is run here.
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
    firsts = [linears[numbers[0]] for numbers in tasks.values()]
    adding = Adding(model, firsts, [numbers[0] for numbers in tasks.values()], data, batch, limit_bytes,
                    threads, Draw(max_rows, seed))  # fmt: skip
    if adding.can_be_shared(workers):
        from onnxprune.calibration.moment_shards import add_elsewhere

        found = add_elsewhere(adding, workers, progress)
    else:
        found = adding.run(progress)
    return _to_each(found, list(tasks.values()))


def _to_each(
    found: Iterator[tuple[int, Moments]], tasks: Sequence[list[int]]
) -> Iterator[tuple[int, Moments]]:
    """Give the nodes that take the same rows what was found for the first of them."""
    for place, moments in found:
        for number in tasks[place]:
            yield number, moments
        del moments  # before the next ones are made


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


@dataclass(frozen=True, slots=True)
class Draw:
    """How many rows are used, and from which seed they are drawn."""

    max_rows: int | None
    seed: int


class Adding:
    """Sums over the inputs of some nodes, about to be made.

    Args:
        model: a complete model; not changed.
        linears: nodes of this model.
        numbers: of each, what its rows are drawn by.
        data: the samples.
        batch: samples of one run.
        limit_bytes: see `collect_moments`.
        threads: of one operator, and of BLAS.
        draw: which rows are used.

    Attributes:
        course: how the model is run.
        shards: of the batches, by number.
    """

    def __init__(
        self, model: ir.Model, linears: Sequence[Linear], numbers: Sequence[int], data: Dataset, batch: int,
        limit_bytes: int, threads: int, draw: Draw,
    ) -> None:  # fmt: skip
        self.model, self.linears, self.numbers, self.data = model, linears, numbers, data
        self.batch, self.limit_bytes, self.draw = batch, limit_bytes, draw
        self._piece_bytes = int(limit_bytes * _PIECE_SHARE)
        self._blas = _Blas(threads)
        self.course = course_of(
            model, [(str(linear.x.name),) for linear in linears], data,
            batch=batch, limit_bytes=limit_bytes, reserved_bytes=self._piece_bytes,
            held_bytes=[_sum_bytes(linear) for linear in linears], threads=threads,
        )  # fmt: skip
        step = -(-len(self.course.batches) // SHARDS) or 1
        self.shards = [slice(start, start + step) for start in range(0, len(self.course.batches), step)]

    def can_be_shared(self, workers: Workers) -> bool:
        """Tell whether others may do some of it."""
        parts = len(self.shards) if len(self.course.cut) == 1 else 1
        if workers == ALONE or parts == 1 or self.draw.max_rows is None:
            return False
        names = Counter(node.name for node in self.model.graph)
        found = {(linear.node.name, linear.operand) for linear in find_linear(self.model)[0]}
        return all(
            names[linear.node.name] == 1 and (linear.node.name, linear.operand) in found
            for linear in self.linears
        )

    def sums(self, place: int) -> Sums:
        """Return the sums of a node, with nothing in them."""
        samples = [self._samples(shard) for shard in self.shards]
        return Sums(self.linears[place], self.numbers[place], samples, self.draw, self.data.source)

    def _samples(self, shard: slice) -> slice:
        batches = self.course.batches[shard]
        return slice(batches[0].start, batches[-1].stop)

    def run(self, progress: Callable[[float], None] | None) -> Iterator[tuple[int, Moments]]:
        """Yield the place of each node, and its moments."""
        sums: dict[int, Sums] = {}
        for tapped in self.course.run(progress):
            place = tapped.bundle
            if place not in sums:
                sums[place] = self.sums(place)
            self.add(sums[place], tapped)
            if tapped.samples.stop == self.course.batches[-1].stop:
                yield place, sums.pop(place).result()

    def run_shard(self, turn: int, shard: int) -> list[tuple[int, Part]]:
        """Return what the nodes of one pass sum up to over one shard, by place."""
        sums: dict[int, Sums] = {}
        for tapped in self.course.run_some(turn, self.shards[shard]):
            if tapped.bundle not in sums:
                sums[tapped.bundle] = self.sums(tapped.bundle)
                sums[tapped.bundle].keep_only(shard)
            self.add(sums[tapped.bundle], tapped)
        return [(place, each.part()) for place, each in sums.items()]

    def add(self, sums: Sums, tapped: Tapped) -> None:
        """Add the rows of one batch."""
        with self._blas.limited():
            sums.add(tapped.values[0], tapped.samples, self._piece_bytes)


class _Blas:
    """BLAS with a number of threads that does not depend on the machine: its sums do on that number."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._controller = ThreadpoolController() if threads else None

    @contextlib.contextmanager
    def limited(self) -> Iterator[None]:
        """Compute with so many threads for a while; 0 for what is usual."""
        if self._controller is None:
            yield
            return
        with self._controller.limit(limits=self._threads, user_api="blas"):
            yield


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Sums over the rows of one shard.

    Attributes:
        seconds: float32 ``[groups, inputs, inputs]`` each, one triangle of what some thousand rows sum up to.
        first: float64 ``[groups, inputs]``.
        count: rows.
        columns: of the matrix, in the order that the rows have them.
    """

    seconds: Sequence[npt.NDArray[np.float32]]
    first: FloatArray
    count: int
    columns: npt.NDArray[np.intp]


class Sums:
    """The sums of one node while they are made: shard by shard, each by itself, added up in their order.

    Args:
        linear: the node.
        number: what its rows are drawn by.
        shards: where each of them lies in the data.
        draw: which rows are used.
        source: of the data, for messages.
    """

    def __init__(self, linear: Linear, number: int, shards: Sequence[slice], draw: Draw, source: str) -> None:
        self.linear = linear
        self._number, self._shards, self._draw, self._source = number, shards, draw, source
        self._first = np.zeros((linear.groups, linear.inputs))
        self._second: FloatArray | None = None
        self._count = 0
        self._kept: list[npt.NDArray[np.float32]] | None = None
        self._columns: npt.NDArray[np.intp] = np.arange(linear.inputs)
        self._block: npt.NDArray[np.float32] | None = None  # the last few thousand rows
        self._begin(0)

    def _begin(self, shard: int) -> None:
        self._shard = shard
        self._block_rows = self._shard_count = 0
        self._shard_first = np.zeros_like(self._first)
        self._random = np.random.default_rng((self._draw.seed, self._number, shard))

    def keep_only(self, shard: int) -> None:
        """Be about one shard alone, for `part`."""
        self._kept = []
        self._begin(shard)

    def part(self) -> Part:
        """Return the sums of the only shard."""
        return Part(self._kept or [], self._first, self._count, self._columns)

    def take(self, part: Part) -> None:
        """Add the sums of a shard that somebody else made; they come in order."""
        for block in part.seconds:
            self._add_block(block)
        self._first += part.first
        self._count += part.count
        self._columns = part.columns

    def add(self, x: Array, samples: slice, piece_bytes: int) -> None:
        """Add the rows of one batch, or some of them."""
        if x.size and not (np.isfinite(x.min()) and np.isfinite(x.max())):
            raise self._not_finite()
        most = max(1, min(_PIECE_ROWS, piece_bytes // (4 * self.linear.groups * self.linear.inputs)))
        blocks = self._blocks(x, piece_bytes)
        for number, block in enumerate(blocks, start=1):
            done = samples.start + (samples.stop - samples.start) * number / len(blocks)
            windows = self.linear.windows(block)
            self._columns = windows.columns
            for rows in self._rows(windows, done, most):
                self._add_rows(rows)
        self._check()
        if samples.stop == self._shards[self._shard].stop:
            self._end_shard()

    def _end_shard(self) -> None:
        self._flush()
        self._first += self._shard_first
        self._count += self._shard_count
        self._begin(self._shard + 1)

    def _blocks(self, x: Array, piece_bytes: int) -> list[Array]:
        """Divide a batch, where unfolding copies it: at most so much at once, or one sample."""
        copied = 4 * self.linear.copied_elements(x.shape)
        if copied <= piece_bytes:
            return [x]
        step = max(1, len(x) * piece_bytes // copied)
        return [x[start : start + step] for start in range(0, len(x), step)]

    def _rows(self, windows: Windows, done: float, most: int) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the rows to add, some at a time: all of them, or as many as the samples so far may have.

        Args:
            windows: all rows.
            done: samples so far, these among them.
            most: rows at a time.
        """
        wanted = windows.count
        if self._draw.max_rows is not None:
            each = self._draw.max_rows / self._shards[-1].stop
            before = round(each * self._shards[self._shard].start)
            wanted = round(each * done) - before - self._shard_count
        if wanted >= windows.count:
            self._shard_count += windows.count
            yield from (piece.packed() for piece in windows.pieces(most))
            return
        self._shard_count += wanted
        # one row at random from each of as many equal parts: every row is as likely as any other
        places = (np.arange(wanted) + self._random.random(wanted)) * (windows.count / max(1, wanted))
        numbers = np.minimum(places.astype(np.intp), windows.count - 1)
        for start in range(0, wanted, most):
            yield windows.packed(numbers[start : start + most])

    def _add_rows(self, rows: npt.NDArray[np.float32]) -> None:
        if self._block_rows + rows.shape[1] > _FLOAT32_ROWS:
            self._flush()
        if self._block is None:
            self._block = np.zeros((self.linear.groups, self.linear.inputs, self.linear.inputs), np.float32)
        ones = np.ones(rows.shape[1], np.float32)
        for number, group in enumerate(rows):
            # half of the products of X^T X: BLAS fills one triangle, of arrays in the order of Fortran
            scipy.linalg.blas.ssyrk(1.0, group.T, beta=1.0, c=self._block[number].T, overwrite_c=1)
            self._shard_first[number] += ones @ group
        self._block_rows += rows.shape[1]

    def _flush(self) -> None:
        self._check()
        if self._block is None or not self._block_rows:
            return
        if self._kept is None:
            self._add_block(self._block)
            self._block[...] = 0
        else:
            self._kept.append(self._block)
            self._block = None
        self._block_rows = 0

    def _add_block(self, block: npt.NDArray[np.float32]) -> None:
        if self._second is None:
            self._second = np.zeros(block.shape)
        self._second += block

    def _check(self) -> None:
        finite = np.isfinite(self._shard_first).all()
        if self._block is not None:
            finite &= np.isfinite(np.einsum("gii->gi", self._block)).all()
        if not finite:
            raise self._not_finite()

    def _not_finite(self) -> DataError:
        return DataError(
            f"{self._source}: on this data the input of {quoted(consumer_name(self.linear.node))} holds NaN, "
            "infinity, or numbers too large to square"
        )

    def result(self) -> Moments:
        """Return the sums, with both triangles, in the order of the columns of the matrix."""
        self._block = None
        size = self.linear.inputs
        second = np.zeros((self.linear.groups, size, size)) if self._second is None else self._second
        order = np.argsort(self._columns)
        sorted_already = np.array_equal(order, np.arange(len(order)))
        for square in second:
            _mirror(square)
            if not sorted_already:
                _sort(square, order)
        first = self._first[:, order]
        second.flags.writeable = first.flags.writeable = False
        return Moments(second, first, self._count)


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
