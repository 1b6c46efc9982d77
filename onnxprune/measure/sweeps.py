"""Latency over batch sizes and numbers of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.measure.inputs import random_inputs
from onnxprune.measure.latency import LatencyResult, Model, benchmark
from onnxprune.runtime import DEFAULT, Execution


def sweep(
    a: Model,
    b: Model | None = None,
    *,
    batches: Sequence[int] = (),
    threads: Sequence[int] = (),
    execution: Execution = DEFAULT,
    progress: Callable[[float], None] | None = None,
    **setting: Any,
) -> list[dict[str, Any]]:
    """Time a model, or two against each other, at every batch size with every number of threads.

    Args:
        a: the model that others are compared with.
        b: the model that is compared.
        batches: sizes of the first axis; that of ``setting``, or 1, if there are none.
        threads: of one operator; that of ``execution`` if there are none. Its pinning must fit all of them.
        execution: where and how they run.
        progress: called with the share that is done, in (0, 1].
        setting: as in `benchmark`.

    Returns:
        A row for each: ``batch``, ``threads``, ``a_ms`` (median), ``a_per_s`` (samples in a second), the same
        of b, ``ratio`` (time of b / time of a, an estimate as a mapping) and ``verdict``; those of b are None
        without it.

    Raises:
        UsageError: a batch that the model does not take, a number that is none, or pinning that does not fit.
        ModelError, RuntimeFailure: a model can't be read, opened or run.
    """
    if any(size < 1 for size in batches) or any(number < 0 for number in threads):
        raise UsageError("a sweep takes batches from 1 on and threads from 0 on (one per core)")
    for size in batches:  # before the first long measurement
        random_inputs(a, batch=size, input_shapes=setting.get("input_shapes"), seed=0)
    points = [
        (batch, number)
        for batch in batches or (setting.pop("batch", None),)
        for number in threads or (execution.threads,)
    ]
    setting.pop("batch", None)
    rows = []
    for index, (batch, number) in enumerate(points):
        done = index / len(points)

        def report(share: float, done: float = done) -> None:
            if progress is not None:
                progress(done + share / len(points))

        chosen = replace(execution, threads=number)
        found = benchmark(a, b, batch=batch, execution=chosen, progress=report, **setting)
        rows.append(_row(found, batch, number))
    return rows


def _row(found: LatencyResult, batch: int | None, threads: int) -> dict[str, Any]:
    samples = batch or 1
    row: dict[str, Any] = {
        "batch": samples,
        "threads": threads,
        "a_ms": found.a.median_ms,
        "a_per_s": samples / found.a.median_ms * 1000,
        "b_ms": None,
        "b_per_s": None,
        "ratio": None,
        "verdict": found.verdict,
        "control_ratio": found.control.as_dict(),
    }
    if found.b is not None:
        row["b_ms"], row["b_per_s"] = found.b.median_ms, samples / found.b.median_ms * 1000
        row["ratio"] = None if found.ratio is None else found.ratio.as_dict()
    return row
