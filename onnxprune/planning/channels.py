"""Wishes -> plans: options become a decision about channels or weights; nothing is changed yet."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.allocate.channels import SENSITIVITY, Options, choose_channels, reason_to_skip
from onnxprune.allocate.dead import choose_dead, find_dead
from onnxprune.allocate.isomorphic import structures_of
from onnxprune.analyze import Analysis, analyze
from onnxprune.calibration.activations import USUAL, Running, left_out
from onnxprune.calibration.noise import notes_on_noise
from onnxprune.cost import cost_of
from onnxprune.data import Dataset
from onnxprune.errors import NothingToPrune, UsageError
from onnxprune.model.digest import structure_digest, weights_digest
from onnxprune.model.prepare import prepare
from onnxprune.ops.kept import Kept
from onnxprune.ops.sums import Sums
from onnxprune.planning.channel_trials import Candidates, measure_channels, without_unmeasured
from onnxprune.planning.curves import AMOUNTS, Measured, Setting, curve_rows
from onnxprune.planning.earlier import check_earlier, earlier_model
from onnxprune.planning.gone import frozen, gone_first, with_gone
from onnxprune.planning.positions import planned
from onnxprune.registry import did_you_mean
from onnxprune.scores.gradient import notes_on_labels
from onnxprune.scores.magnitude import CHANNEL_SCORERS, score
from onnxprune.scores.movement import MOVEMENT_SCORERS, channel_movement
from onnxprune.scores.on_data import DATA_SCORERS, score_on_data
from onnxprune.scores.refit import too_wide
from onnxprune.scores.subject import Subject
from onnxprune.types import (
    Budget,
    ChannelGroup,
    Choice,
    Cost,
    Curve,
    IntArray,
    Plan,
    Scores,
    Skipped,
)

#: Share of a group that no trial goes beyond.
_MOST = 0.999

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
    """Seconds and findings by stage, who is told which share of long work is done, and how models are run."""

    seconds: dict[str, float] = field(default_factory=dict)
    sections: dict[str, Any] = field(default_factory=dict)  # tables for the report, of what was measured
    progress: Callable[[float], None] | None = None
    running: Running = USUAL

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about the channels of a model, and on what grounds.

    Attributes:
        plan: what goes.
        analysis: of the model.
        sums: the constants that were found in it.
        candidates: what the channels were chosen from.
        curves: what each group costs alone, where the scope goes by it.
    """

    plan: Plan
    analysis: Analysis
    sums: Sums
    candidates: Candidates
    curves: Mapping[str, Curve] | None

    @property
    def removed(self) -> dict[str, IntArray]:
        """Int32 channel numbers by group name, of the groups that lose channels."""
        return self.plan.removed


def plan_channels(
    model: ir.Model,
    recipe: Mapping[str, Any],
    data: Dataset | None,
    seed: int,
    watch: Watch,
    setting: Setting = Setting(),  # noqa: B008 # frozen
    *,
    gone: Mapping[str, IntArray] | None = None,
    stay: Callable[[Analysis], Mapping[str, str]] | None = None,
    scored: Callable[[Analysis], Scores] | None = None,
) -> Decision:
    """Analyse, score, and choose the channels that go.

    Args:
        model: not changed.
        recipe: the options of `onnxprune.prune` that were given, with pattern, score and scope.
        data: what scores from data are measured on.
        seed: of every random choice.
        watch: gets the seconds of each stage.
        setting: how trials are run where the scope is "sensitivity".
        gone: int32 channel numbers by group name: what is masked already, which counts, and stays gone.
        stay: says which groups stay whole, with the reason, by name.
        scored: gives scores in place of the recipe's.

    Raises:
        UsageError, DataError, NothingToPrune, LimitMissed: as `onnxprune.prune`.
    """
    if scored is None:
        check_score(recipe["score"], data, recipe.get("before"))
    check_scope(recipe["scope"], data)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(weights_digest, model)  # reads every weight: beside the analysis, not after it
        analysis, sums, scores = look(model, recipe, data, seed, watch, scored)
        candidates = candidates_of(recipe, analysis, sums, scores)
        if stay is not None:
            candidates = replace(candidates, groups=frozen(candidates.groups, stay(analysis)))
        if gone:
            candidates = replace(candidates, dead=gone_first(candidates, gone))
        candidates, measured = _measure(candidates, recipe, data, setting, watch)
        curves = None if measured is None else measured.curves
        with watch.stage("allocate"):
            whole = cost_of(analysis.model.graph, analysis.channels)
            choices, notes = choose(recipe, candidates, whole, curves, gone)
            if gone:
                original = {group.name: group for group in candidates.groups}
                choices = tuple(with_gone(choice, original, gone) for choice in choices)
            removed = {choice.group.name: choice.removed for choice in choices}
            left = cost_after(analysis, removed)
        if not any(len(numbers) for numbers in removed.values()):
            told = sorted(choices, key=lambda choice: choice.group.name not in scores.unmeasured)
            # what can be helped comes first
            reasons = [f"{choice.group.name}: {choice.skipped}" for choice in told]
            raise NothingToPrune(_nothing(recipe["pattern"], reasons), reasons)
        with watch.stage("digest"):
            decision = Plan(
                pattern=recipe["pattern"],
                structure_digest=structure_digest(model),
                weights_digest=digest.result(),
                groups=tuple(planned(choice) for choice in choices),
                masks={},
                recipe=dict(recipe),
                predicted=(whole, left),
                seed=seed,
                versions=versions(),
                skipped=(
                    *_skipped(choices),
                    *(Skipped(name, why) for name, why in scores.stand_ins.items()),
                    *notes,
                    *(() if measured is None else measured.skipped),
                    *analysis.unknown,
                    *unmatched(recipe, _names(analysis.groups)),
                    *notes_on_labels(recipe["score"], data),
                    *unused_samples(model, data),
                ),
            )
    return Decision(decision, analysis, sums, candidates, curves)


def look(
    model: ir.Model,
    recipe: Mapping[str, Any],
    data: Dataset | None,
    seed: int,
    watch: Watch,
    scored: Callable[[Analysis], Scores] | None = None,
) -> tuple[Analysis, Sums, Scores]:
    """Find the channels of a model, the constants among them, and what they are worth."""
    with watch.stage("analyze"):
        analysis = analyze_for(recipe, model)
    with watch.stage("find constants"):
        sums = Sums(analysis.model.graph, analysis.channels)
    scores = Scores(recipe["score"], {})
    if recipe["pattern"] != DEAD:
        with watch.stage("score"):
            found = scored(analysis) if scored is not None else None
            scores = found or score_groups(recipe, analysis, data, seed, watch)
    return analysis, sums, scores


def analyze_for(recipe: Mapping[str, Any], model: ir.Model) -> Analysis:
    """Analyse a model as the options of a plan ask for it."""
    return analyze(model, **_analysis_options(recipe))


def _analysis_options(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "input_shapes": recipe.get("input_shapes"),
        "allow_inexact": recipe.get("allow_inexact", False) and recipe["pattern"] != DEAD,
        "prefer": "head_dim" if recipe["pattern"] == "head_dim" else "heads",
    }


def check_score(name: str, data: Dataset | None, before: str | None) -> None:
    """Refuse a score without the data or the earlier weights that it takes, and names that nobody knows."""
    check_earlier(name, before)
    if name in DATA_SCORERS:
        if data is None:
            raise UsageError(f"score {name!r} is measured on samples: give --data calib.npz")
    elif name not in CHANNEL_SCORERS and name not in MOVEMENT_SCORERS:
        known = [*CHANNEL_SCORERS, *DATA_SCORERS, *MOVEMENT_SCORERS]
        raise UsageError(f"unknown score {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")


def check_scope(scope: str, data: Dataset | None) -> None:
    """Refuse a scope that is measured on data without data."""
    if scope == SENSITIVITY and data is None:
        raise UsageError("scope 'sensitivity' is measured on samples: give --data calib.npz")


def score_groups(
    recipe: Mapping[str, Any], analysis: Analysis, data: Dataset | None, seed: int, watch: Watch
) -> Scores:
    """Score the channels of the groups that a recipe may take them from."""
    if recipe["score"] in MOVEMENT_SCORERS:
        before, _ = prepare(earlier_model(recipe["before"], analysis.given), recipe.get("input_shapes"))
        found = channel_movement(analysis.model, before, analysis.groups, recipe["score"])
        return Scores.of(recipe["score"], found)
    if data is None or recipe["score"] not in DATA_SCORERS:
        return score(analysis.model, analysis.groups, recipe["score"], seed=seed)
    kinds = STRUCTURED[recipe["pattern"]]
    groups = [group for group in analysis.groups if group.frozen is None and group.kind in kinds]
    subject = Subject(
        analysis.model, analysis.channels, groups, analysis.units, data, watch.running, watch.progress, seed
    )
    if recipe.get("stand_in") is None:
        return score_on_data(subject, recipe["score"])
    wide = too_wide(subject)
    quick = replace(subject, groups=[group for group in groups if group.name not in wide])
    return _with_stand_ins(score_on_data(quick, recipe["score"]), analysis, groups, wide, recipe["stand_in"])


def _with_stand_ins(
    scores: Scores,
    analysis: Analysis,
    groups: Sequence[ChannelGroup],
    wide: Mapping[str, str],
    scorer: str,
) -> Scores:
    """Give the groups that a score has no figures for those of another.

    The share that each channel has of the sum of their squares: as losses are shares of what a consumer
    gives, they add up to about one over a group.
    """
    missing = [group for group in groups if group.name not in scores.channels]
    usual = "there is nothing to measure in its consumers"
    channels, notes = dict(scores.channels), {}
    for name, values in score(analysis.model, missing, scorer).channels.items():
        squares = np.square(values)
        channels[name] = squares / (squares.sum() or 1.0)
        why = wide.get(name) or scores.unmeasured.get(name, usual)
        notes[name] = f"score {scorer!r} stands in for {scores.scorer!r}: {why}"
    return replace(scores, channels=channels, unmeasured={}, stand_ins=notes)


def _unmeasured(groups: Sequence[ChannelGroup], scores: Scores, kinds: frozenset[str]) -> list[ChannelGroup]:
    """Freeze the groups that a score has no figures for."""
    reason = f"score {scores.scorer!r} finds nothing to measure in its consumers; another score may"
    return [
        replace(group, frozen=scores.unmeasured.get(group.name, reason))
        if group.frozen is None and group.kind in kinds and group.name not in scores.channels
        else group
        for group in groups
    ]


def candidates_of(recipe: Mapping[str, Any], analysis: Analysis, sums: Sums, scores: Scores) -> Candidates:
    """Return what the channels of a recipe are chosen from."""
    options = Options(
        scope=recipe["scope"],
        align=recipe.get("align", "auto"),
        protect=recipe.get("protect", ()),
        floor=recipe.get("floor", 0.1),
        kinds=STRUCTURED[recipe["pattern"]],
    )
    dead = find_dead(analysis.groups, analysis.units, sums, options)
    groups = analysis.groups
    if recipe["pattern"] != DEAD:
        groups = tuple(_unmeasured(groups, scores, options.kinds))
    return Candidates(analysis, _analysis_options(recipe), sums, groups, scores, options, dead)


def choose(
    recipe: Mapping[str, Any],
    candidates: Candidates,
    whole: Cost,
    curves: Mapping[str, Curve] | None,
    already: Mapping[str, IntArray] | None = None,
) -> tuple[tuple[Choice, ...], tuple[Skipped, ...]]:
    """Return what goes from each group, and what is to be said beside it.

    Args:
        recipe: what is wished.
        candidates: what is chosen from.
        whole: cost of the original.
        curves: what each group costs alone, where the scope goes by it.
        already: int32 channel numbers by group name: what is gone in any case.
    """
    dead, options, analysis = candidates.dead, candidates.options, candidates.analysis
    if recipe["pattern"] == DEAD:
        _check_no_amount(recipe)
        return choose_dead(candidates.groups, dead, options)
    budget, of = budget_of(recipe)

    def share_left(removed: Mapping[str, IntArray]) -> float:
        left = cost_after(analysis, {**(already or {}), **removed})
        return float(getattr(left, of) / max(getattr(whole, of), 1))

    choices = choose_channels(
        candidates.groups,
        candidates.scores,
        options,
        amount=recipe.get("amount"),
        budget=budget,
        cost=share_left,
        first=dead.removable,
        last=dead.carriers,
        structures=structures_of(analysis.model, candidates.groups),
        curves=curves,
    )
    return choices, ()


def _measure(
    candidates: Candidates, recipe: Mapping[str, Any], data: Dataset | None, setting: Setting, watch: Watch
) -> tuple[Candidates, Measured | None]:
    """Measure what each group costs alone, where the scope goes by it; groups that can't be are frozen."""
    if recipe["scope"] != SENSITIVITY or data is None or recipe["pattern"] == DEAD:
        return candidates, None
    budget_of(recipe)  # refuses nonsense before long work
    amounts = (*AMOUNTS, min(1 - candidates.options.floor, _MOST))  # as far as any choice may go
    with watch.stage("sensitivity"):
        measured = measure_channels(candidates, amounts, data, setting, progress=watch.progress)
    watch.sections["sensitivity"] = curve_rows(measured)
    able = [g.name for g in candidates.groups if reason_to_skip(g, candidates.options) is None]
    groups = without_unmeasured(candidates.groups, able, measured.curves)
    return replace(candidates, groups=groups), measured


def _check_no_amount(recipe: Mapping[str, Any]) -> None:
    for name in ("amount", "target_macs", "target_params"):
        if recipe.get(name) is not None:
            raise UsageError(f"pattern {DEAD!r} removes all that does nothing, no more: leave out {name}")


def budget_of(recipe: Mapping[str, Any]) -> tuple[Budget | None, str]:
    """Return the budget of a recipe, if it has one, and the field of `Cost` that it limits."""
    given = [name for name in ("amount", "target_macs", "target_params") if recipe.get(name) is not None]
    if len(given) != 1:
        raise UsageError(
            "give one of amount, target_macs, target_params"
            + (f", not {' and '.join(given)}" if given else ", such as --target-macs 0.5")
        )
    if given == ["amount"]:
        return None, "params"
    metric = "macs" if given == ["target_macs"] else "params"
    keep = recipe[given[0]]
    if not 0 < keep <= 1:
        raise UsageError(f"{given[0]} is the share that stays, in (0, 1], not {keep}")
    return Budget("macs" if metric == "macs" else "params", keep), metric


def cost_after(analysis: Analysis, removed: Mapping[str, IntArray]) -> Cost:
    """Return the cost without some channels, by group name."""
    gone = analysis.removed_labels(removed)
    return cost_of(analysis.model.graph, analysis.channels, Kept(analysis.channels, gone))


def _nothing(pattern: str, reasons: Sequence[str]) -> str:
    if not reasons:
        return f"nothing to remove by pattern {pattern!r}: no weights with channels were found"
    return f"nothing to remove by pattern {pattern!r}: {len(reasons)} groups stay whole ({reasons[0]})"


def _names(groups: Sequence[ChannelGroup]) -> set[str]:
    """Return the names that protect can match: of groups and of their tensors."""
    return {name for group in groups for name in (group.name, *(member.tensor for member in group.members))}


def unmatched(recipe: Mapping[str, Any], names: set[str]) -> list[Skipped]:
    """Say which of the globs to protect match nothing: they may be misspelt."""
    return [
        Skipped(glob, "it was to be protected, but no group or weight has a name like this")
        for glob in recipe.get("protect", ())
        if not fnmatch.filter(names, glob)
    ]


def unused_samples(model: ir.Model, data: Dataset | None) -> list[Skipped]:
    """Say which samples nothing was measured on, and whether all of them are noise."""
    count = 0 if data is None else left_out(model, data)
    if data is None or count == 0:
        return notes_on_noise(data)
    return [
        *notes_on_noise(data),
        Skipped(data.source, f"the last {count} of {len(data)} samples fill no batch of the model"),
    ]


def _skipped(choices: Sequence[Choice]) -> list[Skipped]:
    return [Skipped(choice.group.name, choice.skipped) for choice in choices if choice.skipped is not None]


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide what a plan does."""
    return dict(_installed())


@cache
def _installed() -> tuple[tuple[str, str], ...]:
    names = ("onnxprune", "numpy", "onnx", "onnx-ir", "onnxruntime")
    return tuple((name, metadata.version(name)) for name in names)
