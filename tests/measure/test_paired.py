"""The interval of a paired difference, against its definition and by counting over all outcomes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import multinomial

from onnxprune.measure.intervals import quantile_of
from onnxprune.measure.paired import samples_to_resolve, score_interval

Z = quantile_of(0.95)

steady = settings(derandomize=True, deadline=None)


@st.composite
def tables(draw):
    count = draw(st.integers(1, 500))
    risen = draw(st.integers(0, count))
    return risen, draw(st.integers(0, count - risen)), count


@steady
@given(tables(), st.sampled_from([1.3, Z, 3.3]))
def test_the_interval_holds_the_estimate_and_possible_values(table, z):
    risen, fallen, count = table
    low, high = score_interval(risen, fallen, count, z)
    assert -1 <= low <= (risen - fallen) / count <= high <= 1


@steady
@given(tables())
def test_the_other_direction_is_the_mirror_image(table):
    risen, fallen, count = table
    low, high = score_interval(risen, fallen, count, Z)
    assert score_interval(fallen, risen, count, Z) == pytest.approx((-high, -low), abs=1e-9)


@steady
@given(tables())
def test_ten_times_the_samples_are_narrower(table):
    risen, fallen, count = table
    low, high = score_interval(risen, fallen, count, Z)
    more = score_interval(10 * risen, 10 * fallen, 10 * count, Z)
    assert low - 1e-12 <= more[0]
    assert more[1] <= high + 1e-12


@pytest.mark.parametrize(
    ("risen", "fallen", "count"), [(1, 0, 44), (3, 9, 86), (9, 16, 100), (20, 55, 5000), (0, 4, 30)]
)
def test_the_ends_are_where_the_score_is_z(risen, fallen, count):
    """The share of falls is found by searching the likelihood, not by the formula."""
    for end, sign in zip(score_interval(risen, fallen, count, Z), (1, -1), strict=True):

        def unlikely(falls: float, end: float = end) -> float:
            shares = (falls + end, falls, 1 - 2 * falls - end)
            logs = [number * math.log(max(share, 1e-300)) for number, share in
                    zip((risen, fallen, count - risen - fallen), shares, strict=True)]  # fmt: skip
            return -sum(logs)

        lowest = max(0.0, -end)
        falls = minimize_scalar(
            unlikely, bounds=(lowest, (1 - end) / 2), method="bounded", options={"xatol": 1e-12}
        ).x
        variance = count * (2 * falls + end - end**2)
        assert (risen - fallen - count * end) / math.sqrt(variance) == pytest.approx(sign * Z, abs=2e-3)


def test_no_change_is_bounded_like_no_hit():
    """With no discordant answers the ends are those of Wilson's interval of 0 hits: z^2 / (n + z^2)."""
    low, high = score_interval(0, 0, 200, Z)
    assert (-low, high) == pytest.approx([Z**2 / (200 + Z**2)] * 2)


@pytest.mark.parametrize(
    ("rise", "fall"),
    [(0, 0.01), (0, 0.02), (0, 0.05), (0.005, 0.015), (0.01, 0.02), (0.02, 0.05), (0.05, 0.05), (0.1, 0.2)],
)
def test_a_loss_beyond_the_limit_passes_rarely(rise, fall):
    """Counted over all outcomes of 100 samples: how often the interval promises less than was lost."""
    count = 100
    risen, fallen = np.meshgrid(np.arange(count + 1), np.arange(count + 1))
    possible = risen + fallen <= count
    tables = np.stack([risen, fallen, count - risen - fallen], axis=-1)[possible]
    chances = multinomial.pmf(tables, count, [rise, fall, 1 - rise - fall])
    likely = chances > 1e-7
    ends = np.array([score_interval(*table[:2], count, Z) for table in tables[likely]])
    promised = chances[likely][ends[:, 0] > rise - fall + 1e-12].sum()
    blamed = chances[likely][ends[:, 1] < rise - fall - 1e-12].sum()
    assert promised <= 0.03
    assert blamed <= 0.055


class TestSamplesToResolve:
    @pytest.mark.parametrize(("rise", "fall", "limit"), [(0, 0, 0.003), (0.01, 0.01, 0.003), (0, 0.02, 0.01)])
    def test_the_number_is_the_least(self, rise, fall, limit):
        def decided(count):
            low, high = score_interval(rise * count, fall * count, count, Z)
            return low >= -limit or high < -limit

        count = samples_to_resolve(rise, fall, limit, Z)
        assert decided(count)
        assert not decided(count - 1)

    def test_a_loss_on_the_limit_is_never_decided(self):
        assert samples_to_resolve(0, 0.003, 0.003, Z) is None
        assert samples_to_resolve(0, 0, 0, Z) is None

    def test_a_finer_limit_takes_more(self):
        counts = [samples_to_resolve(0.01, 0.01, limit, Z) for limit in (0.01, 0.005, 0.003)]
        assert counts == sorted(counts)
        assert counts[0] < counts[2] / 5
