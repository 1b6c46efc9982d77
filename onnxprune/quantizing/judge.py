"""What quantized models are judged by: samples that were not calibrated on, a metric, and a bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.calibration.activations import inputs_of
from onnxprune.data import Dataset, fixed_batch
from onnxprune.errors import DataError
from onnxprune.measure.accuracy import validate
from onnxprune.measure.fitting import metric_for
from onnxprune.quantization.output_errors import Outputs
from onnxprune.quantization.search import Judged
from onnxprune.types import Skipped

#: What a share (of right answers, of agreement) may lose where nobody says.
USUAL_BOUND = 0.01

#: The same for metrics without a scale, as a share of the reference's figure.
_USUAL_RATIO = 0.1

#: Samples that are set aside to judge on, and that ranges are taken from, at most.
JUDGED, CALIBRATED = 256, 512

#: Samples on which outputs are compared, at most.
COMPARED = 128


@dataclass(frozen=True, slots=True)
class Samples:
    """What ranges are taken from, and what is judged on.

    Attributes:
        calibration: for ranges and means.
        judged: for the metric.
        notes: what the report must say of them.
    """

    calibration: Dataset
    judged: Dataset
    notes: tuple[Skipped, ...] = ()


def divide(model: ir.Model, data: Dataset | None, evaluation: Dataset | None) -> Samples | None:
    """Divide samples; where there are too few, the same serve for both, which is said.

    Args:
        model: that they are for.
        data: to calibrate on.
        evaluation: to judge on, if there are samples of their own.
    """
    if data is None:
        return None if evaluation is None else Samples(evaluation, evaluation)
    unit = fixed_batch(inputs_of(model, data)) or 1
    if evaluation is not None:
        return Samples(_spread(data, CALIBRATED, unit), evaluation)
    units = len(data) // unit
    if units < 4:
        note = f"{len(data)} samples are too few to set some aside: they are calibrated and judged on"
        return Samples(data, data, (Skipped("samples", note),))
    numbers = np.arange(units * unit).reshape(units, unit)
    held = np.zeros(units, dtype=np.bool_)
    held[3::4] = True  # every fourth
    kept, judged = data.take(numbers[~held].reshape(-1)), data.take(numbers[held].reshape(-1))
    return Samples(_spread(kept, CALIBRATED, unit), _spread(judged, JUDGED, unit))


def _spread(data: Dataset, most: int, unit: int) -> Dataset:
    """Return at most so many samples, evenly spaced, in whole batches."""
    units, wanted = len(data) // unit, max(1, most // unit)
    if units <= wanted:
        return data
    chosen = np.linspace(0, units - 1, wanted).astype(np.intp)
    return data.take(np.arange(units * unit).reshape(units, unit)[chosen].reshape(-1))


class Judge:
    """Judges models: their metric beside the reference's, and their outputs beside those in float.

    Attributes:
        metric: its name.
        bound: what it may lose.
        notes: what the report must say.
    """

    def __init__(
        self,
        given: ir.Model,
        reference: ir.Model,
        judged: Dataset,
        *,
        metric: str | None,
        max_drop: float | None,
        batch: int,
        threads: int,
    ) -> None:
        self._reference = reference
        self._data = judged
        self._settings = {"batch": batch, "threads": threads}
        unit = fixed_batch(inputs_of(given, judged)) or 1
        compared = _spread(judged, COMPARED, unit)
        self.outputs = Outputs(given, compared, batch=batch, threads=threads)
        self.metric = metric or metric_for(judged, given, reference)
        self.notes: list[Skipped] = []
        found = validate(reference, reference, data=judged, metric=self.metric, batch=batch, threads=threads)
        self._by_labels = found.compared_with == "labels"
        self._lower_is_better = found.higher_is_better is False
        self._best = found.overall.model.value
        scaled = self.metric.startswith("top") or self.metric in ("agreement", "cosine")
        usual = USUAL_BOUND if scaled else _USUAL_RATIO * abs(self._best)
        self.bound = usual if max_drop is None else max_drop
        if reference is not given:
            lost = self.lost(given)[1]
            if lost > self.bound:
                reason = (
                    f"the model in float has lost {lost:.4g} of the {self.metric} of the reference already, "
                    f"more than {self.bound:.4g}: that is allowed on top of it"
                )
                self.notes.append(Skipped("bound", reason))
                self.bound += lost

    def lost(self, model: ir.Model) -> tuple[float, float]:
        """Return the metric of a model, and what it has lost of the reference's."""
        reference = None if self._by_labels else self._reference
        found = validate(model, reference, data=self._data, metric=self.metric, **self._settings)  # type: ignore[arg-type]
        value = found.overall.model.value
        return value, value - self._best if self._lower_is_better else self._best - value

    def __call__(self, model: ir.Model) -> Judged:
        """Judge a model. Outputs that are no numbers are infinitely wrong."""
        error = self.outputs.error_of(model)
        try:
            value, lost = self.lost(model)
        except DataError:
            if np.isfinite(error.relative):
                raise
            return Judged(error, float("inf"), {self.metric: None})
        return Judged(error, lost, {self.metric: value})
