"""The loop: a model, data and settings -> the same graph with other weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune.data import Dataset
from onnxprune.tuning.control import Control, Standing
from onnxprune.tuning.settings import Tuning
from onnxprune.types import Mask, Skipped


@dataclass(frozen=True, slots=True)
class Tuned:
    """What became of a model.

    Attributes:
        model: a copy with the new weights; exact zeros where masks hold.
        masks: what stays, by stored name, of the weights that have a mask in the end.
        trained: stored names of the tensors that were trained.
        history: a row for each look: step, loss, validation loss and metric (None without such samples),
            sparsity, learning rate; the first is of step 0, before anything was done.
        metric: name of the metric.
        higher_is_better: its direction.
        steps: that were planned.
        steps_done: that were done.
        best_step: whose weights the model has; the last one without validation samples.
        decided: what was decided about the loss, by name, for the report.
        notes: what was left out, and why.
        first_process: this is the process that writes and prints; the only one, mostly.
    """

    model: ir.Model
    masks: Mapping[str, Mask]
    trained: tuple[str, ...]
    history: tuple[Mapping[str, Any], ...]
    metric: str
    higher_is_better: bool
    steps: int
    steps_done: int
    best_step: int
    decided: Mapping[str, Any]
    notes: tuple[Skipped, ...]
    first_process: bool


def tune(
    model: ir.Model,
    data: Dataset,
    settings: Tuning,
    *,
    teacher: ir.Model | None = None,
    validation: Dataset | None = None,
    masks: Mapping[str, Mask] | None = None,
    control: Control | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: Callable[[Standing], None] | None = None,
) -> Tuned:
    """Tune the weights of a model; its graph stays as it is.

    Args:
        model: not changed.
        data: samples, with labels where the loss needs them.
        settings: all choices.
        teacher: the original, whose outputs are to be met.
        validation: samples that the best weights are chosen by; without them the last ones are taken.
        masks: weights that are zero from the start, and stay so, by stored name.
        control: what watches, and narrows masks while it runs.
        checkpoint: folder that the whole state of the run is kept in.
        resume: go on from the checkpoint, if there is one.
        progress: called after every step.

    Raises:
        UsageError: settings that don't fit the model, the data or each other.
        DataError: data or labels that don't fit the model.
        ModelError: an operator has no gradient here; nothing can be trained.
        TuningError: the loss is no number any more; a checkpoint of another run.
        OutputError: the checkpoint can't be written.
        MissingExtra: torch is not installed.
    """
    raise NotImplementedError
