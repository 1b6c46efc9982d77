"""Removing channels: deciding, cutting, proving and repairing in order, in rounds if wished."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.analyze import Analysis
from onnxprune.data import Dataset
from onnxprune.errors import NothingToPrune
from onnxprune.ops.kept import Kept
from onnxprune.ops.sums import Sums
from onnxprune.planning.again import channels_on, tell_names
from onnxprune.planning.anew import channels_anew, scored_anew
from onnxprune.planning.channels import Decision, decide, tell_importance
from onnxprune.planning.gathering import analyze_for, gather
from onnxprune.planning.latency.decide import decide_in_time, measure
from onnxprune.planning.recipes import DEAD, TARGET_LATENCY, budgets_of
from onnxprune.planning.rounds import plan_more_channels, recipes_by_round
from onnxprune.planning.watch import Watch
from onnxprune.proving import Trials, make_cut, prove_cut
from onnxprune.pruning import PruneResult, Repair, Repairs, Task, numbered
from onnxprune.rewrite.fold import Fold
from onnxprune.types import BoolArray, Check, IntArray, Plan


class ChannelPruner:
    """Removes channels of one model, in rounds if that is wished.

    Args:
        task: the model, and how it is pruned.
        recipe: of which the amount and the targets play no part but to be checked.
        watch: gets the seconds of what is gathered.

    Raises:
        UsageError, DataError: as `onnxprune.prune`.
    """

    def __init__(self, task: Task, recipe: Mapping[str, Any], watch: Watch) -> None:
        if recipe["pattern"] != DEAD:
            budgets_of(recipe)  # refuses nonsense before long work
        recipes_by_round(recipe, task.repair.rounds, task.repair.shape)  # likewise
        self._task = task
        self._gathered = gather(task.model, recipe, task.samples, task.seed, watch, task.setting)
        self._latency = None
        if task.latency is not None:
            with watch.stage("time layers"):
                self._latency = measure(self._gathered, task.latency)

    def plan(self, recipe: Mapping[str, Any], watch: Watch) -> Plan:
        """See `Pruner`."""
        return self._decide(recipe, watch).plan

    def prune(self, recipe: Mapping[str, Any], watch: Watch) -> PruneResult:
        """See `Pruner`."""
        task = self._task
        steps = recipes_by_round(recipe, task.repair.rounds, task.repair.shape)
        first, decision = self._first_cut(steps, watch)
        state = _Cutting(task.seed, task.samples, task.repair, watch)
        current = state.cut(decision.analysis, decision.sums, decision.removed)
        current = state.repair(decision.analysis, decision.plan, current, first)
        for number, step in enumerate(steps[first:], start=first + 1):
            decision, then = plan_more_channels(decision, current, step, task.samples, task.seed, watch)
            if then.removed:
                current = state.cut(then.analysis, then.sums, then.removed)
                current = state.repair(decision.analysis, decision.plan, current, number)
        return state.result(replace(decision.plan, recipe=dict(recipe)), current)

    def _first_cut(self, steps: Sequence[Mapping[str, Any]], watch: Watch) -> tuple[int, Decision]:
        """Return the number of the first round in which anything goes, from 1 on, and what goes.

        A round may be too small a step for any group: a share of two heads, or less than alignment takes.

        Raises:
            NothingToPrune: nothing goes in the last round either.
        """
        for number, step in enumerate(steps[:-1], start=1):
            with contextlib.suppress(NothingToPrune):
                return number, self._decide(step, watch)
        return len(steps), self._decide(steps[-1], watch)

    def _decide(self, recipe: Mapping[str, Any], watch: Watch) -> Decision:
        """Decide what goes of the original."""
        gathered = replace(self._gathered, watch=watch)
        if self._latency is not None and TARGET_LATENCY in recipe:
            return decide_in_time(gathered, recipe, self._latency)
        decision = decide(gathered, recipe)
        tell_importance(decision)
        return decision


def apply_to_channels(
    model: ir.Model, plan: Plan, samples: Dataset | None, wish: Repair, watch: Watch, *, refresh: bool = False
) -> PruneResult:
    """Remove the channels of a plan, or as many others, chosen anew.

    Raises:
        PlanError: the model has another graph, or other groups.
        UsageError, DataError: the plan's score lacks what it is measured on.
    """
    if refresh:
        gathered = gather(model, scored_anew(plan), samples, plan.seed, watch)
        analysis, sums = gathered.analysis, gathered.sums
    else:
        with watch.stage("analyze"):
            analysis = analyze_for({**plan.recipe, "pattern": plan.pattern}, model)
        with watch.stage("find constants"):
            sums = Sums(analysis.model.graph, analysis.channels)
    with watch.stage("match"):
        plan, names = channels_on(analysis, plan)
    tell_names(watch, names)
    if refresh:
        plan = channels_anew(gathered, plan)
    removed = plan.removed
    state = _Cutting(plan.seed, samples, wish, watch)
    pruned = state.repair(analysis, plan, state.cut(analysis, sums, removed))
    return state.result(plan, pruned)


class _Cutting:
    """Cuts, proofs and repairs of one model, and what there is to say of them."""

    def __init__(self, seed: int, samples: Dataset | None, wish: Repair, watch: Watch) -> None:
        self.trials = Trials(seed, samples)
        self.watch = watch
        self.repairs = Repairs(wish, self.trials, watch)
        self.checks: list[Check] = []
        self.folds: list[Fold] = []
        self.added = np.zeros(2, np.int64)  # numbers and bytes that the model gained

    def cut(self, analysis: Analysis, sums: Sums, removed: Mapping[str, IntArray]) -> ir.Model:
        """Remove channels, and prove it."""
        with self.watch.stage("cut"):
            made = make_cut(analysis, sums, removed)
        with self.watch.stage("prove"):
            checks = prove_cut(analysis, sums, removed, made, self.trials)
        inexact = sum(not group.exact and group.name in removed for group in analysis.groups)
        if inexact:
            detail = f"{checks[0].detail}; statistics over {inexact} groups changed"
            checks = (replace(checks[0], detail=detail), *checks[1:])
        self.checks += checks
        self.folds += made.folds
        self.added += made.added
        return made.pruned

    def repair(self, analysis: Analysis, plan: Plan, pruned: ir.Model, number: int = 1) -> ir.Model:
        """Repair what is left of a model.

        Args:
            analysis: of the original.
            plan: what it lost in all.
            pruned: what is left.
            number: of the round.
        """
        if not self.repairs.wish.wanted:
            return pruned
        masks = _masks_by_name(analysis, plan)
        before, after = plan.predicted
        left = {
            "parameters share": after.params / max(before.params, 1),
            "MACs share": after.macs / max(before.macs, 1),
        }
        repaired = self.repairs(analysis.model, pruned, masks, left, number=number)
        self.added += _size(repaired) - _size(pruned)
        return repaired

    def result(self, plan: Plan, pruned: ir.Model) -> PruneResult:
        """Return the model and the report."""
        before, after = plan.predicted
        numbers, size_bytes = self.added.tolist()
        after = replace(after, params=after.params + numbers, size_bytes=after.size_bytes + size_bytes)
        checks = numbered(self.checks)
        return PruneResult(pruned, plan, self.repairs.report(plan, checks, (before, after), self.folds))


def _masks_by_name(analysis: Analysis, plan: Plan) -> dict[str, dict[int, BoolArray]]:
    """Return the positions that are left of each value of the original, by axis."""
    kept = Kept(analysis.channels, analysis.removed_labels(plan.removed))
    values = [*analysis.model.graph.inputs, *(o for node in analysis.model.graph for o in node.outputs)]
    return {str(value.name): masks for value in values if (masks := kept.masks(value))}


def _size(model: ir.Model) -> Any:
    """Return how many numbers all initializers hold, and their bytes: int64 [2]."""
    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    return np.array([sum(t.size for t in tensors), sum(t.nbytes for t in tensors)], np.int64)
