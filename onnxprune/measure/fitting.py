"""The metric that fits what there is: classes or numbers, with labels or without."""

from __future__ import annotations

import numpy as np

from onnxprune.data import Dataset, fixed_batch
from onnxprune.errors import DataError, UsageError
from onnxprune.measure.accuracy import Model, validate
from onnxprune.runtime import open_session

#: Outputs of more axes than this hold no classes on their last one: they are images, or maps of them.
_MOST_AXES_OF_SCORES = 3


def metric_for(data: Dataset, model: Model, original: Model) -> str:
    """Return the metric that fits: top1 or mse with labels, agreement or cosine without."""
    names = ["agreement", "cosine"] if data.labels is None else ["top1", "mse"]
    session = open_session(original)
    first = next(iter(session.outputs.values()))
    if data.labels is None and len(first.shape) > _MOST_AXES_OF_SCORES:
        return names[-1]
    count = max(2, fixed_batch(session.inputs) or 0)
    few = data.take(np.arange(min(count, len(data))))
    for name in names[:-1]:
        try:
            validate(model, original, data=few, metric=name)
        except (DataError, UsageError):
            continue
        return name
    return names[-1]
