"""Wishes -> plans: options become a decision about channels or weights; nothing is changed yet."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.allocate.channels import Options, choose_channels
from onnxprune.allocate.dead import choose_dead, find_dead
from onnxprune.allocate.masks import choose_masks
from onnxprune.analyze import Analysis, analyze
from onnxprune.cost import cost_of
from onnxprune.errors import NothingToPrune, PlanError, UsageError
from onnxprune.model.digest import structure_digest, weights_digest
from onnxprune.model.prepare import prepare
from onnxprune.ops.channels import Channels
from onnxprune.ops.kept import Kept
from onnxprune.ops.sums import Sums
from onnxprune.ops.weights import find_weights
from onnxprune.patterns import parse_pattern
from onnxprune.scores.magnitude import score
from onnxprune.scores.weights import WEIGHT_SCORERS
from onnxprune.types import (
    Budget,
    ChannelGroup,
    Choice,
    Cost,
    IntArray,
    Plan,
    PlannedGroup,
    PlannedMember,
    Scores,
    Skipped,
)

#: The pattern that removes what does nothing: there is no amount to choose.
DEAD = "dead"

#: What each structured pattern may remove.
STRUCTURED: Mapping[str, frozenset[str]] = {
    "channels": frozenset({"channels", "hidden", "heads"}),
    "experts": frozenset({"experts"}),
    "heads": frozenset({"heads"}),
    "head_dim": frozenset({"head_dim"}),
    DEAD: frozenset({"channels", "hidden", "heads", "head_dim", "experts"}),
}


@dataclass(slots=True)
class Watch:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def plan_channels(
    model: ir.Model, recipe: Mapping[str, Any], seed: int, watch: Watch
) -> tuple[Plan, Analysis, Sums]:
    """Analyse, score, and choose the channels that go.

    Args:
        model: not changed.
        recipe: the options of `onnxprune.prune` that were given, with pattern, score and scope.
        seed: of every random choice.
        watch: gets the seconds of each stage.

    Returns:
        The plan, the analysis that it was made on, and the constants that were found in it.

    Raises:
        UsageError, NothingToPrune, LimitMissed: as `onnxprune.prune`.
    """
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(weights_digest, model)  # reads every weight: beside the analysis, not after it
        with watch.stage("analyze"):
            analysis = analyze_for(recipe, model)
        with watch.stage("find constants"):
            sums = Sums(analysis.model.graph, analysis.channels)
        scores = Scores(recipe["score"], {})
        if recipe["pattern"] != DEAD:
            with watch.stage("score"):
                scores = score(analysis.model, analysis.groups, recipe["score"], seed=seed)
        with watch.stage("allocate"):
            whole = cost_of(analysis.model.graph, analysis.channels)
            choices, notes = _choose(recipe, analysis, sums, scores, whole)
            removed = {choice.group.name: choice.removed for choice in choices}
            left = _cost_after(analysis, removed)
        if not any(len(numbers) for numbers in removed.values()):
            reasons = [f"{choice.group.name}: {choice.skipped}" for choice in choices]
            raise NothingToPrune(_nothing(recipe["pattern"], reasons), reasons)
        with watch.stage("digest"):
            decision = Plan(
                pattern=recipe["pattern"],
                structure_digest=structure_digest(model),
                weights_digest=digest.result(),
                groups=tuple(_planned(choice) for choice in choices),
                masks={},
                recipe=dict(recipe),
                predicted=(whole, left),
                seed=seed,
                versions=_versions(),
                skipped=(
                    *_skipped(choices),
                    *notes,
                    *analysis.unknown,
                    *_unmatched(recipe, _names(analysis.groups)),
                ),
            )
    return decision, analysis, sums


def analyze_for(recipe: Mapping[str, Any], model: ir.Model) -> Analysis:
    """Analyse a model as the options of a plan ask for it."""
    return analyze(
        model,
        input_shapes=recipe.get("input_shapes"),
        allow_inexact=recipe.get("allow_inexact", False) and recipe["pattern"] != DEAD,
        prefer="head_dim" if recipe["pattern"] == "head_dim" else "heads",
    )


def _choose(
    recipe: Mapping[str, Any], analysis: Analysis, sums: Sums, scores: Scores, whole: Cost
) -> tuple[tuple[Choice, ...], tuple[Skipped, ...]]:
    options = Options(
        scope=recipe["scope"],
        align=recipe.get("align", "auto"),
        protect=recipe.get("protect", ()),
        floor=recipe.get("floor", 0.1),
        kinds=STRUCTURED[recipe["pattern"]],
    )
    dead = find_dead(analysis.groups, analysis.units, sums, options)
    if recipe["pattern"] == DEAD:
        _check_no_amount(recipe)
        return choose_dead(analysis.groups, dead, options)
    budget, of = _budget(recipe)

    def share_left(removed: Mapping[str, IntArray]) -> float:
        return float(getattr(_cost_after(analysis, removed), of) / max(getattr(whole, of), 1))

    choices = choose_channels(
        analysis.groups,
        scores,
        options,
        amount=recipe.get("amount"),
        budget=budget,
        cost=share_left,
        first=dead.removable,
        last=dead.carriers,
    )
    return choices, ()


def _check_no_amount(recipe: Mapping[str, Any]) -> None:
    for name in ("amount", "target_macs", "target_params"):
        if recipe.get(name) is not None:
            raise UsageError(f"pattern {DEAD!r} removes all that does nothing, no more: leave out {name}")


def _budget(recipe: Mapping[str, Any]) -> tuple[Budget | None, str]:
    """Return the budget of a recipe, if it has one, and the field of `Cost` that it limits."""
    given = [name for name in ("amount", "target_macs", "target_params") if recipe.get(name) is not None]
    if len(given) != 1:
        raise UsageError(
            f"give one of amount, target_macs, target_params, not {' and '.join(given) or 'none'}"
        )
    if given == ["amount"]:
        return None, "params"
    metric = "macs" if given == ["target_macs"] else "params"
    keep = recipe[given[0]]
    if not 0 < keep <= 1:
        raise UsageError(f"{given[0]} is the share that stays, in (0, 1], not {keep}")
    return Budget("macs" if metric == "macs" else "params", keep), metric


def _cost_after(analysis: Analysis, removed: Mapping[str, IntArray]) -> Cost:
    gone = analysis.removed_labels(removed)
    return cost_of(analysis.model.graph, analysis.channels, Kept(analysis.channels, gone))


def _nothing(pattern: str, reasons: Sequence[str]) -> str:
    if not reasons:
        return f"nothing to remove by pattern {pattern!r}: no weights with channels were found"
    return f"nothing to remove by pattern {pattern!r}: {len(reasons)} groups stay whole ({reasons[0]})"


def _names(groups: Sequence[ChannelGroup]) -> set[str]:
    """Return the names that protect can match: of groups and of their tensors."""
    return {name for group in groups for name in (group.name, *(member.tensor for member in group.members))}


def _unmatched(recipe: Mapping[str, Any], names: set[str]) -> list[Skipped]:
    """Say which of the globs to protect match nothing: they may be misspelt."""
    return [
        Skipped(glob, "it was to be protected, but no group or weight has a name like this")
        for glob in recipe.get("protect", ())
        if not fnmatch.filter(names, glob)
    ]


def _planned(choice: Choice) -> PlannedGroup:
    members = tuple(
        PlannedMember(
            member.tensor,
            member.axis,
            len(member.channel_at),
            member.consumer,
            member.contracted,
            np.flatnonzero(np.isin(member.channel_at, choice.removed)).astype(np.int32),
        )
        for member in choice.group.members
    )
    group = choice.group
    return PlannedGroup(
        group.name, group.kind, group.size, choice.removed, members, choice.skipped, group.exact
    )


def _skipped(choices: Sequence[Choice]) -> list[Skipped]:
    return [Skipped(choice.group.name, choice.skipped) for choice in choices if choice.skipped is not None]


def check_groups(analysis: Analysis, plan: Plan) -> None:
    """Compare a plan, position by position, with the groups of the model that it is applied to."""
    groups = {group.name: group for group in analysis.groups}
    for planned in plan.groups:
        group = groups.get(planned.name)
        if group is None or group.size != planned.size:
            raise PlanError(
                f"group {planned.name} of {planned.size} channels is not in this model; prune anew"
            )
        if len(planned.removed) == 0:
            continue
        expected = _planned(Choice(group, planned.removed))
        if not _same_members(expected, planned):
            raise PlanError(
                f"group {planned.name} stands on other tensors or positions in this model; prune anew"
            )


def _same_members(a: PlannedGroup, b: PlannedGroup) -> bool:
    return len(a.members) == len(b.members) and all(
        (x.tensor, x.axis, x.size, x.consumer, x.contracted)
        == (y.tensor, y.axis, y.size, y.consumer, y.contracted)
        and np.array_equal(x.removed, y.removed)
        for x, y in zip(a.members, b.members, strict=True)
    )


def plan_masks(model: ir.Model, recipe: Mapping[str, Any], seed: int, watch: Watch) -> Plan:
    """Choose the weights that become zero; arguments and errors as for `plan_channels`."""
    pattern = recipe["pattern"]
    parse_pattern(pattern)
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
    skipped = [*unreachable, *skipped, *_unmatched(recipe, names)]
    if not masks:
        reasons = [f"{entry.name}: {entry.reason}" for entry in skipped]
        first = f" ({reasons[0]})" if reasons else ""
        raise NothingToPrune(f"no weight can take the pattern {pattern!r}{first}", reasons)
    with watch.stage("digest"):
        whole = _plain_cost(model, recipe.get("input_shapes"))
        return Plan(
            pattern=pattern,
            structure_digest=structure_digest(model),
            weights_digest=weights_digest(model),
            groups=(),
            masks=masks,
            recipe=dict(recipe),
            predicted=(whole, whole),
            seed=seed,
            versions=_versions(),
            skipped=tuple(skipped),
        )


def _plain_cost(model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None) -> Cost:
    """The cost of a model that is not analysed for channels."""
    work, shapes = prepare(model, input_shapes)
    return cost_of(work.graph, Channels(shapes))


def _versions() -> dict[str, str]:
    names = ("onnxprune", "numpy", "onnx", "onnx-ir", "onnxruntime")
    return {name: metadata.version(name) for name in names}
