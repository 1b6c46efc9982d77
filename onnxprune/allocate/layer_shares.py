"""How much each layer gives, where layers differ: by one threshold over all weights, or by their outliers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.allocate.selection import Selector, Stream, find_cut

#: How far the share of a layer may lie from the amount (Yin et al. 2023, section 3.2, lambda).
OWL_WIDTH = 0.08


def shares_below_one_threshold(
    streams: Mapping[str, Stream], sizes: Mapping[str, int], amount: float
) -> dict[str, float]:
    """Return the share of each layer's weights whose scores are among the lowest of all layers.

    Args:
        streams: float32 scores by layer, not negative, comparable over layers.
        sizes: weights by layer.
        amount: share of all weights that goes, in (0, 1).
    """
    total = sum(sizes.values())
    target = min(round(amount * total), total - 1)
    if target <= 0:
        return dict.fromkeys(streams, 0.0)
    selector = Selector(find_cut(streams.values(), target, wide=False))
    return {
        name: sum(int(np.count_nonzero(~selector.keep(scores, counts))) for scores, counts in stream())
        / sizes[name]
        for name, stream in streams.items()
    }


def owl_shares(
    ratios: Mapping[str, float], sizes: Mapping[str, int], amount: float, width: float = OWL_WIDTH
) -> dict[str, float]:
    """Return shares that fall with the outliers of a layer; over all weights they come to the amount.

    From the layer with the fewest outliers to the one with the most, shares fall linearly by ``2 * width``
    (Yin et al. 2023, "Outlier Weighed Layerwise Sparsity (OWL)", section 3.2). The layers of the paper have
    equal sizes; here the mean is taken over weights, so that as many go as were asked for.

    Args:
        ratios: share of outliers by layer.
        sizes: weights by layer.
        amount: share of all weights that goes, in (0, 1).
        width: lambda.
    """
    names = list(ratios)
    outliers = np.array([ratios[name] for name in names])
    weights = np.array([float(sizes[name]) for name in names])
    spread = float(np.ptp(outliers))
    shares = np.full(len(names), amount)
    if spread > 0:
        shares = -(outliers - outliers.min()) / spread * 2 * width
        shares = _with_mean(shares, weights, amount)
    return dict(zip(names, shares.tolist(), strict=True))


def _with_mean(shares: Sequence[float] | np.ndarray, weights: np.ndarray, amount: float) -> np.ndarray:
    """Shift shares until their weighted mean, each held within [0, 1], is the amount."""
    low, high = -np.max(shares) - 1, 2 - np.min(shares)
    for _ in range(60):  # halving: the mean of what is held grows with the shift
        middle = (low + high) / 2
        mean = float(np.average(np.clip(shares + middle, 0, 1), weights=weights))
        low, high = (middle, high) if mean < amount else (low, middle)
    return np.asarray(np.clip(shares + (low + high) / 2, 0, 1))
