"""Deciding, doing, proving and repairing in order, for each kind of thing that can go."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.analyze import Analysis
from onnxprune.data import Dataset
from onnxprune.errors import NothingToPrune, UsageError
from onnxprune.model.copies import copy_of
from onnxprune.model.digest import structure_digest, weights_digest
from onnxprune.model.prepare import name_nodes
from onnxprune.ops.kept import Kept
from onnxprune.ops.sums import Sums
from onnxprune.planning.channels import Decision, plan_channels
from onnxprune.planning.curves import Setting
from onnxprune.planning.gathering import analyze_for
from onnxprune.planning.masks import plan_masks
from onnxprune.planning.positions import check_groups
from onnxprune.planning.recipes import DEAD
from onnxprune.planning.rounds import plan_more_channels, recipes_by_round
from onnxprune.planning.watch import Watch
from onnxprune.proving import Trials, make_cut, prove_cut
from onnxprune.pruning_report import RepairedRound, pruned_report, repair_sections
from onnxprune.recover import METHODS, repair
from onnxprune.registry import did_you_mean
from onnxprune.rewrite.fold import Fold
from onnxprune.rewrite.mask import apply_masks, replace_weights
from onnxprune.types import BoolArray, Check, Cost, IntArray, Mask, Plan, Report


@dataclass(frozen=True, slots=True)
class PruneResult:
    """A pruned model in memory.

    Attributes:
        model: the pruned model; the one that was given is not changed.
        plan: what was removed; applies again to a re-trained model of the same graph.
        report: before and after, checks, what was skipped and why, seconds by stage.
    """

    model: ir.Model
    plan: Plan
    report: Report


#: (what is left of a model, which of its weights may differ from zero, number of the round from 1 on) -> the
#: same graph with better weights
Mend: TypeAlias = Callable[[ir.Model, Mapping[str, Mask], int], ir.Model]


@dataclass(frozen=True, slots=True)
class Repair:
    """How a pruned model is to be repaired.

    Attributes:
        method: one of `METHODS`, or "none".
        rounds: of removing and repairing.
        shape: how what goes grows from round to round: see `onnxprune.schedule.Schedule`.
        mend: what is done after each round in place of a method.
    """

    method: str = "none"
    rounds: int = 1
    shape: str = "cubic"
    mend: Mend | None = None

    @property
    def wanted(self) -> bool:
        """Tell whether anything is done."""
        return self.mend is not None or self.method != "none"

    def check(self, data: Dataset | None, pattern: str) -> None:
        """Refuse what makes no sense.

        Raises:
            UsageError: an unknown method, no data for it, or rounds without repair.
        """
        known = ("none", *METHODS)
        if self.method not in known:
            raise UsageError(
                f"unknown repair {self.method!r}{did_you_mean(self.method, known)}; known: {', '.join(known)}"
            )
        if not isinstance(self.rounds, (int, np.integer)) or self.rounds < 1:
            raise UsageError(f"rounds is a whole number from 1 on, not {self.rounds}")
        if self.method == "none":
            if self.rounds > 1 and self.mend is None:
                raise UsageError(
                    "rounds remove and repair in turn: say how to repair (--recover), or leave out --rounds"
                )
            return
        if data is None:
            raise UsageError(f"repair {self.method!r} works on samples: give --data calib.npz")
        if pattern == DEAD:
            raise UsageError(f"pattern {DEAD!r} changes no result: there is nothing to repair")


class Repairs:
    """Repairs of one model, one for each round, and what became of them."""

    def __init__(self, wish: Repair, trials: Trials, watch: Watch) -> None:
        self.wish = wish
        self.trials = trials
        self.watch = watch
        self.rounds: list[RepairedRound] = []

    def __call__(
        self,
        original: ir.Model,
        pruned: ir.Model,
        kept: Mapping[str, Mapping[int, BoolArray]],
        left: Mapping[str, float],
        *,
        number: int = 1,
        masks: Mapping[str, Mask] | None = None,
    ) -> ir.Model:
        """Repair a model if that is wished.

        Args:
            original: a prepared working copy.
            pruned: what became of it.
            kept: which positions of its values are left, by name and axis; all where nothing is said.
            left: shares of the original that are left, for the report.
            number: of the round.
            masks: by name of the stored tensor: where weights may differ from zero.
        """
        if self.wish.mend is not None:
            with self.watch.stage("tune"):
                return self.wish.mend(pruned, masks or {}, number)
        if self.wish.method == "none" or self.trials.samples is None:
            return pruned
        running = self.watch.running
        with self.watch.stage("repair"):
            repaired = repair(
                original,
                pruned,
                lambda name: kept.get(name, {}),
                self.trials.samples,
                method=self.wish.method,
                masks=masks,
                batch=running.batch,
                limit_bytes=running.limit_bytes,
                threads=running.threads,
                seed=self.trials.seed,
                progress=self.watch.progress,
            )
        self.rounds.append(RepairedRound(number, left, repaired))
        return repaired.model

    def report(
        self,
        plan: Plan,
        checks: Sequence[Check] = (),
        predicted: tuple[Cost, Cost] | None = None,
        folds: Sequence[Fold] = (),
    ) -> Report:
        """Return the report of the model; its cost is that of the plan unless another one is given."""
        sections = {**self.watch.sections, **repair_sections(self.wish.method, self.rounds)}
        costs = predicted or plan.predicted
        return pruned_report(plan, costs, checks, self.watch.seconds, folds=folds, sections=sections)


def prune_channels(
    model: ir.Model,
    recipe: Mapping[str, Any],
    samples: Dataset | None,
    wish: Repair,
    seed: int,
    watch: Watch,
    setting: Setting,
) -> PruneResult:
    """Remove channels of a model, in rounds if that is wished."""
    steps = recipes_by_round(recipe, wish.rounds, wish.shape)
    first, decision = _first_cut(model, steps, samples, seed, watch, setting)
    state = _Cutting(seed, samples, wish, watch)
    current = state.cut(decision.analysis, decision.sums, decision.removed)
    current = state.repair(decision.analysis, decision.plan, current, first)
    for number, step in enumerate(steps[first:], start=first + 1):
        decision, then = plan_more_channels(decision, current, step, samples, seed, watch)
        if then.removed:
            current = state.cut(then.analysis, then.sums, then.removed)
            current = state.repair(decision.analysis, decision.plan, current, number)
    return state.result(replace(decision.plan, recipe=dict(recipe)), current)


def _first_cut(
    model: ir.Model,
    steps: Sequence[Mapping[str, Any]],
    samples: Dataset | None,
    seed: int,
    watch: Watch,
    setting: Setting,
) -> tuple[int, Decision]:
    """Return the number of the first round in which anything goes, from 1 on, and what goes.

    A round may be too small a step for any group: a share of two heads, or less than alignment takes.

    Raises:
        NothingToPrune: nothing goes in the last round either.
    """
    for number, step in enumerate(steps[:-1], start=1):
        with contextlib.suppress(NothingToPrune):
            return number, plan_channels(model, step, samples, seed, watch, setting)
    return len(steps), plan_channels(model, steps[-1], samples, seed, watch, setting)


def apply_to_channels(
    model: ir.Model, plan: Plan, samples: Dataset | None, wish: Repair, watch: Watch
) -> PruneResult:
    """Remove the channels of a plan.

    Raises:
        PlanError: the model has other groups.
    """
    with watch.stage("analyze"):
        analysis = analyze_for({**plan.recipe, "pattern": plan.pattern}, model)
    check_groups(analysis, plan)
    with watch.stage("find constants"):
        sums = Sums(analysis.model.graph, analysis.channels)
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


def numbered(checks: Sequence[Check]) -> tuple[Check, ...]:
    """Tell the checks of several rounds apart."""
    names = [check.name for check in checks]
    if len(set(names)) == len(names):
        return tuple(checks)
    return tuple(
        replace(check, name=f"{check.name} (round {names[:number].count(check.name) + 1})")
        for number, check in enumerate(checks)
    )


def _masks_by_name(analysis: Analysis, plan: Plan) -> dict[str, dict[int, BoolArray]]:
    """Return the positions that are left of each value of the original, by axis."""
    kept = Kept(analysis.channels, analysis.removed_labels(plan.removed))
    values = [*analysis.model.graph.inputs, *(o for node in analysis.model.graph for o in node.outputs)]
    return {str(value.name): masks for value in values if (masks := kept.masks(value))}


def _size(model: ir.Model) -> Any:
    """Return how many numbers all initializers hold, and their bytes: int64 [2]."""
    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    return np.array([sum(t.size for t in tensors), sum(t.nbytes for t in tensors)], np.int64)


def prune_weights(
    model: ir.Model,
    recipe: Mapping[str, Any],
    samples: Dataset | None,
    wish: Repair,
    seed: int,
    watch: Watch,
    setting: Setting,
) -> PruneResult:
    """Set weights of a model to zero, in rounds if that is wished."""
    original = _named(model) if wish.method != "none" else model
    current = original
    repairs = Repairs(wish, Trials(seed, samples), watch)
    masks: Mapping[str, Mask] = {}
    for number, step in enumerate(recipes_by_round(recipe, wish.rounds, wish.shape), start=1):
        plan, weights = plan_masks(current, step, samples, seed, watch, setting, gone=masks)
        masks = plan.masks
        current = _mask(original, current, plan, weights, repairs, number)
    plan = replace(
        plan,
        recipe=dict(recipe),
        structure_digest=structure_digest(model),
        weights_digest=weights_digest(model),
    )
    return PruneResult(current, plan, repairs.report(plan))


def apply_to_weights(
    model: ir.Model, plan: Plan, samples: Dataset | None, wish: Repair, watch: Watch
) -> PruneResult:
    """Set the weights of a plan to zero."""
    original = _named(model) if wish.method != "none" else model
    repairs = Repairs(wish, Trials(plan.seed, samples), watch)
    masked = _mask(original, original, plan, {}, repairs)
    return PruneResult(masked, plan, repairs.report(plan))


def _named(model: ir.Model) -> ir.Model:
    """Return a copy in which every node has a name of its own, by which it is found again in other copies."""
    copy = copy_of(model)
    name_nodes(copy.graph)
    return copy


def _mask(
    original: ir.Model,
    model: ir.Model,
    plan: Plan,
    weights: Mapping[str, npt.NDArray[Any]],
    repairs: Repairs,
    number: int = 1,
) -> ir.Model:
    """Set weights of a model to zero, give those that stay new values, and repair it."""
    masked = copy_of(model)
    with repairs.watch.stage("mask"):
        replace_weights(masked, weights)
        apply_masks(masked, plan.masks)
    kept, size = (sum(getattr(mask, what) for mask in plan.masks.values()) for what in ("kept", "size"))
    left = {"weights share": kept / max(size, 1)}
    return repairs(original, masked, {}, left, number=number, masks=plan.masks)
