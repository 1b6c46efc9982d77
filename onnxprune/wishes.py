"""Options of users -> a task and a recipe: data is read, defaults are filled in, nonsense is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.allocate.options import KNAPSACK
from onnxprune.calibration.activations import Running, check_fits
from onnxprune.calibration.noise import draw_noise, is_noise
from onnxprune.data import DataReader, Dataset, load_data
from onnxprune.errors import ModelError, UsageError
from onnxprune.machine import memory_bytes
from onnxprune.messages import quoted
from onnxprune.planning.curves import trial_setting
from onnxprune.planning.latency.wish import LatencyWish, parse_target
from onnxprune.planning.recipes import DEAD, STRUCTURED, TARGET_LATENCY, TARGETS
from onnxprune.planning.watch import Watch
from onnxprune.pruning import Repair, Task
from onnxprune.runtime import Execution, admit
from onnxprune.scores.movement import MOVEMENT_SCORERS
from onnxprune.scores.weights_by_gradient import GRADIENT_WEIGHT_SCORERS
from onnxprune.scores.weights_on_data import DATA_WEIGHT_SCORERS
from onnxprune.workers import ALONE, Workers


@dataclass(frozen=True, slots=True)
class Prepared:
    """The options of `prune`, sorted.

    Attributes:
        task: the model, and how it is pruned.
        recipe: what goes.
        watch: who is told meanwhile.
    """

    task: Task
    recipe: Mapping[str, Any]
    watch: Watch


def prepared(model: ir.Model, options: Mapping[str, Any]) -> Prepared:
    """Read data, and sort options into a task and a recipe.

    Args:
        model: not changed.
        options: all of `prune`, by name.

    Raises:
        UsageError: options that make no sense, alone or together.
        ModelError: ONNX Runtime refuses the model.
        DataError: the data is damaged, or does not fit the model.
    """
    admit(model)
    _check_memory(model, options["pattern"])
    given = dict(options)
    threads, cache = given.pop("threads"), given.pop("cache")
    running = running_of(
        given.pop("batch"), given.pop("memory_limit"), threads, given.pop("jobs"), given.pop("scheduler")
    )
    seed, watch = given.pop("seed"), Watch(progress=given.pop("progress"), running=running)
    samples = samples_of(given.pop("data"), model, seed, given["input_shapes"])
    setting = trial_setting(cache, running)
    timing = {name: given.pop(name) for name in LATENCY_SETTINGS}
    recipe = recipe_of(given, samples)
    latency = latency_wish(recipe, threads=threads, cache=cache, workers=running.workers, **timing)
    repair = Repair(given["recover"], given["rounds"])
    repair.check(samples, given["pattern"])
    score = given["score"]
    if score in MOVEMENT_SCORERS and repair.rounds != 1:
        raise UsageError(f"score {score!r} looks at the weights as they were trained: leave out rounds")
    return Prepared(Task(model, samples, repair, seed, setting, latency), recipe, watch)


def _check_memory(model: ir.Model, pattern: str) -> None:
    """Refuse to cut tensors that no memory here holds; zeros are set a piece at a time.

    Raises:
        ModelError: there is one.
    """
    there = memory_bytes()
    if pattern not in STRUCTURED or there is None:
        return
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > there:
            raise ModelError(
                f"tensor {quoted(value.name)} takes {tensor.nbytes} bytes, more than the memory here, "
                f"{there}: it can't be cut; set weights to zero (pattern unstructured or 2:4)"
            )


#: What `prune` takes about how time is measured.
LATENCY_SETTINGS = ("latency_percentile", "latency_batch", "provider", "provider_options", "time_limit")


def latency_wish(
    recipe: dict[str, Any],
    *,
    latency_percentile: float,
    latency_batch: int | None,
    provider: str,
    provider_options: Mapping[str, str] | None,
    threads: int,
    time_limit: float,
    cache: str | Path | None,
    workers: Workers = ALONE,
) -> LatencyWish | None:
    """Return on which machine a target in time is to be met, None without one; the recipe then says so, too.

    Raises:
        UsageError: a target or setting that makes no sense, or another option that does not go with it.
    """
    target = recipe.get("target_latency")
    if target is None:
        return None
    parse_target(target)
    if recipe["pattern"] not in STRUCTURED or recipe["pattern"] == DEAD:
        why = "zeros take no less time in ONNX Runtime" if recipe["pattern"] != DEAD else "it takes no target"
        if recipe["pattern"] == "layers":
            why = "whole branches go by amount, --target-macs or --target-params"
        raise UsageError(
            f"target_latency needs a pattern such as channels or heads, not {recipe['pattern']!r}: {why}"
        )
    if recipe.get("rounds", 1) != 1:
        raise UsageError("target_latency is met in one round: leave out rounds, or give --target-macs")
    options = tuple(sorted((provider_options or {}).items()))
    execution = Execution(provider, threads, options)
    recipe["measured_with"] = {
        "percentile": latency_percentile, "provider": provider, "provider_options": dict(options),
        "threads": threads, "batch": latency_batch,
    }  # fmt: skip
    folder = None if cache is None else Path(cache)
    return LatencyWish(latency_percentile, latency_batch, execution, time_limit, folder, workers)


def samples_of(
    data: Dataset | DataReader | str | Path | None,
    model: ir.Model,
    seed: int,
    input_shapes: Mapping[str, Sequence[int]] | None,
) -> Dataset | None:
    """Return what users give as data, once it fits a model; random inputs where they ask for these by name.

    Raises:
        UsageError, DataError: the data is damaged, or does not fit.
    """
    if data is None:
        return None
    if isinstance(data, str) and is_noise(data):
        return draw_noise(model, data, seed, input_shapes)
    samples = data if isinstance(data, Dataset) else load_data(data)
    check_fits(model, samples)
    return samples


def running_of(
    batch: int, memory_limit: int, threads: int, jobs: int = 1, scheduler: str | None = None
) -> Running:
    """Return how models are run on data, as users say it.

    Raises:
        UsageError: a number is too small, or an address is none.
    """
    for name, value, least in (
        ("batch", batch, 1),
        ("memory_limit", memory_limit, 1),
        ("threads", threads, 0),
    ):
        if value < least:
            raise UsageError(f"{name} must be at least {least}, not {value}")
    return Running(batch, memory_limit, threads, Workers(jobs, scheduler))


#: What goes without saying.
USUAL = {"recover": "none", "rounds": 1}

#: score and scope where none are given
_DEFAULTS = {"layers": ("influence", "global")}

#: The same with samples to repair on: the losses that a repair leaves, for what linear layers sum over.
_DEFAULTS_ON_DATA = {"channels": ("obs", "global"), "heads": ("obs", "global")}


def recipe_of(options: Mapping[str, Any], data: Dataset | None = None) -> dict[str, Any]:
    """Return the options that were given, and defaults, as plain JSON values."""
    defaults = _DEFAULTS
    if data is not None and options["recover"] != "none" and options["score"] is None:
        defaults = {**_DEFAULTS, **_DEFAULTS_ON_DATA}
    score, scope = defaults.get(options["pattern"], ("l2", "uniform"))
    targets = [name for name in (*TARGETS, TARGET_LATENCY) if options.get(name) is not None]
    if options["pattern"] in STRUCTURED and (len(targets) > 1 or TARGET_LATENCY in targets):
        scope = KNAPSACK  # what is worth most for all that it costs
    usual = options["score"] is None and score == "obs"
    free = options["pattern"].startswith(("unstructured", "block:"))  # N:M is the same share everywhere
    if free and options["score"] in {*DATA_WEIGHT_SCORERS, *GRADIENT_WEIGHT_SCORERS}:
        scope = "global"
    plain = {
        **options,
        "score": options["score"] or score,
        "scope": options["scope"] or scope,
        "allow_inexact": options["allow_inexact"] or None,
        "before": None if options.get("before") is None else str(options["before"]),
        "stand_in": "l2" if usual else None,  # where obs can't be measured, or takes too long
        "data": None if data is None else data.source,
        "data_digest": None if data is None else data.digest,
        "protect": [protect] if isinstance(protect := options["protect"], str) else list(protect),
        "input_shapes": {
            name: [int(size) for size in shape] for name, shape in (options["input_shapes"] or {}).items()
        },
    }
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in plain.items()}
    plain |= {name: None for name, usual in USUAL.items() if plain.get(name) == usual}
    return {name: value for name, value in plain.items() if value not in (None, [], {})}
