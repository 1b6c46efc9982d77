"""Inner values of a model over a data set, batch by batch, in bounded memory.

Values are tapped on a copy of the model that ends where they are known, so what comes behind them is never
computed. Models in other floating-point types run in float32. Where a statistic of a value is enough, it is
taken inside the graph, and only that leaves ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxprune.data import Dataset, Inputs, fixed_batch
from onnxprune.errors import DataError, LimitMissed, UsageError
from onnxprune.messages import quoted
from onnxprune.model.float32 import OTHER_FLOATS, in_float32
from onnxprune.model.names import Names
from onnxprune.model.shapes import graph_inputs
from onnxprune.runtime import Session, open_session

Array = npt.NDArray[Any]

#: Samples of one run, where the model leaves that open.
BATCH = 32

#: Of the tapped values of one run, beside what the model itself needs.
LIMIT_BYTES = 1 << 30


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

    Every bundle comes once for every batch, in order of the data. Several bundles share a run as long as one
    batch of their values stays within the limit; the rest follows in further passes over the data. If one
    bundle alone exceeds it, batches are made smaller. Memory stays bounded only if the caller lets go of the
    arrays: it does not keep them, nor views of them.

    A model with a fixed batch gets whole batches alone: `left_out` says how many samples at the end that
    leaves out.

    Args:
        model: a complete model; not changed.
        bundles: names of values of its main graph (inputs, inner values or outputs); the values of a bundle
            come together.
        data: the samples; labels and segments are not fed.
        batch: samples of one run, where the model's first axis is symbolic.
        limit_bytes: of all values that leave one run.
        threads: of one operator; 0 for one per core.
        progress: called after every run with the share that is done, in (0, 1].

    Raises:
        UsageError: a name is not in the graph, or ``batch`` is not positive.
        DataError: the data does not fit the model, or has fewer samples than its fixed batch.
        LimitMissed: a bundle of a single sample (or fixed batch) exceeds the limit.
        RuntimeFailure: ONNX Runtime can't run the model.
    """
    if batch < 1:
        raise UsageError(f"batch must be positive, not {batch}")
    inputs = _inputs(model, data)
    data.check_against(inputs)
    fixed = fixed_batch(inputs)
    if fixed is not None and fixed > len(data):
        raise DataError(f"{data.source}: {len(data)} samples, and the model takes batches of {fixed}")
    work = in_float32(model)
    size = min(batch if fixed is None else fixed, len(data))
    bytes_of = _measure(work, bundles, data, size, threads)
    while max(map(bytes_of, bundles), default=0) > limit_bytes:
        largest = max(bundles, key=bytes_of)
        if size == 1 or fixed is not None:
            raise LimitMissed(
                f"{quoted(largest[0])} takes {bytes_of(largest)} bytes in a batch of {size}, more than the "
                f"limit of {limit_bytes}; raise the limit to that"
            )
        size = max(1, min(size - 1, size * limit_bytes // bytes_of(largest)))
        bytes_of = _measure(work, bundles, data, size, threads)
    shares = list(_passes(bundles, bytes_of, limit_bytes))
    return _run_all(work, bundles, shares, data, size, fixed is not None, threads, progress)


def left_out(model: ir.Model, data: Dataset) -> int:
    """Return how many samples at the end of the data fill no whole batch of a model with a fixed batch."""
    fixed = fixed_batch(_inputs(model, data))
    return 0 if fixed is None else len(data) % fixed


def _inputs(model: ir.Model, data: Dataset) -> Inputs:
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
    bundles: Sequence[Sequence[str]], bytes_of: Callable[[Sequence[str]], int], limit_bytes: int
) -> Iterator[list[int]]:
    """Yield the numbers of the bundles of each pass, filled in order."""
    share: list[int] = []
    names: set[str] = set()
    for number, bundle in enumerate(bundles):
        if share and bytes_of([*(names | set(bundle))]) > limit_bytes:
            yield share
            share, names = [], set()
        share.append(number)
        names |= set(bundle)
    if share:
        yield share


def _run_all(
    model: ir.Model,
    bundles: Sequence[Sequence[str]],
    shares: Sequence[Sequence[int]],
    data: Dataset,
    size: int,
    whole: bool,
    threads: int,
    progress: Callable[[float], None] | None,
) -> Iterator[Tapped]:
    count = len(data) // size * size if whole else len(data)
    for turn, share in enumerate(shares):
        session, outputs = _open(model, [name for number in share for name in bundles[number]], threads)
        for start in range(0, count, size):
            stop = min(start + size, count)
            results = session.run(_feeds(data, start, stop))
            for number in share:
                arrays = tuple(results[outputs[name]] for name in bundles[number])
                yield Tapped(number, slice(start, stop), arrays)
                del arrays
            del results  # before the next run makes as many
            if progress is not None:
                progress((turn + stop / count) / len(shares))


def _feeds(data: Dataset, start: int, stop: int) -> dict[str, Array]:
    """Return some samples as a model in float32 takes them."""
    return {
        name: array[start:stop].astype(np.float32) if _is_other_float(array) else array[start:stop]
        for name, array in data.arrays.items()
    }


def _is_other_float(array: Array) -> bool:
    return any(array.dtype == data_type.numpy() for data_type in OTHER_FLOATS)


def _measure(
    model: ir.Model, bundles: Sequence[Sequence[str]], data: Dataset, size: int, threads: int
) -> Callable[[Sequence[str]], int]:
    """Return what tells the bytes of several values of one batch: their shapes alone are computed for it."""
    names = list(dict.fromkeys(name for bundle in bundles for name in bundle))
    if not names:
        return lambda _bundle: 0
    session, outputs = _open(model, names, threads, "Shape")
    shapes = session.run(_feeds(data, 0, size))
    types = {name: value.dtype for name, value in _values(model.graph).items()}
    sizes = {}
    for name in names:
        data_type = types[name]
        # eight bytes are enough for every type that a graph leaves open
        itemsize = 8 if data_type is None else max(1, math.ceil(data_type.itemsize))
        sizes[name] = math.prod(shapes[outputs[name]].tolist()) * itemsize
    return lambda bundle: sum(sizes[name] for name in set(bundle))


def _open(
    model: ir.Model, names: Sequence[str], threads: int, op_type: str = "Identity"
) -> tuple[Session, dict[str, str]]:
    """Open a copy whose only outputs are those of a new node for each value; return these by value too."""
    copy = model.clone()
    values = _values(copy.graph)
    fresh = Names(copy.graph)
    outputs: dict[str, str] = {}
    copy.graph.outputs.clear()
    for name in dict.fromkeys(names):
        if name not in values:
            raise UsageError(f"the graph has no value {quoted(name)}")
        node = ir.node(op_type, [values[name]])
        node.outputs[0].name = outputs[name] = fresh.fresh(f"tap_{len(outputs)}")
        node.outputs[0].type = ir.TensorType(ir.DataType.INT64) if op_type == "Shape" else values[name].type
        copy.graph.append(node)
        copy.graph.outputs.append(node.outputs[0])
    passes.RemoveUnusedNodesPass()(copy)
    return open_session(copy, threads=threads), outputs


def _values(graph: ir.Graph) -> Mapping[str, ir.Value]:
    """Return what can be tapped, by name: inputs, and all that nodes of the main graph compute."""
    computed = [*graph.inputs, *(output for node in graph for output in node.outputs)]
    return {value.name: value for value in computed if value.name}
