"""Which weights of a linear layer go, judged by what its inputs are on real data.

A method sees one layer at a time: its weights as matrices, and the second moments of what they are multiplied
with. Weights are compared inside a layer; how much each layer gives is decided before
(`onnxprune.allocate.layer_shares`), from the energies and outliers that are measured here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxprune.cholesky import DAMPING, NotPositiveDefinite
from onnxprune.patterns import Pattern, block_sums, spread_blocks
from onnxprune.registry import Registry
from onnxprune.scores.obs import prune_matrix
from onnxprune.types import BoolArray, FloatArray

Array: TypeAlias = npt.NDArray[Any]

#: Rows that are ranked at a time, to bound the memory of sorting.
_BAND_ROWS = 256

#: A weight is an outlier if its score is this many times the mean of its layer (Yin et al. 2023, table 1).
OUTLIER_FACTOR = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A weight of linear nodes, and what it is multiplied with.

    Attributes:
        name: of the tensor.
        weights: float32 or float64 [groups, outputs, inputs].
        second: float64 [groups, inputs, inputs], the sum of x x^T over all rows of all uses.
        count: rows.
        taps: columns of one channel: column = channel * taps + tap.
    """

    name: str
    weights: Array
    second: FloatArray
    count: int
    taps: int

    def squares(self) -> FloatArray:
        """Return E[x_j^2], float64 [groups, inputs], damped so that no input is worth nothing.

        Data is a sample: an input that is always zero on it may come to life. A group without any signal (an
        expert that no sample went to) counts as the others do on average.
        """
        diagonal = np.einsum("gii->gi", self.second) / max(self.count, 1)
        means = diagonal.mean(axis=1)
        usual = means[means > 0].mean() if (means > 0).any() else 1.0
        dead = means == 0
        damped = np.where(dead[:, None], usual, diagonal + DAMPING * np.where(dead, usual, means)[:, None])
        return np.asarray(damped)

    def energy(self) -> float:
        """Return E[|W x|^2], over all groups."""
        total = sum(
            float(np.einsum("oi,oi->", weights @ second.astype(weights.dtype), weights, dtype=np.float64))
            for weights, second in zip(self.weights, self.second, strict=True)
        )
        return max(total, 0.0) / max(self.count, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What goes in one layer.

    Attributes:
        kept: bool [groups, outputs, inputs].
        weights: [groups, outputs, inputs], those that make up for what goes; None if they stay as they are.
        warning: what the user should know about how it was decided.
    """

    kept: BoolArray
    weights: Array | None = None
    warning: str | None = None


#: (layer, pattern, share of its weights that go; N:M says it itself) -> decision
LayerPruner: TypeAlias = Callable[[Layer, Pattern, float], Decision]

DATA_WEIGHT_SCORERS: Registry[LayerPruner] = Registry("score")


@DATA_WEIGHT_SCORERS.register("obs")
def obs(layer: Layer, pattern: Pattern, share: float) -> Decision:
    """Drop what the layer can make up for best, and make up for it: see `onnxprune.scores.obs`.

    Groups give what ``w^2 E[x^2]`` says, compared over the whole layer; N:M is the same everywhere.
    """
    shares = _shares_of_groups(layer, share) if pattern.kind != "N:M" else [share] * len(layer.weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotPositiveDefinite)  # said in the decision
        found = [
            prune_matrix(weights, second, layer.count, pattern, mine, taps=layer.taps, layer=layer.name)
            for weights, second, mine in zip(layer.weights, layer.second, shares, strict=True)
        ]
    warned = next((each.damping.warning for each in found if each.damping.warning), None)
    return Decision(
        np.stack([each.kept for each in found]), np.stack([each.weights for each in found]), warned
    )


@DATA_WEIGHT_SCORERS.register("wanda")
def wanda(layer: Layer, pattern: Pattern, share: float) -> Decision:
    """Score = |w_ij| * ||x_j||, compared inside the row of an output (Sun et al. 2023, eq. 1).

    Blocks compete by their mean inside a row of blocks.
    """
    norms = np.sqrt(np.einsum("gii->gi", layer.second) / max(layer.count, 1))
    scores = np.abs(layer.weights) * norms[:, None, :].astype(layer.weights.dtype)
    if pattern.kind == "unstructured":
        rows = scores.reshape(-1, scores.shape[2])  # of all groups: each may have a single row
        kept = _highest_of_rows(rows, share)
    elif pattern.kind == "N:M":
        kept = np.stack([_runs(mine, pattern, layer.taps) for mine in scores])
    else:
        kept = np.stack([_blocks(mine, pattern, layer.taps, share) for mine in scores])
    return Decision(kept.reshape(scores.shape))


def energies(weights: Array, squares: FloatArray, energy: float) -> Array:
    """Score = w_ij^2 E[x_j^2] / E[|W x|^2], float32 [groups, outputs, inputs].

    The share of the energy of a layer's outputs that goes with the weight alone, which can be compared over
    layers. Where a layer has no output at all, it is the share of the sum of all ``w^2 E[x^2]``.

    Args:
        weights: W [groups, outputs, inputs].
        squares: E[x_j^2] [groups, inputs], see `Layer.squares`.
        energy: E[|W x|^2].
    """
    terms = np.square(weights, dtype=np.float64) * squares[:, None, :]
    return np.asarray(terms / (energy or float(terms.sum()) or 1.0), dtype=np.float32)


def outlier_ratio(layer: Layer, factor: float = OUTLIER_FACTOR) -> float:
    """Return the share of weights whose ``|w_ij| * ||x_j||`` is more than ``factor`` times the mean.

    Yin et al. 2023, "Outlier Weighed Layerwise Sparsity (OWL)", section 3.2.
    """
    norms = np.sqrt(np.einsum("gii->gi", layer.second) / max(layer.count, 1))
    scores = np.abs(layer.weights) * norms[:, None, :]
    return float(np.mean(scores > factor * scores.mean()))


def _shares_of_groups(layer: Layer, share: float) -> list[float]:
    """Return how much each group gives, so that the whole layer gives its share."""
    if len(layer.weights) == 1:
        return [share]
    scores = energies(layer.weights, layer.squares(), 1.0)
    target = min(round(share * scores.size), scores.size)
    gone = np.zeros(scores.size, dtype=np.bool_)
    gone[np.argsort(scores, axis=None, kind="stable")[:target]] = True
    return [float(mine.mean()) for mine in gone.reshape(len(scores), -1)]


def _highest_of_rows(scores: Array, share: float) -> BoolArray:
    """Return which weights stay: each row loses its share, rounded so that all together lose theirs."""
    rows, columns = scores.shape
    kept = np.empty(scores.shape, dtype=np.bool_)
    ends = np.rint(share * columns * np.arange(1, rows + 1)).astype(np.int64)
    counts = np.diff(ends, prepend=0)
    places = np.arange(columns)
    for start in range(0, rows, _BAND_ROWS):
        band = slice(start, start + _BAND_ROWS)
        order = np.argsort(scores[band], axis=1, kind="stable")
        np.put_along_axis(kept[band], order, places >= counts[band, None], axis=1)
    return kept


def _runs(scores: Array, pattern: Pattern, taps: int) -> BoolArray:
    outputs, inputs = scores.shape
    runs = scores.reshape(outputs, -1, pattern.run, taps)  # column = channel * taps + tap
    lowest = np.argsort(runs, axis=2, kind="stable")[:, :, : pattern.run - pattern.keep]
    kept = np.ones(runs.shape, dtype=np.bool_)
    np.put_along_axis(kept, lowest, False, axis=2)
    return kept.reshape(outputs, inputs)


def _blocks(scores: Array, pattern: Pattern, taps: int, share: float) -> BoolArray:
    """Each row of blocks loses the whole number of its lowest blocks that is nearest to its share."""
    outputs, inputs = scores.shape
    shape = (outputs, inputs // taps, taps)
    sums, sizes = (
        np.moveaxis(each, 0, 1).reshape(each.shape[1], -1)
        for each in block_sums(scores.reshape(shape), pattern, 0, 1)
    )
    order = np.argsort(sums / sizes, axis=1, kind="stable")
    ordered = np.take_along_axis(sizes, order, axis=1)
    middle = np.cumsum(ordered, axis=1) - ordered / 2
    blocks = np.empty(sums.shape, dtype=np.bool_)
    np.put_along_axis(blocks, order, middle >= share * sizes.sum(axis=1, keepdims=True), axis=1)
    by_tap = np.moveaxis(blocks.reshape(len(blocks), taps, -1), 1, 0)
    return spread_blocks(by_tap, pattern, shape, 0, 1).reshape(outputs, inputs)
