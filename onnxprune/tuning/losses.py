"""The loss of a run, from labels, from the original's outputs, or from both.

::

    labels   cross_entropy, mse          of `onnxprune.executor.losses`, or the user's own module:function
    kl       T**2 * mean over samples and positions of  sum_c p0[c] log(p0[c] / p[c]),
             p = softmax(y / T), p0 = softmax(y0 / T)                (Hinton et al. 2015, sections 2 and 2.1)
    mse      mean of (y - y0)**2 / s,  s = mean of (y0 - m)**2,  m = mean of y0 over samples
    total    (1 - d) * labels + d * (mean over outputs of kl or mse + mean over matched values of mse)

y are values of the model, y0 those of the original. Where an output holds probabilities p, its logarithms
stand for y. T**2 keeps the size of the gradient where T is changed (section 2.1). s is taken once, over the
first samples; dividing by it makes outputs and inner values of any size count alike, and 1 means "as far off
as one constant answer". Matching inner values is the hint of FitNets (Romero et al. 2015, eq. 3) between
equal shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.errors import DataError
from onnxprune.executor.losses import LabelLoss
from onnxprune.user_code import reporting

#: The least probability: its logarithm is finite.
_LEAST = 1e-12

#: Outputs by name, and matched inner values.
Values = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class UserLoss:
    """The user's own function: (outputs by name, labels or None) to a tensor of one element, to be small."""

    name: str
    function: Callable[[Values, Tensor | None], Any]

    def __call__(self, outputs: Values, labels: Tensor | None) -> Tensor:
        """Return the loss of a batch.

        Raises:
            DataError: the function raised, or returned something else than a number with a gradient.
        """
        with reporting(self.name):
            loss = self.function(outputs, labels)
        if not (isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point()):
            what = (
                f"{loss.dtype}{list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            )
            raise DataError(f"{self.name}: returned {what}; return a float tensor of one element: a mean")
        return loss.reshape(())


@dataclass(frozen=True, slots=True)
class Target:
    """One value that shall be as in the original.

    Attributes:
        name: of an output, or of a matched inner value.
        kind: ``kl`` or ``mse``.
        probabilities: it holds probabilities (kl alone).
        scale: s of ``mse``.
    """

    name: str
    kind: str
    probabilities: bool = False
    scale: float = 1.0

    def loss(self, value: Tensor, original: Tensor, temperature: float) -> Tensor:
        """Return the loss of a batch, both [samples, ...], in float32."""
        value, original = value.float(), original.float()
        if self.kind == "mse":
            return functional.mse_loss(value, original) / self.scale
        if self.probabilities:
            value, original = value.clamp_min(_LEAST).log(), original.clamp_min(_LEAST).log()
        given = functional.log_softmax(value / temperature, dim=-1)
        wanted = functional.log_softmax(original / temperature, dim=-1)
        return temperature**2 * (wanted.exp() * (wanted - given)).sum(dim=-1).mean()


@dataclass(frozen=True, slots=True)
class Objective:
    """The whole loss.

    Attributes:
        labels: what labels are compared by; None for nothing.
        outputs: the outputs that are compared with the original's.
        matched: the inner values that are.
        distil: weight of these two.
        temperature: of kl.
    """

    labels: LabelLoss | UserLoss | None
    outputs: tuple[Target, ...]
    matched: tuple[Target, ...]
    distil: float
    temperature: float

    @property
    def inner(self) -> tuple[str, ...]:
        """Names of the inner values that it compares."""
        return tuple(target.name for target in self.matched)

    @property
    def needs_teacher(self) -> bool:
        """Whether anything of the original is compared."""
        return self.distil > 0

    def __call__(self, values: Values, labels: Tensor | None, original: Values | None) -> Tensor:
        """Return the loss of a batch: a mean over its samples.

        Args:
            values: outputs and matched inner values, by name.
            labels: [samples, ...], or None where no loss needs them.
            original: the same of the original; None where nothing is compared with it.
        """
        parts: list[Tensor] = []
        if self.labels is not None and self.distil < 1:
            parts.append((1 - self.distil) * self._of_labels(values, labels))
        if original is not None and self.distil > 0:
            for targets in (self.outputs, self.matched):
                losses = [t.loss(values[t.name], original[t.name], self.temperature) for t in targets]
                if losses:
                    parts.append(self.distil * torch.stack(losses).mean())
        return torch.stack(parts).sum()

    def _of_labels(self, values: Values, labels: Tensor | None) -> Tensor:
        if isinstance(self.labels, UserLoss):
            return self.labels(values, labels)
        if self.labels is None or labels is None:
            raise ValueError("this loss needs labels")
        name = self.labels.output
        return self.labels.per_sample({name: values[name].float()}, labels).mean()


def spread(values: Tensor) -> float:
    """Return the mean of (y - mean of y over samples)**2; the mean of y**2 where that is zero, or 1."""
    values = values.double()
    energy = float(values.square().mean())
    varying = float((values - values.mean(dim=0)).square().mean())
    return varying if varying > 1e-12 * energy else energy or 1.0


def holds_probabilities(output: Tensor) -> bool:
    """Tell whether the last axis adds up to 1 and is never negative, as softmax gives it."""
    return output.dim() >= 2 and output.shape[-1] >= 2 and _adds_up(output.double())


def holds_log_probabilities(output: Tensor) -> bool:
    """Tell whether the last axis holds logarithms of probabilities, as log-softmax gives them."""
    return output.dim() >= 2 and output.shape[-1] >= 2 and _adds_up(output.double().exp())


def _adds_up(values: Tensor) -> bool:
    # float16 rounds the probabilities of many classes by up to 2e-3 in all
    return bool(values.min() >= 0 and (values.sum(dim=-1) - 1).abs().max() <= 2e-3)
