"""Estimates with intervals: of proportions, means, quantiles, and of what only the user can compute.

Intervals are two-sided, with the same probability beyond either end, and of 95 % unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from onnxprune.measure.paired import score_interval

#: How often an interval holds the truth.
CONFIDENCE = 0.95

#: A bootstrap draws from what was seen. Where fewer observations than this differ from the others, it knows
#: too little of how much more there may be to see.
LEAST_DIFFERING = 20

_RESAMPLES = 2000
_TAIL_RESAMPLES = 10  # beyond either end of the interval, at least
_RESAMPLES_OF_ROUNDS = 1000
_JACKKNIFE_GROUPS = 20
_CHUNK_ELEMENTS = 1 << 22  # of resampled values held at a time

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and how well it is known.

    Attributes:
        value: the figure itself.
        low: lower end of the interval.
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


def quantile_of(confidence: float) -> float:
    """Return how many standard deviations of a normal distribution reach to either end of an interval."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def proportion(hits: Vector, confidence: float = CONFIDENCE) -> Estimate:
    """Return the share of ones in a vector of zeros and ones, with Wilson's score interval.

    E. B. Wilson (1927): the centre is (p + z^2/2n) / (1 + z^2/n), the half width is
    z / (1 + z^2/n) * sqrt(p(1-p)/n + z^2/4n^2). Unlike the normal approximation it has a width at 0 and 1.

    Figures between 0 and 1 vary less than zeros and ones of the same mean, so theirs is too wide at worst.
    """
    count, z = len(hits), quantile_of(confidence)
    share = float(hits.mean())
    stretch = 1 + z**2 / count
    centre = (share + z**2 / (2 * count)) / stretch
    half = z / stretch * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Estimate(share, max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)), count)


def mean_share(values: Vector, seed: int = 0, confidence: float = CONFIDENCE) -> Estimate:
    """Return the mean of figures between 0 and 1 [observation]; hits, or shares of hits in each.

    The interval is the bootstrap's where at least `LEAST_DIFFERING` figures differ from the most frequent one
    and not all are hits, and Wilson's otherwise.
    """
    numbers, counts = np.unique(values, return_counts=True)
    if np.isin(numbers, (0, 1)).all() or len(values) - counts.max() < LEAST_DIFFERING:
        return proportion(values, confidence)
    return mean(values, seed, confidence)


def change_of_shares(
    values: Vector, reference: Vector, seed: int = 0, confidence: float = CONFIDENCE
) -> Estimate:
    """Return the mean difference of figures between 0 and 1, paired by observation.

    The interval is the bootstrap's where at least `LEAST_DIFFERING` pairs differ and not all are hits, and
    Tango's otherwise (`onnxprune.measure.paired.score_interval`).
    """
    differences = values - reference
    if not np.isin(differences, (-1, 0, 1)).all() and np.count_nonzero(differences) >= LEAST_DIFFERING:
        return mean(differences, seed, confidence)
    risen, fallen = float(differences.clip(0).sum()), float((-differences).clip(0).sum())
    low, high = score_interval(risen, fallen, len(values), quantile_of(confidence))
    return Estimate(float(differences.mean()), low, high, len(values))


def mean(values: Vector, seed: int = 0, confidence: float = CONFIDENCE) -> Estimate:
    """Return the mean of ``values`` [observation] with its bootstrap interval."""
    return _bootstrap(values, np.mean, seed, confidence)


def median(values: Vector, seed: int = 0, confidence: float = CONFIDENCE) -> Estimate:
    """Return the median of ``values`` [observation] with its bootstrap interval."""
    return _bootstrap(values, np.median, seed, confidence)


def quantile_of_rounds(figures: Vector, quantile: float, confidence: float = CONFIDENCE) -> Estimate | None:
    """Return a quantile of figures with its exact interval between two of them, for any distribution.

    Of n draws, k lie below the true quantile q, and k is binomial(n, q); the ends are those ranks that k
    leaves to either side with (1 - confidence) / 2 at most. Figures of one round are alike, so n counts
    rounds: ranks among rounds become levels among all figures.

    Args:
        figures: [round, repeat].
        quantile: in (0, 1).
        confidence: of the interval.

    Returns:
        None where there are too few rounds for an interval with two ends.
    """
    rounds = len(figures)
    below = scipy.special.bdtr(np.arange(rounds + 1, dtype=np.float64), rounds, quantile)  # P(k <= rank)
    tail = (1 - confidence) / 2
    low = int(np.searchsorted(below, tail, side="right"))  # P(k < low) = P(k <= low - 1) <= tail
    high = int(np.searchsorted(below, 1 - tail)) + 1  # P(k >= high) = 1 - P(k <= high - 1) <= tail
    if low < 1 or high > rounds:
        return None
    ends = np.quantile(figures, ((low - 1) / (rounds - 1), quantile, (high - 1) / (rounds - 1)))
    return Estimate(float(ends[1]), float(ends[0]), float(ends[2]), rounds)


def least_rounds(quantile: float, confidence: float = CONFIDENCE) -> int:
    """Return how many rounds `quantile_of_rounds` takes: the last draw lies above but for q^n of cases."""
    return math.ceil(math.log((1 - confidence) / 2) / math.log(max(quantile, 1 - quantile)))


def ratio_of_quantiles(
    own: Vector, base: Vector, quantile: float, seed: int = 0, confidence: float = CONFIDENCE
) -> Estimate:
    """Return a quantile of ``own`` / that of ``base``, with a bootstrap interval over resampled rounds.

    Args:
        own: positive figures [round, repeat].
        base: the same of what is compared with, measured in the same rounds.
        quantile: in (0, 1), over all figures of all rounds.
        seed: of the bootstrap.
        confidence: of the interval.
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
    low, high = np.quantile(np.concatenate(figures), _ends(confidence))
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


def of_subsets(
    statistic: Callable[[npt.NDArray[np.intp]], float], count: int, confidence: float = CONFIDENCE
) -> Estimate:
    """Return a statistic of all observations, with the interval of a delete-a-group jackknife (20 groups).

    For statistics that are no mean of per-observation figures. The variance is (g-1)/g * sum (t_i - mean t)^2
    over the g values t_i of the statistic without one group each; the interval is Student's, of g - 1 degrees
    of freedom.

    Args:
        statistic: from the indices of observations to a figure.
        count: how many observations there are.
        confidence: of the interval.
    """
    everything = np.arange(count)
    value = statistic(everything)
    groups = min(_JACKKNIFE_GROUPS, count)
    if groups < 2:
        return Estimate(value, value, value, count)
    without = np.array([statistic(everything[everything % groups != group]) for group in range(groups)])
    reach = float(scipy.special.stdtrit(groups - 1, (1 + confidence) / 2))
    half = reach * math.sqrt((groups - 1) / groups * float(((without - without.mean()) ** 2).sum()))
    return Estimate(value, value - half, value + half, count)


def _bootstrap(values: Vector, statistic: Any, seed: int, confidence: float) -> Estimate:
    """Draw samples of the same size with replacement; the interval is the middle of their statistic."""
    generator = np.random.default_rng(seed)
    count = len(values)
    resamples = max(_RESAMPLES, math.ceil(2 * _TAIL_RESAMPLES / (1 - confidence)))
    chunk = max(1, _CHUNK_ELEMENTS // count)
    figures = [
        statistic(values[generator.integers(0, count, (min(chunk, resamples - start), count))], axis=1)
        for start in range(0, resamples, chunk)
    ]
    low, high = np.quantile(np.concatenate(figures), _ends(confidence))
    return Estimate(float(statistic(values)), float(low), float(high), count)


def _ends(confidence: float) -> tuple[float, float]:
    return (1 - confidence) / 2, (1 + confidence) / 2
