"""Rounds of pruning and repair: how far each of them goes, and what goes in the later ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.allocate.limits import Limit
from onnxprune.analyze import Analysis
from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.ops.sums import Sums
from onnxprune.patterns import Pattern, parse_pattern
from onnxprune.planning.channels import Decision, choose, cost_after
from onnxprune.planning.gathering import look
from onnxprune.planning.gone import among, with_gone
from onnxprune.planning.positions import planned
from onnxprune.planning.recipes import STRUCTURED, TARGETS
from onnxprune.planning.watch import Watch
from onnxprune.schedule import shares_by_round
from onnxprune.types import ChannelGroup, FloatArray, IntArray


def recipes_by_round(recipe: Mapping[str, Any], rounds: int, shape: str = "cubic") -> list[dict[str, Any]]:
    """Return a recipe for each round, of which the last is the given one.

    Args:
        recipe: with an amount, a target or a pattern N:M, which says its share itself.
        rounds: how many there are; N:M goes in at most M - N of them.
        shape: how what goes grows: see `onnxprune.schedule.Schedule`.

    Raises:
        UsageError: the recipe has nothing that could grow from round to round.
    """
    if rounds == 1:
        return [dict(recipe)]
    shares = shares_by_round(goal_of(recipe), rounds, shape)
    steps = [step for share in shares[:-1] if (step := recipe_at(recipe, share)) is not None]
    return without_repeats([*steps, dict(recipe)])


def goal_of(recipe: Mapping[str, Any]) -> float:
    """Return the share that a recipe removes: of channels or weights, of MACs, of parameters or of bytes.

    Of several targets it is that of the one that removes most; the others grow in proportion.

    Raises:
        UsageError: the recipe has nothing that could grow.
    """
    if (runs := runs_of(recipe["pattern"])) is not None:
        return 1 - runs.keep / runs.run
    if recipe.get("amount") is not None:
        return float(recipe["amount"])
    targets = [1 - float(recipe[name]) for name in TARGETS if recipe.get(name) is not None]
    if targets:
        return max(targets)
    raise UsageError(
        f"pattern {recipe['pattern']!r} without an amount or target goes in one round: leave out rounds"
    )


def recipe_at(recipe: Mapping[str, Any], share: float) -> dict[str, Any] | None:
    """Return a recipe that removes another share, not above its goal, of what `goal_of` counts.

    N:M grows weight by weight of each run: 2:4 by way of 3:4, never ahead of the share.

    Returns:
        The recipe, or None where the share is less than one weight of each run.
    """
    if (runs := runs_of(recipe["pattern"])) is not None:
        gone = math.floor(share * runs.run + _EXACT)
        return {**recipe, "pattern": f"{runs.run - gone}:{runs.run}"} if gone else None
    if recipe.get("amount") is not None:
        return {**recipe, "amount": share}
    given = {name: 1 - float(recipe[name]) for name in TARGETS if recipe.get(name) is not None}
    most = max(given.values(), default=1.0)
    return {**recipe, **{name: 1 - share * gone / most if most else 1.0 for name, gone in given.items()}}


def without_repeats(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the steps that differ from the one before."""
    return [step for number, step in enumerate(steps) if number == 0 or step != steps[number - 1]]


def runs_of(pattern: str) -> Pattern | None:
    """Return a pattern N:M, None for any other."""
    if pattern == "layers" or pattern in STRUCTURED:
        return None
    parsed = parse_pattern(pattern)
    return parsed if parsed.kind == "N:M" else None


#: Shares are products of whole numbers and divisions: what is missing to a whole number by less is one.
_EXACT = 1e-9


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
    limits: Sequence[Limit] | None = None,
    steps: Mapping[str, int] | None = None,
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
        limits: as for `onnxprune.planning.channels.decide`, of the original.
        steps: as for the same.

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
        group.name: among(group, before[group.name]) | dead.removable.get(group.name, False)
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
        gathered = replace(earlier.gathered, candidates=candidates, already=before)
        chosen, _ = choose(recipe, gathered, limits, steps)
        original = {group.name: group for group in earlier.candidates.groups}
        choices = [with_gone(choice, original, before) for choice in chosen]
        total = {choice.group.name: choice.removed for choice in choices}
        left = cost_after(earlier.analysis, total)
    plan = replace(earlier.plan, groups=tuple(planned(choice) for choice in choices), predicted=(whole, left))
    fresh = {name: _renumbered(total[name], before[name]) for name in total}
    removed = {name: numbers for name, numbers in fresh.items() if len(numbers)}
    watch.sections.pop("importance", None)  # it was of the first round, in other weights than these
    return replace(earlier, plan=plan, importance=None), NextCut(analysis, sums, removed)


def _scattered(
    group: ChannelGroup, gone: IntArray, now: ChannelGroup | None, scores: FloatArray | None
) -> FloatArray | None:
    """Return scores [size before] from those of the channels that are left; None if they don't fit."""
    if now is None or scores is None or now.kind != group.kind or now.size != group.size - len(gone):
        return None
    values = np.zeros(group.size)
    values[~among(group, gone)] = scores
    return values


def _renumbered(total: IntArray, before: IntArray) -> IntArray:
    """Return which of the channels that are left after ``before`` are in ``total``, by their new numbers."""
    fresh = np.setdiff1d(total, before)
    return (fresh - np.searchsorted(np.sort(before), fresh)).astype(np.int32)
