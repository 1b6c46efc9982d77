"""Inner values of a model over a data set, batch by batch, in bounded memory.

Values are tapped on a copy of the model that ends where they are known, so what comes behind them is never
computed. Models in other floating-point types run in float32. Where a statistic of a value is enough, it is
taken inside the graph, and only that leaves ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.calibration import stretches
from onnxprune.calibration.part import Tap
from onnxprune.calibration.relay import Form, Turn, relay
from onnxprune.calibration.stretches import Stretch, stored_bytes
from onnxprune.calibration.tapping import Footprint, main_values, open_taps
from onnxprune.data import Dataset, Inputs, fixed_batch
from onnxprune.errors import DataError, LimitMissed, RuntimeFailure, UsageError
from onnxprune.messages import quoted
from onnxprune.model.float32 import OTHER_FLOATS, in_float32
from onnxprune.model.inputs import graph_inputs
from onnxprune.resident import return_freed_memory
from onnxprune.types import FloatArray
from onnxprune.workers import ALONE, Workers

Array = npt.NDArray[Any]

#: Samples of one run, where the model leaves that open.
BATCH = 32

#: Of what calibration keeps in memory at once, beside the model and the data.
LIMIT_BYTES = 1 << 30

#: Share of the limit that the weights of one stretch of a large model may take.
_WEIGHT_SHARE = 1 / 4

#: Share of the limit for values that wait in memory between two stretches; the others wait on disk.
_SPILL_SHARE = 1 / 8


@dataclass(frozen=True, slots=True)
class Running:
    """How a model is run over data; what comes out is the same but for rounding.

    Attributes:
        batch: samples of one run, where the model's first axis is symbolic.
        limit_bytes: of what is kept in memory at once, beside the model and the data.
        threads: of one operator; 0 for one per core.
        workers: who does what can be shared out.
    """

    batch: int = BATCH
    limit_bytes: int = LIMIT_BYTES
    threads: int = 1
    workers: Workers = ALONE


#: With the defaults of the command line.
USUAL = Running()


class Tapped(NamedTuple):
    """Some values of one batch.

    Attributes:
        bundle: number of the bundle that was asked for.
        samples: where the batch lies in the data.
        values: the bundle's values, in the order of its names; float32 for float16, bfloat16 and float64.
    """

    bundle: int
    samples: slice
    values: tuple[Array, ...]


@dataclass(frozen=True, slots=True)
class Course:
    """How a model is run over data for some of its values: in which batches, and in which passes.

    Attributes:
        model: in float32.
        bundles: names of values.
        data: the samples.
        batches: where each of them lies in the data.
        cut: the stretches that the model is run in.
        shares: of each stretch, the numbers of the bundles of each pass.
        limit_bytes: of what is kept at once.
        threads: of one operator.
    """

    model: ir.Model
    bundles: Sequence[Sequence[str]]
    data: Dataset
    batches: Sequence[slice]
    cut: Sequence[Stretch]
    shares: Sequence[Sequence[Sequence[int]]]
    limit_bytes: int
    threads: int

    def run(self, progress: Callable[[float], None] | None = None) -> Iterator[Tapped]:
        """Run all of it; ``progress`` is called after every run with the share that is done, in (0, 1]."""
        if len(self.cut) > 1:
            return _run_relay(self, progress)
        return _run_all(self, self.shares[0] if self.shares else (), self.batches, progress)

    def run_some(self, turn: int, batches: slice) -> Iterator[Tapped]:
        """Run some batches of one pass, of a model that is run in one stretch."""
        return _run_all(self, [self.shares[0][turn]], self.batches[batches], None)


def each_batch(
    model: ir.Model,
    bundles: Sequence[Sequence[str]],
    data: Dataset,
    *,
    batch: int = BATCH,
    limit_bytes: int = LIMIT_BYTES,
    threads: int = 1,
    progress: Callable[[float], None] | None = None,
) -> Iterator[Tapped]:
    """Run a model over data, and yield inner values batch by batch.

    Args:
        model: as for `course_of`.
        bundles: as for `course_of`.
        data: the samples.
        batch: samples of one run, where the model's first axis is symbolic.
        limit_bytes: of all values that are kept at once.
        threads: of one operator; 0 for one per core.
        progress: called after every run with the share that is done, in (0, 1].

    Raises:
        UsageError, DataError, LimitMissed, RuntimeFailure, OutputError: as of `course_of`.
    """
    return course_of(model, bundles, data, batch=batch, limit_bytes=limit_bytes, threads=threads).run(
        progress
    )


def course_of(
    model: ir.Model,
    bundles: Sequence[Sequence[str]],
    data: Dataset,
    *,
    batch: int = BATCH,
    limit_bytes: int = LIMIT_BYTES,
    reserved_bytes: int = 0,
    held_bytes: Sequence[int] = (),
    threads: int = 1,
) -> Course:
    """Decide how a model is run over data for some inner values, batch by batch, within a limit.

    Every bundle comes once for every batch, in order of the data. Several bundles share a run as long as one
    batch of their values stays within the limit; the rest follows in further passes over the data. If one
    bundle alone exceeds it, or what the model itself keeps between its nodes takes more than half of it,
    batches are made smaller. Memory stays bounded only if the caller lets go of the arrays: it does not keep
    them, nor views of them.

    A model of more than `WHOLE_BYTES` is run in stretches, one after the other over all of the data, of which
    only one is open at a time; what passes between them waits, on disk where it is more than a share of the
    limit. The weights of a stretch take a quarter of the limit, if no single node needs more.

    A model with a fixed batch gets whole batches alone: `left_out` says how many samples at the end that
    leaves out.

    Args:
        model: a complete model; not changed.
        bundles: names of values of its main graph (inputs, inner values or outputs); the values of a bundle
            come together.
        data: the samples; labels and segments are not fed.
        batch: samples of one run, where the model's first axis is symbolic.
        limit_bytes: of all values that are kept at once: in a run, and after it. A model that needs more than
            half of it for a single sample (or fixed batch) gets what it needs.
        reserved_bytes: what the caller itself holds of that all the time.
        held_bytes: what the caller holds for each bundle from its first batch to its last; those of a pass
            fill half of the limit, or more where one bundle needs it.
        threads: of one operator; 0 for one per core.

    Raises:
        UsageError: a name is not in the graph, or ``batch`` is not positive.
        DataError: the data does not fit the model, or has fewer samples than its fixed batch.
        LimitMissed: a bundle of a single sample (or fixed batch) exceeds the limit.
        RuntimeFailure: ONNX Runtime can't run the model.
        OutputError: there is no room on disk for what passes between stretches.
    """
    size, whole = _batch_size(model, data, batch)
    work = in_float32(model)
    if not bundles:
        return Course(work, (), data, (), (), (), limit_bytes, threads)
    held = held_bytes or [0] * len(bundles)
    names = [name for bundle in bundles for name in bundle]
    cut = _stretches(work, bundles, held, limit_bytes)
    footprint = Footprint(work, names, _first(data), size, whole, threads, cut)
    groups = [_grouped(stretch.bundles, held, limit_bytes // 2) for stretch in cut]
    most_held = max((sum(held[n] for n in group) for mine in groups for group in mine), default=0)
    room = limit_bytes - reserved_bytes - most_held

    def own_bytes(count: int) -> int:
        """What the model keeps between its nodes; no more than half of the limit is set aside for it."""
        return min(footprint.alive(count), room // 2)

    def fits(count: int) -> bool:
        largest = max(footprint.of(bundle, count) for bundle in bundles)
        return largest + own_bytes(count) <= room and footprint.alive(count) <= room // 2

    if not whole:
        size = _largest(fits, size)
    left = room - own_bytes(size)
    largest = max(bundles, key=lambda bundle: footprint.of(bundle, size))
    wanted = footprint.of(largest, size)
    if wanted > left:
        others = limit_bytes - left
        least = 2 * wanted + 2 * (reserved_bytes + most_held)
        raise LimitMissed(
            f"{quoted(largest[0])} takes {wanted} bytes in a batch of {size}, beside {others} for what else "
            f"is kept: more than the limit of {limit_bytes}; raise it to {least}"
        )
    shares = [
        [
            share
            for group in mine
            for share in _passes(group, bundles, lambda some: footprint.of(some, size), left)
        ]
        for mine in groups
    ]
    return Course(work, bundles, data, _batches(data, size, whole), cut, shares, limit_bytes, threads)


def _stretches(
    model: ir.Model, bundles: Sequence[Sequence[str]], held: Sequence[int], limit_bytes: int
) -> list[Stretch]:
    """Return the stretches of a large model, and a single one of any other.

    Raises:
        UsageError: a name is not in the graph.
    """
    known = main_values(model.graph)
    for name in (name for bundle in bundles for name in bundle):
        if name not in known:
            raise UsageError(f"the graph has no value {quoted(name)}")
    if stored_bytes(model) <= stretches.WHOLE_BYTES:
        return [Stretch(tuple(range(len(bundles))), (), (), ())]
    return stretches.cut_into_stretches(
        model.graph,
        bundles,
        weight_bytes=int(limit_bytes * _WEIGHT_SHARE),
        held_bytes=held,
        held_limit_bytes=limit_bytes // 2,
    )


def _grouped(numbers: Sequence[int], held: Sequence[int], limit_bytes: int) -> list[list[int]]:
    """Return bundles that may be held together, in order; each has as many as fit, at least one."""
    groups: list[list[int]] = []
    filled = 0
    for number in numbers:
        if not groups or filled + held[number] > limit_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(number)
        filled += held[number]
    return groups


def _run_relay(course: Course, progress: Callable[[float], None] | None) -> Iterator[Tapped]:
    bundles, shares, batches = course.bundles, course.shares, course.batches
    taps = [[[Tap(name) for n in share for name in bundles[n]] for share in mine] for mine in shares]
    passes = _Progress([max(len(mine), 1) for mine in shares], len(batches), progress)
    for turn, found in _turns(
        course.model, course.cut, taps, course.data, batches, course.limit_bytes, course.threads
    ):
        mine = shares[turn.stretch]
        for number in mine[turn.share] if mine else ():
            arrays = tuple(found[Tap(name)] for name in bundles[number])
            yield Tapped(number, batches[turn.batch], arrays)
            del arrays
        passes.tell(turn)
        del turn, found


def _turns(
    model: ir.Model,
    cut: Sequence[Stretch],
    taps: Sequence[Sequence[Sequence[Tap]]],
    data: Dataset,
    batches: Sequence[slice],
    limit_bytes: int,
    threads: int,
) -> Iterator[tuple[Turn, Mapping[Tap, Array]]]:
    """Run the stretches one after the other over all batches; raise what a run fails with."""
    form: Form = "light" if len(cut) > 1 else "fast"
    for turn in relay(
        model, cut, taps, lambda number: _feeds(data, batches[number]), len(batches),
        spill_bytes=int(limit_bytes * _SPILL_SHARE), threads=threads, form=form,
    ):  # fmt: skip
        if isinstance(turn.found, RuntimeFailure):
            raise turn.found
        yield turn, turn.found
        del turn  # its values are let go of before the next ones are computed


class _Progress:
    """Tells how much of a relay is done, pass by pass."""

    def __init__(self, passes: Sequence[int], batches: int, progress: Callable[[float], None] | None) -> None:
        self._before = [sum(passes[:number]) for number in range(len(passes))]
        self._all, self._batches, self._progress = sum(passes) * batches, batches, progress

    def tell(self, turn: Turn) -> None:
        if self._progress is not None:
            done = (self._before[turn.stretch] + turn.share) * self._batches + turn.batch + 1
            self._progress(done / self._all)


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number of samples up to ``most`` that fits, 1 if none does."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _first(data: Dataset) -> Callable[[int], dict[str, Array]]:
    return lambda count: _feeds(data, slice(0, count))


def feeds_by_batch(
    model: ir.Model, data: Dataset, *, batch: int = BATCH
) -> Iterator[tuple[slice, dict[str, Array]]]:
    """Yield where each batch lies in the data, and what a copy of the model in float32 takes for it.

    Batches are those of `each_batch`, without a limit.

    Raises:
        UsageError, DataError: as for `each_batch`.
    """
    size, whole = _batch_size(model, data, batch)
    return ((samples, _feeds(data, samples)) for samples in _batches(data, size, whole))


def mean_squares(
    model: ir.Model,
    wanted: Sequence[tuple[str, tuple[int, ...]]],
    data: Dataset,
    *,
    batch: int = BATCH,
    limit_bytes: int = LIMIT_BYTES,
    threads: int = 1,
    progress: Callable[[float], None] | None = None,
) -> list[FloatArray]:
    """Return the mean of x**2 of inner values, over all samples and some of the axes.

    Squares are summed in float32 inside the graph, so a run gives back sums alone, and in float64 over runs.

    Args:
        model: a complete model; not changed.
        wanted: name of a value of floats, and the axes that the mean is taken over (not negative).
        data: the samples.
        batch: samples of one run, where the model's first axis is symbolic.
        limit_bytes: of all values that a run keeps at once: batches are made smaller to stay below.
        threads: of one operator; 0 for one per core.
        progress: called after every run with the share that is done, in (0, 1].

    Returns:
        float64 ``[sizes of the other axes]`` for each one wanted; NaN or infinity where the values are
        not finite, or too large for float32.

    Raises:
        UsageError, DataError, RuntimeFailure: as for `each_batch`.
    """
    order = {name: place for place, name in enumerate(main_values(model.graph))}
    distinct = sorted(dict.fromkeys(wanted), key=lambda key: order.get(key[0], 0))
    names = [name for name, _ in distinct]
    totals: list[Any] = [0.0] * len(distinct)
    counts = [0] * len(distinct)
    size, whole = _batch_size(model, data, batch)
    single = in_float32(model)
    cut = _stretches(single, [(name,) for name in names], [0] * len(names), limit_bytes) if names else []
    if names and not whole:
        footprint = Footprint(single, names, _first(data), size, whole, threads, cut)

        def fits(count: int) -> bool:
            square = max(footprint.of([name], count) for name in names)
            return footprint.alive(count) + 2 * square <= limit_bytes  # a value may outlive its last reader

        size = _largest(fits, size)
    for number, squares, elements in _sums_of_squares(
        single, cut, distinct, data, size, whole, limit_bytes, threads, progress
    ):
        totals[number] = totals[number] + squares.astype(np.float64)
        counts[number] += elements // max(1, squares.size)
    means = {key: total / max(1, count) for key, total, count in zip(distinct, totals, counts, strict=True)}
    return [means[key] for key in wanted]


def _sums_of_squares(
    model: ir.Model,
    cut: Sequence[Stretch],
    wanted: Sequence[tuple[str, tuple[int, ...]]],
    data: Dataset,
    size: int,
    whole: bool,
    limit_bytes: int,
    threads: int,
    progress: Callable[[float], None] | None,
) -> Iterator[tuple[int, FloatArray, int]]:
    """Yield the number of each one wanted, its sum of squares, and its elements, for each batch.

    All of a stretch are taken in one pass: what leaves it is small.
    """
    taps = [(Tap(name, "Squares", axes), Tap(name, "Size")) for name, axes in wanted]
    shares = [[[tap for n in stretch.bundles for tap in taps[n]]] for stretch in cut]
    batches = _batches(data, size, whole)
    passes = _Progress([1] * len(cut), len(batches), progress)
    for turn, found in _turns(model, cut, shares, data, batches, limit_bytes, threads):
        for number in cut[turn.stretch].bundles:
            squares, elements = (found[tap] for tap in taps[number])
            yield number, squares, int(elements)
        passes.tell(turn)


def check_fits(model: ir.Model, data: Dataset) -> None:
    """Check that data holds what a model takes, before long work begins.

    Raises:
        DataError: a name, rank, size or type differs.
    """
    data.check_against(inputs_of(model, data))


def left_out(model: ir.Model, data: Dataset) -> int:
    """Return how many samples at the end of the data fill no whole batch of a model with a fixed batch."""
    fixed = fixed_batch(inputs_of(model, data))
    return 0 if fixed is None else len(data) % fixed


def _batch_size(model: ir.Model, data: Dataset, batch: int) -> tuple[int, bool]:
    """Check that data fits a model, and return the samples of one run, and whether all runs must be whole."""
    if batch < 1:
        raise UsageError(f"batch must be positive, not {batch}")
    inputs = inputs_of(model, data)
    data.check_against(inputs)
    fixed = fixed_batch(inputs)
    if fixed is not None and fixed > len(data):
        raise DataError(f"{data.source}: {len(data)} samples, and the model takes batches of {fixed}")
    return min(batch if fixed is None else fixed, len(data)), fixed is not None


def _batches(data: Dataset, size: int, whole: bool) -> list[slice]:
    count = len(data) // size * size if whole else len(data)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def inputs_of(model: ir.Model, data: Dataset) -> Inputs:
    """Return shape and type of every input; an input without a declared rank takes the data as it is."""
    found: dict[str, tuple[tuple[int | None, ...], np.dtype[Any]]] = {}
    for value in graph_inputs(model):
        name = str(value.name)
        given = data.arrays.get(name)
        shape: tuple[int | None, ...] = (None,) * (0 if given is None else given.ndim)
        if value.shape is not None:
            # some exporters write -1 or 0 for "any"
            shape = tuple(size if isinstance(size, int) and size > 0 else None for size in value.shape)
        dtype = np.dtype(object) if value.dtype is None else np.dtype(value.dtype.numpy())
        found[name] = (shape, dtype)
    return found


def _passes(
    numbers: Sequence[int],
    bundles: Sequence[Sequence[str]],
    bytes_of: Callable[[Sequence[str]], int],
    limit_bytes: int,
) -> Iterator[list[int]]:
    """Yield the numbers of the bundles of each pass, filled in order."""
    share: list[int] = []
    names: set[str] = set()
    for number in numbers:
        bundle = bundles[number]
        if share and bytes_of([*(names | set(bundle))]) > limit_bytes:
            yield share
            share, names = [], set()
        share.append(number)
        names |= set(bundle)
    if share:
        yield share


def _run_all(
    course: Course,
    shares: Sequence[Sequence[int]],
    batches: Sequence[slice],
    progress: Callable[[float], None] | None,
) -> Iterator[Tapped]:
    bundles = course.bundles
    for turn, share in enumerate(shares):
        names = [name for number in share for name in bundles[number]]
        session, outputs = open_taps(course.model, names, course.threads)
        for done, samples in enumerate(batches, start=1):
            results = session.run_in_place(_feeds(course.data, samples))
            for number in share:
                arrays = tuple(results[outputs[name]] for name in bundles[number])
                yield Tapped(number, samples, arrays)
                del arrays
            del results  # before the next run makes as many
            return_freed_memory()
            if progress is not None:
                progress((turn + done / len(batches)) / len(shares))


def _feeds(data: Dataset, samples: slice) -> dict[str, Array]:
    """Return some samples as a model in float32 takes them."""
    return {name: as_fed(array[samples]) for name, array in data.arrays.items()}


def as_fed(array: Array) -> Array:
    """Return an input as a model in float32 takes it."""
    return array.astype(np.float32) if _is_other_float(array) else array


def _is_other_float(array: Array) -> bool:
    return any(array.dtype == data_type.numpy() for data_type in OTHER_FLOATS)
