"""Masks that are held while a model is tuned: a masked weight is 0.0 after every step, bit for bit.

A masked gradient is set to zero before anything is made of it: before its length is taken, before it reaches
a moment of the optimizer. So the state of the optimizer stays zero where it is zero, and it is set to zero
where a mask begins. The weight itself is set to zero again after every step, whatever an optimizer does to a
zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from onnxprune.errors import PlanError
from onnxprune.messages import quoted
from onnxprune.types import BoolArray, Mask


class HeldMasks:
    """Which weights are zero and stay so. Weights may join them, and never leave.

    Attributes:
        changes: how often weights have joined since the start.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        self.changes = 0
        self._parameters = parameters
        self._gone: dict[str, torch.Tensor] = {}  # bool, True: the weight is zero
        self._optimizer: torch.optim.Optimizer | None = None

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the state of this optimizer zero as well."""
        self._optimizer = optimizer
        self.hold()

    def narrow(self, masks: Mapping[str, Mask | BoolArray]) -> None:
        """Set more weights to zero for good, and what the optimizer remembers of them.

        Args:
            masks: by stored name, True where a weight may stay. What an earlier mask holds stays zero,
                whatever a later one says.

        Raises:
            PlanError: a mask names no weight that is trained, or has another shape.
        """
        for name, mask in masks.items():
            self._check_fits(name, mask)
        for name, mask in masks.items():
            kept = mask.unpack() if isinstance(mask, Mask) else mask
            parameter = self._parameters[name]
            gone = torch.from_numpy(~kept).to(parameter.device)
            self._gone[name] = gone | self._gone[name] if name in self._gone else gone
        self.changes += 1
        self.hold()

    def hold(self) -> None:
        """Set masked weights to zero, and the state of the optimizer there."""
        with torch.no_grad():
            for name, gone in self._gone.items():
                parameter = self._parameters[name]
                parameter.masked_fill_(gone, 0.0)
                for moment in self._moments(parameter):
                    moment.masked_fill_(gone, 0.0)

    def mask_gradients(self) -> None:
        """Set the gradients of masked weights to zero, infinite ones and those that are no numbers too."""
        for name, gone in self._gone.items():
            gradient = self._parameters[name].grad
            if gradient is not None:
                gradient.masked_fill_(gone, 0.0)

    @property
    def masks(self) -> dict[str, Mask]:
        """What stays, by stored name, of the tensors that have a mask."""
        return {name: Mask.pack(~gone.cpu().numpy()) for name, gone in self._gone.items()}

    @property
    def sparsity(self) -> float:
        """Share of all trained weights that masks hold at zero."""
        weights = sum(parameter.numel() for parameter in self._parameters.values())
        return sum(int(gone.sum()) for gone in self._gone.values()) / max(1, weights)

    def load(self, masks: Mapping[str, Mask], changes: int) -> None:
        """Take the masks of a checkpoint, and how often they had changed, in place of all others."""
        self._gone = {}
        self.narrow(masks)
        self.changes = changes

    def _moments(self, parameter: torch.nn.Parameter) -> list[torch.Tensor]:
        """Return what the optimizer remembers of each weight of a parameter."""
        if self._optimizer is None:
            return []
        state = self._optimizer.state.get(parameter, {})
        return [
            value
            for value in state.values()
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.dim() > 0
        ]

    def _check_fits(self, name: str, mask: Mask | BoolArray) -> None:
        parameter = self._parameters.get(name)
        if parameter is None:
            raise PlanError(f"mask for {quoted(name)}: no weight of that name is trained")
        if tuple(mask.shape) != tuple(parameter.shape):
            raise PlanError(
                f"mask for {quoted(name)} has shape {list(mask.shape)}, the weight {list(parameter.shape)}"
            )
        if not isinstance(mask, Mask) and mask.dtype != np.bool_:
            raise PlanError(f"mask for {quoted(name)} is {mask.dtype}, not bool")
