"""How long a part of a model takes within the whole, found by running it alone.

On CPU it is the sum of the times of its kernels by ONNX Runtime's profiler. What a run costs beside them,
and reordering at the ends, would count for every part and happen once in the whole model. On other providers
kernels run behind the profiler's back, and the wall time of a run stands in.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.measure.borders import Borders
from onnxprune.runtime import Execution, Kernel, open_session, pinned, time_kernels
from onnxprune.types import FloatArray
from onnxprune.workers import measuring

#: Runs of the first burst, and before any burst; the others last about this long.
_FIRST_RUNS = 6
_WARM_UP = 2
_BURST_SECONDS = 0.004
_MOST_RUNS = 40

#: Bursts that differ by no more than this share, or by this many milliseconds, agree.
AGREEMENT = 0.03
RESOLUTION_MS = 0.002
_MOST_BURSTS = 5

#: The profiler counts whole microseconds; no kernel takes none.
_LEAST_KERNEL_MS = 0.0005

_REORDERS = ("ReorderInput", "ReorderOutput")


@dataclass(frozen=True, slots=True)
class PartTime:
    """Time of a part.

    Attributes:
        milliseconds: the best burst.
        spread: by which share the second best burst is longer.
        bursts: how many there were.
        agreed: whether the two best are within `AGREEMENT` or `RESOLUTION_MS` of each other.
    """

    milliseconds: float
    spread: float
    bursts: int
    agreed: bool


def runs_on_cpu(execution: Execution) -> bool:
    """Return whether kernels run in the thread that the profiler watches, on images in blocks."""
    return execution.provider.lower() in ("cpu", "cpuexecutionprovider")


def time_part(
    model: ir.Model,
    feeds: Mapping[str, npt.NDArray[Any]],
    execution: Execution,
    borders: Borders | None = None,
) -> PartTime:
    """Time a part that was cut out, in bursts of runs until the two best agree.

    Args:
        model: the part, not changed.
        feeds: one array for each input.
        execution: where and how it runs.
        borders: the nodes that were put at its ends, whose time does not count.

    Raises:
        RuntimeFailure: it can't be opened or run.
        UsageError: the execution can't be had.
    """
    with measuring():
        return _time_part(model, feeds, execution, borders)


def _time_part(
    model: ir.Model, feeds: Mapping[str, npt.NDArray[Any]], execution: Execution, borders: Borders | None
) -> PartTime:
    was_on = gc.isenabled()
    gc.disable()
    try:
        found = [_burst(model, feeds, execution, borders, _FIRST_RUNS)]
        runs = int(np.clip(_BURST_SECONDS * 1000 / max(found[0], 1e-6), _FIRST_RUNS, _MOST_RUNS))
        while len(found) < 2 or (not _agree(found) and len(found) < _MOST_BURSTS):
            found.append(_burst(model, feeds, execution, borders, runs))
    finally:
        if was_on:
            gc.enable()
    best, second = sorted(found)[:2]
    return PartTime(best, second / best - 1, len(found), _agree(found))


def _agree(found: Sequence[float]) -> bool:
    best, second = sorted(found)[:2]
    return second - best <= max(AGREEMENT * best, RESOLUTION_MS)


def _burst(
    model: ir.Model,
    feeds: Mapping[str, npt.NDArray[Any]],
    execution: Execution,
    borders: Borders | None,
    runs: int,
) -> float:
    """Return the sum of the times of a part's own kernels, in milliseconds, or what stands in for it."""
    if not runs_on_cpu(execution):
        return _wall_ms(model, feeds, execution, runs)
    kernels = time_kernels(model, feeds, execution, runs=runs, warm_up=_WARM_UP)
    counted = _own(kernels, borders) if borders is not None else kernels
    return max(_LEAST_KERNEL_MS, sum(typical_ms(kernel.microseconds) for kernel in counted))


def typical_ms(microseconds: FloatArray) -> float:
    """Return what a kernel takes when nothing comes in between: the mean of the fastest quarter of its runs.

    Args:
        microseconds: float64 [run], whole numbers.
    """
    fastest = np.sort(microseconds)[: max(2, len(microseconds) // 4)]
    return max(_LEAST_KERNEL_MS, float(fastest.mean()) / 1000)


def _own(kernels: Sequence[Kernel], borders: Borders) -> list[Kernel]:
    """Leave out the borders, and the reordering of what these give away."""
    own: list[Kernel] = []
    after_end = False
    for kernel in kernels:
        if borders.added.isdisjoint(kernel.covers):
            if not (after_end and kernel.op_type in _REORDERS):
                own.append(kernel)
            after_end = False
        else:
            after_end = not borders.ends.isdisjoint(kernel.covers)
    return own


def _wall_ms(
    model: ir.Model, feeds: Mapping[str, npt.NDArray[Any]], execution: Execution, runs: int
) -> float:
    """Return the wall time of a run."""
    session = open_session(model, execution=execution)
    walls = []
    with pinned(execution):
        for _ in range(_WARM_UP + runs):
            start = time.perf_counter()
            session.run(feeds)
            walls.append((time.perf_counter() - start) * 1e6)
    return typical_ms(np.array(walls[_WARM_UP:]))


def observe_values(
    model: ir.Model, names: Collection[str], feeds: Mapping[str, npt.NDArray[Any]]
) -> tuple[dict[str, ir.DataType], dict[str, npt.NDArray[Any]]]:
    """Run a model once, for the types of some values, and the contents of those that are not floats.

    What time is taken on floats does not depend on them; indices, sizes and masks must be what they are.

    Args:
        model: not changed.
        names: values of the main graph.
        feeds: one array for each input of the model.

    Returns:
        Element types by name, those of tensors alone; contents by name, of the inputs of the model too.

    Raises:
        RuntimeFailure: it can't be opened or run.
    """
    session = open_session(model, optimize="none", prepack=False, arena=False, extra_outputs=list(names))
    described = {**session.outputs, **session.inputs}
    types = {
        name: ir.DataType.from_numpy(info.dtype) for name, info in described.items() if info.dtype != object
    }
    exact = [
        name for name in session.outputs if name in names and name in types and not _is_float(types[name])
    ]
    contents = dict(session.run(feeds, exact)) if exact else {}
    return types, {**contents, **feeds}


def _is_float(dtype: ir.DataType) -> bool:
    return dtype.is_floating_point()
