"""What outputs are judged by where gradients are taken: labels, or what the model itself says.

::

    cross_entropy  mean over positions of -log p[label]; p = softmax(y) over the last axis, or y if it is one
    mse            mean over elements of (y - label)**2

Losses are figures for single samples, so that who needs the gradient of each sample can have it. What fits
the labels is decided once, on the outputs of a first batch, as `onnxprune.sensitivity.losses` decides it.

Without labels, the distance of a model from itself is zero, and so is its gradient. What is left is the
likelihood that the model itself gives to targets: those that it predicts, or those that are drawn from its
own distribution, whose squared gradients are the diagonal of the Fisher information (Kunstner et al. 2019,
"Limitations of the Empirical Fisher Approximation", eq. 3). Scores of classes are a categorical distribution,
other outputs the mean of a Gaussian whose deviation is that of the output over the first batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.errors import DataError
from onnxprune.messages import quoted

LossName = Literal["cross_entropy", "mse"]

#: The least probability: its logarithm is finite.
_LEAST = 1e-12

#: How far the probabilities of all classes may be from 1 together, as float16 rounds them.
_ROUNDING = 2e-3

#: Ranks of outputs whose last axis may hold classes: [samples, classes], [samples, positions, classes].
_RANKS_OF_CLASSES = (2, 3)


@dataclass(frozen=True, slots=True)
class LabelLoss:
    """A loss from labels, decided once.

    Attributes:
        name: which.
        output: name of the output that is judged.
        probabilities: that output holds probabilities already.
    """

    name: LossName
    output: str
    probabilities: bool = False

    def per_sample(self, outputs: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        """Return the loss of each sample, float [samples].

        Args:
            outputs: by name; of `output`, [samples, ..., classes] for cross entropy.
            labels: [samples, ...]: class numbers, or for mse numbers of the output's shape.
        """
        output = outputs[self.output]
        if self.name == "mse":
            return _by_sample(torch.square(output - labels.to(output)), len(labels))
        return _by_sample(_surprise(output, labels, self.probabilities), len(labels))


def choose_label_loss(
    outputs: Mapping[str, Tensor], labels: Tensor, *, name: LossName | None = None, source: str = "data"
) -> LabelLoss:
    """Decide what labels say about outputs: cross entropy where they are class numbers, else mse.

    Args:
        outputs: of a first batch, by name.
        labels: of the same samples, [samples, ...].
        name: of the loss; None for the first that fits.
        source: of the labels, for messages.

    Raises:
        DataError: the labels fit no output.
    """
    wanted: tuple[LossName, ...] = ("cross_entropy", "mse") if name is None else (name,)
    for loss in wanted:
        for output, value in outputs.items():
            if not (value.is_floating_point() and _fits(loss, value, labels)):
                continue
            if loss == "mse":
                return LabelLoss(loss, output)
            check_classes(labels, value, output, source)
            return LabelLoss(loss, output, _are_probabilities(value))
    shapes = ", ".join(f"{quoted(output)} {list(value.shape)}" for output, value in outputs.items())
    shapes = shapes or "none is a tensor"
    kind = str(labels.dtype).removeprefix("torch.")
    raise DataError(
        f"{source}: labels are {kind}{list(labels.shape)}, and fit none of the outputs ({shapes})"
        + (f" as {name} takes them" if name is not None else "")
        + "; leave the array 'label' out to go by the model's own predictions"
    )


def check_classes(labels: Tensor, output: Tensor, name: str, source: str) -> None:
    """Check that labels are numbers of the classes of an output.

    Args:
        labels: integers, of any shape.
        output: [..., classes].
        name: of the output.
        source: of the labels, for messages.

    Raises:
        DataError: they are not.
    """
    low, high, classes = int(labels.min()), int(labels.max()), output.shape[-1]
    if low < 0 or high >= classes:
        raise DataError(
            f"{source}: labels range from {low} to {high}; output {quoted(name)} has classes 0 to "
            f"{classes - 1}"
        )


def label_loss(outputs: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """Return the mean over samples of the loss that fits the labels: see `choose_label_loss`."""
    return choose_label_loss(outputs, labels).per_sample(outputs, labels).mean()


@dataclass(frozen=True, slots=True)
class OwnLoss:
    """How likely targets are under the distribution that a model itself gives: its own log likelihood.

    Attributes:
        classes: whether each output's last axis holds classes, by name of the outputs that hold floats.
        probabilities: outputs of classes that hold probabilities already.
        deviations: of the Gaussian of every other output.
    """

    classes: Mapping[str, bool]
    probabilities: frozenset[str]
    deviations: Mapping[str, float]

    @classmethod
    def of(cls, outputs: Mapping[str, Tensor], source: str = "data") -> OwnLoss:
        """Decide on the outputs of a first batch what each of them holds.

        Classes are looked for in the last axis of outputs [samples, classes] and [samples, positions,
        classes], and in that of any output that adds up to 1.

        Raises:
            DataError: no output holds floats.
        """
        floats = {name: value.detach() for name, value in outputs.items() if value.is_floating_point()}
        if not floats:
            raise DataError(f"{source}: no output of the model holds floats, so no gradient can be taken")
        ready = frozenset(name for name, value in floats.items() if _are_probabilities(value))
        classes = {
            name: name in ready or (value.dim() in _RANKS_OF_CLASSES and value.shape[-1] >= 2)
            for name, value in floats.items()
        }
        spreads = {name: float(value.double().std(correction=0)) for name, value in floats.items()}
        return cls(classes, ready, {name: spread or 1.0 for name, spread in spreads.items()})

    def predicted(self, outputs: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Return the most likely class of every output of classes; other outputs draw, as `drawn` says.

        At its own mean a Gaussian is flat: that target would have no gradient.
        """
        numbers = replace(
            self, classes={name: False for name, is_class in self.classes.items() if not is_class}
        )
        targets = numbers.drawn(outputs, generator)
        for name, is_class in self.classes.items():
            if is_class:
                targets[name] = outputs[name].detach().argmax(dim=-1)
        return targets

    def drawn(self, outputs: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Return targets from the model's own distribution, by output: class numbers, or floats.

        Args:
            outputs: by name.
            generator: of the CPU, whatever the outputs are on, so that all devices draw the same.
        """
        targets = {}
        for name, is_class in self.classes.items():
            output = outputs[name].detach()
            if is_class:
                rows = output.double() if name in self.probabilities else output.double().softmax(dim=-1)
                flat = rows.reshape(-1, rows.shape[-1]).cpu()
                chosen = torch.multinomial(flat, 1, generator=generator)
                targets[name] = chosen.reshape(output.shape[:-1]).to(output.device)
            else:
                noise = torch.randn(output.shape, generator=generator).to(output)
                targets[name] = output + self.deviations[name] * noise
        return targets

    def per_sample(
        self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], samples: int
    ) -> Tensor:
        """Return -log p(target) of each sample, float [samples], but for a constant; summed over outputs.

        Positions of an output count by their mean, as they do in losses from labels.
        """
        losses = []
        for name, is_class in self.classes.items():
            if is_class:
                terms = _surprise(outputs[name], targets[name], name in self.probabilities)
            else:
                terms = torch.square((outputs[name] - targets[name]) / self.deviations[name]) / 2
            losses.append(_by_sample(terms, samples))
        return torch.stack(losses).sum(dim=0)


def _surprise(output: Tensor, labels: Tensor, probabilities: bool) -> Tensor:
    """Return -log p[label], float [...], for scores or probabilities [..., classes]."""
    logs = output.clamp_min(_LEAST).log() if probabilities else functional.log_softmax(output, dim=-1)
    return -logs.gather(-1, labels.long().unsqueeze(-1)).squeeze(-1)


def _by_sample(terms: Tensor, samples: int) -> Tensor:
    """Return the mean over everything but the samples, which are the first axis."""
    if samples == 1:
        return terms.mean().reshape(1)
    if terms.dim() == 0 or len(terms) != samples:
        raise DataError(
            f"an output is {list(terms.shape)} over {samples} samples: its first axis must be that of samples"
        )
    return terms.reshape(samples, -1).mean(dim=1)


def _fits(loss: LossName, output: Tensor, labels: Tensor) -> bool:
    if loss == "mse":
        return labels.shape == output.shape
    integers = not labels.is_floating_point() and labels.dtype != torch.bool
    may_hold_classes = output.dim() >= 2 and output.shape[-1] >= 2
    return integers and may_hold_classes and labels.shape == output.shape[:-1]


def _are_probabilities(output: Tensor) -> bool:
    if output.dim() < 2 or output.shape[-1] < 2:
        return False
    values = output.detach().double()
    return bool(values.min() >= 0 and (values.sum(dim=-1) - 1).abs().max() <= _ROUNDING)
