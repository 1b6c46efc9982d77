"""What a run aims at and is judged by, decided once on the first samples, and said in the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onnxprune.data import Dataset
from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.executor.losses import LabelLoss, choose_label_loss
from onnxprune.messages import quoted
from onnxprune.tuning.losses import (
    Objective,
    Target,
    UserLoss,
    Values,
    holds_log_probabilities,
    holds_probabilities,
    spread,
)
from onnxprune.tuning.settings import USUAL_DISTIL, Tuning
from onnxprune.types import Skipped
from onnxprune.user_code import is_reference, load_function

#: Reasons that one line of an error has room for.
_FEW = 3


@dataclass(frozen=True, slots=True)
class Metric:
    """What validation samples are judged by.

    Attributes:
        name: ``top1`` (share of positions whose label has the highest score), ``mse`` (of the labels),
            ``agreement`` (share of positions with the same highest score as in the original), ``divergence``
            (mean over compared outputs of the squared distance from the original's, divided by s of
            `onnxprune.tuning.losses`) or ``loss``.
        higher_is_better: its direction.
        of: (values, labels, the original's values) to the mean over a batch; None for the loss itself.
        output: name of the output that it judges, where that is one.
        classes: how many the labels may name, where they do.
    """

    name: str
    higher_is_better: bool
    of: Callable[[Values, Tensor | None, Values | None], Tensor] | None
    output: str | None = None
    classes: int | None = None


@dataclass(slots=True)
class Decided:
    """Objective and metric, and what there is to say about them."""

    objective: Objective
    metric: Metric
    told: dict[str, Any] = field(default_factory=dict)
    notes: list[Skipped] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class First:
    """The first samples.

    Attributes:
        values: outputs of the model, and the inner values to be matched that it has.
        labels: [samples, ...] or None.
        original: the same of the original, or None.
        outputs: names of the model's outputs; those that are no tensors of one shape have no values.
    """

    values: Values
    labels: Tensor | None
    original: Values | None
    outputs: tuple[str, ...]

    def output_values(self) -> dict[str, Tensor]:
        """Return the outputs that have values, by name."""
        return {name: self.values[name] for name in self.outputs if name in self.values}


def decide(settings: Tuning, data: Dataset, first: First) -> Decided:
    """Decide what the loss and the metric of a run are.

    Raises:
        UsageError: there is nothing to aim at, or settings contradict each other.
        ModelError: nothing that the model gives can be compared with the original's.
        DataError: labels fit no output.
    """
    distil = _share_of_original(settings, first)
    labels = _label_loss(settings, data, first) if distil < 1 else None
    classified = _classified(data, first)
    decided = Decided(Objective(labels, (), (), distil, settings.temperature), Metric("loss", False, None))
    outputs = _targets(settings, first, classified, decided.notes) if distil > 0 else ()
    matched = _matched(settings, first, decided.notes) if distil > 0 else ()
    if distil > 0 and not outputs and not matched:
        why = "; ".join(f"{quoted(note.name)} {note.reason}" for note in decided.notes[:_FEW])
        raise ModelError(
            f"there is nothing to tune by ({why or 'the model has no outputs'}); what is compared are float "
            "tensors of the same names and shapes"
        )
    decided.objective = Objective(labels, outputs, matched, distil, settings.temperature)
    decided.metric = _metric(labels, classified, outputs, first)
    decided.told = _told(settings, decided.objective)
    return decided


def _share_of_original(settings: Tuning, first: First) -> float:
    """Return the weight of the original's outputs in the loss."""
    by_labels = settings.loss != "none" and (first.labels is not None or is_reference(settings.loss))
    if first.original is None:
        if settings.distil or settings.match:
            raise UsageError("distil and match compare with the original: give it (--teacher)")
        if not by_labels:
            missing = (
                "labels are not used (loss none)"
                if settings.loss == "none"
                else "the data has no labels that are numbers"
            )
            raise UsageError(f"{missing}: give the original as --teacher to tune by its outputs")
        return 0.0
    if settings.distil is None:
        return USUAL_DISTIL if by_labels else 1.0
    if settings.distil < 1 and not by_labels:
        raise UsageError(
            f"distil {settings.distil:g} leaves {1 - settings.distil:g} to labels, and there are none"
        )
    return settings.distil


def _label_loss(settings: Tuning, data: Dataset, first: First) -> LabelLoss | UserLoss:
    if is_reference(settings.loss):
        return UserLoss(settings.loss, load_function(settings.loss))
    if first.labels is None:
        raise DataError(f"{data.source}: loss {settings.loss!r} needs labels (an array called 'label')")
    outputs = first.output_values()
    name: Any = None if settings.loss == "auto" else settings.loss
    loss = choose_label_loss(outputs, first.labels, name=name, source=data.source)
    if loss.name == "cross_entropy":
        check_classes(data, outputs[loss.output].shape[-1], loss.output)
    return loss


def check_classes(data: Dataset, classes: int, output: str) -> None:
    """Check all labels, of which the first samples have shown a few.

    Raises:
        DataError: a label is no class of the output.
    """
    labels = data.labels
    if labels is not None and (labels.min() < 0 or labels.max() >= classes):
        raise DataError(
            f"{data.source}: labels range from {labels.min()} to {labels.max()}; output {quoted(output)} has "
            f"classes 0 to {classes - 1}"
        )


def check_validation(validation: Dataset, data: Dataset, metric: Metric) -> None:
    """Check that validation samples have what samples to tune on have.

    Raises:
        DataError: labels are missing, of another shape, or beyond the classes.
    """
    if data.labels is None:
        return
    if validation.labels is None:
        raise DataError(f"{validation.source}: has no labels, but {data.source} has; give both or none")
    if validation.labels.shape[1:] != data.labels.shape[1:] or validation.labels.dtype.kind not in "biuf":
        raise DataError(
            f"{validation.source}: labels are {validation.labels.dtype}{list(validation.labels.shape)}, in "
            f"{data.source} {data.labels.dtype}{list(data.labels.shape)}"
        )
    if metric.classes is not None:
        check_classes(validation, metric.classes, str(metric.output))


def _classified(data: Dataset, first: First) -> LabelLoss | None:
    """Return the output whose classes the labels are, whether or not the loss looks at them."""
    if first.labels is None:
        return None
    try:
        return choose_label_loss(first.output_values(), first.labels, source=data.source)
    except DataError:  # labels that only the user's own function understands, or that nobody asked about
        return None


def _targets(
    settings: Tuning, first: First, classified: LabelLoss | None, notes: list[Skipped]
) -> tuple[Target, ...]:
    targets = []
    for name in first.outputs:
        value, original = first.values.get(name), (first.original or {}).get(name)
        reason = _why_not_compared(value, original)
        if reason is not None or value is None or original is None:
            notes.append(Skipped(name, f"not compared with the original: {reason}"))
            continue
        ready = holds_probabilities(original)
        of_labels = classified is not None and (classified.name, classified.output) == ("cross_entropy", name)
        classes = ready or of_labels or holds_log_probabilities(original)
        may_be = original.dim() >= 2 and original.shape[-1] >= 2
        kind = "kl" if classes or (settings.distil_loss == "kl" and may_be) else "mse"
        if settings.distil_loss == "mse":
            kind = "mse"
        scale = spread(original) if kind == "mse" else 1.0
        targets.append(Target(name, kind, kind == "kl" and ready, scale))
    return tuple(targets)


def _matched(settings: Tuning, first: First, notes: list[Skipped]) -> tuple[Target, ...]:
    targets = []
    for name in settings.match:
        value, original = first.values.get(name), (first.original or {}).get(name)
        reason = "this model has no value of that name" if value is None else None
        reason = reason or _why_not_compared(value, original)
        if reason is not None or original is None:
            notes.append(Skipped(name, f"not matched: {reason}"))
        else:
            targets.append(Target(name, "mse", scale=spread(original)))
    return tuple(targets)


def _why_not_compared(value: Tensor | None, original: Tensor | None) -> str | None:
    if value is None:
        return "it is no tensor, or its shape depends on the samples"
    if original is None:
        return "the original has no value of that name"
    if not (value.is_floating_point() and original.is_floating_point()):
        return "it holds no floats"
    if value.shape != original.shape:
        return f"its shape is {list(value.shape)}, in the original {list(original.shape)}"
    return None


def _metric(
    labels: LabelLoss | UserLoss | None,
    classified: LabelLoss | None,
    outputs: tuple[Target, ...],
    first: First,
) -> Metric:
    judged = labels if isinstance(labels, LabelLoss) else classified
    if judged is not None and not isinstance(labels, UserLoss):
        name = judged.output
        if judged.name == "cross_entropy":
            classes = first.values[name].shape[-1]
            return Metric(
                "top1", True, lambda values, given, _: _share_equal(values[name], given), name, classes
            )
        return Metric(
            "mse", False, lambda values, given, _: judged.per_sample(values, _there(given)).mean(), name
        )
    if labels is not None or not outputs:
        return Metric("loss", False, None)
    scored = [target.name for target in outputs if target.kind == "kl"]
    if scored:
        of_one = scored[0] if len(scored) == 1 else None
        return Metric(
            "agreement",
            True,
            lambda values, _, original: _agreement(scored, values, _there(original)),
            of_one,
        )
    return Metric(
        "divergence", False, lambda values, _, original: _divergence(outputs, values, _there(original))
    )


def _share_equal(output: Tensor, labels: Tensor | None) -> Tensor:
    same: Tensor = output.argmax(dim=-1) == _there(labels)
    return same.double().mean()


def _agreement(names: list[str], values: Values, original: Values) -> Tensor:
    shares = [_share_equal(values[name], original[name].argmax(dim=-1)) for name in names]
    return torch.stack(shares).mean()


def _divergence(targets: tuple[Target, ...], values: Values, original: Values) -> Tensor:
    return torch.stack([t.loss(values[t.name], original[t.name], 1.0).double() for t in targets]).mean()


def _there(value: Any) -> Any:
    if value is None:
        raise ValueError("this metric needs labels, or the original")
    return value


def _told(settings: Tuning, objective: Objective) -> dict[str, Any]:
    """Return what was decided, for the report."""
    told: dict[str, Any] = {}
    if objective.labels is not None:
        why = " (decided by the labels)" if settings.loss == "auto" else ""
        told["loss from labels"] = f"{objective.labels.name}{why}"
        told["weight of labels"] = 1 - objective.distil
    for target in objective.outputs:
        how = f"kl, temperature {objective.temperature:g}" if target.kind == "kl" else "mse"
        told[f"output {target.name} against the original's"] = how
    if objective.matched:
        told["matched inner values"] = ", ".join(objective.inner)
    if objective.distil:
        told["weight of the original"] = objective.distil
    return told
