"""Samples -> masks: which weights of linear layers become zero, judged by what their inputs are.

The model runs over the samples as it is, layers are judged one at a time, and of each only the packed mask
stays, with the new weights where the score makes some. Taking the inputs of each layer from a model that is
already pruned up to there was tried: it lost as much accuracy or more, and costs a run for each level of the
graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.allocate.layer_shares import owl_shares, shares_below_one_threshold
from onnxprune.allocate.masks import NOTHING_GOES, check_amount, check_finite, is_full, select_weights
from onnxprune.allocate.selection import Piece
from onnxprune.calibration.activations import USUAL, Running
from onnxprune.calibration.moments import Moments, collect_moments
from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.ops.linear import Linear, find_linear
from onnxprune.ops.weights import FoundWeight
from onnxprune.patterns import Pattern, count_bad_blocks, count_bad_runs, parse_pattern
from onnxprune.scores.weights_on_data import DATA_WEIGHT_SCORERS, Layer, energies, outlier_ratio
from onnxprune.spill import SpilledArrays
from onnxprune.types import BoolArray, Mask, Skipped, WeightUse

Array = npt.NDArray[Any]

#: Share of the limit for new weights that wait in memory until they are written; the others wait on disk.
_SPILL_SHARE = 1 / 8
Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class MeasuredMasks:
    """What was decided on data.

    Attributes:
        masks: by tensor name.
        weights: new contents by tensor name, as stored; of masked tensors alone, if the score makes any. Of a
            large model, they are read from disk when they are asked for.
        skipped: tensors that were left alone, and what there is to know about others, with the reason.
    """

    masks: Mapping[str, Mask]
    weights: Mapping[str, Array]
    skipped: Sequence[Skipped]


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A stored weight and the linear nodes that multiply with it, each in the same way."""

    name: str
    linears: Sequence[Linear]

    @property
    def size(self) -> int:
        return int(np.prod(self.linears[0].found.shape, dtype=np.int64))

    def stored(self) -> Array:
        """Return the weights as stored.

        Raises:
            ModelError: a weight is not a finite number.
        """
        stored = np.asarray(self.linears[0].found.tensor.numpy())
        check_finite(stored, 0, self.name, stored.shape)
        return stored

    def layer(self, moments: Moments) -> Layer:
        first = self.linears[0]
        return Layer(self.name, first.matrix(self.stored()), moments.second, moments.count, first.taps)


def choose_masks_on_data(
    model: ir.Model,
    uses: Sequence[WeightUse],
    data: Dataset,
    *,
    pattern: str,
    amount: float | None,
    score: str,
    scope: str,
    protect: Sequence[str] = (),
    shares: Mapping[str, float] | None = None,
    running: Running = USUAL,
    progress: Progress | None = None,
) -> MeasuredMasks:
    """Choose which weights become zero, and what the others become.

    Args:
        model: not changed.
        uses: the weights to consider, from `onnxprune.ops.weights.find_weights`.
        data: what inputs are measured on.
        pattern: as of `onnxprune.allocate.masks.choose_masks`.
        amount: share of the weights that goes; None for N:M.
        score: a name in `DATA_WEIGHT_SCORERS`.
        scope: uniform, global (what goes is lowest in `energies`), or owl.
        protect: globs over tensor and consumer names.
        shares: what single tensors give, where that is known already; the scope then decides nothing.
        running: batches, threads and memory of runs.
        progress: called with the share that is done, in (0, 1].

    Raises:
        UsageError: options that make no sense.
        ModelError: a weight is not finite.
        DataError: the data does not fit the model, or gives what is not finite.
        LimitMissed: the moments of a layer take more memory than there may be.
    """
    wanted = parse_pattern(pattern)
    share = check_amount(wanted, amount)
    decide = DATA_WEIGHT_SCORERS.get(score)
    tensors, skipped = _measurable(model, uses, wanted, protect)
    varied = shares is None and scope != "uniform" and wanted.kind != "N:M"
    watched = (partial(_told, progress, 0.0), partial(_told, progress, 0.5)) if varied else (progress,) * 2
    given = shares or {}
    if varied:
        given = _shares(model, tensors, data, scope, share, running, watched[0])
    masks: dict[str, Mask] = {}
    weights = SpilledArrays(int(running.limit_bytes * _SPILL_SHARE))
    for tensor, moments in _measure(model, tensors, data, running, watched[1]):
        decision = decide(tensor.layer(moments), wanted, given.get(tensor.name, share))
        linear = tensor.linears[0]
        mask = Mask.pack(linear.stored_like(decision.kept))
        if is_full(mask):
            skipped.append(Skipped(tensor.name, NOTHING_GOES))
            continue
        masks[tensor.name] = mask
        if decision.warning is not None:
            skipped.append(Skipped(tensor.name, decision.warning))
        if decision.weights is not None:
            updated = linear.stored_like(decision.weights)
            if np.isfinite(updated).all():
                weights.add(tensor.name, updated)
            else:
                reason = f"its other weights stay as they are: new ones do not fit into {updated.dtype}"
                skipped.append(Skipped(tensor.name, reason))
    return MeasuredMasks(masks, weights, skipped)


def outlier_shares(
    model: ir.Model,
    uses: Sequence[WeightUse],
    data: Dataset,
    amount: float,
    *,
    running: Running = USUAL,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Return what each linear layer gives by its outliers, for scores that are not measured themselves.

    Raises:
        DataError, LimitMissed: as of `choose_masks_on_data`.
    """
    tensors, _ = _measurable(model, uses, Pattern("unstructured"), ())
    return _shares(model, tensors, data, "owl", amount, running, progress)


# --- which tensors ------------------------------------------------------------------------------------------


def _measurable(
    model: ir.Model, uses: Sequence[WeightUse], pattern: Pattern, protect: Sequence[str]
) -> tuple[list[_Tensor], list[Skipped]]:
    """Return the tensors whose inputs can all be measured, and why others can't."""
    selected, skipped = select_weights(model, uses, pattern, protect)
    linears, refused = find_linear(model)
    by_use = {(linear.node, linear.found.index): linear for linear in linears}
    reasons = {entry.name: entry.reason for entry in refused}
    tensors = []
    known: dict[Hashable, bool] = {}
    for name, weights in selected.items():
        mine = [by_use[use] for weight in weights if (use := (weight.node, weight.index)) in by_use]
        if len(mine) < len(weights):
            why = reasons.get(name, "not every use of it is a linear node")
            reason = f"its inputs can't be measured ({why}); a score from weights can take it"
            skipped.append(Skipped(name, reason))
        elif not _agree(mine):
            skipped.append(
                Skipped(name, f"it is tied, and its uses ({_consumers(weights)}) turn it each their way")
            )
        elif not _fits(mine[0], pattern, known):
            skipped.append(
                Skipped(name, f"the runs or blocks of {pattern} reach over several of its matrices")
            )
        else:
            tensors.append(_Tensor(name, mine))
    return tensors, skipped


def _consumers(weights: Sequence[FoundWeight]) -> str:
    return ", ".join(weight.use.consumer for weight in weights[:3])


def _agree(linears: Sequence[Linear]) -> bool:
    """Tell whether all uses make the same matrices of a stored tensor, so that their moments add up."""
    first, *others = linears
    if not others:
        return True
    stored = np.asarray(first.found.tensor.numpy())
    matrix = first.matrix(stored)
    return all(
        linear.taps == first.taps and np.array_equal(linear.matrix(stored), matrix, equal_nan=True)
        for linear in others
    )


def _fits(linear: Linear, pattern: Pattern, known: dict[Hashable, bool]) -> bool:
    """Tell whether a pattern in the matrices is the pattern along the stored axes: by a random trial.

    Networks repeat their layers, so what was found for weights that are stored alike is remembered.
    """
    if pattern.kind == "unstructured":
        return True
    key = linear.stored_key
    if key is None:
        return _fits_in_a_trial(linear, pattern)
    if key not in known:
        known[key] = _fits_in_a_trial(linear, pattern)
    return known[key]


def _fits_in_a_trial(linear: Linear, pattern: Pattern) -> bool:
    random, use, groups = np.random.default_rng(0), linear.found.use, linear.groups
    channels = linear.inputs // linear.taps
    if pattern.kind == "N:M":
        if channels % pattern.run:
            return False
        ranks = random.random((groups, linear.outputs, channels // pattern.run, pattern.run, linear.taps))
        trial = np.argsort(ranks, axis=3) < pattern.keep
        stored = linear.stored_like(trial.reshape(groups, linear.outputs, linear.inputs))
        return count_bad_runs(stored, pattern, use.summed_axis, linear.found.groups) == 0
    rows, columns = -(-linear.outputs // pattern.rows), -(-channels // pattern.columns)
    blocks: BoolArray = random.random((groups, rows, columns, linear.taps)) < 0.5
    trial = blocks.repeat(pattern.rows, axis=1).repeat(pattern.columns, axis=2)[
        :, : linear.outputs, :channels
    ]
    stored = linear.stored_like(trial.reshape(groups, linear.outputs, linear.inputs))
    return count_bad_blocks(stored, pattern, use.output_axis, use.summed_axis) == 0


# --- measuring ----------------------------------------------------------------------------------------------


def _measure(
    model: ir.Model, tensors: Sequence[_Tensor], data: Dataset, running: Running, progress: Progress | None
) -> Iterator[tuple[_Tensor, Moments]]:
    """Yield the moments of each tensor's inputs, those of all its uses together."""
    owners = [(tensor, linear) for tensor in tensors for linear in tensor.linears]
    waiting: dict[str, list[Moments]] = {}
    found = collect_moments(
        model,
        [linear for _, linear in owners],
        data,
        batch=running.batch,
        limit_bytes=running.limit_bytes,
        threads=running.threads,
        workers=running.workers,
        progress=progress,
    )
    for number, moments in found:
        tensor = owners[number][0]
        parts = waiting.setdefault(tensor.name, [])
        parts.append(moments)
        if len(parts) == len(tensor.linears):
            yield tensor, _together(waiting.pop(tensor.name))
        del parts, moments  # before the next ones are made


def _together(parts: Sequence[Moments]) -> Moments:
    if len(parts) == 1:
        return parts[0]
    second = np.sum([part.second for part in parts], axis=0)
    first = np.sum([part.first for part in parts], axis=0)
    return Moments(second, first, sum(part.count for part in parts))


def _shares(
    model: ir.Model,
    tensors: Sequence[_Tensor],
    data: Dataset,
    scope: str,
    amount: float,
    running: Running,
    progress: Progress | None,
) -> dict[str, float]:
    """Return what each tensor gives."""
    sizes = {tensor.name: tensor.size for tensor in tensors}
    if scope == "owl":
        ratios = {
            tensor.name: outlier_ratio(tensor.layer(moments))
            for tensor, moments in _measure(model, tensors, data, running, progress)
        }
        return owl_shares(ratios, sizes, amount)
    if scope != "global":
        raise UsageError(f"unknown scope {scope!r}; known: uniform, global, owl")
    factors = {}
    for tensor, moments in _measure(model, tensors, data, running, progress):
        layer = tensor.layer(moments)
        factors[tensor.name] = layer.squares(), layer.energy()
    streams = {tensor.name: partial(_energies, tensor, *factors[tensor.name]) for tensor in tensors}
    return shares_below_one_threshold(streams, sizes, amount)


def _energies(tensor: _Tensor, squares: Array, energy: float) -> Iterator[Piece]:
    yield energies(tensor.linears[0].matrix(tensor.stored()), squares, energy), None


def _told(progress: Progress | None, before: float, done: float) -> None:
    """Report one of two halves of the work."""
    if progress is not None:
        progress(before + done / 2)
