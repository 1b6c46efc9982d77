"""Rounds of pruning and tuning: what goes really goes each time, and perhaps earlier weights come back.

With earlier weights, this is how lottery tickets are found: prune a trained network, give what is left of it
the weights that it had early in training, train again (Frankle and Carbin 2019, "The Lottery Ticket
Hypothesis"; with weights of a little later than the first step, Frankle et al. 2020, "Linear Mode
Connectivity and the Lottery Ticket Hypothesis").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from onnxprune.errors import UsageError
from onnxprune.gradual.deciders import Wish
from onnxprune.gradual.run import Learning, trained_tensors, tuning_sections
from onnxprune.model.atomic import output_errors
from onnxprune.model.copies import copy_of
from onnxprune.model.digest import structure_digest
from onnxprune.model.stored import stored_values, tensor_of
from onnxprune.planning.recipes import STRUCTURED
from onnxprune.pruners import pruner_for
from onnxprune.pruning import PruneResult, Repair, Task
from onnxprune.rewrite.mask import apply_masks
from onnxprune.types import Mask, Skipped


def prune_in_rounds(
    model: ir.Model,
    wish: Wish,
    learning: Learning,
    *,
    rounds: int,
    shape: str,
    rewind: ir.Model | None = None,
) -> PruneResult:
    """Prune, tune, and again, until the goal is reached; shapes shrink in every round, each cut is proved.

    Args:
        model: not changed.
        wish: what is to go.
        learning: how what is left is tuned after each round; the schedule of the learning rate, and what the
            optimizer remembers, begin anew in each.
        rounds: how many there are.
        shape: how what goes grows from round to round: see `onnxprune.schedule.Schedule`.
        rewind: the same graph with earlier weights, which what is left starts from in every round.

    Raises:
        UsageError: options that make no sense, alone or together; `rewind` is another graph.
        ProofError, NothingToPrune, LimitMissed, DataError, ModelError, TuningError, OutputError: as pruning
            and tuning.
    """
    recipe = wish.recipe
    if rewind is not None:
        check_rewind(model, rewind, recipe["pattern"])
    rows: list[dict[str, Any]] = []
    mending = _Mending(wish, learning, rewind, rows)
    repair = Repair(rounds=rounds, shape=shape, mend=mending)
    task = Task(model, wish.samples, repair, wish.seed, wish.setting)
    result = pruner_for(task, recipe, wish.watch).prune(recipe, wish.watch)
    done = {"rounds": rounds, "schedule": shape, "tuning": learning.settings.as_dict()}
    done |= {} if rewind is None else {"rewound": True}
    skipped = tuple(dict.fromkeys((*result.plan.skipped, *learning.notes, *mending.notes)))
    plan = replace(result.plan, recipe={**recipe, **done}, skipped=skipped)
    report = replace(result.report, skipped=skipped)
    if len(rows) > 1:
        report = replace(report, sections={**report.sections, "rounds": rows})
    return replace(result, plan=plan, report=report)


def check_rewind(model: ir.Model, rewind: ir.Model, pattern: str) -> None:
    """Refuse earlier weights that don't fit.

    Raises:
        UsageError: zeros are not what is asked for, or the graphs differ.
    """
    if pattern in STRUCTURED or pattern == "layers":
        raise UsageError(f"pattern {pattern!r} changes shapes: earlier weights do not fit, leave them out")
    other = "the earlier file is another graph"
    if structure_digest(model) != structure_digest(rewind):
        raise UsageError(f"{other} than the model: export both alike, at two times of one training")
    now, then = ({n: _forms(v) for n, v in stored_values(each).items()} for each in (model, rewind))
    for name in {**now, **then}:
        if now.get(name) != then.get(name):
            raise UsageError(f"{other}: its tensor {name!r} is not the model's; export both alike")


def _forms(values: list[ir.Value]) -> list[tuple[ir.DataType, tuple[int, ...]]]:
    return [(tensor.dtype, tuple(tensor.shape.numpy())) for tensor in map(tensor_of, values)]


class _Mending:
    """Tunes what a round left of a model."""

    def __init__(
        self, wish: Wish, learning: Learning, rewind: ir.Model | None, rows: list[dict[str, Any]]
    ) -> None:
        self._wish = wish
        self._learning = learning
        self._rewind = rewind
        self._rows = rows
        self.notes: list[Skipped] = []

    def __call__(self, model: ir.Model, masks: Mapping[str, Mask], number: int) -> ir.Model:
        learning = self._learning
        if self._rewind is not None:
            model = copy_of(self._rewind)
            apply_masks(model, masks)
        trained, _ = trained_tensors(model)  # other weights keep their zeros anyway
        held = {name: mask for name, mask in masks.items() if name in trained}
        folder = None
        if learning.checkpoint is not None:
            folder = learning.checkpoint / f"round-{number}"
            with output_errors(folder):
                folder.parent.mkdir(exist_ok=True)
        tuned = learning.tune(model, held, checkpoint=folder)
        self.notes += tuned.notes
        last = tuned.history[-1]
        kept, size = (sum(getattr(mask, what) for mask in masks.values()) for what in ("kept", "size"))
        zeros = {"share of zeros": 1 - kept / size} if size else {}
        self._rows.append({"round": number, **zeros, **{k: v for k, v in last.items() if k != "step"}})
        self._wish.watch.sections |= tuning_sections(tuned)
        return tuned.model
