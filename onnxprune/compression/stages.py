"""What each kind of stage does: a model file in, a verified model file out, and a report of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune.allocate.options import SENSITIVITY
from onnxprune.calibration.noise import is_noise
from onnxprune.compression.folder import Work
from onnxprune.compression.told import Told
from onnxprune.data import Dataset, load_data
from onnxprune.errors import NothingToPrune, UsageError
from onnxprune.finetuning import finetune, save_finetuned
from onnxprune.gradual_pipeline import prune_gradually
from onnxprune.machine import graphics, processor
from onnxprune.measure.metrics import Metric, find_metric
from onnxprune.model.digest import files_digest, sha256_of
from onnxprune.model.io import load
from onnxprune.pipeline import prune, save_pruned
from onnxprune.plans import load_plan
from onnxprune.pruning import PruneResult
from onnxprune.quantizing.run import quantize, save_quantized
from onnxprune.recipe.order import leaves_zeros
from onnxprune.recipe.schema import (
    Apply,
    Finetune,
    GradualOptions,
    Prune,
    Quantize,
    Recipe,
    Stage,
    TuningOptions,
)
from onnxprune.repruning import apply_plan
from onnxprune.runtime import admitted
from onnxprune.scores.weights_by_gradient import GRADIENT_WEIGHT_SCORERS
from onnxprune.scores.weights_on_data import DATA_WEIGHT_SCORERS
from onnxprune.tuning import Tuning
from onnxprune.types import Report, Skipped

#: The names of what a stage writes into its folder.
MODEL_FILE, PLAN_FOLDER = "model.onnx", "plan"

#: Keys of a stage that say nothing about what it does.
_LABELS = {"kind", "name"}


@dataclass(slots=True)
class Job:
    """What all stages of a run share.

    Attributes:
        recipe: of the run.
        original: the file that the run began with.
        original_digest: hash of its bytes.
        cache: folder for measurements.
        told: who is told how it goes.
    """

    recipe: Recipe
    original: Path
    original_digest: str
    cache: Path
    told: Told
    _read: dict[str, Dataset] = field(default_factory=dict)

    def samples(self, source: str | None) -> Dataset | str | None:
        """Return the samples that a stage works on: its own, or those for calibration; noise by its name."""
        source = source or self.recipe.data.calibration
        return source if source is None or is_noise(source) else self.dataset(source)

    def dataset(self, source: str) -> Dataset:
        """Return samples that are read once in a run."""
        if source not in self._read:
            self._read[source] = load_data(source)
        return self._read[source]

    def share(self, done: float) -> None:
        """Pass on the share that is done."""
        self.told.progress(done, "")


@dataclass(frozen=True, slots=True)
class Start:
    """What a stage starts from.

    Attributes:
        model: the file.
        digest: hash of its bytes.
        zeros: folder of the plan of the last stage that left zeros, or None.
    """

    model: Path
    digest: str
    zeros: Path | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """One stage that is to be run.

    Attributes:
        job: of the run.
        options: of the stage, as the recipe says them.
        start: what it works on.
        work: where its files go.
        external_data, sparse_storage: how the file is stored; None for as it was.
    """

    job: Job
    options: Stage
    start: Start
    work: Work
    external_data: bool | None = None
    sparse_storage: bool | None = None

    @property
    def storage(self) -> dict[str, Any]:
        """How the file is written."""
        return {"external_data": self.external_data, "sparse_storage": self.sparse_storage}

    @property
    def output(self) -> Path:
        """The file that the stage writes."""
        return self.work.place / MODEL_FILE

    def load(self) -> ir.Model:
        """Return the model to work on; one that another stage wrote ran already, when it was verified."""
        model = load(self.start.model)
        return model if self.start.model == self.job.original else admitted(model)

    @property
    def running(self) -> dict[str, Any]:
        """How models are run on data."""
        run = self.job.recipe.run
        return {"batch": run.batch, "memory_limit": run.memory_limit, "threads": run.threads}


def depends_on(options: Stage, job: Job, start: Start) -> dict[str, Any]:
    """Return all that the result of a stage depends on, as plain JSON values."""
    run = job.recipe.run
    shared = {"seed": run.seed, "threads": run.threads, "batch": run.batch, "memory_limit": run.memory_limit,
              "input_shapes": run.input_shapes}  # fmt: skip
    found: dict[str, Any] = {
        "stage": options.model_dump(mode="json", exclude={"name"}), "run": shared, "model": start.digest
    }  # fmt: skip
    if options.kind != "cleanup":
        samples = job.samples(options.data)
        found["data"] = samples.digest if isinstance(samples, Dataset) else samples
    if isinstance(options, Prune):
        if options.target_latency is not None:
            timed = [run.provider, run.provider_options, run.latency_batch]
            found["machine"] = [processor(), graphics(), *timed]
        earlier = [options.before, None if options.tuning is None else options.tuning.rewind]
        found["earlier"] = [None if path is None else files_digest(path) for path in earlier]
    if isinstance(options, (Finetune, Quantize)):
        found["original"] = job.original_digest
    if isinstance(options, Quantize):
        found["metric"] = [job.recipe.data.metric, job.recipe.data.output, _allowed_drop(options, job)]
    tuned = options.tuning if isinstance(options, Prune) else options
    validation = tuned.validation if isinstance(tuned, TuningOptions) else None
    if isinstance(validation, str):
        found["validation"] = job.dataset(validation).digest
    if isinstance(options, Apply):
        found["plan"] = _digest_of_plan(Path(options.plan))
    if isinstance(options, Quantize) and options.form == "int8" and options.computing == "auto":
        found["machine"] = [processor(), graphics()]
    if isinstance(options, Quantize) and start.zeros is not None:
        found["zeros"] = _digest_of_plan(start.zeros)
    return found


def _digest_of_plan(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted(folder.glob("*")) if path.is_file()}


def run_stage(task: Task) -> Report:
    """Do what a stage says, and write its files; none where there was nothing to do.

    Raises:
        OnnxPruneError: whatever the command of that name would raise.
    """
    options = task.options
    if isinstance(options, Prune):
        return _prune(task, options)
    if isinstance(options, Apply):
        return _apply(task, options)
    if isinstance(options, Finetune):
        return _finetune(task, options)
    if isinstance(options, Quantize):
        return _quantize(task, options)
    return _cleanup(task)


def _cleanup(task: Task) -> Report:
    try:
        result = prune(task.load(), pattern="dead", input_shapes=task.job.recipe.run.input_shapes or None)
    except NothingToPrune as nothing:
        return _nothing_done(task, nothing)
    return _saved(task, result)


def _prune(task: Task, options: Prune) -> Report:
    job = task.job
    given = options_of_prune(options, job)
    try:
        if options.tuning is None:
            result = prune(task.load(), **given, progress=job.share)
        else:
            result = _prune_gradually(task, options.tuning, given)
    except NothingToPrune as nothing:
        if not options.optional:
            raise
        return _nothing_done(task, nothing)
    return _saved(task, result)


def options_of_prune(options: Prune, job: Job) -> dict[str, Any]:
    """Return what `onnxprune.prune` takes for a stage."""
    run = job.recipe.run
    uses_data = options.data is not None or options.tuning is not None or _uses_data(options)
    return {
        **options.model_dump(exclude={*_LABELS, "optional", "tuning", "data"}),
        "data": job.samples(options.data) if uses_data else None,
        "seed": run.seed, "input_shapes": run.input_shapes or None,
        "cache": job.cache, "jobs": run.jobs, "scheduler": run.scheduler,
        "latency_batch": run.latency_batch, "provider": run.provider,
        "provider_options": run.provider_options, "batch": run.batch, "memory_limit": run.memory_limit,
        "threads": run.threads,
    }  # fmt: skip


def _uses_data(options: Prune) -> bool:
    """Tell whether a stage has use for the samples that the recipe offers to all.

    Zeros that go by weights alone have none, and `onnxprune.prune` refuses samples that change nothing. Cuts
    are proved on them.
    """
    return (
        not leaves_zeros(options.pattern)
        or options.recover != "none"
        or options.score in {*DATA_WEIGHT_SCORERS, *GRADIENT_WEIGHT_SCORERS}
        or options.scope in (SENSITIVITY, "owl")
    )


def _prune_gradually(task: Task, tuning: GradualOptions, given: Mapping[str, Any]) -> PruneResult:
    checkpoint = task.work.checkpoint
    left = {
        name: value
        for name, value in given.items()
        if (name, value) not in (("recover", "none"), ("rounds", 1))
    }
    own = {name: getattr(tuning, name) for name in ("schedule", "initial", "frequency", "freeze")}
    own |= {"rounds": tuning.rounds} if "rounds" not in left else {}
    return prune_gradually(
        task.load(),
        settings=Tuning(**tuning.settings(), seed=task.job.recipe.run.seed),
        warm_up=tuning.pruning_warm_up,
        rewind=tuning.rewind,
        validation=tuning.validation,
        checkpoint=checkpoint,
        resume=checkpoint.exists(),
        told=lambda standing: task.job.told.progress(standing.share, str(standing)),
        **own,
        **left,
    )


def _apply(task: Task, options: Apply) -> Report:
    result = apply_plan(
        task.load(),
        load_plan(options.plan),
        data=task.job.samples(options.data),
        recover=options.recover,
        refresh=options.refresh,
        reallocate=options.reallocate,
        max_drift=options.max_drift,
        progress=task.job.share,
        **task.running,
    )
    return _saved(task, result)


def _finetune(task: Task, options: Finetune) -> Report:
    job = task.job
    samples = job.samples(options.data)
    if samples is None:
        raise UsageError("stage finetune needs samples: give data.calibration")
    checkpoint = task.work.checkpoint
    result = finetune(
        task.start.model,
        data=samples,
        settings=Tuning(**options.settings(), seed=job.recipe.run.seed),
        teacher=job.original if options.teacher == "original" else None,
        validation=options.validation,
        hold=options.hold,
        checkpoint=checkpoint,
        resume=checkpoint.exists(),
        progress=lambda standing: job.told.progress(standing.share, str(standing)),
    )
    return save_finetuned(result, task.output, against=task.start.model, **task.storage)


def _quantize(task: Task, options: Quantize) -> Report:
    job = task.job
    samples = job.samples(options.data)
    result = quantize(
        task.start.model,
        form=options.form,
        data=samples,
        reference=job.original,
        metric=_metric(samples, job),
        max_drop=_allowed_drop(options, job),
        keep_float=options.keep_float,
        per_channel=options.per_channel,
        calibration=options.calibration,
        computing=options.computing,
        block_size=options.block_size,
        equalize=options.equalize,
        correct_bias=options.correct_bias,
        plan=task.start.zeros,
        seed=job.recipe.run.seed,
        batch=job.recipe.run.batch,
        threads=job.recipe.run.threads,
        input_shapes=job.recipe.run.input_shapes or None,
        progress=job.share,
    )
    return save_quantized(result, task.output, against=task.start.model, **task.storage)


def _metric(samples: Dataset | str | None, job: Job) -> str | None:
    """Return what layers are judged by: the recipe's metric, unless it needs labels that are not there."""
    name = job.recipe.data.metric
    metric = find_metric(name)
    labelled = isinstance(samples, Dataset) and samples.labels is not None
    return name if labelled or not isinstance(metric, Metric) or metric.against != "labels" else None


def _allowed_drop(options: Quantize, job: Job) -> float | None:
    """Return what the metric may lose: what the stage says, or what the gate does."""
    return job.recipe.gates.accuracy_drop if options.max_drop is None else options.max_drop


def _saved(task: Task, result: PruneResult) -> Report:
    return save_pruned(
        result,
        task.output,
        against=task.start.model,
        plan_folder=task.work.place / PLAN_FOLDER,
        **task.storage,
    )


def _nothing_done(task: Task, nothing: NothingToPrune) -> Report:
    kind = task.options.kind
    pairs = [reason.partition(": ") for reason in nothing.reasons] or [(kind, ": ", str(nothing))]
    skipped = tuple(Skipped(name, reason) for name, _, reason in pairs)
    return Report(f"{kind}: nothing to do", skipped=skipped)
