"""How a model is tuned: every choice, checked before anything is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.registry import did_you_mean
from onnxprune.user_code import is_reference

#: The usual learning rate of each optimizer, for weights that are trained already.
OPTIMIZERS: Mapping[str, float] = {"adam": 1e-3, "adamw": 1e-3, "sgd": 1e-2}
LEARNING_RATE_SCHEDULES = ("constant", "linear", "cosine", "step")
PRECISIONS = ("float32", "bfloat16", "float16")
LOSSES = ("auto", "cross_entropy", "mse", "none")
DISTIL_LOSSES = ("auto", "kl", "mse")
BATCH_NORM = ("eval", "train")

#: Passes over the data where neither steps nor epochs are given.
USUAL_EPOCHS = 10.0

#: Weight of the original's outputs where there are labels too.
USUAL_DISTIL = 0.7


@dataclass(frozen=True, slots=True)
class Tuning:
    """Settings of a run. What it computes depends on them, the models, the data and nothing else.

    Attributes:
        steps: of the optimizer; instead of epochs.
        epochs: passes over the data; 10 where neither is given.
        batch: samples that go through the model at once, over all processes. A model with a fixed batch runs
            as often as it takes to come close to ``batch`` times ``accumulate`` in a step.
        accumulate: batches whose gradients make up one step.
        optimizer: a key of `OPTIMIZERS`.
        learning_rate: the highest one; None for the usual one of the optimizer.
        learning_rate_schedule: see `onnxprune.tuning.rates`.
        warm_up: share of the steps in which the learning rate rises to its highest, in [0, 1).
        momentum: of SGD.
        nesterov: SGD looks ahead by its momentum.
        weight_decay: of tensors of two axes and more; biases and scales are left alone.
        clip: longest gradient over all weights together (L2); None for any.
        precision: of activations and gradients between layers; weights and sums stay float32.
        loss: of labels: ``auto``, ``cross_entropy``, ``mse``, ``none`` or ``module:function``.
        distil: weight of the original's outputs in the loss, in [0, 1]; the labels have the rest. None: 1
            without labels, `USUAL_DISTIL` with them.
        distil_loss: how outputs are compared with the original's: ``kl``, ``mse`` or ``auto``.
        temperature: of both softmaxes of ``kl``.
        match: names of inner values that shall be as in the original.
        batch_norm: ``eval`` uses the statistics of the file, ``train`` those of each batch, and updates them.
        seed: of every random choice.
        device: as torch names it.
        evaluate_every: steps between looks at the validation samples; None for one pass over the data.
        patience: looks without a better result after which to stop; None for never.
        checkpoint_every: steps between checkpoints; None for at each look.
    """

    steps: int | None = None
    epochs: float | None = None
    batch: int = 32
    accumulate: int = 1
    optimizer: str = "adam"
    learning_rate: float | None = None
    learning_rate_schedule: str = "cosine"
    warm_up: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    clip: float | None = 1.0
    precision: str = "float32"
    loss: str = "auto"
    distil: float | None = None
    distil_loss: str = "auto"
    temperature: float = 2.0
    match: tuple[str, ...] = ()
    batch_norm: str = "eval"
    seed: int = 0
    device: str = "cpu"
    evaluate_every: int | None = None
    patience: int | None = None
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UsageError: naming the setting.
        """
        if self.steps is not None and self.epochs is not None:
            raise UsageError("steps and epochs exclude each other; give one")
        _check_name("optimizer", self.optimizer, OPTIMIZERS)
        _check_name("learning rate schedule", self.learning_rate_schedule, LEARNING_RATE_SCHEDULES)
        _check_name("precision", self.precision, PRECISIONS)
        _check_name("distil loss", self.distil_loss, DISTIL_LOSSES)
        _check_name("batch norm", self.batch_norm, BATCH_NORM)
        if not is_reference(self.loss):
            _check_name("loss", self.loss, (*LOSSES, "module:function"))
        for name in ("steps", "batch", "accumulate", "evaluate_every", "patience", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}")
        for name in ("epochs", "learning_rate", "clip", "temperature"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} must be positive, not {value}")
        for name, most in (("warm_up", 1.0), ("momentum", 1.0)):
            value = getattr(self, name)
            if not 0 <= value < most:
                raise UsageError(f"{name} must be at least 0 and below {most:g}, not {value}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UsageError(f"weight_decay must not be negative, not {self.weight_decay}")
        if self.distil is not None and not 0 <= self.distil <= 1:
            raise UsageError(f"distil is a share of the loss, in [0, 1], not {self.distil}")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise UsageError("nesterov looks ahead by the momentum of sgd: choose that, with a momentum")
        if self.precision == "float16" and self.device == "cpu":
            raise UsageError("precision float16 needs a GPU (device cuda); on CPUs use bfloat16")

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return OPTIMIZERS[self.optimizer] if self.learning_rate is None else self.learning_rate

    def steps_over(self, samples: int, per_step: int) -> int:
        """Return the number of steps over so many samples, with so many in a step.

        Steps go on from one pass to the next, so every sample is seen equally often, and no step is smaller
        than the others.
        """
        if self.steps is not None:
            return self.steps
        epochs = USUAL_EPOCHS if self.epochs is None else self.epochs
        return max(1, math.ceil(epochs * samples / per_step))

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "match": list(self.match)}


def _check_name(what: str, name: str, known: Any) -> None:
    if name not in known:
        raise UsageError(f"unknown {what} {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
