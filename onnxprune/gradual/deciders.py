"""What goes at a milestone: the usual planning, asked again about the weights of now, beyond what is gone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.analyze import Analysis
from onnxprune.data import Dataset
from onnxprune.errors import NothingToPrune
from onnxprune.planning.channel_masks import reasons_to_cut, zeros_of
from onnxprune.planning.channels import Decision, cost_after, decide, tell_importance
from onnxprune.planning.curves import Setting
from onnxprune.planning.gathering import gather
from onnxprune.planning.masks import Ranking, decide_masks, gather_weights
from onnxprune.planning.positions import planned
from onnxprune.planning.recipes import budgets_of
from onnxprune.planning.rounds import recipe_at
from onnxprune.planning.watch import Watch
from onnxprune.scores.movement import MOVEMENT_SCORERS, channel_sums
from onnxprune.scores.weights_by_gradient import Figures
from onnxprune.types import Choice, IntArray, Mask, Plan, Scores

Array = npt.NDArray[Any]

#: What stands for a score that goes by moves, before anything moved.
_STAND_IN = "l2"


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to go in the end, and on what grounds.

    Attributes:
        recipe: the options of `onnxprune.prune` that were given, with pattern, score and scope.
        samples: what scores are measured on; None where they go by weights alone.
        seed: of every random choice.
        watch: gets the seconds of each stage.
        setting: how trials are run where the scope is "sensitivity".
    """

    recipe: Mapping[str, Any]
    samples: Dataset | None
    seed: int
    watch: Watch
    setting: Setting


@dataclass(frozen=True, slots=True)
class Found:
    """What was decided at one milestone.

    Attributes:
        masks: what stays, by stored name.
        weights: new contents of tensors, by stored name, where the score makes some.
        figures: what there is to tell, by name.
    """

    masks: Mapping[str, Mask]
    weights: Mapping[str, Array]
    figures: Mapping[str, Any]


class Decider(Protocol):
    """Decides what goes, remembers it, and never brings it back."""

    def decide(self, model: ir.Model, share: float, moved: Figures | None) -> Found | None:
        """Return what stays once a share is gone, judged by the weights of now; None if no more goes.

        Args:
            model: as it is now.
            share: of what `goal_of` the recipe counts.
            moved: how far weights moved, where the score goes by it.
        """

    def state(self) -> dict[str, Any]:
        """Return what is gone, for a checkpoint."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint."""


class Zeros:
    """Decides which weights become zero."""

    def __init__(self, model: ir.Model, wish: Wish, stay: Mapping[str, str]) -> None:
        """Plan the goal on the original, so that whatever makes no sense is refused before long work.

        Raises:
            UsageError, DataError, ModelError, NothingToPrune: as `onnxprune.prune`.
        """
        self._wish = wish
        self._stay = stay
        self.goal, _ = self._plan(model, before_moving(wish.recipe), {})
        self.masks: Mapping[str, Mask] = {}

    def decide(self, model: ir.Model, share: float, moved: Figures | None) -> Found | None:
        """See `Decider`."""
        recipe = recipe_at(self._wish.recipe, share)
        if recipe is None:
            return None
        try:
            plan, weights = self._plan(model, recipe, self.masks, moved)
        except NothingToPrune:  # less than one weight of any tensor; the goal was planned before
            return None
        self.masks = plan.masks
        kept, size = (sum(getattr(mask, what) for mask in plan.masks.values()) for what in ("kept", "size"))
        return Found(plan.masks, weights, {"zeros": size - kept, "of weights": size})

    def _plan(
        self,
        model: ir.Model,
        recipe: Mapping[str, Any],
        gone: Mapping[str, Mask],
        moved: Figures | None = None,
    ) -> tuple[Plan, Mapping[str, Array]]:
        wish = self._wish
        gathered = gather_weights(
            model,
            recipe,
            wish.samples,
            wish.seed,
            wish.watch,
            wish.setting,
            gone=gone,
            stay=self._stay,
            ranking=None if moved is None else Ranking(moved.scorer()),
        )
        return decide_masks(gathered, recipe)

    def state(self) -> dict[str, Any]:
        """See `Decider`."""
        return {"masks": dict(self.masks)}

    def load(self, state: Mapping[str, Any]) -> None:
        """See `Decider`."""
        self.masks = state["masks"]

    def plan(self, masks: Mapping[str, Mask]) -> Plan:
        """Return the plan of all that is gone."""
        return replace(self.goal, masks=masks)


class Channels:
    """Decides which channels are to go, and which zeros stand for them until they are cut."""

    def __init__(self, model: ir.Model, wish: Wish, trained: Collection[str]) -> None:
        """Plan the goal on the original, so that whatever makes no sense is refused before long work.

        Raises:
            UsageError, DataError, ModelError, NothingToPrune, LimitMissed: as `onnxprune.prune`.
        """
        self._wish = wish
        self._trained = trained
        self._goal = self._plan(model, before_moving(wish.recipe), {})
        self.removed: Mapping[str, IntArray] = {}

    def decide(self, model: ir.Model, share: float, moved: Figures | None) -> Found | None:
        """See `Decider`."""
        recipe = recipe_at(self._wish.recipe, share)
        if recipe is None:
            return None
        try:
            decision = self._plan(model, recipe, self.removed, moved)
        except NothingToPrune:  # less than a step of any group; the goal was planned before
            return None
        self.removed = decision.removed
        masks = {name: Mask.pack(kept) for name, kept in zeros_of(decision.analysis, self.removed).items()}
        before, after = decision.plan.predicted
        figures = {
            "channels": sum(len(numbers) for numbers in self.removed.values()),
            "MACs left": after.macs / max(before.macs, 1),
            "parameters left": after.params / max(before.params, 1),
        }
        return Found(masks, {}, figures)

    def _plan(
        self,
        model: ir.Model,
        recipe: Mapping[str, Any],
        gone: Mapping[str, IntArray],
        moved: Figures | None = None,
    ) -> Decision:
        wish = self._wish

        def summed(analysis: Analysis) -> Scores:
            tensors: Mapping[str, Array] = {} if moved is None else moved.tensors
            found = channel_sums(analysis.model, analysis.groups, tensors, tensors.__getitem__)
            return Scores.of(recipe["score"], found)

        budgets_of(recipe)  # refuses nonsense before long work
        gathered = gather(
            model,
            recipe,
            wish.samples,
            wish.seed,
            wish.watch,
            wish.setting,
            gone=gone,
            stay=lambda analysis: reasons_to_cut(analysis, self._trained),
            scored=None if moved is None else summed,
        )
        decision = decide(gathered, recipe)
        tell_importance(decision)
        return decision

    def state(self) -> dict[str, Any]:
        """See `Decider`."""
        return {"removed": dict(self.removed)}

    def load(self, state: Mapping[str, Any]) -> None:
        """See `Decider`."""
        self.removed = state["removed"]

    @property
    def input_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Concrete shapes of the inputs."""
        return self._goal.analysis.shapes.input_shapes

    def plan(self) -> Plan:
        """Return the plan of all that is gone, for the original."""
        goal = self._goal
        reasons = {group.name: group.skipped for group in goal.plan.groups}
        nothing = np.zeros(0, np.int32)
        choices = [
            Choice(group, gone, None if len(gone) else reasons[group.name] or "its channels matter more")
            for group in goal.candidates.groups
            for gone in [self.removed.get(group.name, nothing)]
        ]
        left = cost_after(goal.analysis, self.removed)
        groups = tuple(planned(choice) for choice in choices)
        return replace(goal.plan, groups=groups, predicted=(goal.plan.predicted[0], left))


def before_moving(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe that can be planned with before a model is tuned."""
    waits = recipe["score"] in MOVEMENT_SCORERS and recipe.get("before") is None
    return {**recipe, **({"score": _STAND_IN} if waits else {})}
