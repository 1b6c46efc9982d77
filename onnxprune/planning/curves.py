"""Trials -> curves: what each group alone costs at several amounts, from one run over all of them.

The list of trials is fixed before the first of them is run: identical ones once, in the order of the graph
and of what goes. The outputs of the original are computed once, and shared. What an earlier run found is
taken from its cache.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.calibration.activations import USUAL, Running, feeds_by_batch
from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.model.digest import structure_digest, weights_digest
from onnxprune.planning.workbench import Maker, Question, Workbench, judge_original, rebuild, stored
from onnxprune.registry import did_you_mean
from onnxprune.runtime import open_session
from onnxprune.sensitivity.cache import Cache
from onnxprune.sensitivity.losses import LOSSES, choose_loss
from onnxprune.sensitivity.references import record
from onnxprune.sensitivity.trials import WHOLE, Outcome, Trial
from onnxprune.types import Curve, Skipped
from onnxprune.workers import Died, Job, Workers, hire
from onnxprune.workers.models import model_as_files

#: Shares that are removed from each group, where nothing else is asked for.
AMOUNTS = (0.1, 0.25, 0.5, 0.75, 0.9)

#: Grows when outcomes change their meaning.
_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Setting:
    """How trials are run.

    Attributes:
        metric: the loss; None for what the labels allow, or the divergence without labels.
        output: the only output to look at; None for all.
        cache: folder for what was found; None for none.
        running: batches and threads of every model, and who runs them.
        time_limit: seconds after which no result of a trial is waited for; None for no limit.
    """

    metric: str | None = None
    output: str | None = None
    cache: Path | None = None
    running: Running = USUAL
    time_limit: float | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """The model that trials are made from.

    Attributes:
        given: as it was given.
        maker: what makes the models of trials.
        analysis_options: with which another process finds the same groups; None if masks are tried.
        path: its file, if it is known.
    """

    given: ir.Model
    maker: Maker
    analysis_options: Mapping[str, Any] | None
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What all trials found.

    Attributes:
        whole: the loss of the model as it is.
        trials: those that were run (all, without a time limit) and what they found, in the plan's order.
        skipped: what was left out of the measurement, with reasons.
    """

    whole: Outcome
    trials: tuple[tuple[Trial, Outcome], ...]
    skipped: tuple[Skipped, ...]

    @property
    def curves(self) -> dict[str, Curve]:
        """By group: how the loss grows with what goes; groups of which every trial failed are absent."""
        if self.whole.loss is None:
            return {}
        points: dict[str, list[tuple[int, float]]] = {}
        sizes = {trial.subject: trial.size for trial, _ in self.trials}
        for trial, outcome in self.trials:
            if outcome.loss is not None:
                points.setdefault(trial.subject, [(0, 0.0)])
                points[trial.subject].append((trial.removed, outcome.loss - self.whole.loss))
        return {
            name: Curve(
                name, sizes[name], np.array([p[0] for p in its], np.int64), np.array([p[1] for p in its])
            )
            for name, its in points.items()
        }


def curve_rows(measured: Measured) -> list[dict[str, Any]]:
    """Return a row for a report for each trial: what went, what the loss then was, and how much it grew."""
    whole = measured.whole.loss or 0.0
    return [
        {
            "group": trial.subject,
            "size": trial.size,
            "removed": trial.removed,
            "removed_share": trial.removed / max(1, trial.size),
            measured.whole.metric: outcome.loss,
            "increase": None if outcome.loss is None else outcome.loss - whole,
            "top1_share": outcome.top1,
        }
        for trial, outcome in measured.trials
    ]


def trial_setting(
    cache: str | Path | None,
    running: Running,
    metric: str | None = None,
    output: str | None = None,
    time_limit: float | None = None,
) -> Setting:
    """Return how trials are run, as users say it.

    Raises:
        UsageError: an unknown metric, or no time.
    """
    if time_limit is not None and not time_limit > 0:
        raise UsageError(f"time_limit is a number of seconds above 0, not {time_limit}")
    if metric is not None and metric not in LOSSES:
        hint = did_you_mean(metric, LOSSES)
        raise UsageError(f"unknown metric {metric!r}{hint}; known: {', '.join(LOSSES)}")
    return Setting(metric, output, None if cache is None else Path(cache), running, time_limit)


def check_amounts(amounts: Sequence[float]) -> None:
    """Refuse amounts out of range, or none.

    Raises:
        UsageError: see above.
    """
    if not amounts or not all(0 < amount < 1 for amount in amounts):
        raise UsageError(f"amounts are shares to remove, each between 0 and 1, not {list(amounts)}")


def run_trials(
    source: Source,
    trials: Sequence[Trial],
    data: Dataset,
    setting: Setting,
    progress: Callable[[float], None] | None = None,
) -> Measured:
    """Run all trials, but for those that the cache knows, and those that a time limit leaves out.

    Args:
        source: the model.
        trials: what is removed, one thing at a time, in the order that results come in.
        data: samples, with labels or without.
        setting: how they are run.
        progress: called after every trial with the share that is done, in (0, 1].

    Raises:
        UsageError: an unknown metric or output.
        DataError: the data does not fit the model or lacks what the metric needs, or outputs are not finite.
        RuntimeFailure: ONNX Runtime can't run the original.
        OutputError: the cache can't be written.
    """
    cache = None if setting.cache is None else Cache(setting.cache)
    keys: list[str] = []
    found: dict[int, Outcome] = {}
    plan = [WHOLE, *trials]
    if cache is not None:
        text = _describe(source, data, setting)
        keys = [trial.key(text) for trial in plan]
        known = {number: cache.find(key) for number, key in enumerate(keys)}
        found = {number: outcome for number, outcome in known.items() if outcome is not None}
    notes = [] if cache is None else [_damaged(path) for path in cache.damaged]

    def keep(number: int, outcome: Outcome) -> None:
        found[number] = outcome
        if cache is not None:
            trial = plan[number]
            cache.store(keys[number], outcome, {"subject": trial.subject, "removed": trial.removed})

    left = [number for number in range(1, len(plan)) if number not in found]
    stop = math.inf
    if setting.time_limit is not None:
        stop = time.monotonic() + setting.time_limit
        left = _one_of_each_first(left, plan)
    if left or 0 not in found:
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            question, unfit = _ask(source, data, setting, Path(folder))
            notes += unfit
            keep(0, judge_original(question))
            missing = [plan[number] for number in left]
            with closing(_run(source, missing, question, setting.running.workers, Path(folder))) as results:
                for done, (place, outcome) in enumerate(results, start=1):
                    keep(left[place], outcome)
                    if progress is not None:
                        progress(done / len(left))
                    if time.monotonic() >= stop:
                        break
    pairs = [(plan[number], found[number]) for number in range(1, len(plan)) if number in found]
    missed = [plan[number] for number in range(1, len(plan)) if number not in found]
    return Measured(found[0], tuple(pairs), (*notes, *_failed(pairs), *_missed(missed, setting)))


def _one_of_each_first(left: Sequence[int], plan: Sequence[Trial]) -> list[int]:
    """Return the numbers of trials in an order in which every subject has its turn before one has two.

    So that, when the time is over, as many subjects as possible were tried.
    """
    turns: Counter[str] = Counter()
    keyed = []
    for number in left:
        keyed.append((turns[plan[number].subject], number))
        turns[plan[number].subject] += 1
    return [number for _, number in sorted(keyed)]


def _describe(source: Source, data: Dataset, setting: Setting) -> str:
    """Return all that an outcome depends on, but for what goes."""
    versions = [metadata.version(name) for name in ("onnxprune", "onnxruntime", "numpy")]
    model = (structure_digest(source.given), weights_digest(source.given))
    options = None if source.analysis_options is None else sorted(source.analysis_options.items(), key=str)
    asked = (setting.metric, setting.output, setting.running.batch)
    return repr((_SCHEMA, versions, model, options, data.digest, *asked))


def _ask(source: Source, data: Dataset, setting: Setting, folder: Path) -> tuple[Question, list[Skipped]]:
    """Run the original, and decide what is measured."""
    model = source.maker.model
    outputs = folder / "outputs"
    outputs.mkdir()
    running = setting.running
    feeds = feeds_by_batch(source.given, data, batch=running.batch)  # checks the data, before a session
    references, unfit = record(
        open_session(model, threads=running.threads), feeds, outputs, data.source, setting.output
    )
    loss = choose_loss(setting.metric, data.labels, references, data.source)
    return Question(data, loss, references, running), unfit


def _run(
    source: Source, trials: Sequence[Trial], question: Question, workers: Workers, folder: Path
) -> Generator[tuple[int, Outcome], None, None]:
    job = _job(source, question, folder, away=workers.scheduler is not None or workers.count(len(trials)) > 1)
    with hire(workers, job, len(trials)) as crew:
        for number, outcome in crew.run(trials):
            if isinstance(outcome, Died):
                failure = "its process died twice; it may need more memory than there is"
                yield number, Outcome(question.loss.name, None, failure=failure)
            else:
                yield number, outcome


def _job(source: Source, question: Question, folder: Path, *, away: bool) -> Job[Trial, Outcome]:
    """Return what workers are told; what other processes need lies in a folder then."""

    def here() -> Workbench:
        return Workbench(source.maker, question)

    if not away:
        return Job(rebuild, (), here)
    files, name = model_as_files(source.given, source.path, folder / "model")
    samples, outputs, asked = stored(question, folder / "samples")
    return Job(rebuild, (files, name, source.analysis_options, samples, outputs, asked), here)


def _damaged(path: str) -> Skipped:
    return Skipped(path, "this entry of the cache is damaged: it was ignored, and measured again")


def _failed(found: Sequence[tuple[Trial, Outcome]]) -> list[Skipped]:
    return [
        Skipped(trial.subject, f"without {trial.removed} of {trial.size}: {outcome.failure}")
        for trial, outcome in found
        if outcome.failure is not None
    ]


def _missed(trials: Sequence[Trial], setting: Setting) -> list[Skipped]:
    counts = Counter(trial.subject for trial in trials)
    return [
        Skipped(subject, f"{count} of its trials left out: the {setting.time_limit:g} s were over")
        for subject, count in counts.items()
    ]
