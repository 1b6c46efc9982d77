"""A plan, and a model that was trained again -> that model pruned, by the same choice or by one made anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune.calibration.activations import BATCH, LIMIT_BYTES
from onnxprune.data import DataReader, Dataset
from onnxprune.errors import UsageError
from onnxprune.pipeline import prune
from onnxprune.planning.again import check_graph, plan_on, tell_names, with_inputs_of
from onnxprune.planning.masks import zeros_measured
from onnxprune.planning.notes import unused_samples
from onnxprune.planning.recipes import DEAD, STRUCTURED
from onnxprune.planning.watch import Watch
from onnxprune.plans import compare_plans
from onnxprune.pruning import PruneResult, Repair
from onnxprune.pruning_channels import apply_to_channels
from onnxprune.pruning_layers import apply_to_layers
from onnxprune.pruning_weights import apply_to_weights
from onnxprune.runtime import admit
from onnxprune.types import Plan, Skipped
from onnxprune.wishes import USUAL, running_of, samples_of

#: What is said of a plan that was made while the model was tuned.
_WHILE_TUNING = ("schedule", "rewound", "tuning")


def apply_plan(
    model: ir.Model,
    plan: Plan,
    *,
    refresh: bool = False,
    reallocate: bool = False,
    before: str | Path | None = None,
    max_drift: float | None = None,
    data: Dataset | DataReader | str | Path | None = None,
    recover: str | None = None,
    batch: int = BATCH,
    memory_limit: int = LIMIT_BYTES,
    threads: int = 1,
    progress: Callable[[float], None] | None = None,
) -> PruneResult:
    """Remove from a copy of a model what a plan says: the same model, or a re-trained one of the same graph.

    Nodes and tensors that have other names, or stand in another order, are found by structure. The plan of
    the result, and everything that is said of it, goes by the names of this model.

    Args:
        model: not changed.
        plan: from `prune` or `load_plan`.
        refresh: score anew, by the recipe of the plan. As many channels of every group go as before, layers
            of every kind, weights of every tensor, but those that matter least now: shapes stay as they were.
            The report says how much of what goes is something else, in the section "drift".
        reallocate: with ``refresh``: let the recipe also decide anew how much every group gives, within the
            amount or targets of the plan; shapes may then be others.
        before: with ``refresh``, for scores that compare with earlier weights: see `prune`.
        max_drift: with ``refresh``: the share of what goes, in [0, 1], that may be something else at most.
        data: real inputs for the proof, for models that do not run on random ones, for the repair, and for
            scores that are measured on data; see `prune`.
        recover: as for `prune`, in one round; by default what the plan was made with, where data is given.
        batch: see `prune`.
        memory_limit: see `prune`.
        threads: see `prune`.
        progress: called while the model is repaired, with the share that is done, in (0, 1].

    Raises:
        PlanError: the plan was made for another graph, or contradicts itself.
        UsageError: a repair, or a score that is measured, without data; options that do not go together.
        LimitMissed: more drift than ``max_drift``, or with ``reallocate`` as `prune`.
        NothingToPrune: with ``refresh``, as `prune`.
        DataError: the data is damaged, or does not fit the model.
        ProofError: the cut model differs from its exact twin.
    """
    _check_refresh(refresh, reallocate=reallocate, before=before, max_drift=max_drift)
    admit(model)
    watch = Watch(progress=progress, running=running_of(batch, memory_limit, threads))
    check_graph(model, plan)
    given, plan = plan, with_inputs_of(model, plan)
    samples = samples_of(data, model, plan.seed, plan.recipe.get("input_shapes"))
    usual = plan.recipe.get("recover", "none")
    wish = Repair(recover or (usual if samples is not None else "none"))
    wish.check(samples, plan.pattern)
    if before is not None:
        plan = replace(plan, recipe={**plan.recipe, "before": str(before)})
    if refresh and (reallocate or plan.pattern == DEAD):
        plan, names = plan_on(model, plan)
        tell_names(watch, names)
        options = _options_again(plan, samples, wish)
        options |= {"batch": batch, "memory_limit": memory_limit, "threads": threads, "progress": progress}
        result = prune(model, **options)
    else:
        plan = _noted(model, plan, samples, wish, said=recover is not None, refresh=refresh)
        if plan.pattern == "layers":
            result = apply_to_layers(model, plan, samples, wish, watch, refresh=refresh)
        elif plan.pattern in STRUCTURED:
            result = apply_to_channels(model, plan, samples, wish, watch, refresh=refresh)
        else:
            result = apply_to_weights(model, plan, samples, wish, watch, refresh=refresh)
    if not refresh:
        return result
    drift = compare_plans(given, result.plan)
    drift.check(max_drift)
    sections = {**watch.sections, **result.report.sections, "drift": drift.table()}
    return replace(result, report=replace(result.report, sections=sections))


def _check_refresh(refresh: bool, **given: Any) -> None:
    """Refuse options that only play a part where something is chosen anew.

    Raises:
        UsageError: naming one of them.
    """
    for name, value in given.items():
        if not refresh and value is not None and value is not False:
            raise UsageError(f"{name} plays no part without refresh, which chooses anew")
    most = given["max_drift"]
    if most is not None and not 0 <= most <= 1:
        raise UsageError(f"max_drift is a share of what goes, in [0, 1], not {most}")


def _noted(
    model: ir.Model, plan: Plan, samples: Dataset | None, wish: Repair, *, said: bool, refresh: bool
) -> Plan:
    """Return a plan with what is to be said of its use on a model, and with what is done there as recipe."""
    usual, notes = plan.recipe.get("recover", "none"), []
    if not said and wish.method != usual:
        reason = f"not repaired: the plan was made with --recover {usual}, which takes --data"
        notes.append(Skipped("repair", reason))
    if "tuning" in plan.recipe:
        reason = "not tuned: the plan was made while the model was; finetune does it"
        notes.append(Skipped("tuning", reason))
    notes += [note for note in unused_samples(model, samples) if note not in plan.skipped]
    if plan.masks and plan.recipe.get("score") == "obs" and wish.method == "none" and not refresh:
        reason = "not adjusted: score 'obs' did that when the plan was made; --data and --recover repair"
        notes.append(Skipped("weights that stay", reason))
    if refresh and plan.recipe.get("rounds", 1) != 1:
        reason = f"chosen anew in one round; the plan was made in {plan.recipe['rounds']}"
        notes.append(Skipped("rounds", reason))
    recipe = {name: value for name, value in plan.recipe.items() if name not in (*USUAL, *_WHILE_TUNING)}
    if refresh:
        recipe = {name: value for name, value in recipe.items() if name not in ("data", "data_digest")}
        recipe |= {} if samples is None else {"data": samples.source, "data_digest": samples.digest}
    done = {} if wish.method == "none" else {"recover": wish.method}
    return replace(plan, recipe={**recipe, **done}, skipped=(*plan.skipped, *notes))


def _options_again(plan: Plan, samples: Dataset | None, wish: Repair) -> dict[str, Any]:
    """Return the options of `prune` that a plan was made with.

    Raises:
        UsageError: it was made while the model was tuned.
    """
    recipe = dict(plan.recipe)
    if any(name in recipe for name in _WHILE_TUNING):
        raise UsageError(
            "the plan was made while the model was tuned: prune gradually anew, or refresh alone"
        )
    known = signature(prune).parameters
    options = {name: value for name, value in recipe.items() if name in known}
    measured: Mapping[str, Any] = recipe.get("measured_with", {})
    options |= {
        option: measured[name]
        for option, name in (
            ("latency_percentile", "percentile"), ("latency_batch", "batch"),
            ("provider", "provider"), ("provider_options", "provider_options"),
        )
        if name in measured
    }  # fmt: skip
    if wish.method == "none":
        options.pop("rounds", None)
    elif recipe.get("stand_in") is not None:
        options["score"] = None  # as it was: the usual one, with another where it can't be measured
    if plan.masks and wish.method == "none" and not zeros_measured(recipe["score"], recipe["scope"]):
        samples = None  # nothing would look at them, which `prune` refuses
    return {**options, "pattern": plan.pattern, "data": samples, "recover": wish.method, "seed": plan.seed}
