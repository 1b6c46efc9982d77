"""Importance of channels from the weights alone: norms, the measures beside it, and random as the control."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.ops.dequantized import real_numbers
from onnxprune.registry import Registry
from onnxprune.scores import filters, scales
from onnxprune.types import ChannelGroup, FloatArray, Scores

#: model, groups, seed -> float64 [channel] by group name, higher = keep; or why a group has no figures
ChannelScorer = Callable[[ir.Model, Iterable[ChannelGroup], int], Mapping[str, FloatArray | str]]

CHANNEL_SCORERS: Registry[ChannelScorer] = Registry("score")


def score(model: ir.Model, groups: Iterable[ChannelGroup], scorer: str = "l2", *, seed: int = 0) -> Scores:
    """Return the importance of every channel of every group that is not frozen.

    Args:
        model: the model in which the groups were found, or a copy with the same tensor names.
        groups: from `find_groups`.
        scorer: a name in `CHANNEL_SCORERS`.
        seed: of the random control.

    Raises:
        UsageError: the scorer is not known.
    """
    open_groups = [group for group in groups if group.frozen is None]
    found = CHANNEL_SCORERS.get(scorer)(model, open_groups, seed)
    return Scores.of(scorer, found)


@CHANNEL_SCORERS.register("l2")
def l2_norm(model: ir.Model, groups: Iterable[ChannelGroup], _seed: int) -> Mapping[str, FloatArray]:
    """score[c] = sqrt(sum of w**2 over every weight that goes away with channel c)"""
    energies = _reduce(model, groups, _energy)
    return {name: np.sqrt(energy) for name, energy in energies.items()}


@CHANNEL_SCORERS.register("l1")
def l1_norm(model: ir.Model, groups: Iterable[ChannelGroup], _seed: int) -> Mapping[str, FloatArray]:
    """score[c] = sum of |w| over every weight that goes away with channel c"""
    return _reduce(model, groups, np.abs)


@CHANNEL_SCORERS.register("lamp")
def adaptive_magnitude(
    model: ir.Model, groups: Iterable[ChannelGroup], _seed: int
) -> Mapping[str, FloatArray]:
    """score[c] = e[c] / sum of e[d] over all channels d of the group that are not weaker; e: l2 squared

    The share of what is left that would go with c, once all weaker channels are gone (Lee et al. 2021,
    "Layer-adaptive Sparsity for the Magnitude-based Pruning", eq. 2, by channels, not weights). The strongest
    channel of every group scores 1, so one threshold over all groups empties none; within a group, the order
    is that of l2.
    """
    scores = {}
    for name, energy in _reduce(model, groups, _energy).items():
        order = np.argsort(energy, kind="stable")
        left = np.cumsum(energy[order[::-1]])[::-1]
        scores[name] = np.empty_like(energy)
        scores[name][order] = energy[order] / np.where(left > 0, left, 1.0)
    return scores


@CHANNEL_SCORERS.register("random")
def uniform_noise(_model: ir.Model, groups: Iterable[ChannelGroup], seed: int) -> Mapping[str, FloatArray]:
    """score[c] is drawn uniformly from [0, 1): what a method has to beat"""
    generator = np.random.default_rng(seed)
    return {group.name: generator.random(group.size) for group in groups}


CHANNEL_SCORERS.register("fpgm")(filters.distances)
CHANNEL_SCORERS.register("bn")(scales.scale_of_normalisation)


def _energy(weights: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return np.asarray(np.multiply(weights, weights))


def _reduce(
    model: ir.Model,
    groups: Iterable[ChannelGroup],
    measure: Callable[[npt.NDArray[np.floating]], npt.NDArray[np.floating]],
) -> dict[str, FloatArray]:
    """Sum a measure of single weights over all members of each channel; every tensor is read once."""
    totals = {group.name: np.zeros(group.size) for group in groups}
    wanted: dict[str, list[tuple[str, int, npt.NDArray[np.int32]]]] = {}
    for group in groups:
        for member in group.members:
            wanted.setdefault(member.tensor, []).append((group.name, member.axis, member.channel_at))
    for tensor_name, members in wanted.items():
        weights = real_numbers(model.graph.initializers[tensor_name])
        if weights is None:
            continue  # sizes, indices and scales are no measure of importance
        sums = _sums_along(weights, sorted({axis for _, axis, _ in members}), measure)
        for name, axis, channel_at in members:
            mine = channel_at >= 0
            totals[name] += np.bincount(channel_at[mine], sums[axis][mine], minlength=len(totals[name]))
    return totals


def _sums_along(
    array: npt.NDArray[np.floating],
    axes: Iterable[int],
    measure: Callable[[npt.NDArray[np.floating]], npt.NDArray[np.floating]],
) -> dict[int, FloatArray]:
    """Return float64 ``[dim]`` for each axis: the measure summed over all other axes.

    Sums run in float32 for float32 weights, and again in float64 where they overflow.
    """
    single = array.dtype == np.float32
    with np.errstate(over="ignore", invalid="ignore"):
        values = measure(array if single else array.astype(np.float64))
        result = {axis: _sum_others(values, axis) for axis in axes}
    if single and not all(np.isfinite(sums).all() for sums in result.values()):
        return _sums_along(array.astype(np.float64), axes, measure)
    return result


def _sum_others(values: npt.NDArray[np.floating], axis: int) -> FloatArray:
    """Sum over all axes but one, in two steps over long rows: far faster than over short axes."""
    before = int(np.prod(values.shape[:axis], dtype=np.int64))
    flat = values if before == 1 else values.reshape(before, -1).sum(axis=0)  # no copy of the first axis
    return np.asarray(flat.reshape(values.shape[axis], -1).sum(axis=1), dtype=np.float64)
