"""What a model gets right: as a whole, by segment, near the decision boundary, and beside the original.

Pruning that costs half a percent on average can cost much more where the original was unsure, or in one part
of the data. So every figure is computed from figures of single samples, and has its interval and count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.data import Dataset
from onnxprune.errors import DataError, UsageError
from onnxprune.measure import intervals, metrics
from onnxprune.measure.intervals import Estimate
from onnxprune.measure.metrics import Metric, UserMetric
from onnxprune.measure.outputs import finite, outputs_of
from onnxprune.messages import one_line, quoted
from onnxprune.registry import did_you_mean
from onnxprune.runtime import Session, open_session
from onnxprune.user_code import reporting

Model: TypeAlias = "ir.Model | str | Path"
Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

#: The samples with the smallest margin between the two highest classes: this share, and at least so many.
BOUNDARY_SHARE = 0.1
BOUNDARY_LEAST = 20


@dataclass(frozen=True, slots=True)
class Subset:
    """The metric on some of the samples.

    Attributes:
        model: of the model that was validated.
        reference: of the reference; None without one, or where the metric compares with it.
        change: model minus reference, paired by sample; None as above.
        risen, fallen: sums of what single samples gained and lost; for hits, how many samples became right
            and wrong. None where there is no figure for each sample that lies between 0 and 1.
    """

    model: Estimate
    reference: Estimate | None
    change: Estimate | None
    risen: float | None = None
    fallen: float | None = None


#: From indices of samples, what to call them and the confidence of intervals, to the metric on them.
Judge: TypeAlias = Callable[[Indices, str, float], Subset]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How close the outputs of two models are, whatever the labels say.

    Attributes:
        argmax: share of positions with the same highest class; None if the output holds no class scores.
        cosine: mean cosine of the angle between the outputs of a sample.
        mse: mean squared difference.
        largest_difference: the largest absolute difference of any output element.
    """

    argmax: Estimate | None
    cosine: Estimate
    mse: Estimate
    largest_difference: float


@dataclass(frozen=True, slots=True)
class AccuracyResult:
    """What `validate` found.

    Attributes:
        metric: its name.
        higher_is_better: its direction; None where only the user knows.
        compared_with: "labels" or "reference".
        output: name of the output that was judged.
        overall: over all samples.
        segments: by segment name, sorted; empty if the data has none.
        near_boundary: over the samples where the reference (or the model, alone) is least sure; None if the
            output holds no class scores.
        agreement: with the reference; None without one.
        data_digest: of the data.
    """

    metric: str
    higher_is_better: bool | None
    compared_with: str
    output: str
    overall: Subset
    segments: Mapping[str, Subset]
    near_boundary: Subset | None
    agreement: Agreement | None
    data_digest: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def validate(
    model: Model,
    reference: Model | None = None,
    *,
    data: Dataset,
    metric: str = "top1",
    output: str | None = None,
    batch: int = 32,
    provider: str = "cpu",
    threads: int = 1,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> AccuracyResult:
    """Judge a model on data, alone or beside the model it was made from.

    Args:
        model: the model to judge.
        reference: the original.
        data: samples with what the metric needs.
        metric: "top1", "top5" (any "topK"), "mse", "cosine" (both with labels of the output's shape, or else
            with the reference's output), "agreement" (with the reference), or ``module:function``: called
            with the outputs by name [samples, ...] and the labels or None; returns a float or one figure per
            sample.
        output: name of the output to judge; the first one by default.
        batch: samples per run, where the model's first axis is symbolic.
        provider: a key of `onnxprune.runtime.PROVIDERS`.
        threads: of one operator; 0 for one per core.
        seed: of the bootstrap.
        progress: called after every batch with the share that is done, in (0, 1].

    Raises:
        UsageError: an unknown metric or output, or a metric that needs a reference that is not there.
        DataError: data that does not fit the model or lacks labels, outputs that are not finite, or a metric
            that is not a number.
        RuntimeFailure: a model can't be opened or run.
    """
    return run_on_data(
        model, reference, data=data, metric=metric, output=output, batch=batch, provider=provider,
        threads=threads, progress=progress,
    ).result(seed=seed)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Judged:
    """Figures of single samples, of which estimates of any confidence can be made.

    Attributes:
        data: the samples.
        metric: its name.
        higher_is_better: its direction; None where only the user knows.
        output: name of the output that was judged.
    """

    data: Dataset
    metric: str
    higher_is_better: bool | None
    output: str
    figures: _Figures
    has_reference: bool

    def result(self, *, confidence: float = intervals.CONFIDENCE, seed: int = 0) -> AccuracyResult:
        """Return the metric on all samples, by segment and near the boundary.

        Args:
            confidence: of all intervals.
            seed: of the bootstrap.

        Raises:
            DataError: the metric of some samples is not a number.
        """
        judge = self.figures.judge(seed)
        margins = self.figures.vector("margin")
        near = None if margins is None else least_sure(margins)
        return AccuracyResult(
            metric=self.metric,
            higher_is_better=self.higher_is_better,
            compared_with=self.figures.compared_with,
            output=self.output,
            overall=judge(np.arange(len(self.data)), "all samples", confidence),
            segments=self.by_segment(confidence=confidence, seed=seed),
            near_boundary=None if near is None else judge(near, "samples near the boundary", confidence),
            agreement=self.figures.agreement(seed, confidence) if self.has_reference else None,
            data_digest=self.data.digest,
        )

    def by_segment(self, *, confidence: float = intervals.CONFIDENCE, seed: int = 0) -> Mapping[str, Subset]:
        """Return the metric by segment name, sorted; arguments and errors are those of `result`."""
        if self.data.segments is None:
            return {}
        judge, segments = self.figures.judge(seed), self.data.segments
        names = [str(name) for name in np.unique(segments)]
        return {
            name: judge(np.flatnonzero(segments == name), f"segment {quoted(name)}", confidence)
            for name in names
        }


def run_on_data(
    model: Model,
    reference: Model | None = None,
    *,
    data: Dataset,
    metric: str = "top1",
    output: str | None = None,
    batch: int = 32,
    provider: str = "cpu",
    threads: int = 1,
    progress: Callable[[float], None] | None = None,
) -> Judged:
    """Run what `validate` runs; arguments and errors are its own."""
    chosen = metrics.find_metric(metric)
    if batch < 1:
        raise UsageError(f"batch must be positive, not {batch}")
    sessions = [_open(model, data, provider, threads, "model")]
    if reference is not None:
        sessions.append(_open(reference, data, provider, threads, "reference"))
    name = _find_output(sessions, output)
    figures = _Figures(chosen, name, data)
    with data.named():
        for part, results in outputs_of(sessions, data, batch):
            figures.add(part, results)
            if progress is not None:
                progress(part.stop / len(data))
    direction = chosen.higher_is_better if isinstance(chosen, Metric) else None
    return Judged(data, metric, direction, name, figures, reference is not None)


def least_sure(margins: Vector) -> Indices:
    """Return the indices of the samples with the smallest margins: a tenth of them, at least 20 (or all)."""
    count = min(len(margins), max(BOUNDARY_LEAST, math.ceil(BOUNDARY_SHARE * len(margins))))
    return np.sort(np.argsort(margins, kind="stable")[:count])


class _Figures:
    """Figures of single samples, collected batch by batch, so that outputs need not be kept.

    The user's own metrics do need them: for those, all outputs stay.
    """

    def __init__(self, metric: Metric | UserMetric, output: str, data: Dataset) -> None:
        self.compared_with = "labels"
        self._metric = metric
        self._output = output
        self._data = data
        self._parts: dict[str, list[Vector]] = {}
        self._kept: list[list[dict[str, Array]]] = []
        self._largest_difference = 0.0

    def add(self, part: slice, results: list[dict[str, Array]]) -> None:
        """Take in the outputs of some samples: of the model, and of the reference if there is one."""
        outputs = [
            finite(result, self._output, label, part.start)
            for result, label in zip(results, ("model", "reference"), strict=False)
        ]
        if len({array.shape for array in outputs}) > 1:
            shapes = " and ".join(str(list(array.shape)) for array in outputs)
            raise DataError(
                f"model and reference disagree on the shape of output {quoted(self._output)}: {shapes}"
            )
        labels = None if self._data.labels is None else self._data.labels[part]
        holds_scores = _holds_scores(self._metric, outputs[0], labels)
        if holds_scores:
            self._append("margin", metrics.margin(outputs[-1]))
        if len(outputs) == 2:
            self._compare(outputs, holds_scores)
        if isinstance(self._metric, Metric):
            self._measure(self._metric, outputs, labels)
        else:
            self._kept.append(results)

    def vector(self, name: str) -> Vector | None:
        """Return the figures called ``name``, float64 [samples], or None if there are none."""
        parts = self._parts.get(name)
        return None if parts is None else np.concatenate(parts)

    def judge(self, seed: int) -> Judge:
        """Return the function that estimates the metric on a subset of all samples."""
        if isinstance(self._metric, UserMetric):
            return _judge_with(self._metric, self._joined_outputs(), self._data.labels, seed)
        values, reference = self._required("value"), self.vector("reference value")
        return _judge_vectors(values, reference, self._metric.classifies, seed)

    def agreement(self, seed: int, confidence: float) -> Agreement:
        """Return how close the outputs of the two models are."""
        same_class = self.vector("same class")
        return Agreement(
            argmax=None if same_class is None else intervals.mean_share(same_class, seed, confidence),
            cosine=intervals.mean(self._required("cosine"), seed, confidence),
            mse=intervals.mean(self._required("squared error"), seed, confidence),
            largest_difference=self._largest_difference,
        )

    def _append(self, name: str, values: Vector) -> None:
        self._parts.setdefault(name, []).append(values)

    def _required(self, name: str) -> Vector:
        return np.concatenate(self._parts[name])

    def _compare(self, outputs: list[Array], holds_scores: bool) -> None:
        if holds_scores:
            self._append("same class", metrics.agreement(*outputs))
        self._append("cosine", metrics.cosine(*outputs))
        self._append("squared error", metrics.squared_error(*outputs))
        difference = np.abs(outputs[0].astype(np.float64) - outputs[1].astype(np.float64)).max()
        self._largest_difference = max(self._largest_difference, float(difference))

    def _measure(self, metric: Metric, outputs: list[Array], labels: Array | None) -> None:
        target = _target(metric, outputs, labels)
        self.compared_with = "labels" if target is labels else "reference"
        self._append("value", metric.per_sample(outputs[0], target))
        if target is labels and len(outputs) == 2:
            self._append("reference value", metric.per_sample(outputs[1], target))

    def _joined_outputs(self) -> list[dict[str, Array]]:
        return [_joined(parts) for parts in zip(*self._kept, strict=True)]


def _joined(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Join the outputs of all batches; an output that is missing in one was no batch in the others either."""
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _judge_vectors(values: Vector, reference: Vector | None, shares: bool, seed: int) -> Judge:
    """Judge by one figure per sample; ``shares`` lie between 0 and 1."""
    for vector, label in ((values, "model"), (reference, "reference")):
        if vector is not None and not np.isfinite(vector).all():
            bad = int(np.flatnonzero(~np.isfinite(vector))[0])
            raise DataError(f"{label}: the metric of sample {bad} is {vector[bad]}")
    alone = intervals.mean_share if shares else intervals.mean

    def judge(indices: Indices, _where: str, confidence: float) -> Subset:
        chosen = values[indices]
        own = alone(chosen, seed, confidence)
        if reference is None:
            return Subset(own, None, None)
        beside = reference[indices]
        before = alone(beside, seed, confidence)
        if not shares:
            return Subset(own, before, intervals.mean(chosen - beside, seed, confidence))
        change = intervals.change_of_shares(chosen, beside, seed, confidence)
        gains = chosen - beside
        return Subset(own, before, change, float(gains.clip(0).sum()), float((-gains).clip(0).sum()))

    return judge


def _judge_with(
    metric: UserMetric, outputs: list[dict[str, Array]], labels: Array | None, seed: int
) -> Judge:
    """Judge by the user's function: by its figures per sample, or by calling it for every subset."""
    count = len(next(iter(outputs[0].values())))
    first = [_call(metric, named, labels) for named in outputs]
    if all(figure.shape == (count,) and count > 1 for figure in first):
        shares = all(figure.dtype == np.bool_ for figure in first)
        vectors = [figure.astype(np.float64) for figure in first]
        return _judge_vectors(vectors[0], vectors[1] if len(vectors) == 2 else None, shares, seed)
    if any(figure.size != 1 for figure in first):
        shapes = " and ".join(str(list(figure.shape)) for figure in first)
        raise DataError(
            f"{metric.name}: returned {shapes} for {count} samples; return a number or one per sample"
        )

    def judge(indices: Indices, where: str, confidence: float) -> Subset:
        def value(model: int, positions: Indices) -> float:
            chosen = indices[positions]
            part = {name: array[chosen] for name, array in outputs[model].items()}
            figure = float(_call(metric, part, None if labels is None else labels[chosen]).reshape(()))
            if not math.isfinite(figure):
                raise DataError(f"{metric.name}: returned {figure} for {len(chosen)} of {where}")
            return figure

        size = len(indices)
        alone = intervals.of_subsets(lambda positions: value(0, positions), size, confidence)
        if len(outputs) == 1:
            return Subset(alone, None, None)
        return Subset(
            alone,
            intervals.of_subsets(lambda positions: value(1, positions), size, confidence),
            intervals.of_subsets(
                lambda positions: value(0, positions) - value(1, positions), size, confidence
            ),
        )

    return judge


def _call(metric: UserMetric, outputs: Mapping[str, Array], labels: Array | None) -> Array:
    with reporting(metric.name):
        figure = np.asarray(metric.function(outputs, labels))
    if figure.dtype.kind not in "biuf":
        raise DataError(f"{metric.name}: returned {figure.dtype}, which is no number")
    return figure


def _holds_scores(metric: Metric | UserMetric, output: Array, labels: Array | None) -> bool:
    """Tell whether the last axis of an output holds one score for each class."""
    if output.dtype.kind != "f" or output.ndim < 2 or output.shape[-1] < 2:
        return False
    if isinstance(metric, Metric):
        return metric.classifies
    return labels is not None and labels.dtype.kind in "iu" and labels.shape == output.shape[:-1]


def _target(metric: Metric, outputs: list[Array], labels: Array | None) -> Array:
    """Return what a batch of outputs is compared with: its labels or the reference's outputs."""
    fitting = labels is not None and (metric.against == "labels" or labels.shape == outputs[0].shape)
    if metric.against != "reference" and labels is not None and fitting:
        return labels
    if metric.against == "labels":
        raise DataError(
            f"metric {metric.name!r} needs labels, and the data has none (an array called 'label')"
        )
    if len(outputs) == 2:
        return outputs[1]
    if metric.against == "reference":
        raise UsageError(f"metric {metric.name!r} compares with a reference model, and none was given")
    raise UsageError(
        f"metric {metric.name!r} needs labels of the output's shape {list(outputs[0].shape)}, "
        "or a reference model"
    )


def _open(model: Model, data: Dataset, provider: str, threads: int, label: str) -> Session:
    session = open_session(model, provider=provider, threads=threads, label=_label(model, label))
    data.check_against(session.inputs)
    return session


def _label(model: Model, label: str) -> str:
    return one_line(model) if isinstance(model, (str, Path)) else label


def _find_output(sessions: list[Session], wanted: str | None) -> str:
    name = sessions[0].output_names[0] if wanted is None else wanted
    for session, label in zip(sessions, ("model", "reference"), strict=False):
        if name not in session.outputs:
            hint = did_you_mean(name, session.outputs)
            known = one_line(", ".join(session.outputs))
            raise UsageError(f"the {label} has no output {quoted(name)}{hint}; outputs: {known}")
    return name
