import collections
import itertools
import math
import types

import numpy as np
import pytest

from onnxprune.errors import UsageError
from onnxprune.measure import turns
from onnxprune.measure.turns import TurnTimes, WarmUp, ratio_of, take_turns, warm


@pytest.mark.parametrize("keys", [(0, 2), (0, 1), (0, 1, 2), (0, 1, 3, 2), tuple(range(5)), tuple(range(8))])
def test_orders_treat_everyone_alike(keys):
    orders = turns._orders(keys)
    for first, mirrored in zip(orders[::2], orders[1::2], strict=True):
        assert mirrored == first[::-1]
    for place in range(len(orders[0])):
        assert len(set(collections.Counter(order[place] for order in orders).values())) == 1
    sequence = [key for order in orders for key in order]
    after_itself = [a for a, b in zip(sequence, sequence[1:] + sequence[:1], strict=True) if a == b]
    assert sorted(after_itself) == sorted(set(sequence))
    within = collections.Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert within.keys() == set(itertools.permutations(keys, 2))
    assert len(set(within.values())) == 1  # each comes after each other as often
    assert set(sequence) == set(keys)


def clocked(monkeypatch, seconds):
    """A run, and a clock on which its calls take ``seconds`` one after the other (the last for ever)."""
    now = [0.0]
    monkeypatch.setattr(
        turns, "time", types.SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: 0.0)
    )
    left = iter(seconds)
    last = [0.0]

    def run():
        last[0] = next(left, last[0])
        now[0] += last[0]

    return run


class TestWarmUp:
    def test_it_ends_when_the_times_settle(self, monkeypatch):
        """Slow first runs, then each window a tenth faster than the one before, then no more change."""
        falling = [0.5, 0.1, 0.1, *([0.05] * 3), *([0.04] * 3), *([0.03] * 3), *([0.03] * 3)]
        assert warm(clocked(monkeypatch, falling)) == WarmUp(15, settled=True)

    def test_one_slow_run_does_not_matter(self, monkeypatch):
        assert warm(clocked(monkeypatch, [0.3, 0.01, 0.01, 0.01, 0.01, 0.2])) == WarmUp(6, settled=True)

    def test_times_that_never_settle_are_given_up(self, monkeypatch):
        growing = (1e-6 * 1.1**index for index in range(1000))
        assert warm(clocked(monkeypatch, growing)) == WarmUp(40 * 3, settled=False)

    def test_slow_models_run_one_window(self, monkeypatch):
        assert warm(clocked(monkeypatch, [10.0, 9.0])) == WarmUp(3, settled=False)


class TestRatios:
    """Model b takes 0.8 of the time of a, but each 25th of its runs takes twice as long."""

    def times(self, rounds=400, seed=0):
        generator = np.random.default_rng(seed)
        base = 0.01 * np.exp(generator.normal(0, 0.01, (rounds, 2)))
        own = 0.8 * 0.01 * np.exp(generator.normal(0, 0.01, (rounds, 2)))
        own.reshape(-1)[::25] *= 2
        control = 0.01 * np.exp(generator.normal(0, 0.01, (rounds, 2)))
        return TurnTimes({0: base, 1: own, 2: control}, {})

    @pytest.mark.parametrize(("quantile", "expected"), [(0.5, 0.8), (0.9, 0.8), (0.99, 1.6)])
    def test_quantiles(self, quantile, expected):
        ratio = ratio_of(self.times(), quantile)
        assert ratio.value == pytest.approx(expected, rel=0.03)
        assert ratio.low <= ratio.value <= ratio.high
        assert ratio.high - ratio.low < 0.1
        assert ratio_of(self.times(), quantile, key=2).value == pytest.approx(1, abs=0.02)

    def test_the_interval_holds_the_truth_nineteen_times_of_twenty(self):
        held = sum(
            (found := ratio_of(self.times(60, seed), 0.9)).low <= 0.8 <= found.high for seed in range(60)
        )
        assert held >= 48

    def test_drift_cancels_from_the_median(self):
        times = self.times()
        drift = np.linspace(1, 5, 400)[:, None]
        drifting = TurnTimes({key: wall * drift for key, wall in times.wall.items()}, {})
        assert ratio_of(drifting).value == pytest.approx(0.8, rel=0.01)

    def test_milliseconds(self):
        times = TurnTimes({0: np.array([[0.001, 0.002], [0.003, 0.004]])}, {})
        assert times.milliseconds(0) == 2.5
        assert times.milliseconds(0, 0.99) == pytest.approx(3.97)

    @pytest.mark.parametrize("quantile", [0, 1, -0.5, 95])
    def test_misuse(self, quantile):
        with pytest.raises(UsageError, match="between 0 and 1"):
            ratio_of(self.times(20), quantile)


class TestTurns:
    def test_sessions_take_turns_and_are_warmed_up(self, monkeypatch):
        monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)
        log = []
        shares = []
        runs = {key: (lambda key=key: log.append(key)) for key in (0, 2, 1)}
        times = take_turns(runs, 25, least_seconds=0.0, progress=shares.append)
        rounds = len(shares)
        assert rounds == 30  # whole cycles of six orders
        assert shares == sorted(shares)
        assert shares[-1] == 1 > shares[-2]
        warm_up = len(log) - 3 * rounds
        assert all(log[:warm_up].count(key) >= times.warm_up[key].runs for key in (0, 1, 2))
        expected = [turns._orders((0, 1, 2))[index % 6] for index in range(rounds)]
        assert log[warm_up:] == [key for order in expected for key in order]
        assert {key: array.shape for key, array in times.wall.items()} == dict.fromkeys((0, 2, 1), (30, 1))

    def test_they_go_on_for_the_least_time_but_not_for_ever(self, monkeypatch):
        monkeypatch.setattr(turns, "LEAST_SECONDS", math.inf)
        runs = dict.fromkeys((0, 1), lambda: None)
        assert take_turns(runs, 20).wall[0].shape[0] == turns.MOST_PAIRS

    def test_short_runs_are_repeated(self, monkeypatch):
        ticks = itertools.count()
        clock = types.SimpleNamespace(perf_counter=lambda: next(ticks) * 1.1e-4, process_time=lambda: 0.0)
        monkeypatch.setattr(turns, "time", clock)  # a run takes 0.11 ms
        assert turns._repeats(lambda: None) == 5

    def test_it_goes_on_until_enough_time_is_over(self):
        def share(rounds, elapsed, cycle=2, least=1.0):
            return turns._share_done(rounds, 60, elapsed, cycle, least)

        assert share(60, 0.5) == 0.5
        assert share(30, 9.0) == 0.5
        assert share(60, 1.0, cycle=6) == 1
        assert share(61, 2.0) < 1
        assert share(2000, 0.1) == 1
        assert share(60, 0.0, least=0.0) == 1
