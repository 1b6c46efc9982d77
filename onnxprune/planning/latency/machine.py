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
from onnxprune.measure.part_times import typical_ms
from onnxprune.runtime import Execution, open_session, pinned, time_kernels
from onnxprune.types import FloatArray

#: Rounds in which a model and the original take turns: as many as take about so long, within these bounds.
_SECONDS = 4.0
_LEAST_PAIRS, _MOST_PAIRS = 12, 60

#: Runs in which kernels are timed, and then the whole.
_RUNS = 16
_WARM_UP = 3


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

    def in_context(self, model: ir.Model, whole_ms: float) -> FloatArray:
        """Return the ms of every part inside a model, float64 [parts].

        Kernels and the whole are timed at their fastest, one right after the other, and the former then taken
        as shares of ``whole_ms``: what else a busy machine does falls on both alike. A kernel that computes
        nodes of several parts counts for the first of them: a convolution that takes in a sum behind another
        one, as a rule.

        Args:
            model: with nodes named as in the model whose parts are meant.
            whole_ms: its time on the clock of ``original_ms``.
        """
        total = np.zeros(self._parts)
        for kernel in time_kernels(model, self._feeds, self._execution, runs=_RUNS):
            numbers = [self._part_of[name] for name in kernel.covers if name in self._part_of]
            if numbers:
                total[min(numbers)] += typical_ms(kernel.microseconds)
        return np.asarray(total * (whole_ms / self._fastest_ms(model)))

    def _fastest_ms(self, model: ir.Model) -> float:
        session = open_session(model, execution=self._execution)
        with pinned(self._execution):
            run = session.runner(self._feeds)
            microseconds = []
            for _ in range(_WARM_UP + _RUNS):
                started = time.perf_counter()
                run()
                microseconds.append((time.perf_counter() - started) * 1e6)
        return typical_ms(np.array(microseconds[_WARM_UP:]))
