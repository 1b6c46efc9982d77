"""The loop: a model, data and settings -> the same graph with other weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from onnxprune.data import Dataset
from onnxprune.errors import TuningError
from onnxprune.messages import quoted, visible
from onnxprune.tuning import checkpoint as checkpoints
from onnxprune.tuning.batches import Batch, Order
from onnxprune.tuning.control import Control, Standing
from onnxprune.tuning.distributed import Processes, joined
from onnxprune.tuning.evaluate import Look, look_at
from onnxprune.tuning.optimizers import build_optimizer, set_learning_rate
from onnxprune.tuning.parts import Parts, Probe, assemble, identity, seed_for, write_values
from onnxprune.tuning.rates import learning_rate_at
from onnxprune.tuning.settings import Tuning
from onnxprune.types import Mask, Skipped


@dataclass(frozen=True, slots=True)
class Tuned:
    """What became of a model.

    Attributes:
        model: a copy with the new weights; exact zeros where masks hold.
        masks: what stays, by stored name, of the weights that have a mask in the end.
        changed: stored names of the tensors that were tuned, and of statistics that moved.
        history: a row for each look: step, loss, validation loss and metric, sparsity, learning rate; the
            first is of step 0, before anything was done. Without validation samples there are no such
            figures, and no row of step 0.
        metric: name of the metric.
        metric_output: the output that it judges, where that is one.
        higher_is_better: its direction.
        batch: samples of one step, over all processes.
        steps: that were planned.
        steps_done: that were done.
        best_step: whose weights the model has; the last one without validation samples.
        decided: what was decided about the loss, by name, for the report.
        notes: what was left out, and why.
        probe: what the module computes with the new weights, without mixed precision.
        first_process: this is the process that writes and prints; the only one, mostly.
    """

    model: ir.Model
    masks: Mapping[str, Mask]
    changed: tuple[str, ...]
    history: tuple[Mapping[str, Any], ...]
    metric: str
    metric_output: str | None
    higher_is_better: bool
    batch: int
    steps: int
    steps_done: int
    best_step: int
    decided: Mapping[str, Any]
    notes: tuple[Skipped, ...]
    probe: Probe
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
    examine: Callable[[Probe], object] | None = None,
) -> Tuned:
    """Tune the weights of a model; its graph stays as it is.

    Args:
        model: not changed.
        data: samples, with labels where the loss needs them.
        settings: all choices.
        teacher: the original, whose outputs are to be met.
        validation: samples that the best weights are chosen by; without them the last ones are taken.
        masks: weights that are zero from the start, and stay so, by stored name; those of tensors that do
            not train have nothing to hold.
        control: what watches, and narrows masks while it runs.
        checkpoint: folder that the whole state of the run is kept in.
        resume: go on from the checkpoint, if there is one.
        progress: called after every step, in the first process.
        examine: called before anything is changed with what the module computes, to refuse if that is wrong.

    Raises:
        UsageError: settings that don't fit the model, the data or each other.
        DataError: data or labels that don't fit the model.
        ModelError: an operator has no gradient here; nothing can be trained.
        TuningError: the loss is no number any more; a checkpoint of another run.
        OutputError: the checkpoint can't be written.
    """
    if checkpoint is not None:
        checkpoints.open_folder(checkpoint, resume=resume)
    with joined(settings.device) as processes, ExitStack() as stack:
        stack.enter_context(checkpoints.claimed(checkpoint if processes.first else None))
        gpus = [processes.device] if processes.device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpus):  # the caller's random numbers go on as if nothing was
            parts = assemble(model, data, settings, teacher, validation, processes)
            if examine is not None:
                examine(parts.probe())
            run = _Run(parts, settings, processes, control)
            # every weight is read for it, of the original too
            who = (
                {}
                if checkpoint is None
                else identity(model, data, settings, teacher, validation, masks, control)
            )
            return run.finish(model, run.go(masks or {}, checkpoint, who, resume, progress))


class _Run:
    """The state of a run, and its steps."""

    def __init__(self, parts: Parts, settings: Tuning, processes: Processes, control: Control | None) -> None:
        self.parts = parts
        self.settings = settings
        self.processes = processes
        self.control = control
        self.steps = settings.steps_over(len(parts.batches.data), parts.batches.per_step)
        self.optimizer = build_optimizer(parts.module.trained.values(), settings)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=settings.precision == "float16")
        parts.held.attach(self.optimizer)
        self.order = Order(len(parts.batches.data), settings.seed)
        self.step = 0
        self.loss = math.nan
        self.look: Look | None = None
        self.best: dict[str, Any] | None = None
        self.misses = 0
        self.history: list[dict[str, Any]] = []

    @property
    def _looks_every(self) -> int:
        usual = math.ceil(len(self.parts.batches.data) / self.parts.batches.per_step)
        return min(self.settings.evaluate_every or usual, self.steps)

    def go(
        self,
        masks: Mapping[str, Mask],
        folder: Path | None,
        who: Mapping[str, Any],
        resume: bool,
        progress: Callable[[Standing], None] | None,
    ) -> int:
        """Make all steps that are left; return the step whose weights the module now has."""
        state = checkpoints.load(folder, who) if folder is not None and resume else None
        if state is not None:
            self.load(state)
        else:
            self._begin(masks)
        self._check_together(folder)
        started, begun = time.perf_counter(), self.step
        while self.step < self.steps and not self._lost_patience():
            self._make_step()
            last = self.step == self.steps
            looked = self.step % self._looks_every == 0 or last
            if looked:
                self._take_look()
            every = self.settings.checkpoint_every
            due = looked if every is None else self.step % every == 0
            if folder is not None and (due or last or self._lost_patience()):
                self._save(folder, who)
            if progress is not None and self.processes.first:
                seconds = (time.perf_counter() - started) / (self.step - begun) * (self.steps - self.step)
                progress(self._standing(seconds))
        return self._take_best()

    def _check_together(self, folder: Path | None) -> None:
        """Refuse to go on where some processes found a checkpoint, and others did not."""
        if self.processes.sums([self.step]) != [self.step * self.processes.count]:
            raise TuningError(
                f"{visible(folder or '')}: not every process finds the same checkpoint; name a folder "
                "that all machines see"
            )

    def _begin(self, masks: Mapping[str, Mask]) -> None:
        trained = self.parts.module.trained
        self.parts.held.narrow({name: mask for name, mask in masks.items() if name in trained})
        if self.control is not None:
            self.control.start(self.steps, self.parts.module, self.parts.held)
        if self.parts.validation is not None:
            self._take_look()

    def _make_step(self) -> None:
        self.step += 1
        parts, control = self.parts, self.control
        set_learning_rate(self.optimizer, learning_rate_at(self.step, self.steps, self.settings))
        # drawn anew for each step, so that there is no state of random numbers to keep
        torch.manual_seed(seed_for(self.settings.seed, self.step, self.processes.rank))
        self.optimizer.zero_grad(set_to_none=True)
        self.loss = self._backward()
        self._check(self.loss, "the loss")
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        parts.held.mask_gradients()
        if control is not None:
            control.after_backward(self.step, parts.module)
        if self.settings.clip is not None:
            length = torch.nn.utils.clip_grad_norm_(parts.module.trained.values(), self.settings.clip)
            if not self.scaler.is_enabled():  # it leaves such steps out by itself
                self._check(float(length), "the gradient")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        parts.held.hold()
        if control is not None:
            control.after_step(self.step, parts.module, parts.held)
            parts.held.hold()  # whatever it wrote

    def _backward(self) -> float:
        """Add up the gradients of all batches of a step; return their mean loss over all processes."""
        batches = self.parts.batches.of_step(self.order, self.step)
        total = torch.zeros((), device=self.processes.device)
        self.parts.train()
        for number, batch in enumerate(batches, start=1):
            with nullcontext() if number == len(batches) else self.parts.unsynchronized():
                loss = self._loss(batch) / len(batches)
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return self.processes.sums([float(total) / self.processes.count])[0]

    def _loss(self, batch: Batch) -> torch.Tensor:
        values, original = self.parts.forward(batch)
        return self.parts.objective(values, batch.labels, original)

    def _check(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            rate = learning_rate_at(self.step, self.steps, self.settings)
            raise TuningError(
                f"{what} became {value} at step {self.step} (learning rate {rate:.3g}); nothing was written: "
                f"use a lower learning rate, such as {self.settings.rate / 10:.3g}, or a stricter clip"
            )

    def _take_look(self) -> None:
        """Look at the validation samples, and remember the weights if they are the best so far."""
        parts = self.parts
        row: dict[str, Any] = {"step": self.step, "loss": self.loss if self.step else None}
        if parts.validation is not None:
            parts.evaluate()
            torch.manual_seed(seed_for(self.settings.seed, 0, self.processes.rank))
            self.look = look_at(
                parts.validation, parts.forward, parts.objective, parts.metric, self.processes
            )
            self._check(self.look.loss, "the loss on the validation samples")
            row |= {"validation loss": self.look.loss, parts.metric.name: self.look.metric}
            self._compare(self.look)
        rate = learning_rate_at(self.step, self.steps, self.settings) if self.step else None
        self.history.append({**row, "sparsity": parts.held.sparsity, "learning rate": rate})

    def _compare(self, look: Look) -> None:
        if self.control is not None and not self.control.settled(self.step):
            return
        changes = self.parts.held.changes  # weights from before a mask are none to go back to
        before = self.best if self.best is not None and self.best["changes"] == changes else None
        if look.better_than(None if before is None else Look(*before["look"]), self.parts.metric):
            self.best = {
                "step": self.step, "look": (look.loss, look.metric), "changes": changes,
                "weights": self.parts.weights(),
            }  # fmt: skip
            self.misses = 0
        else:
            self.misses += 1

    def _lost_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.parts.validation is not None and self.misses >= patience

    def _take_best(self) -> int:
        if self.best is None:
            return self.step
        self.parts.load_weights(self.best["weights"])
        return int(self.best["step"])

    def _standing(self, seconds_left: float) -> Standing:
        metric = None if self.look is None else (self.parts.metric.name, self.look.metric)
        return Standing(self.step, self.steps, self.loss, metric, self.parts.held.sparsity, seconds_left)

    def _save(self, folder: Path, who: Mapping[str, Any]) -> None:
        if self.processes.first:
            checkpoints.save(folder, who, self.state())
        self.processes.wait()

    def state(self) -> dict[str, Any]:
        """Return all that the next step depends on."""
        return {
            "step": self.step,
            "weights": self.parts.weights(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "masks": self.parts.held.masks,
            "changes": self.parts.held.changes,
            "best": self.best,
            "misses": self.misses,
            "look": None if self.look is None else (self.look.loss, self.look.metric),
            "loss": self.loss,
            "history": self.history,
            "control": None if self.control is None else self.control.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self.step, self.misses, self.loss = state["step"], state["misses"], state["loss"]
        self.best, self.history = state["best"], state["history"]
        self.look = None if state["look"] is None else Look(*state["look"])
        self.parts.load_weights(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.parts.held.load(state["masks"], state["changes"])
        if self.control is not None:
            self.control.load(state["control"])

    def finish(self, model: ir.Model, best_step: int) -> Tuned:
        """Return the result, from the weights that the module has now."""
        parts = self.parts
        values = parts.module.values()
        for name, array in values.items():
            if not np.isfinite(array.astype(np.float32)).all():
                raise TuningError(f"{quoted(name)} is not finite any more; use a lower learning rate")
        return Tuned(
            model=write_values(model, values),
            masks=parts.held.masks,
            changed=tuple(values),
            history=tuple(self.history),
            metric=parts.metric.name,
            metric_output=parts.metric.output,
            higher_is_better=parts.metric.higher_is_better,
            batch=parts.batches.per_step,
            steps=self.steps,
            steps_done=self.step,
            best_step=best_step,
            decided=parts.told,
            notes=tuple(parts.notes),
            probe=parts.probe(),
            first_process=self.processes.first,
        )
