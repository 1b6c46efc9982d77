"""A schedule that acts while a model is tuned: at each milestone weights are judged anew, and more go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxprune.gradual.deciders import Decider
from onnxprune.gradual.moves import Moves
from onnxprune.schedule import Schedule

if TYPE_CHECKING:
    from onnxprune.executor.module import OnnxModule
    from onnxprune.tuning.masks import HeldMasks


class Gradual:
    """Prunes at the milestones of a schedule: a `onnxprune.tuning.control.Control`.

    Attributes:
        rows: what went at each milestone, for the report.
    """

    def __init__(
        self,
        model: ir.Model,
        decider: Decider,
        schedule: Schedule,
        moves: Moves,
        identity: Mapping[str, Any],
    ) -> None:
        """Make ready.

        Args:
            model: what is tuned, for its graph.
            decider: says what goes.
            schedule: says when.
            moves: watches weights move.
            identity: plain values that decide what goes; a checkpoint made with others is refused.
        """
        self._model = model
        self._decider = decider
        self._moves = moves
        self._due = {milestone.step: milestone.share for milestone in schedule.milestones()}
        self._identity = {**identity, "milestones": [list(m) for m in schedule.milestones()]}
        self.rows: list[dict[str, Any]] = []

    def start(self, steps: int, module: OnnxModule, held: HeldMasks) -> None:
        """Prune what goes before the first step."""
        self._prune(0, module, held)

    def after_backward(self, step: int, module: OnnxModule) -> None:
        """Let gradients be looked at, until the last pruning."""
        if not self.settled(step - 1):
            self._moves.add(module)

    def after_step(self, step: int, module: OnnxModule, held: HeldMasks) -> None:
        """Prune if it is time."""
        self._prune(step, module, held)

    def settled(self, step: int) -> bool:
        """Tell whether the last milestone is behind."""
        return step >= max(self._due)

    def settings(self) -> Mapping[str, Any]:
        """Return what decides the course."""
        return self._identity

    def state(self) -> dict[str, Any]:
        """Return what is gone so far."""
        return {"rows": self.rows, "gone": self._decider.state(), "moves": self._moves.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.rows = state["rows"]
        self._decider.load(state["gone"])
        self._moves.load(state["moves"])

    def _prune(self, step: int, module: OnnxModule, held: HeldMasks) -> None:
        if step not in self._due:
            return
        from onnxprune.tuning.parts import write_values
        from onnxprune.tuning.weights import put_values

        now = write_values(self._model, module.values())
        found = self._decider.decide(now, self._due[step], self._moves.figures(now, module))
        if found is None:
            return
        held.narrow(found.masks)
        put_values(module, found.weights)
        held.hold()
        self.rows.append({"step": step, "share": self._due[step], **found.figures})
