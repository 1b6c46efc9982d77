"""A model and data -> the same graph with better weights, its zeros held, and a verified file of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxprune.data import DataReader, Dataset
from onnxprune.errors import ModelError, PlanError, UsageError, VerificationError, require_extra
from onnxprune.measure.accuracy import validate
from onnxprune.messages import one_line, quoted
from onnxprune.model.io import load
from onnxprune.model.stored import stored_values, tensor_of
from onnxprune.ops.weights import find_weights
from onnxprune.patterns import Pattern, parse_pattern
from onnxprune.pipeline import save_examined
from onnxprune.planning.watch import Watch
from onnxprune.plans import load_plan
from onnxprune.runtime import admit
from onnxprune.tuning import Standing, Tuning
from onnxprune.tuning.agreement import check_agrees
from onnxprune.types import Check, Mask, Plan, Report, Skipped
from onnxprune.verification import verify
from onnxprune.verification.plan import check_declared_zeros
from onnxprune.verification.tuned import verify_tuned
from onnxprune.verification.zeros import nonzero
from onnxprune.wishes import samples_of

if TYPE_CHECKING:
    from onnxprune.tuning.loop import Tuned

#: Weights with at least this share of zeros are taken to be pruned.
PRUNED_SHARE = 0.1

#: Whether zeros are held.
HOLD = ("auto", "none")


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """A tuned model in memory.

    Attributes:
        model: with new weights; the one that was given is not changed.
        report: accuracy before and after, how the loss went, which zeros were held, seconds by stage.
        original: what was given.
        changed: stored names of the tensors that were tuned.
        masks: what may differ from zero, by stored name.
        pattern: that the zeros form, as the plan says.
        first_process: this process writes and prints: the first of several, or the only one.
    """

    model: ir.Model
    report: Report
    original: ir.Model
    changed: tuple[str, ...]
    masks: Mapping[str, Mask]
    pattern: Pattern | None
    first_process: bool


def finetune(
    model: ir.Model | str | Path,
    *,
    data: Dataset | DataReader | str | Path,
    settings: Tuning | None = None,
    teacher: ir.Model | str | Path | None = None,
    validation: Dataset | str | Path | float | None = 0.1,
    plan: Plan | str | Path | None = None,
    hold: str = "auto",
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Standing], None] | None = None,
) -> FinetuneResult:
    """Tune the weights of a model on data, from labels, from the original's outputs, or from both.

    The graph stays as it is, and weights that were pruned stay zero. Started by ``torchrun``, every process
    calls this and has its part of each batch.

    Args:
        model: a file, or from `onnxprune.load`; not changed.
        data: samples to tune on, with labels or without: see `onnxprune.load_data`.
        settings: all choices; see `Tuning`.
        teacher: the original that a pruned model was made from.
        validation: samples that the best weights are chosen by, or the share of ``data`` that is set aside
            for it; None or 0 for none.
        plan: whose zeros are held; without one, the zeros of every weight of which `PRUNED_SHARE` are zero.
        hold: ``auto``, or ``none`` to let zeros move.
        checkpoint: folder that the state of the run is kept in.
        resume: go on from there, if there is a checkpoint.
        progress: called after every step, in the first process.

    Raises:
        UsageError: settings that make no sense, alone or together.
        DataError: the data is damaged, or does not fit the model.
        ModelError: the model can't be tuned: an operator has no gradient here, say, or memory can't hold it.
        PlanError: the plan's zeros are not in the model.
        TuningError: the loss is no number any more; a checkpoint of another run.
        OutputError: the checkpoint can't be written.
        MissingExtra: torch is not installed.
    """
    require_extra("tuning", "torch", "torch")
    from onnxprune.tuning.batches import split
    from onnxprune.tuning.loop import tune
    from onnxprune.tuning.room import check_memory

    settings = settings or Tuning()
    watch = Watch()
    with watch.stage("read"):
        given = model if isinstance(model, ir.Model) else load(model)
        admit(given)
        check_memory(given, settings)
        original = load(teacher) if isinstance(teacher, (str, Path)) else teacher
        if original is not None:
            admit(original)
        samples = _samples(data, given)
        masks, pattern, notes = _masks_to_hold(given, plan, hold)
        tuned_on, looked_at, more = divide(samples, validation, given, settings.seed, split)
    with watch.stage("tune"), tuned_on.named():
        tuned = tune(
            given,
            tuned_on,
            settings,
            teacher=original,
            validation=looked_at,
            masks=masks,
            checkpoint=None if checkpoint is None else Path(checkpoint),
            resume=resume,
            progress=progress,
            examine=lambda probe: check_agrees(given, probe, ModelError, "before tuning"),
        )
    with watch.stage("measure"):
        check = check_agrees(tuned.model, tuned.probe, VerificationError, "after tuning")
        rows = _accuracy(tuned, given, original, looked_at or tuned_on)
    report = _report(tuned, settings, (tuned_on, looked_at), rows, masks)
    if tuned.best_step == 0:
        reason = "no step was better on the validation samples: the weights are those that were given"
        more = [*more, Skipped("weights", reason)]
    report = replace(
        report, checks=(check,), skipped=(*tuned.notes, *notes, *more), seconds=dict(watch.seconds)
    )
    return FinetuneResult(
        tuned.model, report, given, tuned.changed, {**masks, **tuned.masks}, pattern, tuned.first_process
    )


def save_finetuned(
    result: FinetuneResult,
    path: str | Path,
    *,
    against: str | Path | None = None,
    external_data: bool | None = None,
    sparse_storage: bool | None = None,
) -> Report:
    """Write a tuned model, verified before it appears under its name. Only the first process writes.

    Args:
        result: from `finetune`.
        path: the output; must not be an input.
        against: the file that was tuned: interface and size are compared with it.
        external_data: weights beside the model; None for as it was.
        sparse_storage: weights as sparse initializers where that is smaller; None for as they were.

    Returns:
        The report of the result, with the checks of the file.

    Raises:
        OutputError: the file can't be written.
        VerificationError: the file is not what it should be; nothing was written.
    """
    if not result.first_process:
        return result.report

    def examine(temporary: Path) -> Sequence[Check]:
        report = verify(temporary, against=against, optimize=bool(result.masks))
        tuned = verify_tuned(temporary, result.original, result.changed, result.masks, result.pattern)
        return (*report.checks, *tuned)

    return save_examined(
        result.model,
        path,
        result.report,
        examine,
        external_data=external_data,
        sparse_storage=sparse_storage,
    )


def _samples(data: Dataset | DataReader | str | Path, model: ir.Model) -> Dataset:
    samples = samples_of(data, model, 0, None)
    if samples is None:
        raise UsageError("a model is tuned on samples: give data")
    return samples


def divide(
    samples: Dataset,
    validation: Dataset | str | Path | float | None,
    model: ir.Model,
    seed: int,
    split: Callable[[Dataset, float, int], tuple[Dataset, Dataset]],
) -> tuple[Dataset, Dataset | None, list[Skipped]]:
    """Return the samples to tune on, those to validate on, and what is to be said about that."""
    share = _share(validation)
    if share is None:
        return samples, _samples(validation, model), []  # type: ignore[arg-type] # no number: data
    if not 0 <= share < 1:
        raise UsageError(f"validation is a share below 1, or samples of their own, not {share:g}")
    if share == 0:
        note = "no samples are set aside: the last weights are taken, and judged on what they were tuned on"
        return samples, None, [Skipped("validation", note)]
    if len(samples) < 2:
        raise UsageError("one sample can't be divided: give validation samples of their own, or none (0)")
    return (*split(samples, share, seed), [])


def _share(validation: Dataset | str | Path | float | None) -> float | None:
    """Return the share that is meant by a number, None for samples."""
    if validation is None or validation == "none":
        return 0.0
    if isinstance(validation, (int, float, str)):
        try:
            return float(validation)
        except ValueError:
            return None
    return None


def _masks_to_hold(
    model: ir.Model, plan: Plan | str | Path | None, hold: str
) -> tuple[dict[str, Mask], Pattern | None, list[Skipped]]:
    """Return the masks to hold, the pattern they form if it is known, and what is to be said."""
    if hold not in HOLD:
        raise UsageError(f"hold is one of {', '.join(HOLD)}, not {quoted(hold)}")
    if hold == "none":
        if plan is not None:
            raise UsageError("a plan says which zeros are held: leave it out, or hold none")
        return {}, None, [Skipped("zeros", "not held: weights that are zero may move (hold none)")]
    if plan is None:
        return _zeros_of(model), None, []
    read = plan if isinstance(plan, Plan) else load_plan(plan)
    if not read.masks:
        raise UsageError(f"the plan is for {read.pattern}: it has no zeros to hold; leave it out")
    check = check_declared_zeros(model, read.masks)
    if not check.passed:
        raise PlanError(f"{check.detail}; apply the plan to the model first (onnxprune apply)")
    return dict(read.masks), parse_pattern(read.pattern), []


def _zeros_of(model: ir.Model) -> dict[str, Mask]:
    """Return masks of the weights that look pruned."""
    stored = stored_values(model)
    masks = {}
    for name in dict.fromkeys(use.tensor for use in find_weights(model)[0]):
        tensor = tensor_of(stored[name][0])
        if not tensor.dtype.is_floating_point():
            continue
        kept = nonzero(tensor)
        if kept.size and 1 - np.count_nonzero(kept) / kept.size >= PRUNED_SHARE:
            masks[name] = Mask.pack(kept)
    return masks


def _accuracy(
    tuned: Tuned, before: ir.Model, original: ir.Model | None, samples: Dataset
) -> list[dict[str, Any]]:
    """Return the metric before and after, and of the original, as ONNX Runtime computes the models."""
    metric = tuned.metric if tuned.metric in ("top1", "mse", "agreement") else None
    if metric is None:
        return []
    rows = []
    models = {"original": original, "before": before, "after": tuned.model}
    for name, model in models.items():
        if model is None or (name == "original" and metric == "agreement"):
            continue
        reference = original if metric == "agreement" else None
        found = validate(model, reference, data=samples, metric=metric, output=tuned.metric_output)
        rows.append({"model": name, metric: found.as_dict()["overall"]["model"]})
    return rows


def _report(
    tuned: Tuned,
    settings: Tuning,
    data: tuple[Dataset, Dataset | None],
    rows: Sequence[Mapping[str, Any]],
    masks: Mapping[str, Mask],
) -> Report:
    on, looked_at = data
    run = {
        "steps": tuned.steps_done,
        **({"steps planned": tuned.steps} if tuned.steps != tuned.steps_done else {}),
        "weights of step": tuned.best_step,
        "samples": len(on),
        "validation samples": 0 if looked_at is None else len(looked_at),
        "batch": tuned.batch,
        "optimizer": settings.optimizer,
        "highest learning rate": settings.rate,
        "precision": settings.precision,
        **tuned.decided,
        "data digest": on.digest,
    }
    sections: dict[str, Any] = {"accuracy": list(rows)} if rows else {}
    sections |= {"tuning": run, "history": list(tuned.history)}
    if masks:
        sections["held zeros"] = [
            {"tensor": name, "weights": mask.size, "zero": mask.size - mask.kept,
             "sparsity": 1 - mask.kept / max(mask.size, 1)}
            for name, mask in masks.items()
        ]  # fmt: skip
    return Report(f"tuned on {one_line(on.source)}", sections)
