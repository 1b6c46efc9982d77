"""Importance of channels from what the filters that produce them look like: distances between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product

import numpy as np
import onnx_ir as ir

from onnxprune.ops.dequantized import real_numbers
from onnxprune.types import ChannelGroup, FloatArray, IntArray, Member

#: Numbers of one piece of float64 filters, and of one piece of their products.
_PIECE = 1 << 24


def distances(model: ir.Model, groups: Iterable[ChannelGroup], _seed: int) -> Mapping[str, FloatArray | str]:
    """score[c] = sum over the tensors that produce channels, and over all channels d, of |f_c - f_d|

    f_c is the filter of channel c: all weights of a tensor that go away with it but for those that sum over
    it, the places of a head one after the other. A filter near the geometric median of all filters can be
    replaced by the others (He et al. 2019, "Filter Pruning via Geometric Median for Deep Neural Networks
    Acceleration", eq. 7). Distances come from products of the filters,
    ``|f_c - f_d|**2 = |f_c|**2 + |f_d|**2 - 2 f_c f_d``, in float64: O(channels**2) for each weight of one.
    """
    scores: dict[str, FloatArray | str] = {}
    for group in groups:
        found = [
            _distances(weights, member, group.size)
            for member in group.members
            if (weights := _filters(model, member)) is not None
        ]
        scores[group.name] = (
            np.sum(found, axis=0)
            if found
            else "score 'fpgm' compares filters, and no stored matrix or kernel produces these channels"
        )
    return scores


def _filters(model: ir.Model, member: Member) -> np.ndarray | None:
    """Return the tensor of a member if it produces channels: a vector scales or shifts them."""
    if member.contracted:
        return None
    weights = real_numbers(model.graph.initializers[member.tensor])
    return weights if weights is not None and sum(size > 1 for size in weights.shape) > 1 else None


def places_of(channel_at: IntArray, size: int) -> IntArray:
    """Return int32 ``[size, places]``: the positions of each channel, ascending; -1 where it has fewer.

    Args:
        channel_at: int32 [dim]; the channel of each position, -1 for none.
        size: number of channels.
    """
    mine = np.flatnonzero(channel_at >= 0)
    mine = mine[np.argsort(channel_at[mine], kind="stable")]
    counts = np.bincount(channel_at[mine], minlength=size)
    starts = np.cumsum(counts) - counts
    table = np.full((size, max(1, int(counts.max(initial=0)))), -1, dtype=np.int32)
    table[channel_at[mine], np.arange(len(mine)) - np.repeat(starts, counts)] = mine
    return table


def _distances(weights: np.ndarray, member: Member, size: int) -> FloatArray:
    """Return float64 [size]: the sum of the distances of each filter to all others of one tensor."""
    places = places_of(member.channel_at, size)
    rows = np.moveaxis(weights, member.axis, 0).reshape(weights.shape[member.axis], -1)
    step = max(1, _PIECE // size)
    total = np.empty(size)
    for start in range(0, size, step):
        mine = slice(start, start + step)
        squares = np.zeros((len(places[mine]), size))
        for place, left in product(places.T, range(0, rows.shape[1], step)):
            piece = np.where((place >= 0)[:, None], rows[place, left : left + step], 0).astype(np.float64)
            piece -= piece.mean(axis=0)  # what all have in common separates none, and costs digits
            norms = np.einsum("ij,ij->i", piece, piece)
            squares += norms[mine, None] + norms - 2 * (piece[mine] @ piece.T)
        np.maximum(squares, 0.0, out=squares)
        squares[np.arange(len(squares)), np.arange(start, start + len(squares))] = 0.0
        total[mine] = np.sqrt(squares).sum(axis=1)
    return total
