"""Removing residual branches: deciding, doing, proving and repairing in order, in rounds if wished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.data import Dataset
from onnxprune.errors import NothingToPrune, UsageError
from onnxprune.planning.again import layers_on, tell_names
from onnxprune.planning.anew import layers_anew
from onnxprune.planning.layers import Layers, decide_layers, find_layers, gather_layers, planned_branches
from onnxprune.planning.recipes import TARGETS, share_of
from onnxprune.planning.rounds import recipes_by_round
from onnxprune.planning.watch import Watch
from onnxprune.proving import Trials, prove_layers
from onnxprune.pruning import PruneResult, Repair, Repairs, Task, numbered
from onnxprune.rewrite.depth import remove_branches
from onnxprune.types import Check, Plan, PlannedGroup


class LayerPruner:
    """Removes residual branches of one model, in rounds if that is wished.

    In rounds, branches are scored in what is left of the model; amounts and targets count from the original.

    Args:
        task: the model, and how it is pruned.
        recipe: of which the amount and the targets play no part but to be checked.
        watch: gets the seconds of what is gathered.

    Raises:
        UsageError: in rounds, by a repair that works in one; and as `onnxprune.prune`.
        DataError, NothingToPrune: as `onnxprune.prune`.
    """

    def __init__(self, task: Task, recipe: Mapping[str, Any], watch: Watch) -> None:
        if task.repair.rounds > 1 and task.repair.mend is None:
            raise UsageError("pattern 'layers' removes whole branches in one round: leave out rounds")
        recipes_by_round(recipe, task.repair.rounds, task.repair.shape)  # refuses nonsense before long work
        self._task = task
        self._gathered = gather_layers(task.model, recipe, task.samples, task.seed, watch)

    def plan(self, recipe: Mapping[str, Any], watch: Watch) -> Plan:
        """See `Pruner`."""
        return decide_layers(replace(self._gathered, watch=watch), recipe)

    def prune(self, recipe: Mapping[str, Any], watch: Watch) -> PruneResult:
        """See `Pruner`."""
        task = self._task
        removal = _Removal(task.samples, task.repair, task.seed, watch)
        steps = recipes_by_round(recipe, task.repair.rounds, task.repair.shape)
        for number, step in enumerate(steps, start=1):
            now = removal.remaining(step)
            if now is None:
                continue
            gathered = replace(self._gathered, watch=watch)
            try:
                if removal.current is not None:
                    gathered = gather_layers(removal.current, now, task.samples, task.seed, watch)
                plan = decide_layers(gathered, now)
            except NothingToPrune:  # less than one branch, in this round
                if number == len(steps) and removal.plan is None:
                    raise
                continue
            removal.remove(plan, gathered.layers, number)
        return removal.result(recipe)


def apply_to_layers(
    model: ir.Model, plan: Plan, samples: Dataset | None, wish: Repair, watch: Watch, *, refresh: bool = False
) -> PruneResult:
    """Remove the residual branches of a plan, or as many others of each kind, chosen anew.

    Raises:
        PlanError: the model has another graph, or other branches.
        UsageError, DataError: the plan's score lacks what it is measured on.
    """
    if refresh:
        recipe = {**plan.recipe, "pattern": plan.pattern}
        gathered = gather_layers(model, recipe, samples, plan.seed, watch)
        layers = gathered.layers
    else:
        with watch.stage("find branches"):
            layers = find_layers(model, plan.recipe.get("input_shapes"))
    with watch.stage("match"):
        plan, names = layers_on(layers, plan)
    tell_names(watch, names)
    if refresh:
        plan = layers_anew(gathered, plan)
    removal = _Removal(samples, wish, plan.seed, watch)
    removal.remove(plan, layers, 1)
    return removal.result(plan.recipe)


class _Removal:
    """What went from one model so far, and what is left of it."""

    def __init__(self, samples: Dataset | None, wish: Repair, seed: int, watch: Watch) -> None:
        self.current: ir.Model | None = None  # None: nothing went yet
        self.plan: Plan | None = None  # of all that went, for the original
        self._trials = Trials(seed, samples)
        self._watch = watch
        self._repairs = Repairs(wish, self._trials, watch)
        self._checks: list[Check] = []

    def remaining(self, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return a recipe for what is left, from one that counts from the original; None if it is met."""
        if self.plan is None:
            return dict(recipe)
        whole, left = self.plan.predicted
        targets = {
            name: recipe[name] / (share_of(left, whole, of) or 1.0)
            for name, of in TARGETS.items()
            if recipe.get(name) is not None
        }
        if targets:
            done = min(targets.values()) >= 1
            return None if done else {**recipe, **{name: min(t, 1.0) for name, t in targets.items()}}
        count = sum(group.size for group in self.plan.groups)
        gone = sum(len(group.removed) for group in self.plan.groups)
        more = recipe["amount"] * count - gone
        return {**recipe, "amount": more / (count - gone)} if more > 0 else None

    def remove(self, plan: Plan, layers: Layers, number: int) -> None:
        """Remove what a plan says from the model that it was made for, prove it, and repair what is left."""
        branches = planned_branches(layers, plan)
        with self._watch.stage("remove"):
            pruned = remove_branches(layers.model, branches)
        with self._watch.stage("prove"):
            self._checks += prove_layers(layers, branches, pruned, self._trials)
        self.current = self._repairs(layers.model, pruned, {}, {}, number=number)
        self.plan = plan if self.plan is None else _joined(self.plan, plan)

    def result(self, recipe: Mapping[str, Any]) -> PruneResult:
        """Return the model, the plan of the whole, and the report."""
        if self.plan is None or self.current is None:
            raise ValueError("nothing was removed, and nobody said so")
        plan = replace(self.plan, recipe=dict(recipe))
        return PruneResult(self.current, plan, self._repairs.report(plan, numbered(self._checks)))


def _joined(earlier: Plan, later: Plan) -> Plan:
    """Return an earlier plan with what a later one removes from what the earlier one left.

    Branches are known by the value that they add, whose name no removal changes.
    """
    gone = {
        group.branches[number].value for plan in (earlier, later) for group in plan.groups
        for number in group.removed.tolist()
    }  # fmt: skip
    groups = tuple(replace(group, removed=_among(group, gone)) for group in earlier.groups)
    return replace(earlier, groups=groups, predicted=(earlier.predicted[0], later.predicted[1]))


def _among(group: PlannedGroup, values: set[str]) -> np.ndarray[Any, np.dtype[np.int32]]:
    marked = [branch.value in values for branch in group.branches]
    return np.flatnonzero(marked).astype(np.int32)
