"""Gathered figures and a recipe -> a decision about channels; nothing is changed yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.allocate.channels import choose_channels, share_kept
from onnxprune.allocate.dead import choose_dead
from onnxprune.allocate.isomorphic import structures_of
from onnxprune.allocate.limits import Limit
from onnxprune.analyze import Analysis
from onnxprune.cost import cost_of
from onnxprune.errors import NothingToPrune
from onnxprune.ops.kept import Kept
from onnxprune.ops.sums import Sums
from onnxprune.planning.channel_trials import Candidates
from onnxprune.planning.gathering import Gathered
from onnxprune.planning.gone import with_gone
from onnxprune.planning.notes import versions
from onnxprune.planning.positions import planned
from onnxprune.planning.recipes import DEAD, budgets_of, check_no_amount
from onnxprune.planning.shape_costs import ShapeCosts
from onnxprune.types import Choice, Cost, IntArray, Plan, Skipped


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about the channels of a model, and on what grounds.

    Attributes:
        plan: what goes.
        gathered: what it was chosen from.
        importance: share of the importance that is kept (see `onnxprune.allocate.importance`), None where
            nothing was scored.
    """

    plan: Plan
    gathered: Gathered
    importance: float | None = None

    @property
    def analysis(self) -> Analysis:
        """Of the model."""
        return self.gathered.analysis

    @property
    def sums(self) -> Sums:
        """The constants that were found in the model."""
        return self.gathered.sums

    @property
    def candidates(self) -> Candidates:
        """What the channels were chosen from."""
        return self.gathered.candidates

    @property
    def removed(self) -> dict[str, IntArray]:
        """Int32 channel numbers by group name, of the groups that lose channels."""
        return self.plan.removed


def decide(
    gathered: Gathered,
    recipe: Mapping[str, Any],
    limits: Sequence[Limit] | None = None,
    steps: Mapping[str, int] | None = None,
) -> Decision:
    """Choose the channels that go.

    Args:
        gathered: from `gather`; it serves any number of decisions.
        recipe: as it was gathered for, with the amount or targets of this decision.
        limits: on what may be left; None for those of the recipe.
        steps: by group name, what kept counts are multiples of where the recipe aligns them by itself.

    Raises:
        NothingToPrune: nothing can go; ``reasons`` says why.
        LimitMissed: the limits can't be kept within the floors.
    """
    analysis, candidates = gathered.analysis, gathered.candidates
    with gathered.watch.stage("allocate"):
        choices, notes = choose(recipe, gathered, limits, steps)
        if gathered.already:
            original = {group.name: group for group in candidates.groups}
            choices = tuple(with_gone(choice, original, gathered.already) for choice in choices)
        removed = {choice.group.name: choice.removed for choice in choices}
        left = cost_after(analysis, removed)
    if not any(len(numbers) for numbers in removed.values()):
        told = sorted(choices, key=lambda choice: choice.group.name not in candidates.scores.unmeasured)
        # what can be helped comes first
        reasons = [f"{choice.group.name}: {choice.skipped}" for choice in told]
        raise NothingToPrune(_nothing(recipe["pattern"], reasons), reasons)
    plan = Plan(
        pattern=recipe["pattern"],
        structure_digest=gathered.structure_digest,
        weights_digest=gathered.weights_digest,
        groups=tuple(planned(choice) for choice in choices),
        masks={},
        recipe=dict(recipe),
        predicted=(gathered.whole, left),
        seed=gathered.seed,
        versions=versions(),
        skipped=(*_skipped(choices), *notes, *gathered.notes),
        graph=gathered.graph,
    )
    return Decision(plan, gathered, importance_of(gathered, removed) if candidates.scores.channels else None)


def tell_importance(decision: Decision) -> None:
    """Put the share of the importance that a decision keeps into the report."""
    if decision.importance is not None:
        row = {"score": decision.plan.recipe["score"], "share kept": decision.importance}
        decision.gathered.watch.sections["importance"] = row


def importance_of(gathered: Gathered, removed: Mapping[str, IntArray]) -> float:
    """Return the share of the importance that is kept without some channels, by group name."""
    candidates = gathered.candidates
    dead = candidates.dead
    return share_kept(
        candidates.groups, candidates.scores, candidates.options, removed,
        first=dead.removable, last=dead.carriers,
    )  # fmt: skip


def choose(
    recipe: Mapping[str, Any],
    gathered: Gathered,
    limits: Sequence[Limit] | None = None,
    steps: Mapping[str, int] | None = None,
) -> tuple[tuple[Choice, ...], tuple[Skipped, ...]]:
    """Return what goes from each group, and what is to be said beside it: see `decide`."""
    candidates = gathered.candidates
    dead, options = candidates.dead, candidates.options
    if recipe["pattern"] == DEAD:
        check_no_amount(recipe)
        return choose_dead(candidates.groups, dead, options)
    choices = choose_channels(
        candidates.groups,
        candidates.scores,
        options,
        amount=recipe.get("amount"),
        limits=limits_of(gathered, recipe) if limits is None else limits,
        steps=steps,
        first=dead.removable,
        last=dead.carriers,
        structures=structures_of(candidates.analysis.model, candidates.groups),
        curves=gathered.curves,
    )
    return choices, ()


def limits_of(gathered: Gathered, recipe: Mapping[str, Any]) -> tuple[Limit, ...]:
    """Return what a recipe limits that follows from shapes alone."""
    budgets = budgets_of(recipe)
    costs = ShapeCosts(gathered.analysis, gathered.already) if budgets else None
    return () if costs is None else tuple(costs.limit(budget) for budget in budgets)


def cost_after(analysis: Analysis, removed: Mapping[str, IntArray]) -> Cost:
    """Return the cost without some channels, by group name."""
    gone = analysis.removed_labels(removed)
    return cost_of(analysis.model.graph, analysis.channels, Kept(analysis.channels, gone))


def _nothing(pattern: str, reasons: Sequence[str]) -> str:
    if not reasons:
        return f"nothing to remove by pattern {pattern!r}: no weights with channels were found"
    return f"nothing to remove by pattern {pattern!r}: {len(reasons)} groups stay whole ({reasons[0]})"


def _skipped(choices: Sequence[Choice]) -> list[Skipped]:
    return [Skipped(choice.group.name, choice.skipped) for choice in choices if choice.skipped is not None]
