"""What candidates cost in accuracy, on samples that no repair and no calibration has seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.advice.candidates import Made
from onnxprune.data import Dataset
from onnxprune.errors import OnnxPruneError
from onnxprune.measure.accuracy import Model, validate
from onnxprune.measure.intervals import Estimate

#: With fewer in all, either part says too little.
LEAST_SAMPLES = 40


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A figure of a candidate on data.

    Attributes:
        metric: name of it.
        value: of the candidate.
        original: of the original; None where the metric compares with it.
        change: candidate minus original, paired by sample; None as above.
        lost: share of the accuracy (or agreement) that may have gone, by the worse end of the interval; None
            for metrics without a scale.
    """

    metric: str
    value: Estimate
    original: Estimate | None
    change: Estimate | None
    lost: float | None


def divided(data: Dataset, mended: int, judged: int) -> tuple[Dataset, Dataset]:
    """Return samples to repair and calibrate with, and others to judge on, both from all over the data.

    Args:
        data: all samples, at least `LEAST_SAMPLES`.
        mended: of the first, at most; and at most half of all.
        judged: of the others, at most.
    """
    least = LEAST_SAMPLES // 2
    first = _spread(np.arange(len(data)), min(len(data) // 2, max(mended, least)))
    others = np.setdiff1d(np.arange(len(data)), first)
    return data.take(first), data.take(_spread(others, max(judged, least)))


def _spread(which: npt.NDArray[np.intp], most: int) -> npt.NDArray[np.intp]:
    """Return at most so many entries, evenly spaced."""
    return which[np.linspace(0, len(which) - 1, min(most, len(which))).astype(np.intp)]


def judge(made: Made, original: Model, data: Dataset, metric: str, threads: int) -> Accuracy | str:
    """Return what a candidate gets right, or why that can't be said."""
    try:
        found = validate(made.model, original, data=data, metric=metric, threads=threads)
    except OnnxPruneError as error:
        return str(error)
    overall = found.overall
    lost = None
    if overall.change is not None and overall.reference is not None and found.higher_is_better:
        lost = -overall.change.low / max(overall.reference.value, 1e-9)
    elif metric in ("agreement", "cosine"):
        lost = 1 - overall.model.low
    return Accuracy(metric, overall.model, overall.reference, overall.change, lost)
