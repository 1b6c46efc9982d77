"""Every stage in order: a wish becomes a plan, a plan a proved model, and that a verified file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.activations import BATCH, LIMIT_BYTES, Running, check_fits
from onnxprune.analyze import Analysis
from onnxprune.data import DataReader, Dataset, load_data
from onnxprune.errors import PlanError, UsageError, VerificationError
from onnxprune.layer_planning import Layers, find_layers, plan_layers, planned_branches
from onnxprune.mask_planning import plan_masks
from onnxprune.model.digest import structure_digest
from onnxprune.model.io import save
from onnxprune.noise import draw_noise, is_noise
from onnxprune.ops.sums import Sums
from onnxprune.planning import STRUCTURED, Watch, analyze_for, check_groups, plan_channels
from onnxprune.plans import save_plan
from onnxprune.proving import Trials, make_cut, prove_cut, prove_layers
from onnxprune.rewrite.depth import remove_branches
from onnxprune.rewrite.fold import Fold
from onnxprune.rewrite.mask import apply_masks, replace_weights
from onnxprune.scores.weights_on_data import DATA_WEIGHT_SCORERS
from onnxprune.types import Check, Plan, Report
from onnxprune.verification import verify


@dataclass(frozen=True, slots=True)
class PruneResult:
    """A pruned model in memory.

    Attributes:
        model: the pruned model; the one that was given is not changed.
        plan: what was removed; applies again to a re-trained model of the same graph.
        report: before and after, checks, what was skipped and why, seconds by stage.
    """

    model: ir.Model
    plan: Plan
    report: Report


def prune(
    model: ir.Model,
    *,
    pattern: str = "channels",
    amount: float | None = None,
    target_macs: float | None = None,
    target_params: float | None = None,
    score: str | None = None,
    scope: str | None = None,
    align: int | str = "auto",
    protect: Sequence[str] = (),
    allow_inexact: bool = False,
    floor: float = 0.1,
    data: Dataset | DataReader | str | Path | None = None,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int = BATCH,
    memory_limit: int = LIMIT_BYTES,
    threads: int = 1,
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
        target_params: share of the parameters that may stay, in (0, 1], instead of an amount.
        score: ``l1``, ``l2`` (the default) or ``random``, from the weights; for channels and heads also
            ``activation``, ``wanda`` or ``ablation``, measured on data; for layers ``influence`` (the
            default, measured on data), ``l2`` or ``random``; for zeros also ``lamp``, from the weights, and
            ``wanda`` or ``obs``, measured on data: the latter changes the weights that stay.
        scope: ``uniform`` (the same share everywhere) or ``global`` (one threshold for all; the default for
            layers, and for zeros that are chosen on data); for zeros also ``owl`` (less from layers with
            outliers, which takes data).
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
        batch: samples of one run on the data, where the model's first axis is symbolic.
        memory_limit: bytes that work on the data may keep at once, beside the model and the data.
        threads: of ONNX Runtime, in work on the data; 0 for one per core.
        progress: called while scores are measured on data, with the share that is done, in (0, 1].

    Raises:
        UsageError: options that make no sense, alone or together.
        NothingToPrune: nothing can go; ``reasons`` says why.
        LimitMissed: the target can't be met within the floors.
        DataError: the data is damaged, or does not fit the model.
        ProofError: the cut model differs from its exact twin.
    """
    watch = Watch(progress=progress, running=_running(batch, memory_limit, threads))
    samples = _samples(data, model, seed, input_shapes)
    recipe = _recipe(
        {
            "pattern": pattern, "amount": amount, "target_macs": target_macs, "target_params": target_params,
            "score": score, "scope": scope, "align": align, "protect": protect, "floor": floor,
            "input_shapes": input_shapes, "allow_inexact": allow_inexact or None,
        },
        samples,
    )  # fmt: skip
    if pattern == "layers":
        decision, layers = plan_layers(model, recipe, samples, seed, watch)
        return _remove_and_prove(decision, layers, samples, watch)
    if pattern in STRUCTURED:
        decision, analysis, sums = plan_channels(model, recipe, samples, seed, watch)
        return _cut_and_prove(decision, analysis, sums, samples, watch)
    decision, weights = plan_masks(model, recipe, samples, seed, watch)
    return _mask(model, decision, watch, weights)


def plan(model: ir.Model, **options: Any) -> Plan:
    """Decide what `prune` with the same options would remove, without removing it.

    Raises:
        UsageError, NothingToPrune, LimitMissed: as `prune`; an option that it does not have is refused.
    """
    try:
        bound = signature(prune).bind(model, **options)
    except TypeError as error:
        raise UsageError(f"{error}; the options are those of prune") from None
    bound.apply_defaults()
    given = dict(bound.arguments)
    running = _running(given.pop("batch"), given.pop("memory_limit"), given.pop("threads"))
    seed, watch = given.pop("seed"), Watch(progress=given.pop("progress"), running=running)
    samples = _samples(given.pop("data"), model, seed, given["input_shapes"])
    recipe = _recipe({name: value for name, value in given.items() if name != "model"}, samples)
    if recipe["pattern"] == "layers":
        return plan_layers(model, recipe, samples, seed, watch)[0]
    if recipe["pattern"] in STRUCTURED:
        return plan_channels(model, recipe, samples, seed, watch)[0]
    return plan_masks(model, recipe, samples, seed, watch)[0]


def _samples(
    data: Dataset | DataReader | str | Path | None,
    model: ir.Model,
    seed: int,
    input_shapes: Mapping[str, Sequence[int]] | None,
) -> Dataset | None:
    if data is None:
        return None
    if isinstance(data, str) and is_noise(data):
        return draw_noise(model, data, seed, input_shapes)
    samples = data if isinstance(data, Dataset) else load_data(data)
    check_fits(model, samples)
    return samples


def _running(batch: int, memory_limit: int, threads: int) -> Running:
    for name, value, least in (
        ("batch", batch, 1),
        ("memory_limit", memory_limit, 1),
        ("threads", threads, 0),
    ):
        if value < least:
            raise UsageError(f"{name} must be at least {least}, not {value}")
    return Running(batch, memory_limit, threads)


#: score and scope where none are given
_DEFAULTS = {"layers": ("influence", "global")}


def _recipe(options: Mapping[str, Any], data: Dataset | None = None) -> dict[str, Any]:
    """Return the options that were given, and defaults, as plain JSON values."""
    score, scope = _DEFAULTS.get(options["pattern"], ("l2", "uniform"))
    if options["score"] in DATA_WEIGHT_SCORERS and options["pattern"] not in (*STRUCTURED, "layers"):
        scope = "global"
    plain = {
        **options,
        "score": options["score"] or score,
        "scope": options["scope"] or scope,
        "data": None if data is None else data.source,
        "data_digest": None if data is None else data.digest,
        "protect": list(options["protect"]),
        "input_shapes": {name: list(shape) for name, shape in (options["input_shapes"] or {}).items()},
    }
    return {name: value for name, value in plain.items() if value not in (None, [], {})}


def apply_plan(
    model: ir.Model,
    plan: Plan,
    *,
    data: Dataset | DataReader | str | Path | None = None,
    batch: int = BATCH,
    memory_limit: int = LIMIT_BYTES,
    threads: int = 1,
) -> PruneResult:
    """Remove from a copy of a model what a plan says: the same model, or a re-trained one of the same graph.

    Args:
        model: not changed.
        plan: from `prune` or `load_plan`.
        data: real inputs for the proof, for models that do not run on random ones; see `prune`.
        batch: see `prune`.
        memory_limit: see `prune`.
        threads: see `prune`.

    Raises:
        PlanError: the plan was made for another graph, or contradicts itself.
        DataError: the data is damaged, or does not fit the model.
        ProofError: the cut model differs from its exact twin.
    """
    watch = Watch(running=_running(batch, memory_limit, threads))
    samples = _samples(data, model, plan.seed, plan.recipe.get("input_shapes"))
    with watch.stage("match"):
        digest = structure_digest(model)
        if digest != plan.structure_digest:
            raise PlanError(
                f"the plan is for another graph (structure {plan.structure_digest[:12]}, this model has "
                f"{digest[:12]}); apply needs the same export, weights may differ: prune anew instead"
            )
    if plan.pattern == "layers":
        with watch.stage("find branches"):
            layers = find_layers(model, plan.recipe.get("input_shapes"))
        return _remove_and_prove(plan, layers, samples, watch)
    if plan.pattern not in STRUCTURED:
        return _mask(model, plan, watch)
    with watch.stage("analyze"):
        analysis = analyze_for({**plan.recipe, "pattern": plan.pattern}, model)
    check_groups(analysis, plan)
    with watch.stage("find constants"):
        sums = Sums(analysis.model.graph, analysis.channels)
    return _cut_and_prove(plan, analysis, sums, samples, watch)


def save_pruned(
    result: PruneResult,
    path: str | Path,
    *,
    against: str | Path | None = None,
    plan_folder: str | Path | None = None,
    external_data: bool | None = None,
    sparse_storage: bool | None = None,
) -> Report:
    """Write a pruned model, verified before it appears under its name, and its plan.

    Args:
        result: from `prune` or `apply_plan`.
        path: the output; must not be an input.
        against: the file that the model was made from: the interface and the size are compared with it.
        plan_folder: where the plan goes; nowhere if None.
        external_data: weights beside the model; None for as it was.
        sparse_storage: weights as sparse initializers where that is smaller; None for as they were.

    Returns:
        The report of the result, with the checks of the file.

    Raises:
        OutputError: the file can't be written.
        VerificationError: the file is not what it should be; nothing was written.
    """
    checks: list[Check] = []
    started = time.perf_counter()

    def check_file(temporary: Path) -> None:
        report = verify(
            temporary,
            against=against,
            plan=result.plan,
            optimize=bool(result.plan.masks),  # a cut claims no zeros; those that were there may be folded
            input_shapes=result.plan.recipe.get("input_shapes"),
        )
        checks.extend(report.checks)
        failed = [check for check in report.checks if not check.passed]
        if failed:
            raise VerificationError(f"{path}: not written, {failed[0].name}: {failed[0].detail}")
        if plan_folder is not None:
            save_plan(result.plan, plan_folder)  # before the model: who has the model has its plan

    save(
        result.model,
        path,
        external_data=external_data,
        sparse_storage=sparse_storage,
        before_commit=check_file,
    )
    seconds = {**result.report.seconds, "write and verify": time.perf_counter() - started}
    return replace(result.report, checks=(*result.report.checks, *checks), seconds=seconds)


def _cut_and_prove(
    plan: Plan, analysis: Analysis, sums: Sums, samples: Dataset | None, watch: Watch
) -> PruneResult:
    removed = {group.name: group.removed for group in plan.groups if len(group.removed)}
    with watch.stage("cut"):
        trial = make_cut(analysis, sums, removed)
    with watch.stage("prove"):
        checks = prove_cut(analysis, sums, removed, trial, Trials(plan.seed, samples))
    inexact = [group for group in plan.groups if len(group.removed) and not group.exact]
    if inexact:
        detail = f"{checks[0].detail}; statistics over {len(inexact)} groups changed"
        checks = (replace(checks[0], detail=detail), *checks[1:])
    before, after = plan.predicted
    numbers, size_bytes = trial.added
    after = replace(after, params=after.params + numbers, size_bytes=after.size_bytes + size_bytes)
    report = _report(replace(plan, predicted=(before, after)), checks, watch, trial.folds)
    return PruneResult(trial.pruned, plan, report)


def _remove_and_prove(plan: Plan, layers: Layers, samples: Dataset | None, watch: Watch) -> PruneResult:
    branches = planned_branches(layers, plan)
    with watch.stage("remove"):
        pruned = remove_branches(layers.model, branches)
    with watch.stage("prove"):
        checks = prove_layers(layers, branches, pruned, Trials(plan.seed, samples))
    return PruneResult(pruned, plan, _report(plan, checks, watch))


def _mask(
    model: ir.Model, plan: Plan, watch: Watch, weights: Mapping[str, NDArray[Any]] | None = None
) -> PruneResult:
    copy = model.clone()
    copy.meta.update(model.meta)
    with watch.stage("mask"):
        replace_weights(copy, weights or {})
        apply_masks(copy, plan.masks)
    return PruneResult(copy, plan, _report(plan, (), watch))


def _report(plan: Plan, checks: tuple[Check, ...], watch: Watch, folds: tuple[Fold, ...] = ()) -> Report:
    before, after = plan.predicted
    sections: dict[str, Any] = {
        "cost": [
            {"what": name, "before": getattr(before, key), "after": getattr(after, key),
             "ratio": getattr(after, key) / max(getattr(before, key), 1)}
            for name, key in (("parameters", "params"), ("MACs", "macs"), ("bytes of weights", "size_bytes"))
        ]
    }  # fmt: skip
    branches = [
        {"branch": b.name, "kind": g.kind.replace("_", " "), "score": b.score, "removed": number in g.removed}
        for g in plan.groups
        for number, b in enumerate(g.branches)
    ]
    if branches:
        sections["layers"] = sorted(branches, key=lambda row: (not row["removed"], row["score"]))
    elif plan.groups:
        sections["groups"] = [
            {
                "group": g.name,
                "kind": g.kind,
                "before": g.size,
                "after": g.size - len(g.removed),
                "exact": g.exact,
            }
            for g in plan.groups
            if len(g.removed)
        ]
    folded = [
        {"consumer": str(fold.seen.contraction.node.name), "into": into, "channels": len(numbers)}
        for fold in folds
        for into, numbers in (("bias", fold.into_bias), ("weights", fold.into_weight))
        if len(numbers)
    ]
    if folded:
        sections["folded constants"] = folded
    if plan.masks:
        sections["masks"] = [
            {"tensor": name, "weights": mask.size, "zero": mask.size - mask.kept,
             "sparsity": 1 - mask.kept / max(mask.size, 1)}
            for name, mask in plan.masks.items()
        ]  # fmt: skip
    return Report(f"pruned by {plan.pattern}", sections, checks, plan.skipped, dict(watch.seconds))
