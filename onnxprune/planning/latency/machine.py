"""Whole models on the machine: how long they take beside the original, and where the time goes in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.measure.intervals import Estimate
from onnxprune.measure.latency import quick_ratio
from onnxprune.runtime import Execution, open_session, time_kernels
from onnxprune.types import FloatArray

#: Rounds in which a cut model and the original take turns.
_PAIRS = 40

#: Runs of which the time of each kernel is the median.
_RUNS = 15


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
        self.noise, self.original_ms, _ = self._beside(original)

    def share(self, model: ir.Model) -> Estimate:
        """Return the time of a model as a share of the original's, measured in turns with it."""
        return self._beside(model)[0]

    def _beside(self, model: ir.Model) -> tuple[Estimate, float, float]:
        return quick_ratio(
            self._session, model, self._feeds, self._execution, pairs=_PAIRS, quantile=self._quantile
        )

    def in_context(self, model: ir.Model) -> FloatArray:
        """Return the ms of every part inside a model, float64 [parts].

        A kernel that computes nodes of several parts counts for the first of them: a convolution that takes
        in a sum behind another one, as a rule.
        """
        total = np.zeros(self._parts)
        for kernel in time_kernels(model, self._feeds, self._execution, runs=_RUNS):
            numbers = [self._part_of[name] for name in kernel.covers if name in self._part_of]
            if numbers:
                total[min(numbers)] += float(np.median(kernel.microseconds)) / 1000
        return total
