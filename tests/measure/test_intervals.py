import numpy as np
import pytest

from onnxprune.measure import intervals


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        (8, 10, 0.4901625, 0.9433178),
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (90, 100, 0.8256343, 0.9447708),
    ],
)
def test_wilson(hits, count, low, high):
    estimate = intervals.proportion(np.repeat([1.0, 0.0], [hits, count - hits]))
    assert estimate.value == hits / count
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-6)
    assert estimate.count == count


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_wilson_covers_the_truth_19_times_in_20(share):
    generator = np.random.default_rng(0)
    estimates = [intervals.proportion((generator.random(200) < share).astype(float)) for _ in range(1000)]
    covered = np.mean([estimate.low <= share <= estimate.high for estimate in estimates])
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize("estimate_of", [intervals.mean, intervals.median])
def test_bootstrap_covers_the_truth_19_times_in_20(estimate_of):
    generator = np.random.default_rng(1)
    estimates = [estimate_of(generator.normal(3, 1, 80), seed) for seed in range(200)]
    covered = np.mean([estimate.low <= 3 <= estimate.high for estimate in estimates])
    assert 0.9 <= covered <= 0.98
    assert all(estimate.low <= estimate.value <= estimate.high for estimate in estimates)


def test_bootstrap_depends_on_the_seed_alone():
    values = np.random.default_rng(0).normal(size=50)
    assert intervals.mean(values, 7) == intervals.mean(values, 7)
    assert intervals.mean(values, 7) != intervals.mean(values, 8)


def test_bootstrap_of_many_values_is_drawn_in_chunks(monkeypatch):
    values = np.random.default_rng(0).normal(size=1000)
    monkeypatch.setattr(intervals, "_CHUNK_ELEMENTS", 50_000)
    estimate = intervals.mean(values)
    error = values.std() / np.sqrt(1000)
    assert (estimate.high - estimate.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)


def test_one_value():
    assert intervals.median(np.array([2.0])) == intervals.Estimate(2, 2, 2, 1)


class TestPairedDifference:
    def test_covers_the_truth(self):
        generator = np.random.default_rng(2)
        covered = []
        for _ in range(500):
            reference = (generator.random(300) < 0.9).astype(float)
            hits = np.where(generator.random(300) < 0.05, 1 - reference, reference)  # 5 % change their mind
            estimate = intervals.paired_difference(hits, reference)
            covered.append(estimate.low <= 0.05 * (0.1 - 0.9) <= estimate.high)
        assert 0.92 <= np.mean(covered) <= 0.98

    def test_no_change_still_has_a_width(self):
        hits = np.ones(100)
        estimate = intervals.paired_difference(hits, hits)
        assert estimate.value == 0
        assert estimate.low == -estimate.high
        assert 0.01 < estimate.high < 0.03

    def test_sign(self):
        assert intervals.paired_difference(np.ones(50), np.zeros(50)).value == 1
        assert intervals.paired_difference(np.zeros(50), np.ones(50)).value == -1


class TestOfSubsets:
    def test_equals_the_mean_where_the_statistic_is_one(self):
        values = np.random.default_rng(3).normal(size=400)
        estimate = intervals.of_subsets(lambda indices: float(values[indices].mean()), 400)
        error = values.std() / 20
        assert estimate.value == values.mean()
        assert (estimate.high - estimate.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.4)

    def test_a_single_observation_has_no_interval(self):
        assert intervals.of_subsets(lambda _: 0.5, 1) == intervals.Estimate(0.5, 0.5, 0.5, 1)
