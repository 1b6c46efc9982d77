"""What a trial is judged by: a loss from labels, or how far the outputs are from those of the original.

::

    cross_entropy  mean of -log p[label], over samples and positions; p = softmax(y), or y where it is one
    mse            mean of (y - label)**2
    divergence     mean over outputs of  sum |y - y0|**2 / sum |y0 - mean(y0)|**2
    kl             mean over outputs, samples and positions of  sum_c p0[c] log(p0[c] / p[c])

y0 are the outputs of the original, and the mean of them is taken over samples, position by position. So a
divergence of 0 is the original, and 1 is as far from it as a model that answers every sample with that mean.
Where an output is the same for all samples, its own energy is what counts: sum |y0|**2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError
from onnxprune.messages import quoted
from onnxprune.sensitivity.references import References
from onnxprune.types import FloatArray

Array = npt.NDArray[Any]

#: The losses, and whether they need labels.
LOSSES = {"cross_entropy": True, "mse": True, "divergence": False, "kl": False}

#: The least probability: its logarithm is finite.
_LEAST = 1e-12

#: How far the probabilities of all classes may be from 1 together, as float16 rounds them.
_ROUNDING = 2e-3


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss, decided once for all trials.

    Attributes:
        name: a key of `LOSSES`.
        outputs: names of the outputs that are judged.
        places: their places among those of the references.
        scales: what the squared difference of each output is divided by (divergence alone).
        probabilities: each output holds probabilities already.
        classes: the labels are numbers of classes.
    """

    name: str
    outputs: tuple[str, ...]
    places: tuple[int, ...]
    scales: tuple[float, ...] = ()
    probabilities: tuple[bool, ...] = ()
    classes: bool = False

    def start(self) -> Tally:
        """Begin to judge a model."""
        return Tally(self)


class Tally:
    """The loss of one model, collected batch by batch, in float64."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss
        self._sums = np.zeros(len(loss.outputs))
        self._samples = 0

    def add(self, outputs: Sequence[Array], references: Sequence[Array], labels: Array | None) -> None:
        """Take in one batch: outputs and references [samples, ...] in the order of the loss, labels or None.

        Raises:
            DataError: an output has another shape than that of the original.
        """
        for place, (output, reference) in enumerate(zip(outputs, references, strict=True)):
            if output.shape != reference.shape:
                name = quoted(self._loss.outputs[place])
                raise DataError(f"output {name} has shape {list(output.shape)}, not {list(reference.shape)}")
            self._sums[place] += self._sum(place, output.astype(np.float64), reference, labels)
        self._samples += len(outputs[0])

    def result(self) -> float:
        """Return the loss over all samples."""
        if self._loss.name == "divergence":
            return float((self._sums / self._loss.scales).mean())
        return float(self._sums.mean() / max(1, self._samples))

    def _sum(self, place: int, output: FloatArray, reference: Array, labels: Array | None) -> float:
        if self._loss.name == "divergence":
            return float(np.square(output - reference.astype(np.float64)).sum())
        if self._loss.name == "mse":
            return _over_samples(np.square(output - _given(labels).astype(np.float64)))
        ready = self._loss.probabilities[place]
        logs = log_probabilities(output, ready)
        if self._loss.name == "kl":
            expected = log_probabilities(reference.astype(np.float64), ready)
            return _over_samples((np.exp(expected) * (expected - logs)).sum(axis=-1))
        of_label = np.take_along_axis(logs, _given(labels)[..., None].astype(np.int64), axis=-1)
        return -_over_samples(of_label)


def log_probabilities(output: FloatArray, ready: bool) -> FloatArray:
    """Return the logarithms of the probabilities of the classes.

    Args:
        output: float64 [..., classes]: probabilities if ``ready``, else what a softmax would be taken of.
        ready: see above.
    """
    if ready:
        return np.asarray(np.log(np.maximum(output, _LEAST)))
    shifted = output - output.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def choose_loss(wanted: str | None, labels: Array | None, references: References, source: str) -> Loss:
    """Decide what trials are judged by.

    Args:
        wanted: a key of `LOSSES`, or None for what the labels allow, or divergence without labels.
        labels: [samples, ...] or None.
        references: the outputs of the original.
        source: of the data, for messages.

    Raises:
        DataError: the loss needs labels and there are none, or none that fit an output.
    """
    if wanted is None:
        wanted = "divergence" if labels is None else _fitting(labels, references, source)
    places = tuple(range(len(references.names)))
    if LOSSES[wanted]:
        places = (_place_of(wanted, labels, references, source),)
    elif wanted == "kl":
        places = tuple(place for place in places if _may_hold_classes(references.shapes[place]))
        if not places:
            raise DataError(f"{source}: metric 'kl' needs an output of scores [samples, ..., classes]")
    names = tuple(references.names[place] for place in places)
    if wanted == "divergence":
        return Loss(wanted, names, places, scales=tuple(_spread(references, place) for place in places))
    if wanted == "mse":
        return Loss(wanted, names, places)
    ready = tuple(_are_probabilities(references, place) for place in places)
    return Loss(wanted, names, places, probabilities=ready, classes=wanted == "cross_entropy")


def _fitting(labels: Array, references: References, source: str) -> str:
    """Return the loss that the labels allow."""
    for name in ("cross_entropy", "mse"):
        if any(_fits(name, labels, shape) for shape in references.shapes):
            return name
    raise _no_output(labels, references, source)


def _place_of(loss: str, labels: Array | None, references: References, source: str) -> int:
    if labels is None:
        raise DataError(
            f"{source}: metric {loss!r} needs labels (an array called 'label'), and there are none"
        )
    for place, shape in enumerate(references.shapes):
        if _fits(loss, labels, shape):
            if loss == "cross_entropy" and (labels.min() < 0 or labels.max() >= shape[-1]):
                raise DataError(
                    f"{source}: labels range from {labels.min()} to {labels.max()}; output "
                    f"{quoted(references.names[place])} has classes 0 to {shape[-1] - 1}"
                )
            return place
    raise _no_output(labels, references, source)


def _no_output(labels: Array, references: References, source: str) -> DataError:
    shapes = ", ".join(
        f"{quoted(n)} {list(s)}" for n, s in zip(references.names, references.shapes, strict=True)
    )
    return DataError(
        f"{source}: labels are {labels.dtype}{list(labels.shape[1:])} for each sample, and fit none of the "
        f"outputs ({shapes}); metric 'divergence' does without"
    )


def _fits(loss: str, labels: Array, shape: tuple[int, ...]) -> bool:
    if loss == "mse":
        return labels.dtype.kind in "biuf" and labels.shape[1:] == shape
    return labels.dtype.kind in "iu" and _may_hold_classes(shape) and labels.shape[1:] == shape[:-1]


def _may_hold_classes(shape: tuple[int, ...]) -> bool:
    return len(shape) >= 1 and shape[-1] >= 2


def _are_probabilities(references: References, place: int) -> bool:
    """Tell whether an output of the original adds up to 1 over its last axis, and is never negative."""
    for number in range(len(references.parts)):
        output = references.batch(number)[place].astype(np.float64)
        if output.min() < 0 or np.abs(output.sum(axis=-1) - 1).max() > _ROUNDING:
            return False
    return True


def _spread(references: References, place: int) -> float:
    """Return sum |y0 - mean(y0)|**2, sum |y0|**2 where that is zero, or 1 where both are."""
    total, samples = np.zeros(references.shapes[place]), references.parts[-1].stop
    for number in range(len(references.parts)):
        total += references.batch(number)[place].sum(axis=0, dtype=np.float64)
    spread = energy = 0.0
    for number in range(len(references.parts)):  # one file is open at a time
        batch = references.batch(number)[place].astype(np.float64)
        spread += float(np.square(batch - total / samples).sum())
        energy += float(np.square(batch).sum())
    # rounding alone leaves about 1e-14 of the energy
    return spread if spread > 1e-12 * energy else energy or 1.0


def _given(labels: Array | None) -> Array:
    if labels is None:
        raise ValueError("this loss needs labels")
    return labels


def _over_samples(values: Array) -> float:
    """Return the sum over samples of the mean over everything else."""
    return float(values.reshape(len(values), -1).mean(axis=1).sum())
