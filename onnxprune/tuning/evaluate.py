"""What validation samples say: the loss and the metric, over all processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from onnxprune.tuning.batches import Batch, Batches
from onnxprune.tuning.distributed import Processes
from onnxprune.tuning.losses import Objective, Values
from onnxprune.tuning.objective import Metric

#: From a batch to the model's values and the original's (None where nothing is compared with it).
Forward = Callable[[Batch], tuple[Values, Values | None]]


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the validation samples.

    Attributes:
        loss: mean over samples.
        metric: mean over samples.
    """

    loss: float
    metric: float

    def better_than(self, other: Look | None, metric: Metric) -> bool:
        """Tell whether this is the better one: by the metric, and by the loss where that is the same."""
        if other is None:
            return True
        mine, theirs = (
            (self.metric, other.metric) if metric.higher_is_better else (-self.metric, -other.metric)
        )
        return (mine, -self.loss) > (theirs, -other.loss)


def look_at(
    batches: Batches, forward: Forward, objective: Objective, metric: Metric, processes: Processes
) -> Look:
    """Return loss and metric over all samples; each process looks at its part."""
    sums = [0.0, 0.0, 0.0]
    with torch.no_grad():
        for batch in batches.once():
            values, original = forward(batch)
            values = batches.counting(values, batch)
            original = None if original is None else batches.counting(original, batch)
            labels = None if batch.labels is None else batch.labels[: batch.count]
            loss = float(objective(values, labels, original))
            figure = loss if metric.of is None else float(metric.of(values, labels, original))
            for place, term in enumerate((loss * batch.count, figure * batch.count, float(batch.count))):
                sums[place] += term
    loss, figure, count = processes.sums(sums)
    return Look(loss / count, figure / count)
