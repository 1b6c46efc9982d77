"""Wishes of users -> pruning and tuning in turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxprune.allocate.options import SENSITIVITY
from onnxprune.calibration.noise import notes_on_noise
from onnxprune.data import DataReader, Dataset
from onnxprune.errors import UsageError, require_extra
from onnxprune.finetuning import divide
from onnxprune.gradual.deciders import Wish
from onnxprune.gradual.rounds import prune_in_rounds
from onnxprune.gradual.run import Learning
from onnxprune.gradual.run import prune_gradually as prune_in_one_run
from onnxprune.model.io import load
from onnxprune.pipeline import options_of_prune
from onnxprune.planning.curves import trial_setting
from onnxprune.planning.recipes import DEAD, STRUCTURED
from onnxprune.planning.watch import Watch
from onnxprune.pruning import PruneResult
from onnxprune.runtime import admit
from onnxprune.scores.movement import MOVEMENT_SCORERS
from onnxprune.scores.on_data import DATA_SCORERS
from onnxprune.scores.weights_by_gradient import GRADIENT_WEIGHT_SCORERS
from onnxprune.scores.weights_on_data import DATA_WEIGHT_SCORERS
from onnxprune.tuning.settings import Tuning
from onnxprune.wishes import LATENCY_SETTINGS, recipe_of, running_of, samples_of

if TYPE_CHECKING:
    from onnxprune.tuning.control import Standing

#: Samples that scores are measured on, at every milestone anew.
SCORED_SAMPLES = 512

#: The scores of layers that need no samples.
_BY_WEIGHTS = ("l1", "l2", "random")


def prune_gradually(
    model: ir.Model,
    *,
    data: Dataset | DataReader | str | Path,
    settings: Tuning | None = None,
    schedule: str | None = None,
    initial: float = 0.0,
    warm_up: float | None = None,
    frequency: int | None = None,
    freeze: float = 0.25,
    rounds: int = 1,
    rewind: ir.Model | str | Path | None = None,
    validation: Dataset | str | Path | float | None = 0.1,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    told: Callable[[Standing], None] | None = None,
    **options: Any,
) -> PruneResult:
    """Prune a model little by little while it is tuned on data, prove what is cut, and return what is left.

    In one run by default: at each milestone of a schedule the weights are scored anew, and more of them go;
    channels and heads are zeros until the end, when they are cut. With ``rounds``, everything goes at once in
    each round, and a run of tuning follows it.

    Args:
        model: from `onnxprune.load`; not changed.
        data: samples to tune on, with labels or without, which scores are measured on too (on 512 of them).
        settings: how the model is tuned. Without labels it learns from the outputs of the model as it was;
            with labels from both, unless ``distil`` says otherwise.
        schedule: how the share that goes grows: ``one-shot``, ``linear``, ``cubic`` (the default) or
            ``geometric`` (the default with ``rewind``); see `onnxprune.schedule.Schedule`.
        initial: share that goes at the first pruning already.
        warm_up: share of the steps before the first pruning; 0.1 by default, 0 for ``one-shot``.
        frequency: steps from one pruning to the next; about 20 prunings by default.
        freeze: share of the steps after the last pruning.
        rounds: prune and tune in so many rounds, each of all the steps in ``settings``; layers always go so.
        rewind: the same graph with earlier weights, or its file, which what is left starts from in each
            round.
        validation: samples that the best weights are chosen by, once nothing more goes, or the share of
            ``data`` that is set aside for it; None or 0 for none.
        checkpoint: folder that the state of the run is kept in.
        resume: go on from the checkpoint.
        told: called after every step.
        **options: what goes, as for `onnxprune.prune`.

    Raises:
        UsageError: options that make no sense, alone or together.
        MissingExtra: torch is not installed.
        TuningError: the loss is no number any more; the checkpoint is damaged, or of another run.
        NothingToPrune, LimitMissed, DataError, ModelError, OutputError, ProofError: as `onnxprune.prune`.
    """
    require_extra("tuning", "torch", "torch")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # each would score for itself, and they might disagree
        raise UsageError("pruning while tuning runs in one process: start it without torchrun")
    from onnxprune.tuning.batches import split
    from onnxprune.tuning.room import check_memory

    admit(model)
    given = _options(model, options)
    settings = Tuning() if settings is None else settings
    check_memory(model, settings)
    running = running_of(*(given.pop(n) for n in ("batch", "memory_limit", "threads", "jobs", "scheduler")))
    watch = Watch(progress=given.pop("progress"), running=running)
    setting = trial_setting(given.pop("cache"), running)
    seed = given.pop("seed")
    samples = samples_of(data, model, seed, given["input_shapes"])
    if samples is None:
        raise UsageError("tuning needs samples: give --data train.npz")
    learned, looked_at, notes = divide(samples, validation, model, settings.seed, split)
    teacher = None if settings.distil == 0 else model
    folder = None if checkpoint is None else Path(checkpoint)
    told_of = (*notes, *notes_on_noise(samples))
    earlier = load(rewind) if isinstance(rewind, (str, Path)) else rewind
    learning = Learning(learned, settings, teacher, looked_at, folder, resume, told, told_of)
    recipe = recipe_of({**given, "recover": "none", "rounds": 1})
    recipe |= {"data": samples.source, "data_digest": samples.digest}
    wish = Wish(recipe, _scored(learned, recipe, seed), seed, watch, setting)
    if rounds > 1 or earlier is not None or recipe["pattern"] == "layers":
        _refuse_timing(recipe, initial, warm_up, frequency)
        shape = schedule or ("cubic" if earlier is None else "geometric")
        return prune_in_rounds(model, wish, learning, rounds=rounds, shape=shape, rewind=earlier)
    timing = {
        "shape": schedule or "cubic", "initial": initial, "warm_up": warm_up, "frequency": frequency,
        "freeze": freeze,
    }  # fmt: skip
    return prune_in_one_run(model, wish, learning, timing)


def _options(model: ir.Model, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of pruning with their defaults.

    Raises:
        UsageError: there is no such option, or it makes no sense together with tuning.
    """
    for name in ("recover", "rounds", "data"):
        if options.get(name) is not None:
            raise UsageError(f"{name} is no option of what goes; tuning takes its place")
    given = options_of_prune(model, options)
    given = {name: value for name, value in given.items() if name not in ("data", *LATENCY_SETTINGS)}
    if given["pattern"] == DEAD:
        raise UsageError(f"pattern {DEAD!r} changes no result: there is nothing to tune")
    if given["target_latency"] is not None:
        raise UsageError(
            "target_latency is met before tuning, not while: prune to it, then finetune what is left"
        )
    return given


def _refuse_timing(
    recipe: Mapping[str, Any], initial: float, warm_up: float | None, frequency: int | None
) -> None:
    if recipe["score"] in MOVEMENT_SCORERS:
        raise UsageError(f"score {recipe['score']!r} watches one run: leave out rounds and earlier weights")
    for name, value in (("initial", initial or None), ("warm_up", warm_up), ("frequency", frequency)):
        if value is not None:
            raise UsageError(f"{name} is of a schedule in one run; rounds prune before their first step")


def _scored(samples: Dataset, recipe: dict[str, Any], seed: int) -> Dataset | None:
    """Return the samples that scores are measured on; None if they go by weights alone."""
    pattern, score = recipe["pattern"], recipe["score"]
    if pattern == "layers":
        measured = score not in _BY_WEIGHTS
    elif pattern in STRUCTURED:
        measured = score in DATA_SCORERS
    else:
        measured = score in DATA_WEIGHT_SCORERS or score in GRADIENT_WEIGHT_SCORERS
    if not measured and recipe["scope"] not in (SENSITIVITY, "owl"):
        return None
    if len(samples) <= SCORED_SAMPLES:
        return samples
    chosen = np.sort(np.random.default_rng(seed).permutation(len(samples))[:SCORED_SAMPLES])
    arrays = {name: array[chosen] for name, array in samples.arrays.items()}
    labels = {} if samples.labels is None else {"label": samples.labels[chosen]}
    few = Dataset.from_arrays({**arrays, **labels}, samples.source)
    return replace(few, noise=samples.noise)
