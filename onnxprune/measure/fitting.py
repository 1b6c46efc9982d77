"""The metric that fits what there is: classes or numbers, with labels or without."""

from __future__ import annotations

import numpy as np

from onnxprune.data import Dataset
from onnxprune.errors import DataError, UsageError
from onnxprune.measure.accuracy import Model, validate


def metric_for(data: Dataset, model: Model, original: Model) -> str:
    """Return the metric that fits: top1 or mse with labels, agreement or cosine without."""
    names = ["agreement", "cosine"] if data.labels is None else ["top1", "mse"]
    few = data.take(np.arange(min(2, len(data))))
    for name in names[:-1]:
        try:
            validate(model, original, data=few, metric=name)
        except (DataError, UsageError):
            continue
        return name
    return names[-1]
