"""Optimal Brain Surgeon for whole channels: pure matrix kernels, block downdates of an inverse Hessian.

A layer ``y = W x`` with Hessian ``H`` (twice the second moments of its inputs, damped) that does without the
columns B, all others re-solved, loses ``1/2 trace(W_B ([H^-1]_BB)^-1 W_B^T)`` on average over the rows, and
that is the least it can lose. The solution and the inverse without B are downdates (Hassibi & Stork 1993,
"Second order derivatives for network pruning"; for blocks of columns Kurtic et al. 2023, "ZipLM", eq. 2-4):

    W    <- W    - W_B      ([H^-1]_BB)^-1 [H^-1]_B:
    H^-1 <- H^-1 - [H^-1]_:B ([H^-1]_BB)^-1 [H^-1]_B:

Removing one block after the other loses the sum of what each step loses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from onnxprune.types import BoolArray, FloatArray, IntArray

#: Channels of wide layers go in about this many rounds; up to twice as many channels go one by one.
ROUNDS = 64

#: Fewer channels than this do not gain from going together.
_FEW = 2

#: Rows of an inverse that are downdated at a time, so that no second matrix of its size is held.
_TILE = 1024

#: What a score grows by at the least from one step to the next: an order that scaling does not blur.
_GROWTH = 1.0 + 1e-9

#: Removed columns stay in place until they are this share of all.
_WASTE = 0.2


@dataclass(slots=True)
class Layer:
    """A layer in which channels compete. Removing channels changes its arrays.

    Attributes:
        inverse: H^-1, float64 [inputs, inputs], symmetric.
        weights: W^T, float64 [inputs, outputs]: those of one channel lie together.
        columns: int32 [channels, places]: the inputs of each channel, -1 in places that it does not have.
    """

    inverse: FloatArray
    weights: FloatArray
    columns: IntArray

    def losses(self, channels: IntArray) -> FloatArray:
        """Return float64 [channels]: what y loses without each of some channels, the others re-solved."""
        columns = self.columns[channels]
        there = columns >= 0
        both = there[:, :, None] & there[:, None, :]
        blocks = np.where(both, self.inverse[columns[:, :, None], columns[:, None, :]], 0.0)
        blocks += np.eye(columns.shape[1]) * ~there[:, :, None]
        weights = np.where(there[:, :, None], self.weights[columns], 0.0)  # [channels, places, outputs]
        if columns.shape[1] == 1:
            return np.asarray(0.5 * np.einsum("cpo,cpo->c", weights, weights) / blocks[:, 0, 0])
        products = np.matmul(weights, weights.transpose(0, 2, 1))
        return np.asarray(0.5 * np.trace(np.linalg.solve(blocks, products), axis1=1, axis2=2))

    def part(self, channels: IntArray) -> Layer:
        """Return what the channels see of each other, numbered from 0: a copy that downdates alike.

        Losses depend on ``W^T W`` alone, so a triangular factor stands for the weights of many outputs.
        """
        columns = self.columns[channels]
        there = columns >= 0
        taken = columns[there]
        renumbered = np.full(columns.shape, -1, dtype=np.int32)
        renumbered[there] = np.arange(len(taken))
        weights = self.weights[taken]
        if weights.shape[1] > len(taken):
            weights = np.asarray(np.linalg.qr(weights.T, mode="r")).T
        return Layer(self.inverse[np.ix_(taken, taken)], weights, renumbered)

    def remove(self, channels: IntArray) -> None:
        """Take channels out, and re-solve all other inputs."""
        gone = self.columns[channels]
        gone = gone[gone >= 0]
        if len(gone) == 0:
            return
        factor = scipy.linalg.cho_factor(self.inverse[np.ix_(gone, gone)], lower=True, check_finite=False)
        shared = self.inverse[:, gone]
        update = scipy.linalg.cho_solve(factor, shared.T, check_finite=False)  # [gone, inputs]
        self.weights -= update.T @ self.weights[gone]
        for start in range(0, len(self.inverse), _TILE):
            self.inverse[start : start + _TILE] -= shared[start : start + _TILE] @ update
        self.columns[channels] = -1

    def compact(self, kept: BoolArray) -> None:
        """Leave out inputs that were removed.

        Args:
            kept: bool [inputs].
        """
        places = np.flatnonzero(kept)
        self.inverse = self.inverse[np.ix_(places, places)]
        self.weights = self.weights[places]
        numbers = np.append(np.cumsum(kept) - 1, -1).astype(np.int32)  # the last one for columns of -1
        self.columns = numbers[self.columns]


def removal_order(layers: Sequence[Layer], size: int, *, rounds: int = ROUNDS) -> tuple[IntArray, FloatArray]:
    """Return the channels in the order in which they are missed least, and what each one's removal loses.

    Losses of several layers add up. Up to ``2 * rounds`` channels go one by one, each the one with the least
    loss now that those before it are gone. Of more, ``size // rounds`` go in each round, one by one among
    twice as many that are weakest at its start. Their losses are exact; what is approximated is the order: a
    channel outside of these that one of the removals makes dispensable waits for the next round.

    Takes O(n^3 + n^2 o) operations for n inputs and o outputs, nearly all in matrix products.

    Args:
        layers: all that sum over the channels; they are used up.
        size: number of channels.
        rounds: see above.

    Returns:
        int32 [size] and float64 [size], both in order of removal. The last loss is that of having none left.
    """
    at_once = size // rounds
    if at_once < _FEW:
        return _one_by_one(layers, size, size)
    order: list[IntArray] = []
    lost: list[FloatArray] = []
    left = np.arange(size, dtype=np.int32)
    inputs = [np.ones(len(layer.inverse), dtype=np.bool_) for layer in layers]
    while len(left):
        weakest = left[np.argsort(_total(layers, left), kind="stable")[: 2 * at_once]]
        parts = [layer.part(weakest) for layer in layers]
        inner, losses = _one_by_one(parts, len(weakest), at_once)
        order.append(weakest[inner])
        lost.append(losses)
        left = left[~np.isin(left, order[-1])]
        if len(left):
            for number, layer in enumerate(layers):
                inputs[number] = _remove(layer, order[-1], inputs[number])
    return np.concatenate(order), np.concatenate(lost)


def _one_by_one(layers: Sequence[Layer], size: int, count: int) -> tuple[IntArray, FloatArray]:
    """Return the first ``count`` channels in exact order, and what the removal of each one loses."""
    order = np.zeros(min(count, size), dtype=np.int32)
    lost = np.zeros(len(order))
    left = np.arange(size, dtype=np.int32)
    inputs = [np.ones(len(layer.inverse), dtype=np.bool_) for layer in layers]
    for step in range(len(order)):
        losses = _total(layers, left)
        weakest = int(np.argmin(losses))
        order[step], lost[step] = left[weakest], losses[weakest]
        left = np.delete(left, weakest)
        if step + 1 < len(order):
            for number, layer in enumerate(layers):
                inputs[number] = _remove(layer, order[step : step + 1], inputs[number])
    return order, lost


def _total(layers: Sequence[Layer], channels: IntArray) -> FloatArray:
    """Return float64 [channels]: what all layers lose without each one; rounding makes no loss negative."""
    losses = np.sum([layer.losses(channels) for layer in layers], axis=0)
    return np.asarray(np.maximum(losses, 0.0))


def rising(order: IntArray, losses: FloatArray) -> FloatArray:
    """Return a score for each channel that never falls along the order: the greatest loss so far.

    Once a channel is gone, another may cost less than the first did: of two that cancel out, only the first
    is missed. A score by the loss alone would let the second one go in place of the first. With the running
    maximum, whatever lies below any threshold is a beginning of the order, so that a share of a group and one
    threshold for all groups both remove what was evaluated together. Equal losses rise by a billionth, which
    keeps the order where scores are compared.

    Args:
        order: int32 [channels].
        losses: float64 [channels], in that order, not negative.
    """
    steps = _GROWTH ** np.arange(len(losses))
    scores = np.empty(len(losses))
    scores[order] = np.maximum.accumulate(losses / steps) * steps
    return scores


def _remove(layer: Layer, channels: IntArray, there: BoolArray) -> BoolArray:
    """Take channels out of a layer; return which of its inputs are left, those of its arrays at the end."""
    gone = layer.columns[channels]
    layer.remove(channels)
    there[gone[gone >= 0]] = False
    if there.sum() < (1 - _WASTE) * len(there):
        layer.compact(there)
        return np.ones(int(there.sum()), dtype=np.bool_)
    return there
