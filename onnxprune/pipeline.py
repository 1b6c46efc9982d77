"""Every stage in order: a wish becomes a plan, a plan a proved model, and that a verified file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune.calibration.activations import BATCH, LIMIT_BYTES
from onnxprune.data import DataReader, Dataset
from onnxprune.errors import UsageError, VerificationError
from onnxprune.model.io import save
from onnxprune.model.together import Together
from onnxprune.planning.latency.wish import TIME_LIMIT_SECONDS
from onnxprune.plans import save_plan
from onnxprune.pruners import pruner_for
from onnxprune.pruning import PruneResult
from onnxprune.types import Check, Plan, Report
from onnxprune.verification import verify
from onnxprune.wishes import prepared


def prune(
    model: ir.Model,
    *,
    pattern: str = "channels",
    amount: float | None = None,
    target_macs: float | None = None,
    target_params: float | None = None,
    target_size: float | None = None,
    target_latency: float | str | None = None,
    score: str | None = None,
    before: str | Path | None = None,
    scope: str | None = None,
    align: int | str = "auto",
    protect: Sequence[str] = (),
    allow_inexact: bool = False,
    floor: float = 0.1,
    data: Dataset | DataReader | str | Path | None = None,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    recover: str = "none",
    rounds: int = 1,
    cache: str | Path | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    batch: int = BATCH,
    memory_limit: int = LIMIT_BYTES,
    threads: int = 1,
    latency_percentile: float = 50.0,
    latency_batch: int | None = None,
    provider: str = "cpu",
    provider_options: Mapping[str, str] | None = None,
    time_limit: float = TIME_LIMIT_SECONDS,
    progress: Callable[[float], None] | None = None,
) -> PruneResult:
    """Decide what goes, remove it from a copy of the model, and prove the result.

    Args:
        model: from `onnxprune.load`; not changed.
        pattern: ``channels`` (everything whose removal shrinks shapes), ``heads`` (attention heads alone),
            ``head_dim`` (the same places inside all heads of an attention), ``experts`` (of a mixture),
            ``dead`` (only channels that do nothing, with no amount: the result computes the same),
            ``layers`` (whole residual branches: attention, feed-forward, convolution blocks),
            ``unstructured``, ``N:M`` (as 2:4: at most 2 of 4 stay) or ``block:RxC``.
        amount: share of channels, layers or weights to remove, in [0, 1); not with N:M, which says it itself.
        target_macs: share of the multiply-accumulates that may stay, in (0, 1], instead of an amount.
        target_params: share of the parameters that may stay, likewise.
        target_size: share of the bytes of all weights that may stay, likewise. Several targets are met
            together.
        target_latency: share of the time of one run that may stay, in (0, 1], or milliseconds as ``"12ms"``:
            measured here, by ONNX Runtime, with ``threads``.
        score: ``l1``, ``l2`` (the default) or ``random``, from the weights; for channels and heads also
            ``fpgm``, ``lamp`` (made for a global scope) or ``bn``, and ``activation``, ``wanda``, ``obs`` or
            ``ablation``, measured on data; for layers ``influence`` (the default, measured on data), ``l2``
            or ``random``; for zeros also ``lamp``, from the weights, and ``wanda`` or ``obs``, measured on
            data: the latter changes the weights that stay. From gradients on data: ``taylor``, ``fisher``,
            ``obd`` or ``snip`` for channels, heads and zeros, ``taylor_activation`` for channels, heads and
            layers, ``fisher`` for layers. From ``before``: ``movement`` or ``movement_distance``. With a
            repair, ``obs`` is the default for channels and heads; ``l2`` then stands in for it in groups
            where it can't be measured or would take long, which the report says.
        before: a file of the same graph with earlier weights, which scores ``movement`` and
            ``movement_distance`` compare with.
        scope: ``uniform`` (the same share everywhere), ``global`` (one threshold for all; the default for
            layers, for zeros that are chosen on data, and where the score is by default ``obs``, whose losses
            then add up to the least under a target) or ``sensitivity`` (where it costs least, measured
            on data); for channels also ``knapsack`` (the most importance within the targets; the default
            where there are several, or one in time) and ``isomorphic`` (one threshold for all groups of the
            same structure, the same share of each); for zeros ``owl`` (less from layers with outliers, on
            data).
        align: kept channel counts are multiples of this; ``auto`` avoids counts that are slow on CPUs.
        protect: globs over group (or branch) and tensor names that must stay whole.
        allow_inexact: also remove channels that normalisation takes statistics over (the width of a
            transformer), which changes these statistics.
        floor: least share of every channel group, or kind of layers, that stays.
        data: the samples that scores are measured on, some of which the proof runs on too: see
            `onnxprune.load_data`. ``random`` (or ``random:256``, a number of samples) draws noise, which the
            report says.
        seed: of every random choice.
        input_shapes: concrete shapes by input name for symbolic axes; sensible sizes are tried otherwise.
        recover: repair of what is left, with data: ``none``, ``bias`` (the mean of every layer's result),
            ``statistics`` (mean and deviation) or ``reconstruct`` (weights and biases by least squares).
        rounds: go in so many rounds of removing and repairing, by a cubic schedule.
        cache: folder for what scope ``sensitivity`` and ``target_latency`` measure, so that it is measured
            once.
        jobs: processes that measure it; 0 for one per core.
        scheduler: address of a Dask scheduler, whose workers do it instead, as ``tcp://HOST:PORT``.
        batch: samples of one run on the data, where the model's first axis is symbolic.
        memory_limit: bytes that work on the data may keep at once, beside the model and the data.
        threads: of ONNX Runtime, in work on the data and where time is measured; 0 for one per core.
        latency_percentile: of the times of single runs that ``target_latency`` is about; 50 is the median.
        latency_batch: size of the batch that is timed, where it is free; 1 by default.
        provider: where time is measured: a key of `onnxprune.runtime.PROVIDERS`.
        provider_options: of the provider, as ONNX Runtime calls them.
        time_limit: seconds that timing layers may take.
        progress: called while scores are measured on data, with the share that is done, in (0, 1].

    Raises:
        UsageError: options that make no sense, alone or together.
        NothingToPrune: nothing can go; ``reasons`` says why.
        LimitMissed: the target can't be met within the floors.
        DataError: the data is damaged, or does not fit the model.
        ProofError: the cut model differs from its exact twin.
    """
    job = prepared(
        model,
        {
            "pattern": pattern, "amount": amount, "target_macs": target_macs, "target_params": target_params,
            "target_size": target_size, "target_latency": target_latency,
            "score": score, "before": before, "scope": scope, "align": align, "protect": protect,
            "floor": floor,
            "input_shapes": input_shapes, "allow_inexact": allow_inexact,
            "recover": recover, "rounds": rounds,
            "data": data, "seed": seed, "cache": cache, "jobs": jobs, "scheduler": scheduler, "batch": batch,
            "memory_limit": memory_limit, "threads": threads, "progress": progress,
            "latency_percentile": latency_percentile, "latency_batch": latency_batch, "provider": provider,
            "provider_options": provider_options, "time_limit": time_limit,
        },
    )  # fmt: skip
    return pruner_for(job.task, job.recipe, job.watch).prune(job.recipe, job.watch)


def plan(model: ir.Model, **options: Any) -> Plan:
    """Decide what `prune` with the same options would remove, without removing it.

    Raises:
        UsageError, NothingToPrune, LimitMissed: as `prune`; an option that it does not have is refused.
    """
    if options.get("rounds", 1) != 1:  # what goes in a round depends on the repair before it
        return prune(model, **options).plan
    job = prepared(model, options_of_prune(model, options))
    return pruner_for(job.task, job.recipe, job.watch).plan(job.recipe, job.watch)


def options_of_prune(model: ir.Model, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of `prune` by name, the usual ones where none are given.

    Raises:
        UsageError: `prune` has no such option.
    """
    try:
        bound = signature(prune).bind(model, **options)
    except TypeError as error:
        raise UsageError(f"{error}; the options are those of prune") from None
    bound.apply_defaults()
    return {name: value for name, value in bound.arguments.items() if name != "model"}


def save_pruned(
    result: PruneResult,
    path: str | Path,
    *,
    against: str | Path | None = None,
    plan_folder: str | Path | None = None,
    external_data: bool | None = None,
    sparse_storage: bool | None = None,
    together: Together | None = None,
) -> Report:
    """Write a pruned model, verified before it appears under its name, and its plan.

    Args:
        result: from `prune` or `apply_plan`.
        path: the output; must not be an input.
        against: the file that the model was made from: the interface and the size are compared with it.
        plan_folder: where the plan goes; nowhere if None.
        external_data: weights beside the model; None for as it was.
        sparse_storage: weights as sparse initializers where that is smaller; None for as they were.
        together: what else appears with the model, or not at all.

    Returns:
        The report of the result, with the checks of the file.

    Raises:
        OutputError: the file can't be written.
        VerificationError: the file is not what it should be; nothing was written.
    """

    def examine(temporary: Path) -> Sequence[Check]:
        return verify(
            temporary,
            against=against,
            plan=result.plan,
            optimize=bool(result.plan.masks),  # a cut claims no zeros; those that were there may be folded
            input_shapes=result.plan.recipe.get("input_shapes"),
        ).checks

    def keep_plan(together: Together) -> None:
        if plan_folder is not None:  # before the model: who has the model has its plan
            save_plan(result.plan, plan_folder, together=together)

    return save_examined(
        result.model,
        path,
        result.report,
        examine,
        once_passed=keep_plan,
        external_data=external_data,
        sparse_storage=sparse_storage,
        together=together,
    )


def save_examined(
    model: ir.Model,
    path: str | Path,
    report: Report,
    examine: Callable[[Path], Sequence[Check]],
    *,
    once_passed: Callable[[Together], None] | None = None,
    external_data: bool | None = None,
    sparse_storage: bool | None = None,
    together: Together | None = None,
) -> Report:
    """Write a model if the file passes what is checked before it appears under its name.

    Args:
        model: what is written.
        path: the output; must not be an input.
        report: of how the model came about.
        examine: checks the file, which still has a temporary name.
        once_passed: called when all checks have passed, before the file appears; what it places appears with
            the file, or not at all.
        external_data: see `onnxprune.save`.
        sparse_storage: see `onnxprune.save`.
        together: what else appears with the model, or not at all.

    Returns:
        The report, with the checks and the time of the file.

    Raises:
        OutputError: the file can't be written.
        VerificationError: a check failed; nothing was written.
    """
    checks: list[Check] = []
    started = time.perf_counter()

    def check_file(temporary: Path) -> None:
        checks.extend(examine(temporary))
        failed = [check for check in checks if not check.passed]
        if failed:
            raise VerificationError(f"{path}: not written, {failed[0].name}: {failed[0].detail}")
        if once_passed is not None:
            once_passed(group)

    with contextlib.ExitStack() as stack:
        group = together or stack.enter_context(Together())
        save(
            model,
            path,
            external_data=external_data,
            sparse_storage=sparse_storage,
            before_commit=check_file,
            together=group,
        )
    seconds = {**report.seconds, "write and verify": time.perf_counter() - started}
    return replace(report, checks=(*report.checks, *checks), seconds=seconds)
