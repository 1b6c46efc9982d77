"""Wishes -> masks: which weights become zero; nothing is changed yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxprune.allocate.channels import SENSITIVITY
from onnxprune.allocate.masks import SCOPES, check_amount, choose_masks
from onnxprune.calibration.activations import USUAL, Running
from onnxprune.cost import cost_of
from onnxprune.data import Dataset
from onnxprune.errors import NothingToPrune, UsageError
from onnxprune.model.digest import structure_digest, weights_digest
from onnxprune.model.prepare import prepare
from onnxprune.ops.channels import Channels
from onnxprune.ops.weights import find_weights
from onnxprune.patterns import parse_pattern
from onnxprune.planning.channels import Watch, check_scope, unmatched, unused_samples, versions
from onnxprune.planning.curves import AMOUNTS, Setting, curve_rows
from onnxprune.planning.mask_trials import measure_masks, share_out
from onnxprune.planning.masks_on_data import MeasuredMasks, choose_masks_on_data, outlier_shares
from onnxprune.registry import did_you_mean
from onnxprune.scores.magnitude import CHANNEL_SCORERS
from onnxprune.scores.on_data import DATA_SCORERS
from onnxprune.scores.weights import WEIGHT_SCORERS
from onnxprune.scores.weights_on_data import DATA_WEIGHT_SCORERS
from onnxprune.types import Cost, Mask, Plan, Skipped, WeightUse

Array = npt.NDArray[Any]

#: Trials beyond those of channels: tensors stand far more zeros, and give as much only if it was measured.
_BEYOND = (0.95, 0.98)


def plan_masks(
    model: ir.Model,
    recipe: Mapping[str, Any],
    data: Dataset | None,
    seed: int,
    watch: Watch,
    setting: Setting = Setting(),  # noqa: B008 # frozen
) -> tuple[Plan, Mapping[str, Array]]:
    """Choose the weights that become zero; arguments and errors as for `plan_channels`.

    Returns:
        The plan, and what masked tensors hold instead of their weights, by name, where the score makes the
        weights that stay make up for those that go.
    """
    pattern = recipe["pattern"]
    _check(recipe, data)
    with watch.stage("find weights"):
        uses, unreachable = find_weights(model)
    notes: Sequence[Skipped] = ()
    shares = None
    if data is not None and recipe["scope"] == SENSITIVITY:
        with watch.stage("sensitivity"):
            shares, notes = _shares_by_trials(model, uses, recipe, data, seed, watch, setting)
    with watch.stage("choose masks"):
        found = masks_for(
            model, uses, recipe, data, seed, shares=shares, running=watch.running, progress=watch.progress
        )
    masks = found.masks
    skipped = [*found.skipped, *notes, *unused_samples(model, data)]
    names = {name for use in uses for name in (use.tensor, use.consumer)}
    skipped = [*unreachable, *skipped, *unmatched(recipe, names)]
    if not masks:
        reasons = [f"{entry.name}: {entry.reason}" for entry in skipped]
        first = f" ({reasons[0]})" if reasons else ""
        raise NothingToPrune(f"no weight can take the pattern {pattern!r}{first}", reasons)
    with watch.stage("digest"):
        whole = _cost(model, recipe.get("input_shapes"))
        decision = Plan(
            pattern=pattern,
            structure_digest=structure_digest(model),
            weights_digest=weights_digest(model),
            groups=(),
            masks=masks,
            recipe=dict(recipe),
            predicted=(whole, whole),
            seed=seed,
            versions=versions(),
            skipped=tuple(skipped),
        )
    return decision, found.weights


def _check(recipe: Mapping[str, Any], data: Dataset | None) -> None:
    """Refuse options that do not go together, before long work."""
    pattern, score, scope = recipe["pattern"], recipe["score"], recipe["scope"]
    wanted = parse_pattern(pattern)
    for name in ("target_macs", "target_params"):
        if recipe.get(name) is not None:
            raise UsageError(
                f"{name} needs a pattern that shrinks shapes; zeros alone change neither: give amount"
            )
    check_amount(wanted, recipe.get("amount"))
    check_weight_score(score)
    measured = score in DATA_WEIGHT_SCORERS
    if scope not in SCOPES:
        raise UsageError(f"unknown scope {scope!r}{did_you_mean(scope, SCOPES)}; known: {', '.join(SCOPES)}")
    if scope != "uniform" and wanted.kind == "N:M":
        raise UsageError(f"pattern {pattern} removes the same share everywhere: leave scope {scope!r} out")
    if data is None and measured:
        raise UsageError(f"score {score!r} is measured on samples: give --data calib.npz")
    if data is None and scope == "owl":
        raise UsageError("scope 'owl' looks for outliers on samples: give --data calib.npz")
    check_scope(scope, data)
    unused = not measured and scope not in ("owl", SENSITIVITY) and recipe.get("recover") is None
    if data is not None and unused:
        raise UsageError(
            f"score {score!r} goes by weights alone: leave the data out, repair with it, or take obs or wanda"
        )


def check_weight_score(name: str) -> None:
    """Refuse scores of single weights that nobody knows.

    Raises:
        UsageError: see above.
    """
    if name not in DATA_WEIGHT_SCORERS and name not in WEIGHT_SCORERS:
        known = [*WEIGHT_SCORERS, *DATA_WEIGHT_SCORERS]
        elsewhere = " for zeros" if name in DATA_SCORERS or name in CHANNEL_SCORERS else ""
        raise UsageError(
            f"unknown score {name!r}{elsewhere}{did_you_mean(name, known)}; known: {', '.join(known)}"
        )


def masks_for(
    model: ir.Model,
    uses: Sequence[WeightUse],
    recipe: Mapping[str, Any],
    data: Dataset | None,
    seed: int,
    *,
    shares: Mapping[str, float] | None = None,
    running: Running = USUAL,
    progress: Callable[[float], None] | None = None,
) -> MeasuredMasks:
    """Choose masks by the score of a recipe.

    Args:
        model: not changed.
        uses: the weights to consider.
        recipe: with pattern, score and scope, and perhaps an amount and what is protected.
        data: what scores and the scope are measured on.
        seed: of random scores.
        shares: what single tensors give, where that is known; the scope then decides nothing.
        running: batches, threads and memory of runs.
        progress: called while something is measured, with the share that is done, in (0, 1].

    Raises:
        UsageError, DataError, ModelError: as `plan_masks`.
    """
    options = {name: recipe[name] for name in ("pattern", "scope")}
    options |= {"amount": recipe.get("amount"), "protect": recipe.get("protect", ())}
    if data is not None and recipe["score"] in DATA_WEIGHT_SCORERS:
        return choose_masks_on_data(
            model,
            uses,
            data,
            score=recipe["score"],
            shares=shares,
            running=running,
            progress=progress,
            **options,
        )
    if shares is None and recipe["scope"] == "owl" and data is not None:
        shares = outlier_shares(model, uses, data, recipe["amount"], running=running, progress=progress)
    scorer = WEIGHT_SCORERS.get(recipe["score"])
    masks, skipped = choose_masks(model, uses, scorer=scorer, seed=seed, shares=shares, **options)
    return MeasuredMasks(masks, {}, skipped)


def _shares_by_trials(
    model: ir.Model,
    uses: Sequence[WeightUse],
    recipe: Mapping[str, Any],
    data: Dataset,
    seed: int,
    watch: Watch,
    setting: Setting,
) -> tuple[dict[str, float], Sequence[Skipped]]:
    """Return what each tensor gives such that the amount goes at the least predicted loss.

    A trial has zeros alone: what a score writes into the weights that stay is left out of it.
    """
    even = {**recipe, "scope": "uniform"}

    def masks_at(amount: float) -> Mapping[str, Mask]:
        return masks_for(model, uses, {**even, "amount": amount}, data, seed, running=watch.running).masks

    measured = measure_masks(model, masks_at, (*AMOUNTS, *_BEYOND), data, setting, progress=watch.progress)
    watch.sections["sensitivity"] = curve_rows(measured)
    return share_out(measured.curves, recipe["amount"]), measured.skipped


def _cost(model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None) -> Cost:
    """The cost of a model that is not analysed for channels."""
    work, shapes = prepare(model, input_shapes)
    return cost_of(work.graph, Channels(shapes))
