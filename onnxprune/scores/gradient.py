"""Importance of channels from gradients: what a loss would change by, extrapolated from where weights are.

::

    taylor             mean over batches of (sum over members of w * dL/dw)**2
    taylor_activation  mean over samples of |dL/dm|
    fisher             mean over samples of (dL/dm)**2 / 2
    obd                sum over members of w**2 * mean over samples of (dL/dw)**2 / 2
    snip               sum over members of |w * dL/dw| on one batch, as a share of all groups' sum

Members of a channel are all weights that go with it. m is a mask at 1, which scales what every consumer of
the channel sums up: dL/dm is the sum of a * dL/da over consumers and positions. L is the loss of one sample,
or the mean of a batch, which is as large as ``--batch`` says. It comes from labels; where there are none,
taylor, taylor_activation and snip take the model's own predictions for labels, and fisher draws them from the
model's own distribution. obd always draws: its curvature is the Fisher information, which is the Gauss-Newton
part of the Hessian and has nothing to do with labels; fisher with labels is the empirical one of its paper.

What a group has no gradients of (its weights are quantized, say) is told in place of figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxprune.data import Dataset
from onnxprune.errors import DataError
from onnxprune.scores.masked import Masked
from onnxprune.scores.members import Members, why_no_floats
from onnxprune.scores.subject import Subject, owners_of
from onnxprune.types import ChannelGroup, FloatArray, Skipped

if TYPE_CHECKING:
    from onnxprune.executor.gradients import Differentiable, Targets

Array = npt.NDArray[Any]

#: The scores that need gradients, and what they take for labels where there are none.
OWN_LABELS: Mapping[str, str] = {
    "taylor": "the model's own predictions",
    "taylor_activation": "the model's own predictions",
    "snip": "the model's own predictions",
    "fisher": "draws from the model's own distribution",
}


def notes_on_labels(score: str, data: Dataset | None) -> list[Skipped]:
    """Say what stands for labels, where a score takes labels and the data has none."""
    if data is None or data.labels is not None or score not in OWN_LABELS:
        return []
    return [Skipped(data.source, f"it has no labels: score {score!r} goes by {OWN_LABELS[score]}")]


def taylor(subject: Subject) -> Mapping[str, FloatArray | str]:
    """score[c] = mean over batches of (sum over members of w * dL/dw)**2

    Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", eq. 8 and 9: the square of the
    first-order change of the loss if the whole group goes, averaged over batches.
    """
    model, members, reasons = _differentiable(subject)
    changes, totals = members.zeros(), members.zeros()

    def visit(name: str, weights: Array, gradient: Array) -> None:
        members.add(changes, name, weights * gradient)

    samples = 0
    for count in model.weight_gradients(visit, _wish(subject), subject.progress):
        samples += count
        for name, change in changes.items():
            totals[name] += np.square(change) / count  # the change is of the sum over the batch
            change[:] = 0
    check_slope(totals.values(), subject.data)
    return {**{name: total / max(samples, 1) for name, total in totals.items()}, **reasons}


def optimal_brain_damage(subject: Subject) -> Mapping[str, FloatArray | str]:
    """score[c] = sum over members of w**2 * h / 2, h = mean over samples of (dL/dw)**2, targets drawn

    LeCun et al. 1989, "Optimal Brain Damage", section 2: the second-order change of the loss by the diagonal
    of the Hessian, in place of which stands its Gauss-Newton part (they drop the rest, too): the Fisher
    information of the model's own distribution, with one draw for each sample.
    """
    model, members, reasons = _differentiable(subject)
    means = mean_squares(model, "drawn", subject.seed, subject.progress)
    totals = members.zeros()
    for name, (weights, squares) in means.items():
        members.add(totals, name, np.square(weights, dtype=np.float64) * squares / 2)
    check_slope(totals.values(), subject.data)
    return {**totals, **reasons}


def connection_sensitivity(subject: Subject) -> Mapping[str, FloatArray | str]:
    """score[c] = sum over members of |w * dL/dw|, on the first batch, as a share of that of all groups

    Lee et al. 2019, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", section 4.1, at the
    weights that are given in place of those before training; summed over what goes together.
    """
    model, members, reasons = _differentiable(subject)
    totals = members.zeros()

    def visit(name: str, weights: Array, gradient: Array) -> None:
        members.add(totals, name, np.abs(weights * gradient))

    for _ in model.weight_gradients(visit, _wish(subject, batches=1), subject.progress):
        pass
    check_slope(totals.values(), subject.data)
    whole = sum(float(total.sum()) for total in totals.values()) or 1.0
    return {**{name: total / whole for name, total in totals.items()}, **reasons}


def activation_change(subject: Subject) -> Mapping[str, FloatArray | str]:
    """score[c] = mean over samples of |dL/dm| = mean of |sum over consumers and positions of a * dL/da|

    Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference",
    section 2.2, but for the number of positions, which is the same for all channels of a group; for heads,
    this is the importance of Michel et al. 2019, "Are Sixteen Heads Really Better than One?", section 4.1.
    """
    return _at_masks(subject, "labels or predicted", np.abs)


def fisher(subject: Subject) -> Mapping[str, FloatArray | str]:
    """score[c] = mean over samples of (dL/dm)**2 / 2, dL/dm = sum over consumers and positions of a * dL/da

    Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", section 2.1: the
    second-order change of the loss if the mask of a whole channel goes from 1 to 0, by the empirical Fisher
    information of that mask. What its positions have in common adds up before it is squared.
    """
    return _at_masks(subject, "labels or drawn", lambda gradients: np.square(gradients) / 2)


def check_slope(figures: Iterable[Array], data: Dataset) -> None:
    """Refuse figures that are all zero: nothing could be told apart.

    Raises:
        DataError: they are.
    """
    largest = [float(each.max()) for each in figures if each.size]
    if largest and max(largest) == 0:
        raise DataError(
            f"{data.source}: the loss of the model is flat on this data (its predictions leave no doubt), so "
            "no gradient tells anything apart: give labels or other samples, or take another score"
        )


def mean_squares(
    model: Differentiable,
    targets: Targets,
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> dict[str, tuple[Array, Array]]:
    """Return weights, and the mean over samples of their squared gradients, float32, by name.

    Keeps one float32 array of the size of each weight, beside what a step keeps.
    """
    from onnxprune.executor.gradients import Wish

    values: dict[str, Array] = {}
    sums: dict[str, Array] = {}

    def visit(name: str, weights: Array, gradient: Array) -> None:
        values[name] = weights
        sums.setdefault(name, np.zeros_like(gradient))
        sums[name] += np.square(gradient)

    wish = Wish(targets, by_sample=True, seed=seed)
    samples = sum(model.weight_gradients(visit, wish, progress))
    for total in sums.values():
        total /= samples
    return {name: (values[name], total) for name, total in sums.items()}


def _wish(subject: Subject, batches: int | None = None) -> Any:
    from onnxprune.executor.gradients import Wish

    return Wish(batches=batches, seed=subject.seed)


def _differentiable(subject: Subject) -> tuple[Differentiable, Members, dict[str, str]]:
    """Return the model, the members of those groups that have gradients, and why others have none."""
    from onnxprune.executor.gradients import Differentiable

    tensors = {member.tensor for group in subject.groups for member in group.members}
    model = Differentiable(subject.model, subject.data, subject.running, weights=tensors)
    reasons = {
        group.name: reason
        for group in subject.groups
        if (reason := _why_not(subject, group, model)) is not None
    }
    able = [group for group in subject.groups if group.name not in reasons]
    return model, Members.of(able, model.weights), reasons


def _why_not(subject: Subject, group: ChannelGroup, model: Differentiable) -> str | None:
    """Return why a group can't be judged by the gradients of its weights, None if it can."""
    tensors = [member.tensor for member in group.members]
    if any(name in model.weights for name in tensors) or not tensors:
        return why_no_floats(subject.model, group)
    why = model.without_gradient.get(tensors[0], "it does not train")
    return why_no_floats(subject.model, group) or f"{tensors[0]} has no gradient: {why}"


def _at_masks(
    subject: Subject, targets: Targets, measure: Callable[[FloatArray], FloatArray]
) -> Mapping[str, FloatArray | str]:
    """Return the mean over samples of a measure of dL/dm, by group."""
    from onnxprune.executor.gradients import Differentiable, Wish

    masked = Masked.of(subject)
    if not masked.groups:
        return {}
    model = Differentiable(
        masked.model,
        subject.data,
        subject.running,
        fed=subject.model,
        masks={mask.name: mask.shape for mask in masked.masks},
    )
    owners = owners_of(subject)
    places = [
        (mask.name, subject.groups[number], channel_at)
        for mask in masked.masks
        for number, channel_at in owners.of(mask.labels)
    ]
    totals = {group.name: np.zeros(group.size) for group in masked.groups}
    samples = 0
    by_sample = [mask.name for mask in masked.masks if mask.by_sample]
    wish = Wish(targets, by_sample=True, seed=subject.seed)
    for gradients in model.mask_gradients(by_sample, wish, subject.progress):
        count = len(next(iter(gradients.values())))
        samples += count
        for name, change in _by_channel(gradients, places, count).items():
            if name in totals:
                totals[name] += measure(change).sum(axis=0)
    check_slope(totals.values(), subject.data)
    return {name: total / samples for name, total in totals.items()}


def _by_channel(
    gradients: Mapping[str, FloatArray],
    places: Sequence[tuple[str, ChannelGroup, npt.NDArray[np.int32]]],
    samples: int,
) -> dict[str, FloatArray]:
    """Return float64 [samples, channel] by group: gradients [samples, position] of all masks of a channel."""
    found: dict[str, FloatArray] = {}
    rows = np.arange(samples)[:, None]
    for name, group, channel_at in places:
        mine = channel_at >= 0
        flat = rows * group.size + channel_at[mine]
        sums = np.bincount(flat.ravel(), gradients[name][:, mine].ravel(), minlength=samples * group.size)
        change = np.asarray(sums, np.float64).reshape(samples, group.size)
        found[group.name] = found[group.name] + change if group.name in found else change
    return found
