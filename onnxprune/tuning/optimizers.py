"""Optimizers by name, as torch has them."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from onnxprune.tuning.settings import Tuning


def build_optimizer(parameters: Iterable[torch.nn.Parameter], settings: Tuning) -> torch.optim.Optimizer:
    """Return the optimizer of a run.

    ``adam`` (Kingma and Ba 2015; weight decay is added to the gradient), ``adamw`` (Loshchilov and Hutter
    2019;     weight decay shrinks the weights themselves) and ``sgd`` with momentum. Tensors of fewer than
    two axes     (biases, scales) have no weight decay.
    """
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for parameter in parameters:
        (matrices if parameter.dim() >= 2 else others).append(parameter)
    groups = [
        {"params": some, "weight_decay": decay}
        for some, decay in ((matrices, settings.weight_decay), (others, 0.0))
        if some
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=settings.rate, momentum=settings.momentum, nesterov=settings.nesterov
        )
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.rate)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all weights."""
    for group in optimizer.param_groups:
        group["lr"] = rate
