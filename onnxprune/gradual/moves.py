"""How weights move while a model is tuned, for the scores that go by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxprune.errors import UsageError
from onnxprune.model.stored import stored_values, tensor_of
from onnxprune.scores.movement import MOVEMENT_SCORERS, Movement, weight_figures
from onnxprune.scores.weights_by_gradient import Figures

if TYPE_CHECKING:
    from onnxprune.executor.module import OnnxModule

#: The score that adds up over steps; the others compare weights with those of before.
_ADDS_UP = "movement"


class Moves:
    """Watches weights move, where a score goes by it and no file of earlier weights is given."""

    def __init__(self, model: ir.Model, recipe: Mapping[str, Any]) -> None:
        """Make ready.

        Args:
            model: as it is before it is tuned.
            recipe: with the score.
        """
        self._score = str(recipe["score"])
        self._original = model
        self.watched = self._score in MOVEMENT_SCORERS and recipe.get("before") is None
        self._movement = Movement() if self.watched and self._score == _ADDS_UP else None
        self._state: Mapping[str, Any] | None = None  # of a checkpoint, until there is a module to put it on

    def add(self, module: OnnxModule) -> None:
        """Take in the gradients of a step."""
        if self._movement is not None:
            self._settle(module)
            self._movement.add(module)

    def figures(self, model: ir.Model, module: OnnxModule) -> Figures | None:
        """Return how far each trained weight moved; None if no score asks.

        Args:
            model: as it is now.
            module: the same, as it is tuned.

        Raises:
            UsageError: nothing moved yet.
        """
        if not self.watched:
            return None
        if self._movement is None:
            floats = [
                name
                for name, values in stored_values(model).items()
                if len(values) == 1 and tensor_of(values[0]).dtype.is_floating_point()
            ]
            return weight_figures(model, self._original, floats, self._score)
        self._settle(module)
        if self._movement.steps == 0:
            raise UsageError(
                f"score {self._score!r} adds up over steps, and none is done before the first pruning: give "
                "a warm-up"
            )
        return Figures(self._movement.figures())

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        if self._movement is None:
            return {}
        return self._movement.state() if self._state is None else dict(self._state)

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._state = state

    def _settle(self, module: OnnxModule) -> None:
        if self._state is not None and self._movement is not None:
            self._movement.load(self._state, module)
        self._state = None
