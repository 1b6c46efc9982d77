"""A model, this machine, perhaps data -> what to do, with what gain, and why."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune import machine
from onnxprune.advice.accuracy import LEAST_SAMPLES, Accuracy, divided, judge
from onnxprune.advice.actions import Action, Words, actions_of
from onnxprune.advice.candidates import FOLD, Candidate, Made, Subject, structured, zeros
from onnxprune.advice.grid import grid_of, off_grid, stuck_off_grid
from onnxprune.advice.layers import Layer, Work, amdahl, layers_of, left_of, undisturbed
from onnxprune.advice.machine import Machine, measure_machine
from onnxprune.advice.repaired import repaired
from onnxprune.advice.sharing import Samples, try_elsewhere
from onnxprune.advice.sparse_cores import compute_capability, sparse_layers
from onnxprune.advice.summary import capability_note, report_of
from onnxprune.advice.trials import Clock, Compared, Trial, run_trial
from onnxprune.advice.verdict import Where, verdict_of, where
from onnxprune.calibration.activations import feeds_by_batch
from onnxprune.calibration.noise import notes_on_noise
from onnxprune.data import DataReader, Dataset
from onnxprune.errors import ModelError, OnnxPruneError, RuntimeFailure, UsageError
from onnxprune.measure.fitting import metric_for
from onnxprune.measure.inputs import random_inputs
from onnxprune.measure.intervals import Estimate
from onnxprune.measure.latency import LatencyResult, benchmark, decide, quick_ratio
from onnxprune.measure.turns import LEAST_PAIRS, MOST_PAIRS
from onnxprune.messages import visible
from onnxprune.model.io import load, save
from onnxprune.model.size import tensor_bytes
from onnxprune.ops.kept import Kept
from onnxprune.quantization.forms import in_int8
from onnxprune.quantization.layers import find_layers, is_quantized
from onnxprune.quantization.preparing import prepared
from onnxprune.runtime import Execution, Kernel, Session, admit, open_session, time_kernels
from onnxprune.runtime.execution import DEFAULT
from onnxprune.types import Report, Skipped
from onnxprune.wishes import samples_of
from onnxprune.workers import ALONE, Workers

Feeds = Mapping[str, npt.NDArray[Any]]

#: Samples that ranges of activations are taken from.
_CALIBRATION_RUNS = 16
_RANDOM_RUNS = 2

#: Of what is left of the time, what quantizing may take.
_INT8_SHARE = 0.4

#: Samples that are repaired on, and others that are judged: at most, and what running them once may take of
#: the whole time.
_MOST_MENDED = 256
_MOST_JUDGED = 4096
_JUDGE_SHARE = 0.02

#: Runs from this time on are slow: candidates share the control, and the session of the original.
_SLOW_MS = 30.0

#: What is not clear is timed again with so many times the pairs, if the time is enough for so many of that.
_MORE = 4
_PATIENCE = 3

#: Runs under the profiler, and as often again without, before it and after it.
_PROFILE_SECONDS = 1.0
_WALL_SECONDS = 0.25

_CPU = "CPUExecutionProvider"


@dataclass(frozen=True, slots=True)
class Advice:
    """What `advise` says.

    Attributes:
        verdict: one or two sentences.
        actions: what to do, best first, and then what was tried and is not worth it.
        layers: what was timed by layer, in the order in which they run.
        where: what the time is spent on; None where it could not be told.
        report: all of it as tables, with what else was found.
    """

    verdict: str
    actions: tuple[Action, ...]
    layers: tuple[Layer, ...]
    where: Where | None
    report: Report


def advise(
    model: ir.Model | str | Path,
    *,
    data: Dataset | DataReader | str | Path | None = None,
    metric: str | None = None,
    execution: Execution = DEFAULT,
    batch: int | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    time_limit: float = 120.0,
    seed: int = 0,
    jobs: int = 1,
    scheduler: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Advice:
    """Find out where the time of a model goes on this machine, and what would make it faster.

    Candidates are made in memory and timed against the original, in turns: fewer channels, heads, experts,
    residual layers, INT8, zeros. Nothing is written but temporary files.

    Args:
        model: a file, or from `onnxprune.load`; not changed.
        data: samples: candidates are repaired and calibrated on one half, and judged on the other.
        metric: what they are judged by, as `onnxprune.validate` has it; by default what fits the data.
        execution: where and how it runs. Only one thread gives sharp figures on a shared machine.
        batch: size of the first axis where that is symbolic; 1 by default.
        input_shapes: concrete shapes by input name for symbolic axes; sensible sizes are tried otherwise.
        time_limit: seconds after which no new measurement begins; what is then missing is listed.
        seed: of everything random.
        jobs: processes that make, repair and judge candidates; 0 for one per core. Time is measured by one of
            them at a time.
        scheduler: address of a Dask scheduler, whose workers do it instead, as ``tcp://HOST:PORT``: those on
            machines with this one's processor.
        progress: is told what is being done.

    Raises:
        UsageError: options that make no sense.
        ModelError, RuntimeFailure: the model can't be read or run.
        DataError: the data is damaged, or does not fit the model.
    """
    if not time_limit > 0:
        raise UsageError(f"time_limit is a number of seconds above 0, not {time_limit}")
    workers = Workers(jobs, scheduler)
    given = model if isinstance(model, ir.Model) else load(model)
    name = "MODEL.onnx" if isinstance(model, ir.Model) else str(model)
    _check_memory(given, name)
    admit(given)
    samples = samples_of(data, given, seed, input_shapes)
    if samples is None:
        feeds: Feeds = random_inputs(given, batch=batch, input_shapes=input_shapes, seed=seed)
    else:
        feeds = next(inputs for _, inputs in feeds_by_batch(given, samples, batch=batch or 1))
    told = progress or (lambda _: None)
    work = _Work(given, name, execution, feeds, Clock(time_limit), seed, told)
    work.look(input_shapes)
    trials, accuracies = work.try_all(samples, None if samples is None else metric, workers, input_shapes)
    return work.advice(trials, accuracies, data if isinstance(data, (str, Path)) else None, samples)


def _check_memory(model: ir.Model, name: str) -> None:
    """Refuse a model that can't be held, and so not be timed, before all of it is read.

    Raises:
        RuntimeFailure: it is larger than this machine's memory.
    """
    needed, there = tensor_bytes(model), machine.memory_bytes()
    if there is not None and needed > there:
        raise RuntimeFailure(
            f"{visible(name)}: its weights take {needed} bytes, and this machine has {there} of memory: it "
            "can't be timed here; use a larger machine"
        )


@dataclass(slots=True)
class _Work:
    """One run of `advise`."""

    model: ir.Model
    name: str
    execution: Execution
    feeds: Feeds
    clock: Clock
    seed: int
    told: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    layers: tuple[Layer, ...] = ()
    machine: Machine | None = None
    found: Where | None = None
    wall_ms: float = 0.0
    folded_ms: float = 0.0
    open_seconds: float = 0.0
    session: Session | None = None
    control: Estimate | None = None
    subject: Subject = field(init=False)
    work: Work = field(init=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a stage, and say what is being done."""
        self.told(name)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def look(self, input_shapes: Mapping[str, tuple[int, ...]] | None) -> None:
        """Analyse the model, and time it whole and by layer."""
        with self.stage("analyze"):
            self.subject = Subject(self.model, input_shapes, self.seed)
            shapes = {name: tuple(array.shape) for name, array in self.feeds.items()}
            self.work = Work(self.subject.analysis, shapes)
        with self.stage("time the model"):
            started = time.perf_counter()
            session = self.session = self.open(self.model, self.name)
            self.open_seconds = time.perf_counter() - started
            walls = self.run_ms(session)
            self.wall_ms = undisturbed(walls)
            folded = self.open(self.subject.analysis.model, self.name) if self.subject.folds else None
        if self.clock.left_seconds <= 0:
            self.folded_ms = self.wall_ms
            self.skipped.append(Skipped("layers", "not timed: the time is over"))
            return
        if self.execution.provider == "cpu":
            with self.stage("time the machine"):
                self.machine = measure_machine(lambda model: self.open(model, "a test model").run)
        with self.stage("time its layers"):
            kernels = self._kernels()
            self.wall_ms = undisturbed([*walls, *self.run_ms(session)])
            self.folded_ms = self.wall_ms if folded is None else undisturbed(self.run_ms(folded))
            self._lay_out(kernels)

    def _kernels(self) -> tuple[Kernel, ...]:
        runs = int(np.clip(_PROFILE_SECONDS * 1e3 / max(self.wall_ms, 1e-3), 5, 50))
        try:
            return time_kernels(self.subject.analysis.model, self.feeds, self.execution, runs=runs)
        except OnnxPruneError as error:
            self.skipped.append(Skipped("layers", f"their times could not be had: {error}"))
            return ()

    def _lay_out(self, kernels: Sequence[Kernel]) -> None:
        """Tell layers apart, and where the time goes."""
        if not kernels:
            return
        smallest = self.subject.smallest()
        self.layers = layers_of(kernels, self.subject.analysis, self.work, smallest, self.machine)
        least = self._left(smallest)
        self.found = where(self.layers, self.wall_ms, self.folded_ms, least)

    def _left(self, kept: Kept | None, gone: Set[str] = frozenset()) -> float:
        """Return what Amdahl's law leaves of the time of the model as it is."""
        shares = left_of(self.layers, self.work, kept, gone)
        left = amdahl(self.layers, shares, 1e3 * self.folded_ms)
        return left * min(1.0, self.folded_ms / max(self.wall_ms, 1e-9))

    def try_all(
        self,
        samples: Dataset | None,
        metric: str | None,
        workers: Workers,
        input_shapes: Mapping[str, tuple[int, ...]] | None,
    ) -> tuple[list[Trial], dict[str, Accuracy | str]]:
        """Make and time all candidates, and judge those that are worth it."""
        mending = judging = None
        if samples is not None and len(samples) < LEAST_SAMPLES:
            why = f"{len(samples)} samples are too few to repair on some and judge on others"
            self.skipped.append(Skipped("accuracy", f"not judged: {why}; give at least {LEAST_SAMPLES}"))
        elif samples is not None:
            runs = _JUDGE_SHARE * self.clock.limit_seconds * 1e3 / max(self.wall_ms, 1e-3)
            mending, judging = divided(samples, int(min(runs, _MOST_MENDED)), int(min(runs, _MOST_JUDGED)))
        if judging is not None:
            metric = metric or metric_for(judging, self.model, self.model)
        with tempfile.TemporaryDirectory(prefix="onnxprune-advise-") as folder, self.stage("time candidates"):
            candidates = self.candidates(Path(folder), mending)
            if workers == ALONE:
                tried = [self.try_one(candidate, judging, metric) for candidate in candidates]
            else:
                seen = _Seen(
                    self.layers, self.wall_ms, self.folded_ms, self.open_seconds, self.clock.left_seconds
                )
                told = (self.name, self.execution, self.feeds, self.seed, input_shapes, metric, seen)
                both = Samples(mending, judging)
                tried = try_elsewhere(candidates, self.model, both, _tries, told, workers, self.told)
        trials = [trial for trial, _ in tried]
        return trials, {t.candidate.name: accuracy for t, accuracy in tried if accuracy is not None}

    def try_one(
        self, candidate: Candidate, judging: Dataset | None, metric: str | None
    ) -> tuple[Trial, Accuracy | str | None]:
        """Make and time a candidate, and judge it if that is worth it."""
        trial, made = run_trial(
            candidate,
            self.compare,
            self.bound_of,
            self.clock,
            needed_seconds=self._needed_seconds,
            progress=lambda name: self.told(f"trying: {name}"),
        )
        if made is None or judging is None or metric is None or not _is_judged(trial):
            return trial, None
        if self.clock.left_seconds <= 0:
            return trial, "not judged: the time is over"
        return trial, judge(made, self.model, judging, metric, self.execution.threads)

    def candidates(self, folder: Path, mending: Dataset | None) -> list[Candidate]:
        """Return what is tried, which may need a folder for files."""
        grid = grid_of(self.execution.provider)
        analysis = self.subject.analysis
        self.skipped += [
            Skipped(name, f"its {size} channels are no multiple of {grid}, and stay: {reason}")
            for name, size, reason in stuck_off_grid(analysis, grid)
        ]
        found = structured(self.subject, off_grid(analysis, grid), grid)
        if mending is not None:
            found = repaired(self.model, found, mending, self.clock, self.execution.threads, self.seed)
        if not is_quantized(self.model):
            found.insert(
                2, Candidate("quantize to INT8", "int8", None, {}, lambda: self.int8(folder, mending), False)
            )
        return [*found, zeros(self.subject)]

    def int8(self, folder: Path, mending: Dataset | None) -> Made:
        """Quantize the model."""
        if mending is None:
            runs: list[Feeds] = [self.feeds] * _RANDOM_RUNS
        else:
            taken = feeds_by_batch(self.model, mending, batch=1)
            runs = [inputs for _, (_, inputs) in zip(range(_CALIBRATION_RUNS), taken, strict=False)]
        out = folder / "int8.onnx"
        work = prepared(self.model)
        layers, _ = find_layers(work)
        if not layers:
            raise RuntimeFailure("no layer of the model can be quantized")
        time_limit = _INT8_SHARE * self.clock.left_seconds
        made = in_int8(work, [layer.name for layer in layers], runs, timeout_seconds=time_limit)
        save(made, out)
        try:
            self.open(out, "the quantized model")
        except (ModelError, RuntimeFailure):
            raise RuntimeFailure("ONNX Runtime can't open what its own quantization made of it") from None
        size = sum(file.stat().st_size for file in folder.glob("int8.onnx*"))
        return Made(out, size / max(tensor_bytes(self.model), 1))

    @property
    def _needed_seconds(self) -> float:
        """Return what a comparison takes, about."""
        sessions, opened = (2, 1) if self._is_slow else (3, 3)
        return opened * self.open_seconds + sessions * self.wall_ms / 1e3 * (LEAST_PAIRS + 4)

    @property
    def _is_slow(self) -> bool:
        return self.wall_ms >= _SLOW_MS and self.execution.threads == 1

    def compare(self, made: Made) -> Compared:
        """Time a model against the original; longer, if that is not clear and there is time.

        Where runs are long, the original stays open, and its control is measured once.
        """
        if self._is_slow and self.session is not None:
            if self.control is None:
                self.control, *_ = quick_ratio(self.session, self.model, self.feeds, self.execution)
            ratio, *_ = quick_ratio(self.session, made.model, self.feeds, self.execution)
            return Compared(ratio, self.control, decide(ratio, self.control))
        started = time.perf_counter()
        found = self._benchmark(made, LEAST_PAIRS)
        took = time.perf_counter() - started
        if found.verdict == "inconclusive" and self.clock.left_seconds > _MORE * _PATIENCE * took:
            found = self._benchmark(made, _MORE * found.pairs)
        if found.ratio is None or found.verdict is None:
            raise ValueError("two models were compared, and nothing came of it")
        return Compared(found.ratio, found.control, found.verdict)

    def _benchmark(self, made: Made, pairs: int) -> LatencyResult:
        return benchmark(
            self.model, made.model, execution=self.execution, pairs=min(pairs, MOST_PAIRS), seed=self.seed,
            feeds=self.feeds,
        )  # fmt: skip

    def bound_of(self, made: Made) -> float | None:
        """Return the least share of the time that a model can take."""
        if not self.layers or (made.kept is None and not made.gone):
            return None
        return self._left(made.kept, made.gone)

    def run_ms(self, session: Session) -> list[float]:
        """Time runs of an open model."""
        return _run_ms(session, self.feeds, self.execution.threads)

    def open(self, model: ir.Model | Path, label: str) -> Session:
        """Open a model as all of them are opened here."""
        return open_session(model, execution=self.execution, label=label)

    def advice(
        self,
        trials: Sequence[Trial],
        accuracies: Mapping[str, Accuracy | str],
        source: str | Path | None,
        samples: Dataset | None,
    ) -> Advice:
        """Put together what was found."""
        words = Words(self.name, None if samples is None else str(source or "DATA.npz"))
        folded = min(1.0, self.folded_ms / max(self.wall_ms, 1e-9)) if self.found is not None else 1.0
        actions = actions_of(trials, accuracies, words, folded)
        groups = self.subject.analysis.groups
        frozen = [group.frozen for group in groups if group.frozen is not None]
        stays = frozen if len(frozen) == len(groups) else []
        noises = [trial.noise for trial in trials if trial.ratio is not None]
        verdict = verdict_of(actions, self.found, stays, float(np.median(noises)) if noises else 0.0)
        sparse, not_followed = sparse_layers(self.model)
        setting = {
            **asdict(self.execution), "options": dict(self.execution.options),
            "cores": os.cpu_count(),
            "input_shapes": {name: list(array.shape) for name, array in self.feeds.items()},
            "sparse_tensor_cores": capability_note(compute_capability()),
        }  # fmt: skip
        report = report_of(
            f"advise {self.name}", verdict, actions, self.found, self.layers, self.machine, sparse, setting,
            [*self.skipped, *notes_on_noise(samples), *not_followed, *self.subject.analysis.unknown],
            self.seconds,
        )  # fmt: skip
        return Advice(verdict, actions, self.layers, self.found, report)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was found out about the model before candidates are tried.

    Attributes:
        layers: what was timed.
        wall_ms: of the model.
        folded_ms: of the model with constants folded.
        open_seconds: what opening it takes.
        left_seconds: what is left of the time.
    """

    layers: tuple[Layer, ...]
    wall_ms: float
    folded_ms: float
    open_seconds: float
    left_seconds: float


class _Tries:
    """What tries candidates in a worker: the same work, as far as it is known."""

    def __init__(self, work: _Work, samples: Samples, folder: Path, metric: str | None) -> None:
        self._work, self._judging, self._metric = work, samples.judging, metric
        self._candidates = work.candidates(folder, samples.mending)

    def try_one(self, number: int) -> tuple[Trial, Accuracy | str | None]:
        """Make, time and judge a candidate."""
        return self._work.try_one(self._candidates[number], self._judging, self._metric)


def _tries(
    model: ir.Model,
    samples: Samples,
    folder: Path,
    name: str,
    execution: Execution,
    feeds: Feeds,
    seed: int,
    input_shapes: Mapping[str, tuple[int, ...]] | None,
    metric: str | None,
    seen: _Seen,
) -> _Tries:
    work = _Work(model, name, execution, feeds, Clock(seen.left_seconds), seed, lambda _: None)
    work.subject = Subject(model, input_shapes, seed)
    work.work = Work(work.subject.analysis, {key: tuple(array.shape) for key, array in feeds.items()})
    work.layers, work.wall_ms, work.folded_ms = seen.layers, seen.wall_ms, seen.folded_ms
    work.open_seconds, work.session = seen.open_seconds, work.open(model, name)
    return _Tries(work, samples, folder, metric)


def _run_ms(session: Session, feeds: Feeds, threads: int) -> list[float]:
    """Return the milliseconds of runs for a quarter of a second, at least five, after three to warm up.

    With one thread it is the time of the processor, which waits for nobody: on a shared machine, runs are so
    long that most of them are interrupted, and kernels so short that most of them are not.
    """
    clock = time.thread_time if threads == 1 and session.providers[0] == _CPU else time.perf_counter
    run = session.runner(feeds)
    for _ in range(3):
        run()
    times: list[float] = []
    end = time.perf_counter() + _WALL_SECONDS
    while len(times) < 5 or time.perf_counter() < end:
        started = clock()
        run()
        times.append(1e3 * (clock() - started))
    return times


def _is_judged(trial: Trial) -> bool:
    """Tell whether what a candidate costs is worth knowing."""
    pointless = trial.verdict in ("slower", "no difference") or trial.candidate.pattern in ("2:4", FOLD)
    return not pointless
