"""One run of tuning in which more and more goes; channels as masks, which are cut and proved at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxprune.calibration.activations import inputs_of
from onnxprune.data import Dataset, fixed_batch
from onnxprune.errors import ModelError, ProofError, VerificationError
from onnxprune.gradual.control import Gradual
from onnxprune.gradual.deciders import Channels, Wish, Zeros
from onnxprune.gradual.moves import Moves
from onnxprune.planning.recipes import STRUCTURED
from onnxprune.planning.rounds import goal_of
from onnxprune.proving import UNCHANGED, Trials, compare
from onnxprune.pruning import PruneResult, Repair
from onnxprune.pruning_channels import apply_to_channels
from onnxprune.pruning_weights import apply_to_weights
from onnxprune.schedule import Schedule
from onnxprune.tuning.settings import Tuning
from onnxprune.types import Mask, Skipped

if TYPE_CHECKING:
    from onnxprune.tuning.control import Standing
    from onnxprune.tuning.loop import Tuned


#: Channels that are masked do nothing any more; the original of their cut is not the user's.
_PROOFS = {UNCHANGED: "cut equals its exact twin"}


@dataclass(frozen=True, slots=True)
class Learning:
    """How a model is tuned while it is pruned.

    Attributes:
        data: samples, with labels where the loss needs them.
        settings: all choices of a run.
        teacher: the original, whose outputs are to be met; None for labels alone.
        validation: samples that the best weights are chosen by, once nothing more goes.
        checkpoint: folder that the state of the run is kept in.
        resume: go on from the checkpoint.
        progress: called after every step.
        notes: what is to be said of the data.
    """

    data: Dataset
    settings: Tuning
    teacher: ir.Model | None
    validation: Dataset | None = None
    checkpoint: Path | None = None
    resume: bool = False
    progress: Callable[[Standing], None] | None = None
    notes: tuple[Skipped, ...] = ()

    def steps(self, model: ir.Model) -> int:
        """Return how many steps a run over the data has."""
        size = fixed_batch(inputs_of(model, self.data)) or self.settings.batch
        return self.settings.steps_over(len(self.data), size)

    def tune(
        self,
        model: ir.Model,
        masks: Mapping[str, Mask],
        control: Gradual | None = None,
        checkpoint: Path | None = None,
    ) -> Tuned:
        """Tune a model; see `onnxprune.tuning.loop.tune`.

        Raises:
            ModelError, VerificationError: torch and ONNX Runtime differ, before or after.
        """
        from onnxprune.tuning.agreement import check_agrees
        from onnxprune.tuning.loop import tune

        with self.data.named():
            tuned = tune(
                model,
                self.data,
                self.settings,
                teacher=self.teacher,
                validation=self.validation,
                masks=masks,
                control=control,
                checkpoint=checkpoint,
                resume=self.resume,
                progress=self.progress,
                examine=lambda probe: check_agrees(model, probe, ModelError, "before tuning"),
            )
        check_agrees(tuned.model, tuned.probe, VerificationError, "after tuning")
        return tuned


def prune_gradually(
    model: ir.Model, wish: Wish, learning: Learning, timing: Mapping[str, Any]
) -> PruneResult:
    """Prune a model at the milestones of a schedule while it is tuned.

    Args:
        model: not changed.
        wish: what is to go.
        learning: how it is tuned.
        timing: of the `Schedule`: what is not its goal and its steps.

    Raises:
        UsageError: options that make no sense, alone or together; nothing of this pattern can grow.
        ProofError: the cut model differs from its exact twin, or from the model that was tuned.
        NothingToPrune, LimitMissed, DataError, ModelError, TuningError, OutputError: as pruning and tuning.
    """
    structured = wish.recipe["pattern"] in STRUCTURED
    schedule = Schedule(goal_of(wish.recipe), learning.steps(model), **timing)
    trained, frozen = trained_tensors(model)
    decider = Channels(model, wish, trained) if structured else Zeros(model, wish, frozen)
    identity = {"recipe": {**wish.recipe}, "seed": wish.seed}
    control = Gradual(model, decider, schedule, Moves(model, wish.recipe), identity)
    with wish.watch.stage("tune"):
        tuned = learning.tune(model, {}, control, learning.checkpoint)
    wish.watch.sections["milestones"] = control.rows
    wish.watch.sections |= tuning_sections(tuned)
    recipe = {**wish.recipe, "schedule": schedule.shape, "tuning": learning.settings.as_dict()}
    told = (*learning.notes, *tuned.notes)
    if isinstance(decider, Channels):
        goal = decider.plan()
        plan = replace(goal, recipe=recipe, skipped=(*goal.skipped, *told))
        result = apply_to_channels(tuned.model, plan, None, Repair(), wish.watch)
        return _compared(result, tuned.model, decider.input_shapes)
    goal = decider.plan(tuned.masks)
    plan = replace(goal, recipe=recipe, skipped=(*goal.skipped, *told))
    return apply_to_weights(tuned.model, plan, None, Repair(), wish.watch)


def _compared(
    result: PruneResult, masked: ir.Model, input_shapes: Mapping[str, tuple[int, ...]]
) -> PruneResult:
    """Compare what was cut with what was tuned, in which zeros stood for the cut.

    Raises:
        ProofError: they differ.
    """
    name = "cut equals the masked model"
    check = replace(compare(masked, masked, result.model, input_shapes, Trials(result.plan.seed)), name=name)
    if not check.passed:
        raise ProofError(f"{name}: {check.detail}; nothing was written")
    proved = (replace(each, name=_PROOFS.get(each.name, each.name)) for each in result.report.checks)
    return replace(result, report=replace(result.report, checks=(*proved, check)))


def trained_tensors(model: ir.Model) -> tuple[frozenset[str], Mapping[str, str]]:
    """Return which stored tensors are trained, and why others are not."""
    from onnxprune.executor.module import OnnxModule

    module = OnnxModule(model)
    return frozenset(module.trained), {name: f"not trained: {why}" for name, why in module.frozen.items()}


def tuning_sections(tuned: Tuned) -> dict[str, Any]:
    """Return what there is to tell of a run, as tables by name."""
    summary = {
        **tuned.decided,
        "tensors trained": len(tuned.changed),
        "steps": tuned.steps_done,
        "weights of step": tuned.best_step,
    }
    return {"tuning": summary, "progress": [dict(row) for row in tuned.history]}
