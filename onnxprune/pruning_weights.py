"""Setting weights to zero: deciding, masking and repairing in order, in rounds if wished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxprune.data import Dataset
from onnxprune.model.copies import copy_of
from onnxprune.model.prepare import name_nodes
from onnxprune.planning.again import masks_on, tell_names
from onnxprune.planning.anew import masks_anew
from onnxprune.planning.masks import GatheredWeights, decide_masks, gather_weights
from onnxprune.planning.rounds import recipes_by_round
from onnxprune.planning.watch import Watch
from onnxprune.proving import Trials
from onnxprune.pruning import PruneResult, Repair, Repairs, Task
from onnxprune.rewrite.mask import apply_masks, replace_weights
from onnxprune.types import Mask, Plan


class WeightPruner:
    """Sets weights of one model to zero, in rounds if that is wished.

    Args:
        task: the model, and how it is pruned.
        recipe: of which the amount plays no part but to be checked.
        watch: gets the seconds of what is gathered.

    Raises:
        UsageError, DataError: as `onnxprune.prune`.
    """

    def __init__(self, task: Task, recipe: Mapping[str, Any], watch: Watch) -> None:
        recipes_by_round(recipe, task.repair.rounds, task.repair.shape)  # refuses nonsense before long work
        self._task = task
        self._original = _named(task.model) if task.repair.method != "none" else task.model
        self._gathered = self._gather(self._original, recipe, watch, {})

    def plan(self, recipe: Mapping[str, Any], watch: Watch) -> Plan:
        """See `Pruner`."""
        return decide_masks(replace(self._gathered, watch=watch), recipe)[0]

    def prune(self, recipe: Mapping[str, Any], watch: Watch) -> PruneResult:
        """See `Pruner`."""
        task, current, gathered = self._task, self._original, replace(self._gathered, watch=watch)
        repairs = Repairs(task.repair, Trials(task.seed, task.samples), watch)
        steps = recipes_by_round(recipe, task.repair.rounds, task.repair.shape)
        masks: Mapping[str, Mask] = {}
        for number, step in enumerate(steps, start=1):
            if masks:
                gathered = self._gather(current, step, watch, masks)
            plan, weights = decide_masks(gathered, step)
            masks = plan.masks
            current = _mask(self._original, current, plan, weights, repairs, number)
        plan = replace(plan, recipe=dict(recipe))
        return PruneResult(current, plan, repairs.report(plan))

    def _gather(
        self, model: ir.Model, recipe: Mapping[str, Any], watch: Watch, gone: Mapping[str, Mask]
    ) -> GatheredWeights:
        task = self._task
        return gather_weights(
            model, recipe, task.samples, task.seed, watch, task.setting, gone=gone, given=task.model
        )


def apply_to_weights(
    model: ir.Model, plan: Plan, samples: Dataset | None, wish: Repair, watch: Watch, *, refresh: bool = False
) -> PruneResult:
    """Set the weights of a plan to zero, or as many others of each tensor, chosen anew.

    Raises:
        PlanError: the model has another graph, or other shapes.
        UsageError, DataError: the plan's score lacks what it is measured on.
    """
    with watch.stage("match"):
        plan, names = masks_on(model, plan)
    tell_names(watch, names)
    original = _named(model) if wish.method != "none" else model
    repairs = Repairs(wish, Trials(plan.seed, samples), watch)
    weights: Mapping[str, npt.NDArray[Any]] = {}
    if refresh:
        plan, weights = masks_anew(original, plan, samples, watch, model)
    masked = _mask(original, original, plan, weights, repairs)
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
