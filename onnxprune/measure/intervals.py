"""Estimates with 95 % intervals: of proportions, means and medians, and of what only the user can compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

#: 97.5 % quantile of the standard normal distribution.
_Z = 1.959963984540054

_RESAMPLES = 2000
_RESAMPLES_OF_ROUNDS = 1000
_JACKKNIFE_GROUPS = 20
_CHUNK_ELEMENTS = 1 << 22  # of resampled values held at a time

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and how well it is known.

    Attributes:
        value: the figure itself.
        low: lower end of the 95 % interval.
        high: upper end of it.
        count: how many observations it rests on.
    """

    value: float
    low: float
    high: float
    count: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def proportion(hits: Vector) -> Estimate:
    """Return the share of ones in a vector of zeros and ones, with Wilson's score interval.

    E. B. Wilson (1927): the centre is (p + z^2/2n) / (1 + z^2/n), the half width is
    z / (1 + z^2/n) * sqrt(p(1-p)/n + z^2/4n^2). Unlike the normal approximation it has a width at 0 and 1.
    """
    count = len(hits)
    share = float(hits.mean())
    stretch = 1 + _Z**2 / count
    centre = (share + _Z**2 / (2 * count)) / stretch
    half = _Z / stretch * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return Estimate(share, max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)), count)


def paired_difference(hits: Vector, reference_hits: Vector) -> Estimate:
    """Return the difference of two shares over the same observations, with Agresti and Min's interval.

    A. Agresti, Y. Min (2005): half an observation is added to each of the four combinations, so that the
    interval has a width where no observation changed.
    """
    count = len(hits)
    gained = float(((hits == 1) & (reference_hits == 0)).sum())
    lost = float(((hits == 0) & (reference_hits == 1)).sum())
    centre = (gained - lost) / (count + 2)
    half = _Z * math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / (count + 2)) / (count + 2)
    return Estimate((gained - lost) / count, max(-1.0, centre - half), min(1.0, centre + half), count)


def mean(values: Vector, seed: int = 0) -> Estimate:
    """Return the mean of ``values`` [observation] with its bootstrap interval."""
    return _bootstrap(values, np.mean, seed)


def median(values: Vector, seed: int = 0) -> Estimate:
    """Return the median of ``values`` [observation] with its bootstrap interval."""
    return _bootstrap(values, np.median, seed)


def ratio_of_quantiles(own: Vector, base: Vector, quantile: float, seed: int = 0) -> Estimate:
    """Return a quantile of ``own`` / that of ``base``, with a bootstrap interval over resampled rounds.

    Args:
        own: positive figures [round, repeat].
        base: the same of what is compared with, measured in the same rounds.
        quantile: in (0, 1), over all figures of all rounds.
        seed: of the bootstrap.
    """
    generator = np.random.default_rng(seed)
    count = len(base)
    chunk = max(1, _CHUNK_ELEMENTS // max(own.size, base.size))

    def ratio(rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        above, below = (np.quantile(x[rows].reshape(len(rows), -1), quantile, axis=1) for x in (own, base))
        return np.asarray(above / below, dtype=np.float64)

    figures = [
        ratio(generator.integers(0, count, (min(chunk, _RESAMPLES_OF_ROUNDS - start), count)))
        for start in range(0, _RESAMPLES_OF_ROUNDS, chunk)
    ]
    low, high = np.quantile(np.concatenate(figures), (0.025, 0.975))
    return Estimate(float(ratio(np.arange(count)[None])[0]), float(low), float(high), count)


def ratio_apart(own: Vector, base: Vector, quantile: float, seed: int = 0) -> Estimate:
    """Return the ratio of a quantile of figures that were measured apart, with a bootstrap interval.

    Args:
        own: positive figures [observation].
        base: those of what is compared with; as many, or not.
        quantile: in (0, 1).
        seed: of the bootstrap.
    """
    generator = np.random.default_rng(seed)
    above, below = (
        np.quantile(x[generator.integers(0, len(x), (_RESAMPLES_OF_ROUNDS, len(x)))], quantile, axis=1)
        for x in (own, base)
    )
    low, high = np.quantile(above / below, (0.025, 0.975))
    value = float(np.quantile(own, quantile) / np.quantile(base, quantile))
    return Estimate(value, float(low), float(high), min(len(own), len(base)))


def of_subsets(statistic: Callable[[npt.NDArray[np.intp]], float], count: int) -> Estimate:
    """Return a statistic of all observations, with the interval of a delete-a-group jackknife (20 groups).

    For statistics that are no mean of per-observation figures. The variance is (g-1)/g * sum (t_i - mean t)^2
    over the g values t_i of the statistic without one group each.

    Args:
        statistic: from the indices of observations to a figure.
        count: how many observations there are.
    """
    everything = np.arange(count)
    value = statistic(everything)
    groups = min(_JACKKNIFE_GROUPS, count)
    if groups < 2:
        return Estimate(value, value, value, count)
    without = np.array([statistic(everything[everything % groups != group]) for group in range(groups)])
    half = _Z * math.sqrt((groups - 1) / groups * float(((without - without.mean()) ** 2).sum()))
    return Estimate(value, value - half, value + half, count)


def _bootstrap(values: Vector, statistic: Any, seed: int) -> Estimate:
    """Draw samples of the same size with replacement; the interval is the middle 95 % of their statistic."""
    generator = np.random.default_rng(seed)
    count = len(values)
    chunk = max(1, _CHUNK_ELEMENTS // count)
    figures = [
        statistic(values[generator.integers(0, count, (min(chunk, _RESAMPLES - start), count))], axis=1)
        for start in range(0, _RESAMPLES, chunk)
    ]
    low, high = np.quantile(np.concatenate(figures), (0.025, 0.975))
    return Estimate(float(statistic(values)), float(low), float(high), count)
