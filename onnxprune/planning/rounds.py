"""Rounds of pruning and repair: how far each of them goes, and what goes in the later ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.analyze import Analysis
from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.ops.sums import Sums
from onnxprune.planning.channels import STRUCTURED, Decision, Watch, choose, cost_after, look
from onnxprune.planning.positions import planned
from onnxprune.schedule import shares_by_round
from onnxprune.types import BoolArray, ChannelGroup, Choice, FloatArray, IntArray, Mask


def recipes_by_round(recipe: Mapping[str, Any], rounds: int) -> list[dict[str, Any]]:
    """Return a recipe with the amount or target of each round, by the cubic schedule.

    Raises:
        UsageError: the recipe has nothing that could grow from round to round.
    """
    if rounds == 1:
        return [dict(recipe)]
    for name in ("amount", "target_macs", "target_params"):
        if recipe.get(name) is not None:
            goal = float(recipe[name])
            if name == "amount":
                return [{**recipe, name: share} for share in shares_by_round(goal, rounds)]
            return [{**recipe, name: 1 - gone} for gone in shares_by_round(1 - goal, rounds)]
    raise UsageError(
        f"pattern {recipe['pattern']!r} without an amount or target goes in one round: leave out rounds"
    )


def with_earlier(earlier: Mapping[str, Mask], now: Mapping[str, Mask]) -> dict[str, Mask]:
    """Return masks without the weights that went in earlier rounds, so that what is gone stays gone.

    A score that weighs a dead input, or a scope that shares out anew, may keep another weight than before;
    then a little more goes than was asked for, and the plan says all of it.
    """
    joined = {**earlier, **now}
    for name in earlier.keys() & now.keys():
        joined[name] = Mask(now[name].shape, earlier[name].bits & now[name].bits)
    return joined


@dataclass(frozen=True, slots=True)
class NextCut:
    """What goes from a model that has been cut before.

    Attributes:
        analysis: of that model.
        sums: the constants that were found in it.
        removed: int32 channel numbers of that model, by group name.
    """

    analysis: Analysis
    sums: Sums
    removed: Mapping[str, IntArray]


def plan_more_channels(
    earlier: Decision,
    model: ir.Model,
    recipe: Mapping[str, Any],
    data: Dataset | None,
    seed: int,
    watch: Watch,
) -> tuple[Decision, NextCut]:
    """Choose further channels of a model from which some went already, and which was repaired since.

    Channels are scored in the model as it is now. Amount, target, floors and alignment count from the
    original.

    Args:
        earlier: what was decided before, for the original.
        model: what became of that; not changed.
        recipe: as before, with the amount or target of now.
        data: as before.
        seed: of every random choice.
        watch: gets the seconds of each stage.

    Returns:
        What is decided for the original as a whole, and what of it goes now.
    """
    analysis, sums, scores = look(model, recipe, data, seed, watch)
    before = {group.name: group.removed for group in earlier.plan.groups}
    now = {group.name: group for group in analysis.groups}
    found: dict[str, FloatArray] = {}
    groups = []
    for group in earlier.candidates.groups:
        values = _scattered(group, before[group.name], now.get(group.name), scores.channels.get(group.name))
        if values is not None:
            found[group.name] = values
        elif group.frozen is None and group.kind in STRUCTURED[recipe["pattern"]]:
            group = replace(group, frozen="what earlier rounds left of it can't be scored")
        groups.append(group)
    dead = earlier.candidates.dead
    first = {
        group.name: _among(group, before[group.name]) | dead.removable.get(group.name, False)
        for group in groups
    }
    candidates = replace(
        earlier.candidates,
        groups=tuple(groups),
        scores=replace(scores, channels=found),
        dead=replace(dead, removable=first),
    )
    with watch.stage("allocate"):
        whole = earlier.plan.predicted[0]
        chosen, _ = choose(recipe, candidates, whole, earlier.curves, before)
        original = {group.name: group for group in earlier.candidates.groups}
        choices = [_with_earlier(choice, original, before) for choice in chosen]
        total = {choice.group.name: choice.removed for choice in choices}
        left = cost_after(earlier.analysis, total)
    plan = replace(earlier.plan, groups=tuple(planned(choice) for choice in choices), predicted=(whole, left))
    fresh = {name: _renumbered(total[name], before[name]) for name in total}
    removed = {name: numbers for name, numbers in fresh.items() if len(numbers)}
    return replace(earlier, plan=plan), NextCut(analysis, sums, removed)


def _scattered(
    group: ChannelGroup, gone: IntArray, now: ChannelGroup | None, scores: FloatArray | None
) -> FloatArray | None:
    """Return scores [size before] from those of the channels that are left; None if they don't fit."""
    if now is None or scores is None or now.kind != group.kind or now.size != group.size - len(gone):
        return None
    values = np.zeros(group.size)
    values[~_among(group, gone)] = scores
    return values


def _among(group: ChannelGroup, numbers: IntArray) -> BoolArray:
    """Return bool [size], True for some channels."""
    marked = np.zeros(group.size, dtype=np.bool_)
    marked[numbers] = True
    return marked


def _with_earlier(
    choice: Choice, original: Mapping[str, ChannelGroup], before: Mapping[str, IntArray]
) -> Choice:
    """Return a choice with what went before, which nothing brings back."""
    name = choice.group.name
    total = np.union1d(choice.removed, before[name]).astype(np.int32)
    return Choice(original[name], total, None if len(total) else choice.skipped)


def _renumbered(total: IntArray, before: IntArray) -> IntArray:
    """Return which of the channels that are left after ``before`` are in ``total``, by their new numbers."""
    fresh = np.setdiff1d(total, before)
    return (fresh - np.searchsorted(np.sort(before), fresh)).astype(np.int32)
