"""Wishes -> masks: which weights become zero; nothing is changed yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxprune.allocate.masks import SCOPES, check_amount, choose_masks, select_weights
from onnxprune.allocate.options import SENSITIVITY
from onnxprune.calibration.activations import USUAL, Running
from onnxprune.cost import cost_of_model
from onnxprune.data import Dataset
from onnxprune.errors import NothingToPrune, UsageError
from onnxprune.model.digest import TensorDigests, structure_digest, weights_digest
from onnxprune.model.outline import outline_of
from onnxprune.model.prepare import written_out
from onnxprune.model.stored import stored_values, tensor_of
from onnxprune.ops.weights import find_weights
from onnxprune.outlines import Outline
from onnxprune.patterns import parse_pattern
from onnxprune.planning.curves import AMOUNTS, Measured, Setting, curve_rows
from onnxprune.planning.earlier import check_earlier, earlier_model
from onnxprune.planning.gone import masks_with_gone
from onnxprune.planning.mask_trials import measure_masks, share_out
from onnxprune.planning.masks_on_data import MeasuredMasks, choose_masks_on_data, outlier_shares
from onnxprune.planning.notes import unmatched, unused_samples, versions
from onnxprune.planning.recipes import TARGETS, check_scope
from onnxprune.planning.watch import Watch
from onnxprune.registry import did_you_mean
from onnxprune.scores.gradient import notes_on_labels
from onnxprune.scores.magnitude import CHANNEL_SCORERS
from onnxprune.scores.movement import MOVEMENT_SCORERS, weight_figures
from onnxprune.scores.on_data import DATA_SCORERS
from onnxprune.scores.weights import WEIGHT_SCORERS, WeightScorer
from onnxprune.scores.weights_by_gradient import GRADIENT_WEIGHT_SCORERS, WeightSubject
from onnxprune.scores.weights_on_data import DATA_WEIGHT_SCORERS
from onnxprune.types import Cost, Mask, Plan, Skipped, WeightUse

Array = npt.NDArray[Any]

#: Trials beyond those of channels: tensors stand far more zeros, and give as much only if it was measured.
_BEYOND = (0.95, 0.98)


@dataclass(frozen=True, slots=True)
class GatheredWeights:
    """What is known of the weights of a model before any decision is made, for as many as are wanted.

    Attributes:
        model: not changed.
        uses: the weights that may become zero, as nodes use them.
        ranking: what ranks single weights; None for a score that decides layer by layer.
        measured: what each tensor costs alone, where the scope goes by it.
        gone: what is zero already, by tensor name: it counts, and stays gone.
        cost: of the model.
        graph: outline of the model that plans are for.
        structure_digest: of the same.
        given: that model.
        digests: of its tensors, so far: scoring reads them anyway.
        unreachable: what can't become zero, with reasons.
        data: what scores are measured on.
        seed: of every random choice.
        watch: gets the seconds of each stage.
    """

    model: ir.Model
    uses: Sequence[WeightUse]
    ranking: Ranking | None
    measured: Measured | None
    gone: Mapping[str, Mask]
    cost: Cost
    graph: Outline
    structure_digest: str
    given: ir.Model
    digests: TensorDigests
    unreachable: Sequence[Skipped]
    data: Dataset | None
    seed: int
    watch: Watch

    def weights_digest(self) -> str:
        """Return the digest of the weights of the model that plans are for.

        Raises:
            ModelError: the file of a tensor is missing or has changed.
        """
        with self.watch.stage("digest"):
            return weights_digest(self.given, self.digests)


def gather_weights(
    model: ir.Model,
    recipe: Mapping[str, Any],
    data: Dataset | None,
    seed: int,
    watch: Watch,
    setting: Setting = Setting(),  # noqa: B008 # frozen
    *,
    gone: Mapping[str, Mask] | None = None,
    stay: Mapping[str, str] | None = None,
    ranking: Ranking | None = None,
    given: ir.Model | None = None,
) -> GatheredWeights:
    """Find the weights of a model, rank them, and measure what each tensor costs where the scope goes by it.

    Args:
        model: not changed.
        recipe: the options of `onnxprune.prune` that were given, with pattern, score and scope; its amount
            is checked, and plays no part otherwise.
        data: what scores from data are measured on.
        seed: of every random choice.
        watch: gets the seconds of each stage.
        setting: how trials are run where the scope is "sensitivity".
        gone: what is gone already, by tensor name, which counts, and stays gone.
        stay: tensors that stay whole, with the reason.
        ranking: in place of the score.
        given: the model that plans are for, where ``model`` is a copy with other names of nodes.

    Raises:
        UsageError, DataError: as `onnxprune.prune`.
    """
    _check(recipe, data, ranked=ranking is not None)
    with watch.stage("find weights"):
        uses, unreachable = find_weights(model)
        whole = stay or {}
        used = dict.fromkeys(use.tensor for use in uses)
        spared = [Skipped(name, whole[name]) for name in used if name in whole]
        uses = [use for use in uses if use.tensor not in whole]
    with watch.stage("score"):
        ranking = ranking or rank_weights(model, uses, recipe, data, seed, watch.running, watch.progress)
    measured = None
    if data is not None and recipe["scope"] == SENSITIVITY:
        with watch.stage("sensitivity"):
            measured = _trials(model, uses, recipe, data, seed, watch, setting, ranking)
    with watch.stage("digest"):
        given = given or model
        plain = written_out(given)
        graph = outline_of(plain.graph)
        counted = plain if given is model else model  # the former is needed no more
        return GatheredWeights(
            model=model,
            uses=uses,
            ranking=ranking,
            measured=measured,
            gone=gone or {},
            cost=cost_of_model(counted, recipe.get("input_shapes"), in_place=counted is plain),
            graph=graph,
            structure_digest=structure_digest(given),
            given=given,
            digests=TensorDigests(),
            unreachable=[*unreachable, *spared],
            data=data,
            seed=seed,
            watch=watch,
        )


def decide_masks(
    gathered: GatheredWeights, recipe: Mapping[str, Any], shares: Mapping[str, float] | None = None
) -> tuple[Plan, Mapping[str, Array]]:
    """Choose the weights that become zero.

    A score that is measured on data may weigh a dead input as little as a weight that is gone; then a little
    more goes than was asked for, and the plan says all of it.

    Args:
        gathered: from `gather_weights`; it serves any number of decisions.
        recipe: as it was gathered for, with the amount of this decision.
        shares: what single tensors give, where that is known; the scope then decides nothing.

    Returns:
        The plan, and what masked tensors hold instead of their weights, by name, where the score makes the
        weights that stay make up for those that go.

    Raises:
        NothingToPrune: no weight can go; ``reasons`` says why.
        UsageError, DataError, ModelError: as `onnxprune.prune`.
    """
    model, data, watch, measured = gathered.model, gathered.data, gathered.watch, gathered.measured
    with watch.stage("choose masks"):
        if shares is None and measured is not None:
            shares = share_out(measured.curves, recipe["amount"])
        found = masks_for(
            model, gathered.uses, recipe, data, gathered.seed,
            ranking=gathered.ranking, shares=shares, gone=gathered.gone,
            running=watch.running, progress=watch.progress, digests=gathered.digests,
        )  # fmt: skip
    masks = masks_with_gone(gathered.gone, found.masks)
    names = {name for use in gathered.uses for name in (use.tensor, use.consumer)}
    skipped = (
        *gathered.unreachable,
        *found.skipped,
        *(() if measured is None else measured.skipped),
        *notes_on_labels(recipe["score"], data),
        *unused_samples(model, data),
        *unmatched(recipe, names),
    )
    if not masks:
        reasons = [f"{entry.name}: {entry.reason}" for entry in skipped]
        first = f" ({reasons[0]})" if reasons else ""
        raise NothingToPrune(f"no weight can take the pattern {recipe['pattern']!r}{first}", reasons)
    plan = Plan(
        pattern=recipe["pattern"],
        structure_digest=gathered.structure_digest,
        weights_digest=gathered.weights_digest(),
        groups=(),
        masks=masks,
        recipe=dict(recipe),
        predicted=(gathered.cost, gathered.cost),
        seed=gathered.seed,
        versions=versions(),
        skipped=skipped,
        graph=gathered.graph,
    )
    return plan, found.weights


def _check(recipe: Mapping[str, Any], data: Dataset | None, *, ranked: bool = False) -> None:
    """Refuse options that do not go together, before long work; if weights are ranked, any score will do."""
    pattern, score, scope = recipe["pattern"], recipe["score"], recipe["scope"]
    wanted = parse_pattern(pattern)
    for name in TARGETS:
        if recipe.get(name) is not None:
            raise UsageError(
                f"{name} needs a pattern that shrinks shapes; zeros alone change neither: give amount"
            )
    check_amount(wanted, recipe.get("amount"))
    if not ranked:
        check_weight_score(score, recipe.get("before"))
    measured = score in DATA_WEIGHT_SCORERS or score in GRADIENT_WEIGHT_SCORERS
    if scope not in SCOPES:
        raise UsageError(f"unknown scope {scope!r}{did_you_mean(scope, SCOPES)}; known: {', '.join(SCOPES)}")
    if scope != "uniform" and wanted.kind == "N:M":
        raise UsageError(f"pattern {pattern} removes the same share everywhere: leave scope {scope!r} out")
    if data is None and measured:
        raise UsageError(f"score {score!r} is measured on samples: give --data calib.npz")
    if data is None and scope == "owl":
        raise UsageError("scope 'owl' looks for outliers on samples: give --data calib.npz")
    check_scope(scope, data)
    unused = not zeros_measured(score, scope) and recipe.get("recover") is None
    if data is not None and unused:
        raise UsageError(
            f"score {score!r} goes by weights alone: leave the data out, repair with it, or take obs, wanda "
            "or taylor"
        )


def zeros_measured(score: str, scope: str) -> bool:
    """Tell whether zeros are chosen on data, by this score or in this scope."""
    return score in DATA_WEIGHT_SCORERS or score in GRADIENT_WEIGHT_SCORERS or scope in ("owl", SENSITIVITY)


def check_weight_score(name: str, before: str | None) -> None:
    """Refuse scores of single weights that nobody knows, or that lack earlier weights.

    Raises:
        UsageError: see above.
    """
    check_earlier(name, before)
    known = [*WEIGHT_SCORERS, *DATA_WEIGHT_SCORERS, *GRADIENT_WEIGHT_SCORERS, *MOVEMENT_SCORERS]
    if name not in known:
        elsewhere = " for zeros" if name in DATA_SCORERS or name in CHANNEL_SCORERS else ""
        raise UsageError(
            f"unknown score {name!r}{elsewhere}{did_you_mean(name, known)}; known: {', '.join(known)}"
        )


def masks_for(
    model: ir.Model,
    uses: Sequence[WeightUse],
    recipe: Mapping[str, Any],
    data: Dataset | None,
    seed: int,
    *,
    ranking: Ranking | None = None,
    shares: Mapping[str, float] | None = None,
    gone: Mapping[str, Mask] | None = None,
    running: Running = USUAL,
    progress: Callable[[float], None] | None = None,
    digests: TensorDigests | None = None,
) -> MeasuredMasks:
    """Choose masks by the score of a recipe.

    Args:
        model: not changed.
        uses: the weights to consider.
        recipe: with pattern, score and scope, and perhaps an amount and what is protected.
        data: what scores and the scope are measured on.
        seed: of random scores.
        ranking: from `rank_weights`, where that is known already.
        shares: what single tensors give, where that is known; the scope then decides nothing.
        gone: what is gone already, which goes first where scores are not measured on data.
        running: batches, threads and memory of runs.
        progress: called while something is measured, with the share that is done, in (0, 1].
        digests: learns those of the tensors that are read.

    Raises:
        UsageError, DataError, ModelError: as `gather_weights`.
    """
    options = {name: recipe[name] for name in ("pattern", "scope")}
    options |= {"amount": recipe.get("amount"), "protect": recipe.get("protect", ())}
    if data is not None and recipe["score"] in DATA_WEIGHT_SCORERS:
        return choose_masks_on_data(
            model,
            uses,
            data,
            score=recipe["score"],
            shares=shares,
            running=running,
            progress=progress,
            **options,
        )
    if shares is None and recipe["scope"] == "owl" and data is not None:
        shares = outlier_shares(model, uses, data, recipe["amount"], running=running, progress=progress)
    ranking = ranking or rank_weights(model, uses, recipe, data, seed, running, progress)
    if ranking is None:
        raise ValueError(f"score {recipe['score']!r} does not rank weights")
    able = [use for use in uses if use.tensor not in ranking.missing]
    if digests is not None:
        options["read"] = digests.read_pieces
    masks, skipped = choose_masks(
        model, able, scorer=ranking.scorer, seed=seed, shares=shares, gone=gone, **options
    )
    left = [use for use in uses if use.tensor in ranking.missing]
    fitting, others = select_weights(model, left, parse_pattern(recipe["pattern"]), options["protect"])
    skipped = [*skipped, *others, *(Skipped(name, ranking.missing[name]) for name in fitting)]
    return MeasuredMasks(masks, {}, skipped)


@dataclass(frozen=True, slots=True)
class Ranking:
    """What ranks single weights.

    Attributes:
        scorer: gives each of them a figure.
        missing: why a tensor has none, by name.
    """

    scorer: WeightScorer
    missing: Mapping[str, str] = field(default_factory=dict)


def rank_weights(
    model: ir.Model,
    uses: Sequence[WeightUse],
    recipe: Mapping[str, Any],
    data: Dataset | None,
    seed: int,
    running: Running = USUAL,
    progress: Callable[[float], None] | None = None,
) -> Ranking | None:
    """Measure what the score of a recipe ranks weights by; None for a score that decides layer by layer.

    Raises:
        UsageError, DataError, ModelError, PlanError, MissingExtra: as `gather_weights`.
    """
    score, tensors = recipe["score"], list(dict.fromkeys(use.tensor for use in uses))
    if score in MOVEMENT_SCORERS:
        before = earlier_model(recipe["before"], model)
        stored = stored_values(model)
        floats = [name for name in tensors if tensor_of(stored[name][0]).dtype.is_floating_point()]
        missing = {name: "it holds no floats" for name in tensors if name not in floats}
        return Ranking(weight_figures(model, before, floats, score).scorer(), missing)
    if data is not None and score in GRADIENT_WEIGHT_SCORERS:
        subject = WeightSubject(model, tensors, data, running, seed, progress)
        figures = GRADIENT_WEIGHT_SCORERS.get(score)(subject)
        return Ranking(figures.scorer(), figures.missing)
    return Ranking(WEIGHT_SCORERS.get(score)) if score in WEIGHT_SCORERS else None


def _trials(
    model: ir.Model,
    uses: Sequence[WeightUse],
    recipe: Mapping[str, Any],
    data: Dataset,
    seed: int,
    watch: Watch,
    setting: Setting,
    ranking: Ranking | None,
) -> Measured:
    """Measure what zeros in each tensor alone cost, at several amounts.

    A trial has zeros alone: what a score writes into the weights that stay is left out of it.
    """
    even = {**recipe, "scope": "uniform"}

    def masks_at(amount: float) -> Mapping[str, Mask]:
        wish = {**even, "amount": amount}
        return masks_for(model, uses, wish, data, seed, ranking=ranking, running=watch.running).masks

    measured = measure_masks(model, masks_at, (*AMOUNTS, *_BEYOND), data, setting, progress=watch.progress)
    watch.sections["sensitivity"] = curve_rows(measured)
    return measured
