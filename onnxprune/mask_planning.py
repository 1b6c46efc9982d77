"""Wishes -> masks: which weights become zero; nothing is changed yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onnxprune.allocate.masks import choose_masks
from onnxprune.cost import cost_of
from onnxprune.data import Dataset
from onnxprune.errors import NothingToPrune, UsageError
from onnxprune.model.digest import structure_digest, weights_digest
from onnxprune.model.prepare import prepare
from onnxprune.ops.channels import Channels
from onnxprune.ops.weights import find_weights
from onnxprune.patterns import parse_pattern
from onnxprune.planning import Watch, unmatched, versions
from onnxprune.scores.weights import WEIGHT_SCORERS
from onnxprune.types import Cost, Plan


def plan_masks(
    model: ir.Model, recipe: Mapping[str, Any], data: Dataset | None, seed: int, watch: Watch
) -> Plan:
    """Choose the weights that become zero; arguments and errors as for `plan_channels`."""
    pattern = recipe["pattern"]
    parse_pattern(pattern)
    if data is not None:
        raise UsageError(f"pattern {pattern!r} goes by weights alone: leave the data out")
    for name in ("target_macs", "target_params"):
        if recipe.get(name) is not None:
            raise UsageError(
                f"{name} needs a pattern that shrinks shapes; zeros alone change neither: give amount"
            )
    with watch.stage("find weights"):
        uses, unreachable = find_weights(model)
    with watch.stage("choose masks"):
        masks, skipped = choose_masks(
            model,
            uses,
            pattern=pattern,
            amount=recipe.get("amount"),
            scorer=WEIGHT_SCORERS.get(recipe["score"]),
            scope=recipe["scope"],
            seed=seed,
            protect=recipe.get("protect", ()),
        )
    names = {name for use in uses for name in (use.tensor, use.consumer)}
    skipped = [*unreachable, *skipped, *unmatched(recipe, names)]
    if not masks:
        reasons = [f"{entry.name}: {entry.reason}" for entry in skipped]
        first = f" ({reasons[0]})" if reasons else ""
        raise NothingToPrune(f"no weight can take the pattern {pattern!r}{first}", reasons)
    with watch.stage("digest"):
        whole = _cost(model, recipe.get("input_shapes"))
        return Plan(
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


def _cost(model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None) -> Cost:
    """The cost of a model that is not analysed for channels."""
    work, shapes = prepare(model, input_shapes)
    return cost_of(work.graph, Channels(shapes))
