"""The interval of a difference of two shares over the same observations.

Compression changes few answers, and most of those for the worse. There the usual intervals promise too much:
that of Agresti and Min, for one, takes 0 changed answers of 200 for proof that less than 1.0 points are lost,
but a true loss of 1.0 points leaves no trace in one of eight such samples. Tango's score interval says 1.9.
"""

from __future__ import annotations

import math
from collections.abc import Callable

_STEPS = 60  # of the bisection: beyond the last bit of the answer


def score_interval(risen: float, fallen: float, count: float, z: float) -> tuple[float, float]:
    """Return the ends of Tango's score interval for the difference of two paired shares.

    T. Tango (1998), "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17, 891-908: all D with
    |b - c - nD| <= z sqrt(n (2q + D(1 - D))), where q = (sqrt(B^2 - 4AC) - B) / 2A is the most likely share
    of falls if the difference is D, with A = 2n, B = (2n - b + c) D - b - c and C = -c D (1 - D).

    For figures between 0 and 1 that are no hits, the sums of all rises and of all falls stand for b and c: of
    all differences with these sums, those of -1, 0 and 1 vary most, so the interval is too wide, never too
    narrow.

    Args:
        risen: b, how many observations rose from 0 to 1.
        fallen: c, how many fell from 1 to 0.
        count: n, of all observations; positive.
        z: quantile of the standard normal distribution, such as 1.96 for both tails of 2.5 %.
    """
    centre = (risen - fallen) / count

    def outside(difference: float) -> bool:
        b = (2 * count - risen + fallen) * difference - risen - fallen
        product = 8 * count * fallen * difference * (1 - difference)
        falls = (math.sqrt(max(0.0, b * b + product)) - b) / (4 * count)
        variance = count * (2 * falls + difference * (1 - difference))
        return (risen - fallen - count * difference) ** 2 > z * z * max(0.0, variance)

    return _end(outside, centre, -1.0), _end(outside, centre, 1.0)


def _end(outside: Callable[[float], bool], inner: float, outer: float) -> float:
    """Return where an interval ends between a point inside it and one that is not, or is its last."""
    for _ in range(_STEPS):
        middle = (inner + outer) / 2
        if outside(middle):
            outer = middle
        else:
            inner = middle
    return outer


def samples_to_resolve(rise: float, fall: float, limit: float, z: float, most: int = 10**9) -> int | None:
    """Return the least number of observations whose interval lies wholly on one side of ``-limit``.

    Args:
        rise: share of observations that rise.
        fall: share that falls.
        limit: how much of the share may be lost, in [0, 1).
        z: quantile of the standard normal distribution.
        most: more are none.

    Returns:
        None if ``most`` do not decide, as where exactly ``limit`` is lost.
    """

    def decided(count: int) -> bool:
        low, high = score_interval(rise * count, fall * count, count, z)
        return low >= -limit or high < -limit

    if not decided(most):
        return None
    below, enough = 0, most
    while enough - below > 1:
        middle = (below + enough) // 2
        if decided(middle):
            enough = middle
        else:
            below = middle
    return enough
