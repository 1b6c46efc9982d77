"""A model and data -> how sensitive each of its groups is, and the report of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune.allocate.options import reason_to_skip
from onnxprune.calibration.activations import BATCH, LIMIT_BYTES
from onnxprune.data import DataReader, Dataset
from onnxprune.errors import NothingToPrune, UsageError
from onnxprune.model.io import load
from onnxprune.ops.sums import Sums
from onnxprune.ops.weights import find_weights
from onnxprune.patterns import parse_pattern
from onnxprune.planning.channel_trials import measure_channels
from onnxprune.planning.curves import AMOUNTS, Measured, Setting, check_amounts, curve_rows, trial_setting
from onnxprune.planning.gathering import analyze_for, candidates_of, score_groups
from onnxprune.planning.mask_trials import measure_masks
from onnxprune.planning.masks import check_weight_score, masks_for, rank_weights
from onnxprune.planning.notes import unmatched, unused_samples
from onnxprune.planning.recipes import DEAD, STRUCTURED, check_score
from onnxprune.planning.watch import Watch
from onnxprune.report.sensitivity import sensitivity_report
from onnxprune.runtime import admit
from onnxprune.scores.gradient import notes_on_labels
from onnxprune.types import Curve, Mask, Report, Skipped
from onnxprune.wishes import running_of, samples_of


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How sensitive the groups of a model are.

    Attributes:
        curves: by group (or tensor): how the loss grows with what goes; those that could be measured.
        report: tables, what was left alone and why, seconds by stage.
    """

    curves: Mapping[str, Curve]
    report: Report


def measure_sensitivity(
    model: ir.Model | str | Path,
    *,
    data: Dataset | DataReader | str | Path,
    pattern: str = "channels",
    amounts: Sequence[float] = AMOUNTS,
    score: str = "l2",
    before: str | Path | None = None,
    metric: str | None = None,
    output: str | None = None,
    align: int | str = "auto",
    protect: Sequence[str] = (),
    allow_inexact: bool = False,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    cache: str | Path | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    batch: int = BATCH,
    memory_limit: int = LIMIT_BYTES,
    threads: int = 1,
    time_limit: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> Sensitivity:
    """Remove from one group at a time, at several amounts, and measure what that costs.

    Channel groups are cut as `onnxprune.prune` cuts them. For ``unstructured``, ``N:M`` and ``block:RxC`` a
    group is one tensor, whose weights become zero.

    Args:
        model: a file, or from `onnxprune.load`; not changed.
        data: samples, with labels or without: see `onnxprune.load_data`; ``random`` or ``random:256`` for
            noise, which says little.
        pattern: as for `onnxprune.prune`, but for ``layers`` and ``dead``.
        amounts: shares of each group, in (0, 1). N:M has one of its own.
        score: which channels or weights of a group go first.
        before: a file of the same graph with earlier weights, for score ``movement``.
        metric: ``cross_entropy`` or ``mse`` (with labels; the one that fits is the default), ``divergence``
            (the default without labels) or ``kl``: see `onnxprune.sensitivity.losses`.
        output: name of the only output to look at; all of them by default, or the first that fits the labels.
        align: kept channel counts are multiples of this; ``auto`` avoids counts that are slow on CPUs.
        protect: globs over group and tensor names that are not tried.
        allow_inexact: also try channels that normalisation takes statistics over.
        seed: of every random choice.
        input_shapes: concrete shapes by input name for symbolic axes; sensible sizes are tried otherwise.
        cache: folder where every result is kept, so that a run goes on where an earlier one stopped.
        jobs: processes that run trials, each with threads of its own; 0 for one per core.
        scheduler: address of a Dask scheduler, whose workers run them instead, as ``tcp://HOST:PORT``.
        batch: samples of one run, where the model's first axis is symbolic.
        memory_limit: bytes that scores from data may keep at once, beside the model and the data.
        threads: of ONNX Runtime; 0 for one per core.
        time_limit: seconds of trials after which those that are left are left out, which the report lists;
            every group has one trial before any has two. None for no limit. With a cache, another run goes
            on from there.
        progress: called after every trial with the share that is done, in (0, 1].

    Raises:
        UsageError: options that make no sense, alone or together.
        NothingToPrune: there is no group to try; ``reasons`` says why.
        ModelError: the model can't be read, or ONNX Runtime refuses it.
        DataError: the data is damaged, or does not fit the model.
        RuntimeFailure: ONNX Runtime can't run the model.
        OutputError: the cache can't be written.
    """
    check_amounts(amounts)
    if pattern == DEAD:
        raise UsageError(f"pattern {DEAD!r} costs nothing: there is nothing to measure")
    if pattern == "layers":
        raise UsageError("branches are not measured one by one: prune --pattern layers shows their scores")
    running = running_of(batch, memory_limit, threads, jobs, scheduler)
    setting = trial_setting(cache, running, metric, output, time_limit)
    path, given = (None, model) if isinstance(model, ir.Model) else (Path(model), load(model))
    admit(given)
    samples = samples_of(data, given, seed, input_shapes)
    if samples is None:
        raise UsageError("sensitivity is measured on samples: give data")
    watch = Watch(progress=progress, running=running)
    recipe = {
        "pattern": pattern, "score": score, "scope": "uniform", "align": align, "protect": list(protect),
        "allow_inexact": allow_inexact, "input_shapes": input_shapes, "floor": 0.0,
        "before": None if before is None else str(before),
    }  # fmt: skip
    try_all = _try_channels if pattern in STRUCTURED else _try_tensors
    tried = try_all(_Job(given, path, recipe, sorted(set(amounts)), samples, setting, seed, watch))
    measured = tried.measured
    notes = (*notes_on_labels(score, samples), *unused_samples(given, samples))
    skipped = (*tried.skipped, *measured.skipped, *notes)
    if not measured.curves:
        reasons = [f"{entry.name}: {entry.reason}" for entry in skipped]
        first = f" ({reasons[0]})" if reasons else ""
        raise NothingToPrune(f"there is no group to try by pattern {pattern!r}{first}", reasons)
    report = sensitivity_report(
        curve_rows(measured),
        tried.kinds,
        metric=measured.whole.metric,
        whole={"loss": measured.whole.loss, "top1_share": measured.whole.top1},
        amounts=tried.amounts,
        setting={
            "pattern": pattern,
            "score": score,
            "samples": len(samples),
            "data_digest": samples.digest,
            "trials": len(measured.trials),
            "from_cache": sum(outcome.cached for _, outcome in measured.trials),
        },
    )
    title = f"sensitivity of {path or 'the model'}, {pattern}"
    return Sensitivity(
        measured.curves, replace(report, title=title, skipped=skipped, seconds=dict(watch.seconds))
    )


@dataclass(frozen=True, slots=True)
class _Job:
    """What is to be measured, and how."""

    model: ir.Model
    path: Path | None
    recipe: Mapping[str, Any]
    amounts: Sequence[float]
    data: Dataset
    setting: Setting
    seed: int
    watch: Watch


@dataclass(frozen=True, slots=True)
class _Tried:
    """What was measured: of what kind each group is, at which amounts, and what was not tried and why."""

    measured: Measured
    kinds: Mapping[str, str]
    amounts: Sequence[float]
    skipped: Sequence[Skipped]


def _try_channels(job: _Job) -> _Tried:
    recipe, watch = job.recipe, job.watch
    check_score(recipe["score"], job.data, recipe["before"])
    with watch.stage("analyze"):
        analysis = analyze_for(recipe, job.model)
        sums = Sums(analysis.model.graph, analysis.channels)
    with watch.stage("score"):
        candidates = candidates_of(
            recipe, analysis, sums, score_groups(recipe, analysis, job.data, job.seed, watch)
        )
    with watch.stage("trials"):
        measured = measure_channels(
            candidates, job.amounts, job.data, job.setting, path=job.path, progress=watch.progress
        )
    reasons = [(group, reason_to_skip(group, candidates.options)) for group in candidates.groups]
    tried = {trial.subject for trial, _ in measured.trials} | {entry.name for entry in measured.skipped}
    skipped = [Skipped(group.name, reason) for group, reason in reasons if reason is not None]
    skipped += [
        Skipped(group.name, f"its {group.size} channels can't become fewer at these amounts")
        for group, reason in reasons
        if reason is None and group.name not in tried
    ]
    names = {n for group in analysis.groups for n in (group.name, *(m.tensor for m in group.members))}
    skipped += [*analysis.unknown, *unmatched(recipe, names)]
    return _Tried(measured, {group.name: group.kind for group in candidates.groups}, job.amounts, skipped)


def _try_tensors(job: _Job) -> _Tried:
    recipe, watch = job.recipe, job.watch
    pattern = parse_pattern(recipe["pattern"])
    runs = pattern.kind == "N:M"
    amounts = [1 - pattern.keep / pattern.run] if runs else list(job.amounts)
    check_weight_score(recipe["score"], recipe["before"])
    skipped: list[Skipped] = []
    with watch.stage("find weights"):
        uses, unreachable = find_weights(job.model)
    with watch.stage("score"):
        ranking = rank_weights(job.model, uses, recipe, job.data, job.seed, watch.running)

    def masks_at(amount: float) -> Mapping[str, Mask]:
        wish = {**recipe, "amount": None if runs else amount}
        found = masks_for(job.model, uses, wish, job.data, job.seed, ranking=ranking, running=watch.running)
        if amount == max(amounts):
            skipped.extend(found.skipped)
        return found.masks

    with watch.stage("trials"):
        measured = measure_masks(
            job.model, masks_at, amounts, job.data, job.setting, path=job.path, progress=watch.progress
        )
    names = {name for use in uses for name in (use.tensor, use.consumer)}
    skipped += [*unreachable, *unmatched(recipe, names)]
    kinds = {use.tensor: use.op_type for use in uses}
    return _Tried(measured, kinds, amounts, skipped)
