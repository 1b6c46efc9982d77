"""Wishes -> masks: which weights become zero; nothing is changed yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxprune.allocate.masks import SCOPES, check_amount, choose_masks
from onnxprune.cost import cost_of
from onnxprune.data import Dataset
from onnxprune.errors import NothingToPrune, UsageError
from onnxprune.masks_on_data import MeasuredMasks, choose_masks_on_data, outlier_shares
from onnxprune.model.digest import structure_digest, weights_digest
from onnxprune.model.prepare import prepare
from onnxprune.ops.channels import Channels
from onnxprune.ops.weights import find_weights
from onnxprune.patterns import parse_pattern
from onnxprune.planning import Watch, unmatched, unused_samples, versions
from onnxprune.registry import did_you_mean
from onnxprune.scores.on_data import DATA_SCORERS
from onnxprune.scores.weights import WEIGHT_SCORERS
from onnxprune.scores.weights_on_data import DATA_WEIGHT_SCORERS
from onnxprune.types import Cost, Plan, WeightUse

Array = npt.NDArray[Any]


def plan_masks(
    model: ir.Model, recipe: Mapping[str, Any], data: Dataset | None, seed: int, watch: Watch
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
    with watch.stage("choose masks"):
        if data is not None and recipe["score"] in DATA_WEIGHT_SCORERS:
            found = choose_masks_on_data(
                model,
                uses,
                data,
                pattern=pattern,
                amount=recipe.get("amount"),
                score=recipe["score"],
                scope=recipe["scope"],
                protect=recipe.get("protect", ()),
                running=watch.running,
                progress=watch.progress,
            )
        else:
            found = _choose_by_weights(model, uses, recipe, data, seed, watch)
    masks = found.masks
    skipped = [*found.skipped, *unused_samples(model, data)]
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
    measured = score in DATA_WEIGHT_SCORERS
    if not measured and score not in WEIGHT_SCORERS:
        known = [*WEIGHT_SCORERS, *DATA_WEIGHT_SCORERS]
        elsewhere = " for zeros" if score in DATA_SCORERS else ""
        raise UsageError(
            f"unknown score {score!r}{elsewhere}{did_you_mean(score, known)}; known: {', '.join(known)}"
        )
    if scope not in SCOPES:
        raise UsageError(f"unknown scope {scope!r}{did_you_mean(scope, SCOPES)}; known: {', '.join(SCOPES)}")
    if scope == "owl" and wanted.kind == "N:M":
        raise UsageError(f"pattern {pattern} removes the same share everywhere: leave scope 'owl' out")
    if data is None and measured:
        raise UsageError(f"score {score!r} is measured on samples: give --data calib.npz")
    if data is None and scope == "owl":
        raise UsageError("scope 'owl' looks for outliers on samples: give --data calib.npz")
    if data is not None and not measured and scope != "owl":
        raise UsageError(f"score {score!r} goes by weights alone: leave the data out, or take obs or wanda")


def _choose_by_weights(
    model: ir.Model,
    uses: Sequence[WeightUse],
    recipe: Mapping[str, Any],
    data: Dataset | None,
    seed: int,
    watch: Watch,
) -> MeasuredMasks:
    """Choose by scores from weights alone; only what each layer gives may depend on data."""
    shares = None
    if recipe["scope"] == "owl" and data is not None:
        shares = outlier_shares(
            model, uses, data, recipe["amount"], running=watch.running, progress=watch.progress
        )
    masks, skipped = choose_masks(
        model,
        uses,
        pattern=recipe["pattern"],
        amount=recipe.get("amount"),
        scorer=WEIGHT_SCORERS.get(recipe["score"]),
        scope=recipe["scope"],
        seed=seed,
        protect=recipe.get("protect", ()),
        shares=shares,
    )
    return MeasuredMasks(masks, {}, skipped)


def _cost(model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None) -> Cost:
    """The cost of a model that is not analysed for channels."""
    work, shapes = prepare(model, input_shapes)
    return cost_of(work.graph, Channels(shapes))
