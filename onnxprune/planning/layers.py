"""A wish to remove layers -> a plan: which residual branches go; nothing is changed yet."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.allocate.branches import Limits, choose_branches
from onnxprune.branches import Removal, find_branches
from onnxprune.cost import cost_of, counts_as_parameters, macs_by_node, nothing_cut
from onnxprune.data import Dataset
from onnxprune.errors import NothingToPrune, PlanError
from onnxprune.model.digest import structure_digest, weights_digest
from onnxprune.model.functions import without_functions
from onnxprune.model.outline import outline_of
from onnxprune.model.prepare import prepare
from onnxprune.model.shapes import Shapes
from onnxprune.ops.channels import Channels
from onnxprune.planning.earlier import check_earlier
from onnxprune.planning.notes import unused_samples, versions
from onnxprune.planning.recipes import budgets_of
from onnxprune.planning.watch import Watch
from onnxprune.scores.gradient import notes_on_labels
from onnxprune.scores.influence import BRANCH_SCORERS
from onnxprune.types import (
    Branch,
    Cost,
    FloatArray,
    IntArray,
    Metric,
    Plan,
    PlannedBranch,
    PlannedGroup,
    Skipped,
)


@dataclass(frozen=True, slots=True)
class Layers:
    """The residual branches of a model.

    Attributes:
        given: the model that was given.
        original: the same, or a copy with the calls of its functions written out.
        model: its prepared copy, in which they were found.
        shapes: sizes of all values of the copy.
        branches: those that can go, in order of the graph.
        skipped: those that can't, with reasons.
    """

    given: ir.Model
    original: ir.Model
    model: ir.Model
    shapes: Shapes
    branches: tuple[Branch, ...]
    skipped: tuple[Skipped, ...]


def find_layers(model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None = None) -> Layers:
    """Find the residual branches of a model, which is not changed.

    Raises:
        UsageError, ModelError: an input shape is missing or does not fit.
    """
    original = without_functions(model)
    work, shapes = prepare(original, input_shapes)
    branches, skipped = find_branches(work.graph, shapes)
    return Layers(model, original, work, shapes, branches, skipped)


@dataclass(frozen=True, slots=True)
class GatheredLayers:
    """What is known of the branches of a model before any decision is made, for as many as are wanted.

    Attributes:
        layers: the branches.
        scores: float64 [branch], their importance.
        structure_digest: of the model that was given.
        weights_digest: of the same.
        notes: what is to be said beside every plan.
        seed: of every random choice.
        watch: gets the seconds of each stage.
    """

    layers: Layers
    scores: FloatArray
    structure_digest: str
    weights_digest: str
    notes: tuple[Skipped, ...]
    seed: int
    watch: Watch


def gather_layers(
    model: ir.Model, recipe: Mapping[str, Any], data: Dataset | None, seed: int, watch: Watch
) -> GatheredLayers:
    """Find the residual branches of a model, and score them.

    Args:
        model: not changed.
        recipe: the options of `onnxprune.prune` that were given, with pattern, score and scope; its amount or
            targets are checked, and play no part otherwise.
        data: what their influence is measured on.
        seed: of every random choice.
        watch: gets the seconds of each stage.

    Raises:
        UsageError, DataError, NothingToPrune: as `onnxprune.prune`.
    """
    scorer = BRANCH_SCORERS.get(recipe["score"])
    check_earlier(recipe["score"], recipe.get("before"))
    budgets_of(recipe)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(weights_digest, model)  # reads every weight: beside the analysis, not after it
        with watch.stage("find branches"):
            layers = find_layers(model, recipe.get("input_shapes"))
        if not layers.branches:
            reasons = [f"{entry.name}: {entry.reason}" for entry in layers.skipped]
            first = f" ({reasons[0]})" if reasons else ""
            raise NothingToPrune(f"no residual branch can be removed{first}", reasons)
        with watch.stage("score"):
            scores = scorer(layers.model, layers.branches, data, seed, watch.running)
        with watch.stage("digest"):
            structure, weights = structure_digest(model), digest.result()
    notes = (*notes_on_labels(recipe["score"], data), *unused_samples(model, data))
    return GatheredLayers(layers, scores, structure, weights, notes, seed, watch)


def decide_layers(
    gathered: GatheredLayers, recipe: Mapping[str, Any], counts: Mapping[str, int] | None = None
) -> Plan:
    """Choose the residual branches that go.

    Args:
        gathered: from `gather_layers`; it serves any number of decisions.
        recipe: as it was gathered for, with the amount or targets of this decision.
        counts: how many branches of each kind go, in place of the amount or targets.

    Raises:
        UsageError, NothingToPrune, LimitMissed: as `onnxprune.prune`.
    """
    layers, scores = gathered.layers, gathered.scores
    with gathered.watch.stage("allocate"):
        trial = _Trial(layers)
        limits = Limits(recipe["scope"], recipe.get("protect", ()), recipe.get("floor", 0.1))
        removed, stay = choose_branches(
            layers.branches,
            scores,
            limits,
            amount=recipe.get("amount"),
            counts=counts,
            budgets=budgets_of(recipe),
            cost=trial.share_left,
            why_not=trial.why_not,
        )
    if not len(removed):
        reasons = [f"{layers.branches[number].name}: {reason}" for number, reason in stay.items()]
        why = reasons[0] if reasons else "the share asked for is less than one of them"
        raise NothingToPrune(f"all {len(layers.branches)} residual branches stay ({why})", reasons)
    return Plan(
        pattern=recipe["pattern"],
        structure_digest=gathered.structure_digest,
        weights_digest=gathered.weights_digest,
        groups=planned_groups(layers.branches, scores, removed),
        masks={},
        recipe=dict(recipe),
        predicted=(trial.whole, trial.cost(removed.tolist())),
        seed=gathered.seed,
        versions=versions(),
        skipped=(*_skipped(layers, removed, stay, recipe), *gathered.notes),
        graph=outline_of(layers.model.graph),
    )


class _Trial:
    """What a model would be without some of its branches."""

    def __init__(self, layers: Layers) -> None:
        self.graph = layers.model.graph
        self.branches = layers.branches
        self.removal = Removal(self.graph)
        self.channels = Channels(layers.shapes)
        self.whole = cost_of(self.graph, self.channels)
        self.macs = dict(macs_by_node(self.graph, self.channels, nothing_cut(self.channels)))

    def gone(self, numbers: Sequence[int]) -> frozenset[ir.Node]:
        return self.removal.gone_with([self.branches[number] for number in numbers])

    def cost(self, numbers: Sequence[int]) -> Cost:
        return cost_of(self.graph, self.channels, gone=self.gone(numbers))

    def share_left(self, numbers: Sequence[int], metric: Metric) -> float:
        """Return what `cost` says, from what goes alone: a search asks again and again."""
        gone = self.gone(numbers)
        if metric == "macs":
            return 1 - sum(self.macs.get(node, 0) for node in gone) / max(sum(self.macs.values()), 1)
        bytes_ = metric == "bytes"
        freed = {
            value: tensor.nbytes if bytes_ else tensor.size
            for node in gone
            for value in node.inputs
            if value is not None and value.is_initializer() and (tensor := value.const_value) is not None
            if bytes_ or counts_as_parameters(tensor)
            if all(reader in gone for reader, _ in value.uses())
        }
        return 1 - sum(freed.values()) / max(self.whole.size_bytes if bytes_ else self.whole.params, 1)

    def why_not(self, numbers: Sequence[int]) -> str | None:
        taken = set(numbers)
        kept = [branch for number, branch in enumerate(self.branches) if number not in taken]
        return self.removal.why_not([self.branches[number] for number in numbers], kept)


def planned_groups(
    branches: Sequence[Branch], scores: FloatArray, removed: IntArray
) -> tuple[PlannedGroup, ...]:
    """Return one group for each kind of branch, with its branches in order of the graph."""
    groups = []
    for kind in dict.fromkeys(branch.kind for branch in branches):
        numbers = [number for number, branch in enumerate(branches) if branch.kind == kind]
        entries = tuple(_planned(branches[number], float(scores[number])) for number in numbers)
        gone = np.flatnonzero(np.isin(numbers, removed)).astype(np.int32)
        groups.append(PlannedGroup(kind, kind, len(numbers), gone, (), branches=entries))
    return tuple(groups)


def _planned(branch: Branch, score: float) -> PlannedBranch:
    return PlannedBranch(branch.name, branch.value, branch.freed, score)


def _skipped(
    layers: Layers, removed: IntArray, stay: Mapping[int, str], recipe: Mapping[str, Any]
) -> tuple[Skipped, ...]:
    """Say what can't go, what was spared, what stays of branches that go, and which globs match nothing."""
    entries = list(layers.skipped)
    names: set[str] = set()
    for number, branch in enumerate(layers.branches):
        names.update((branch.name, branch.node, *branch.weights))
        if number in stay:
            entries.append(Skipped(branch.name, stay[number]))
        if number in removed and branch.stays:
            reason = f"of this branch, what {', '.join(branch.stays)} computes stays: others read it, too"
            entries.append(Skipped(branch.name, reason))
    entries += [
        Skipped(glob, "it was to be protected, but no branch or weight has a name like this")
        for glob in recipe.get("protect", ())
        if not fnmatch.filter(names, glob)
    ]
    return tuple(entries)


def planned_branches(layers: Layers, plan: Plan) -> tuple[Branch, ...]:
    """Return the branches that a plan removes, found again in the model that it is applied to.

    Raises:
        PlanError: the branches of this model are not those that the plan was made on.
    """
    by_kind: dict[str, list[Branch]] = {}
    for branch in layers.branches:
        by_kind.setdefault(branch.kind, []).append(branch)
    removed = []
    for group in plan.groups:
        found = by_kind.pop(group.name, [])
        if [_identity(_planned(branch, 0.0)) for branch in found] != [_identity(b) for b in group.branches]:
            raise PlanError(f"the {group.name} branches of the plan are not those of this model; prune anew")
        removed += [found[number] for number in group.removed]
    if by_kind:
        raise PlanError(f"the plan knows nothing of this model's {next(iter(by_kind))} branches; prune anew")
    return tuple(removed)


def _identity(branch: PlannedBranch) -> tuple[str, str, tuple[str, ...]]:
    return branch.name, branch.value, branch.weights
