"""What watches a run and may change its course, and what a run tells of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from onnxprune.executor.module import OnnxModule
    from onnxprune.tuning.masks import HeldMasks


class Control(Protocol):
    """Gradual pruning, movement, rewinding: what sees gradients, and narrows masks while a model is tuned.

    With several processes each has its own, and all must decide the same: they see the same weights and
    gradients, so whatever depends on these, the step and a seed alone does.
    """

    def start(self, steps: int, module: OnnxModule, held: HeldMasks) -> None:
        """Called once, before the first of so many steps; a resumed run calls `load` instead."""

    def after_backward(self, step: int, module: OnnxModule) -> None:
        """Called when ``parameter.grad`` of ``module.trained`` holds the gradients of a whole step.

        They are the mean over all accumulated batches and all processes, unscaled, zero where a mask holds,
        and not clipped yet. Steps count from 1.
        """

    def after_step(self, step: int, module: OnnxModule, held: HeldMasks) -> None:
        """Called after the optimizer's step: may call ``held.narrow``, and write weights in place."""

    def settled(self, step: int) -> bool:
        """Tell whether no mask changes after this step: from then on the best weights are kept."""

    def settings(self) -> Mapping[str, Any]:
        """Return the plain values that decide what it does; a checkpoint made with others is refused."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold: tensors, numpy arrays and plain values, nested as you like."""

    def load(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands.

    Attributes:
        step: that was done, from 1 on.
        steps: there are at most.
        loss: of the step.
        metric: name and value of the latest look at the validation samples; None before the first.
        sparsity: share of the trained weights that masks hold at zero.
        seconds_left: estimated.
    """

    step: int
    steps: int
    loss: float
    metric: tuple[str, float] | None
    sparsity: float
    seconds_left: float

    @property
    def share(self) -> float:
        """The share of the steps that is done, in (0, 1]."""
        return self.step / self.steps

    def __str__(self) -> str:
        """Return a line for people."""
        metric = "" if self.metric is None else f", {self.metric[0]} {self.metric[1]:.4g}"
        zeros = f", {self.sparsity:.1%} zeros" if self.sparsity else ""
        left = (
            f"{self.seconds_left:.0f} s" if self.seconds_left < 120 else f"{self.seconds_left / 60:.0f} min"
        )
        return f"step {self.step} of {self.steps}, loss {self.loss:.4g}{metric}{zeros}, {left} left"
