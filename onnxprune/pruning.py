"""Deciding, doing, proving and repairing in order, for each kind of thing that can go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.analyze import Analysis
from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.model.digest import structure_digest, weights_digest
from onnxprune.model.prepare import name_nodes
from onnxprune.ops.kept import Kept
from onnxprune.ops.sums import Sums
from onnxprune.planning.channels import DEAD, Watch, analyze_for, check_groups, plan_channels
from onnxprune.planning.curves import Setting
from onnxprune.planning.layers import Layers, find_layers, plan_layers, planned_branches
from onnxprune.planning.masks import plan_masks
from onnxprune.planning.rounds import plan_more_channels, recipes_by_round
from onnxprune.proving import Trials, make_cut, prove_cut, prove_layers
from onnxprune.recover import METHODS, Repaired, repair
from onnxprune.registry import did_you_mean
from onnxprune.rewrite.depth import remove_branches
from onnxprune.rewrite.fold import Fold
from onnxprune.rewrite.mask import apply_masks, replace_weights
from onnxprune.types import BoolArray, Check, IntArray, Mask, Plan, Report


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


@dataclass(frozen=True, slots=True)
class Repair:
    """How a pruned model is to be repaired.

    Attributes:
        method: one of `METHODS`, or "none".
        rounds: of removing and repairing.
    """

    method: str = "none"
    rounds: int = 1

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
        if self.rounds < 1:
            raise UsageError(f"rounds is a whole number from 1 on, not {self.rounds}")
        if self.method == "none":
            if self.rounds > 1:
                raise UsageError(
                    "rounds remove and repair in turn: say how to repair (--recover), or leave out --rounds"
                )
            return
        if data is None:
            raise UsageError(f"repair {self.method!r} works on samples: give --data calib.npz")
        if pattern == DEAD:
            raise UsageError(f"pattern {DEAD!r} changes no result: there is nothing to repair")


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
    steps = recipes_by_round(recipe, wish.rounds)
    decision = plan_channels(model, steps[0], samples, seed, watch, setting)
    state = _Cutting(seed, samples, wish, watch)
    current = state.cut(decision.analysis, decision.sums, decision.removed)
    current = state.repair(decision.analysis, decision.removed, current)
    for step in steps[1:]:
        decision, then = plan_more_channels(decision, current, step, samples, seed, watch)
        if then.removed:
            current = state.cut(then.analysis, then.sums, then.removed)
            current = state.repair(decision.analysis, decision.removed, current)
    return state.result(replace(decision.plan, recipe=dict(recipe)), current)


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
    removed = {group.name: group.removed for group in plan.groups if len(group.removed)}
    state = _Cutting(plan.seed, samples, wish, watch)
    pruned = state.repair(analysis, removed, state.cut(analysis, sums, removed))
    return state.result(plan, pruned)


class _Cutting:
    """Cuts, proofs and repairs of one model, and what there is to say of them."""

    def __init__(self, seed: int, samples: Dataset | None, wish: Repair, watch: Watch) -> None:
        self.trials = Trials(seed, samples)
        self.wish = wish
        self.watch = watch
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

    def repair(self, analysis: Analysis, removed: Mapping[str, IntArray], pruned: ir.Model) -> ir.Model:
        """Repair what is left of a model.

        Args:
            analysis: of the original.
            removed: by group name, what it lost in all.
            pruned: what is left.
        """
        if self.wish.method == "none" or self.trials.samples is None:
            return pruned
        masks = _masks_by_name(analysis, removed)
        repaired = _repair(self.wish, analysis.model, pruned, masks, self.trials, self.watch)
        self.added += _size(repaired) - _size(pruned)
        return repaired

    def result(self, plan: Plan, pruned: ir.Model) -> PruneResult:
        """Return the model and the report."""
        before, after = plan.predicted
        numbers, size_bytes = self.added.tolist()
        after = replace(after, params=after.params + numbers, size_bytes=after.size_bytes + size_bytes)
        shown = replace(plan, predicted=(before, after))
        return PruneResult(pruned, plan, _report(shown, _numbered(self.checks), self.watch, self.folds))


def _numbered(checks: Sequence[Check]) -> tuple[Check, ...]:
    """Tell the checks of several rounds apart."""
    names = [check.name for check in checks]
    if len(set(names)) == len(names):
        return tuple(checks)
    return tuple(
        replace(check, name=f"{check.name} (round {names[:number].count(check.name) + 1})")
        for number, check in enumerate(checks)
    )


def _masks_by_name(analysis: Analysis, removed: Mapping[str, IntArray]) -> dict[str, dict[int, BoolArray]]:
    """Return the positions that are left of each value of the original, by axis."""
    kept = Kept(analysis.channels, analysis.removed_labels(removed))
    values = [*analysis.model.graph.inputs, *(o for node in analysis.model.graph for o in node.outputs)]
    return {str(value.name): masks for value in values if (masks := kept.masks(value))}


def _size(model: ir.Model) -> Any:
    """Return how many numbers all initializers hold, and their bytes: int64 [2]."""
    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    return np.array([sum(t.size for t in tensors), sum(t.nbytes for t in tensors)], np.int64)


def prune_layers(
    model: ir.Model,
    recipe: Mapping[str, Any],
    samples: Dataset | None,
    wish: Repair,
    seed: int,
    watch: Watch,
) -> PruneResult:
    """Remove residual branches of a model.

    Raises:
        UsageError: in rounds.
    """
    if wish.rounds > 1:
        raise UsageError("pattern 'layers' removes whole branches in one round: leave out rounds")
    decision, layers = plan_layers(model, recipe, samples, seed, watch)
    return _remove(decision, layers, samples, wish, watch)


def apply_to_layers(
    model: ir.Model, plan: Plan, samples: Dataset | None, wish: Repair, watch: Watch
) -> PruneResult:
    """Remove the residual branches of a plan."""
    with watch.stage("find branches"):
        layers = find_layers(model, plan.recipe.get("input_shapes"))
    return _remove(plan, layers, samples, wish, watch)


def _remove(plan: Plan, layers: Layers, samples: Dataset | None, wish: Repair, watch: Watch) -> PruneResult:
    branches = planned_branches(layers, plan)
    trials = Trials(plan.seed, samples)
    with watch.stage("remove"):
        pruned = remove_branches(layers.model, branches)
    with watch.stage("prove"):
        checks = prove_layers(layers, branches, pruned, trials)
    pruned = _repair(wish, layers.model, pruned, {}, trials, watch)
    return PruneResult(pruned, plan, _report(plan, checks, watch))


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
    for step in recipes_by_round(recipe, wish.rounds):
        plan, weights = plan_masks(current, step, samples, seed, watch, setting)
        current = _mask(original, current, plan, weights, samples, wish, watch)
    plan = replace(
        plan,
        recipe=dict(recipe),
        structure_digest=structure_digest(model),
        weights_digest=weights_digest(model),
    )
    return PruneResult(current, plan, _report(plan, (), watch))


def apply_to_weights(
    model: ir.Model, plan: Plan, samples: Dataset | None, wish: Repair, watch: Watch
) -> PruneResult:
    """Set the weights of a plan to zero."""
    original = _named(model) if wish.method != "none" else model
    masked = _mask(original, original, plan, {}, samples, wish, watch)
    return PruneResult(masked, plan, _report(plan, (), watch))


def _named(model: ir.Model) -> ir.Model:
    """Return a copy in which every node has a name of its own, by which it is found again in other copies."""
    copy = _copy(model)
    name_nodes(copy.graph)
    return copy


def _copy(model: ir.Model) -> ir.Model:
    copy = model.clone()
    copy.meta.update(model.meta)
    return copy


def _mask(
    original: ir.Model,
    model: ir.Model,
    plan: Plan,
    weights: Mapping[str, npt.NDArray[Any]],
    samples: Dataset | None,
    wish: Repair,
    watch: Watch,
) -> ir.Model:
    masked = _copy(model)
    with watch.stage("mask"):
        replace_weights(masked, weights)
        apply_masks(masked, plan.masks)
    return _repair(wish, original, masked, {}, Trials(plan.seed, samples), watch, plan.masks)


def _repair(
    wish: Repair,
    original: ir.Model,
    pruned: ir.Model,
    kept: Mapping[str, Mapping[int, BoolArray]],
    trials: Trials,
    watch: Watch,
    masks: Mapping[str, Mask] | None = None,
) -> ir.Model:
    """Repair a model as wished, and note what became of it."""
    if wish.method == "none" or trials.samples is None:
        return pruned
    with watch.stage("repair"):
        repaired = repair(
            original,
            pruned,
            lambda name: kept.get(name, {}),
            trials.samples,
            method=wish.method,
            masks=masks,
            batch=watch.running.batch,
            limit_bytes=watch.running.limit_bytes,
            threads=watch.running.threads,
            seed=trials.seed,
            progress=watch.progress,
        )
    watch.sections |= _repair_sections(wish.method, repaired)
    return repaired.model


def _repair_sections(method: str, repaired: Repaired) -> dict[str, Any]:
    """Return tables of a repair; those of a later round take the place of an earlier one's."""
    done = sum(layer.repaired for layer in repaired.layers)
    summary = {
        "method": method,
        "layers repaired": done,
        "layers left as they were": len(repaired.layers) - done,
        "samples held out": repaired.held_out,
        "outputs differ on them, before": repaired.before,
        "outputs differ on them, after": repaired.after,
        "outcome": repaired.outcome,
    }
    rows = [
        {"layer": layer.name, "error before": layer.before, "after": layer.after, "ridge": layer.ridge,
         "outcome": layer.outcome}
        for layer in repaired.layers
    ]  # fmt: skip
    return {"repair": summary, "repaired layers": rows}


def _report(plan: Plan, checks: tuple[Check, ...], watch: Watch, folds: Sequence[Fold] = ()) -> Report:
    before, after = plan.predicted
    sections: dict[str, Any] = {
        "cost": [
            {"what": name, "before": getattr(before, key), "after": getattr(after, key),
             "ratio": getattr(after, key) / max(getattr(before, key), 1)}
            for name, key in (("parameters", "params"), ("MACs", "macs"), ("bytes of weights", "size_bytes"))
        ]
    }  # fmt: skip
    branches = [
        {"branch": b.name, "kind": g.kind.replace("_", " "), "score": b.score, "removed": number in g.removed}
        for g in plan.groups
        for number, b in enumerate(g.branches)
    ]
    if branches:
        sections["layers"] = sorted(branches, key=lambda row: (not row["removed"], row["score"]))
    elif plan.groups:
        sections["groups"] = [
            {
                "group": g.name,
                "kind": g.kind,
                "before": g.size,
                "after": g.size - len(g.removed),
                "exact": g.exact,
            }
            for g in plan.groups
            if len(g.removed)
        ]
    folded = [
        {"consumer": str(fold.seen.contraction.node.name), "into": into, "channels": len(numbers)}
        for fold in folds
        for into, numbers in (("bias", fold.into_bias), ("weights", fold.into_weight))
        if len(numbers)
    ]
    if folded:
        sections["folded constants"] = folded
    sections |= watch.sections
    if plan.masks:
        sections["masks"] = [
            {"tensor": name, "weights": mask.size, "zero": mask.size - mask.kept,
             "sparsity": 1 - mask.kept / max(mask.size, 1)}
            for name, mask in plan.masks.items()
        ]  # fmt: skip
    return Report(f"pruned by {plan.pattern}", sections, checks, plan.skipped, dict(watch.seconds))
