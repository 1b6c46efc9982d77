"""Whole models on the machine: how long they take beside the original, and where the time goes in them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.measure.intervals import Estimate
from onnxprune.measure.latency import quick_ratio
from onnxprune.measure.part_times import runs_on_cpu, typical_ms
from onnxprune.runtime import Execution, open_session, pinned, time_kernels
from onnxprune.types import FloatArray
from onnxprune.workers import measuring

#: Rounds in which a model and the original take turns: as many as take about so long, within these bounds.
_SECONDS = 4.0
_LEAST_PAIRS, _MOST_PAIRS = 12, 60

#: Runs in which kernels are timed, and the whole.
_RUNS = 16

#: Kernels that take so much longer than the whole were disturbed; they are timed so often, at most.
_OVER = 1.05
_MOST_PROFILES = 5


class Machine:
    """Runs whole models beside the original, on the same inputs.

    Args:
        original: the model that others are compared with; its session stays open.
        feeds: one array per input.
        execution: where and how.
        quantile: of the times that is compared: 0.5 is the median.
        part_of: number of the part of every node, by name.
        parts: how many there are.

    Attributes:
        original_ms: the quantile of the original's times.
        noise: the measured share of the original itself, which would be 1 without noise.
    """

    def __init__(
        self,
        original: ir.Model,
        feeds: Mapping[str, npt.NDArray[Any]],
        execution: Execution,
        quantile: float,
        part_of: Mapping[str, int],
        parts: int,
    ) -> None:
        self._feeds, self._execution, self._quantile = feeds, execution, quantile
        self._part_of, self._parts = part_of, parts
        self._session = open_session(original, execution=execution, label="the original")
        self._pairs = _LEAST_PAIRS
        _, first_ms, _ = self._beside(original)
        self._pairs = min(max(_LEAST_PAIRS, round(_SECONDS * 1000 / (2 * first_ms))), _MOST_PAIRS)
        self.noise, self.original_ms, _ = self._beside(original)

    def share(self, model: ir.Model) -> Estimate:
        """Return the time of a model as a share of the original's, measured in turns with it."""
        return self._beside(model)[0]

    def _beside(self, model: ir.Model) -> tuple[Estimate, float, float]:
        return quick_ratio(
            self._session, model, self._feeds, self._execution, pairs=self._pairs, quantile=self._quantile
        )

    def kernels_ms(self, model: ir.Model, whole_ms: float) -> FloatArray | None:
        """Return the ms that the kernels of every part take inside a model, float64 [parts].

        None on providers other than the CPU, where kernels run behind the profiler's back.

        Each at its fastest, so that a busy machine shows less; together they can take no longer than the
        whole, and are timed again if they seem to. A kernel that computes nodes of several parts counts for
        the first of them: a convolution that takes in a sum behind another one, as a rule. What the runtime
        put in between (reordering) counts for the part before it, whose result it is about.

        Args:
            model: with nodes named as in the model whose parts are meant.
            whole_ms: what it takes as a whole.
        """
        if not runs_on_cpu(self._execution):
            return None
        least = np.full(self._parts, np.inf)
        for _ in range(_MOST_PROFILES):
            least = np.minimum(least, self._by_part(model))
            if least.sum() <= whole_ms * _OVER:
                break
        return least

    def _by_part(self, model: ir.Model) -> FloatArray:
        """Return the ms of the kernels of every part, from one profile."""
        total = np.zeros(self._parts)
        number = 0
        with measuring():
            kernels = time_kernels(model, self._feeds, self._execution, runs=_RUNS)
        for kernel in kernels:
            known = [self._part_of[name] for name in kernel.covers if name in self._part_of]
            number = min(known, default=number)
            total[number] += typical_ms(kernel.microseconds)
        return total

    def fastest_ms(self) -> float:
        """Return the least ms of a run of the original: as little as can be of what else the machine does."""
        least = float("inf")
        with measuring(), pinned(self._execution):
            run = self._session.runner(self._feeds)
            for _ in range(_RUNS):
                started = time.perf_counter()
                run()
                least = min(least, time.perf_counter() - started)
        return least * 1000
