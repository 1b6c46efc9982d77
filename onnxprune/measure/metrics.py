"""Metrics: from the outputs of some samples to one figure for each of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError, UsageError
from onnxprune.registry import Registry
from onnxprune.user_code import is_reference, load_function

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]
Against = Literal["labels", "reference", "either"]

_TINY = np.finfo(np.float64).tiny
_TOP_K = re.compile(r"top-?([1-9]\d*)")


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure for each sample, from the output of a model and what it is compared with.

    Attributes:
        name: what the user typed.
        against: labels, the reference model's output, or labels where they have the output's shape and the
            reference otherwise.
        higher_is_better: the direction.
        classifies: the last axis of the output holds the scores of the classes.
        per_sample: (output, target), both [samples, ...], to float64 [samples].
    """

    name: str
    against: Against
    higher_is_better: bool
    classifies: bool
    per_sample: Callable[[Array, Array], Vector]


@dataclass(frozen=True, slots=True)
class UserMetric:
    """The user's own function: (outputs by name, labels or None) to a float, or to one figure per sample."""

    name: str
    function: Callable[[Mapping[str, Array], Array | None], Any]


METRICS: Registry[Metric] = Registry("metric")


def find_metric(name: str) -> Metric | UserMetric:
    """Return the metric called ``name``: a registered one, ``topK``, or ``module:function``.

    Raises:
        UsageError: no such metric.
        DataError: the user's module can't be imported or lacks the function.
    """
    if name not in METRICS:
        if match := _TOP_K.fullmatch(name):
            k = int(match.group(1))
            return Metric(name, "labels", True, True, lambda output, target: in_top(output, target, k))
        if is_reference(name):
            return UserMetric(name, load_function(name))
    return METRICS.get(name)


def in_top(output: Array, labels: Array, k: int) -> Vector:
    """Return the share of each sample's positions whose label is among the ``k`` highest scores.

    Of equal scores the class with the lower number comes first, as in argmax, so that an output that is the
    same for every class is not right about all of them.

    Args:
        output: scores [samples, ..., classes].
        labels: class numbers [samples, ...].
        k: how many classes count; less than there are.

    Raises:
        DataError: labels that are no class numbers of this output.
        UsageError: ``k`` covers every class.
    """
    classes = output.shape[-1]
    if labels.dtype.kind not in "iu" or labels.shape != output.shape[:-1]:
        raise DataError(
            f"labels are {labels.dtype}{list(labels.shape)}; an output of shape {list(output.shape)} "
            f"needs integer class numbers {list(output.shape[:-1])}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"labels range from {labels.min()} to {labels.max()}; the output has classes 0 to {classes - 1}"
        )
    if k >= classes:
        raise UsageError(f"top{k} of {classes} classes is always right; use a smaller number")
    of_label = np.take_along_axis(output, labels[..., None].astype(np.int64), axis=-1)
    earlier = np.arange(classes) < labels[..., None]
    rank = ((output > of_label) | ((output == of_label) & earlier)).sum(axis=-1)
    return _mean_per_sample(rank < k)


def agreement(output: Array, reference: Array) -> Vector:
    """Return the share of each sample's positions where both outputs have the same highest class.

    Args:
        output: scores [samples, ..., classes].
        reference: scores of the same shape.

    Raises:
        DataError: there is no axis of classes.
    """
    if output.ndim < 2:
        raise DataError(
            "metric 'agreement' compares classes, and the output has none: its shape is "
            f"{list(output.shape)}; take cosine"
        )
    return _mean_per_sample(output.argmax(axis=-1) == reference.argmax(axis=-1))


def squared_error(output: Array, target: Array) -> Vector:
    """Return the mean squared difference over each sample; both are [samples, ...]."""
    return _mean_per_sample((output.astype(np.float64) - target.astype(np.float64)) ** 2)


def cosine(output: Array, target: Array) -> Vector:
    """Return the cosine of the angle between each sample of two arrays [samples, ...].

    Two samples of zeros count as alike (1), one alone as unlike (0).
    """
    one, other = (array.reshape(len(array), -1).astype(np.float64) for array in (output, target))
    # scaled first: the squares of numbers that fit float64 need not
    one, other = (
        array / np.maximum(np.abs(array).max(axis=1, keepdims=True), _TINY) for array in (one, other)
    )
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    similarity = (one * other).sum(axis=1) / np.maximum(norms, _TINY)
    both_zero = ~one.any(axis=1) & ~other.any(axis=1)
    return np.where(both_zero, 1.0, np.clip(similarity, -1.0, 1.0))


def margin(scores: Array) -> Vector:
    """Return how far the two highest scores of [samples, ..., classes] lie apart, at the closest position."""
    top = np.partition(scores, -2, axis=-1)
    gap = top[..., -1].astype(np.float64) - top[..., -2].astype(np.float64)
    return np.asarray(gap.reshape(len(gap), -1).min(axis=1))


def _mean_per_sample(values: Array) -> Vector:
    return np.asarray(values.reshape(len(values), -1).mean(axis=1, dtype=np.float64))


def _top1(output: Array, target: Array) -> Vector:
    if output.dtype.kind in "iu" and output.shape == target.shape:  # the model ends in an argmax
        return _mean_per_sample(output == target)
    return in_top(output, target, 1)


METRICS.register("top1")(Metric("top1", "labels", True, True, _top1))
METRICS.register("top5")(
    Metric("top5", "labels", True, True, lambda output, target: in_top(output, target, 5))
)
METRICS.register("mse")(Metric("mse", "either", False, False, squared_error))
METRICS.register("cosine")(Metric("cosine", "either", True, False, cosine))
METRICS.register("agreement")(Metric("agreement", "reference", True, True, agreement))
