"""A model -> all that channels are chosen from: groups, constants, scores, curves. Gathered once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.allocate.dead import find_dead
from onnxprune.allocate.options import SENSITIVITY, Options, reason_to_skip
from onnxprune.analyze import Analysis, analyze
from onnxprune.cost import cost_of
from onnxprune.data import Dataset
from onnxprune.model.digest import structure_digest, weights_digest
from onnxprune.model.outline import outline_of
from onnxprune.model.prepare import prepare
from onnxprune.ops.sums import Sums
from onnxprune.outlines import Outline
from onnxprune.planning.channel_trials import Candidates, measure_channels, without_unmeasured
from onnxprune.planning.curves import AMOUNTS, Measured, Setting, curve_rows
from onnxprune.planning.earlier import earlier_model
from onnxprune.planning.gone import frozen, gone_first
from onnxprune.planning.notes import unmatched, unused_samples
from onnxprune.planning.recipes import DEAD, STRUCTURED, check_scope, check_score
from onnxprune.planning.watch import Watch
from onnxprune.scores.gradient import notes_on_labels
from onnxprune.scores.magnitude import score
from onnxprune.scores.movement import MOVEMENT_SCORERS, channel_movement
from onnxprune.scores.on_data import DATA_SCORERS, score_on_data
from onnxprune.scores.refit import too_wide
from onnxprune.scores.subject import Subject
from onnxprune.types import ChannelGroup, Cost, Curve, IntArray, Scores, Skipped

#: Share of a group that no trial goes beyond.
_MOST = 0.999


@dataclass(frozen=True, slots=True)
class Gathered:
    """What is known of a model before any decision is made: enough for as many decisions as are wanted.

    Attributes:
        analysis: of the model.
        sums: the constants that were found in it.
        candidates: what channels are chosen from.
        curves: what each group costs alone, where the scope goes by it.
        whole: cost of the model.
        already: int32 channel numbers by group name: what is masked already, which counts, and stays gone.
        graph: outline of the prepared copy, where all names of groups stand.
        structure_digest: of the model that was given.
        weights_digest: of the same.
        notes: what is to be said beside every plan.
        seed: of every random choice.
        watch: gets the seconds of each stage.
    """

    analysis: Analysis
    sums: Sums
    candidates: Candidates
    curves: Mapping[str, Curve] | None
    whole: Cost
    already: Mapping[str, IntArray]
    graph: Outline
    structure_digest: str
    weights_digest: str
    notes: tuple[Skipped, ...]
    seed: int
    watch: Watch


def gather(
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
) -> Gathered:
    """Analyse a model, score its channels, and measure what each group costs where the scope goes by it.

    Args:
        model: not changed.
        recipe: the options of `onnxprune.prune` that were given, with pattern, score and scope; its amount
            or targets play no part.
        data: what scores from data are measured on.
        seed: of every random choice.
        watch: gets the seconds of each stage.
        setting: how trials are run where the scope is "sensitivity".
        gone: int32 channel numbers by group name: what is masked already, which counts, and stays gone.
        stay: says which groups stay whole, with the reason, by name.
        scored: gives scores in place of the recipe's.

    Raises:
        UsageError, DataError: as `onnxprune.prune`.
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
        with watch.stage("digest"):
            structure, weights = structure_digest(model), digest.result()
    notes = (
        *(Skipped(name, why) for name, why in scores.stand_ins.items()),
        *(() if measured is None else measured.skipped),
        *analysis.unknown,
        *unmatched(recipe, _names(analysis.groups)),
        *notes_on_labels(recipe["score"], data),
        *unused_samples(model, data),
    )
    return Gathered(
        analysis=analysis,
        sums=sums,
        candidates=candidates,
        curves=None if measured is None else measured.curves,
        whole=cost_of(analysis.model.graph, analysis.channels),
        already=gone or {},
        graph=outline_of(analysis.model.graph),
        structure_digest=structure,
        weights_digest=weights,
        notes=notes,
        seed=seed,
        watch=watch,
    )


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


def _measure(
    candidates: Candidates, recipe: Mapping[str, Any], data: Dataset | None, setting: Setting, watch: Watch
) -> tuple[Candidates, Measured | None]:
    """Measure what each group costs alone, where the scope goes by it; groups that can't be are frozen."""
    if recipe["scope"] != SENSITIVITY or data is None or recipe["pattern"] == DEAD:
        return candidates, None
    amounts = (*AMOUNTS, min(1 - candidates.options.floor, _MOST))  # as far as any choice may go
    with watch.stage("sensitivity"):
        measured = measure_channels(candidates, amounts, data, setting, progress=watch.progress)
    watch.sections["sensitivity"] = curve_rows(measured)
    able = [g.name for g in candidates.groups if reason_to_skip(g, candidates.options) is None]
    groups = without_unmeasured(candidates.groups, able, measured.curves)
    return replace(candidates, groups=groups), measured


def _names(groups: Sequence[ChannelGroup]) -> set[str]:
    """Return the names that protect can match: of groups and of their tensors."""
    return {name for group in groups for name in (group.name, *(member.tensor for member in group.members))}
