"""A plan and new weights -> a plan that removes as much of everything, but what matters least now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxprune.allocate.channels import choose_again
from onnxprune.data import Dataset
from onnxprune.planning.channels import cost_after
from onnxprune.planning.gathering import Gathered
from onnxprune.planning.layers import GatheredLayers, decide_layers
from onnxprune.planning.masks import decide_masks, gather_weights, zeros_measured
from onnxprune.planning.notes import versions
from onnxprune.planning.positions import planned
from onnxprune.planning.watch import Watch
from onnxprune.types import Choice, Plan, Skipped


def scored_anew(plan: Plan) -> dict[str, Any]:
    """Return the recipe by which a plan's channels or weights are scored anew, without sharing anything out.

    How much of everything goes is known: neither protection nor the scope plays a part.
    """
    recipe = {**plan.recipe, "pattern": plan.pattern, "scope": "uniform"}
    return {name: value for name, value in recipe.items() if name != "protect"}


def channels_anew(gathered: Gathered, plan: Plan) -> Plan:
    """Choose as many channels of each group as a plan removes.

    Args:
        gathered: by `scored_anew`.
        plan: in the names of that model.
    """
    analysis, candidates = gathered.analysis, gathered.candidates
    chosen = choose_again(
        candidates.groups, candidates.scores, candidates.options,
        {name: len(numbers) for name, numbers in plan.removed.items()},
        first=candidates.dead.removable, last=candidates.dead.carriers,
    )  # fmt: skip
    removed, notes = plan.removed, []
    for name, numbers in chosen.items():
        if isinstance(numbers, str):
            notes.append(Skipped(name, f"it loses the channels of the plan, not chosen anew: {numbers}"))
        else:
            removed[name] = numbers
    before = {group.name: group for group in plan.groups}
    groups = tuple(
        planned(
            Choice(group, removed.get(group.name, before[group.name].removed), before[group.name].skipped)
        )
        for group in analysis.groups
    )
    return _scored(
        replace(plan, groups=groups, predicted=(gathered.whole, cost_after(analysis, removed))),
        gathered.weights_digest,
        (*notes, *gathered.notes),
    )


def layers_anew(gathered: GatheredLayers, plan: Plan) -> Plan:
    """Choose as many residual branches of each kind as a plan removes.

    Raises:
        NothingToPrune: none of them can go.
    """
    counts = {group.name: len(group.removed) for group in plan.groups}
    chosen = decide_layers(gathered, {**plan.recipe, "pattern": plan.pattern}, counts)
    notes = (*chosen.skipped, *gathered.notes)
    plan = replace(plan, groups=chosen.groups, predicted=chosen.predicted)
    return _scored(plan, gathered.weights_digest, notes)


def masks_anew(
    model: ir.Model, plan: Plan, data: Dataset | None, watch: Watch, given: ir.Model
) -> tuple[Plan, Mapping[str, npt.NDArray[Any]]]:
    """Choose as many weights of each tensor as a plan makes zero.

    Args:
        model: not changed.
        plan: in its names.
        data: what scores are measured on.
        watch: gets the seconds of each stage.
        given: the model that plans are for, where ``model`` is a copy with other names of nodes.

    Returns:
        The plan, and what masked tensors hold instead of their weights: see `decide_masks`.

    Raises:
        UsageError, DataError, ModelError, NothingToPrune: as `onnxprune.prune`.
    """
    recipe = scored_anew(plan)
    measured = zeros_measured(recipe["score"], recipe["scope"])
    tensors = () if plan.graph is None else plan.graph.tensors
    stay = {name: "no weight of it goes by the plan" for name in tensors if name not in plan.masks}
    gathered = gather_weights(
        model, recipe, data if measured else None, plan.seed, watch, stay=stay, given=given
    )
    shares = {name: 1 - mask.kept / max(mask.size, 1) for name, mask in plan.masks.items()}
    chosen, weights = decide_masks(gathered, recipe, shares)
    notes = [entry for entry in chosen.skipped if entry.name not in stay]
    missing = {name: mask for name, mask in plan.masks.items() if name not in chosen.masks}
    notes += [Skipped(name, "it gets the zeros of the plan, not chosen anew") for name in missing]
    plan = replace(plan, masks={**chosen.masks, **missing})
    return _scored(plan, chosen.weights_digest, tuple(notes)), weights


def _scored(plan: Plan, weights_digest: str, notes: tuple[Skipped, ...]) -> Plan:
    skipped = tuple(dict.fromkeys((*plan.skipped, *notes)))
    return replace(plan, weights_digest=weights_digest, versions=versions(), skipped=skipped)
