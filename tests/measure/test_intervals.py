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


class TestChangeOfShares:
    def test_covers_the_truth(self):
        generator = np.random.default_rng(2)
        covered = []
        for _ in range(500):
            reference = (generator.random(300) < 0.9).astype(float)
            hits = np.where(generator.random(300) < 0.05, 1 - reference, reference)  # 5 % change their mind
            estimate = intervals.change_of_shares(hits, reference)
            covered.append(estimate.low <= 0.05 * (0.1 - 0.9) <= estimate.high)
        assert 0.92 <= np.mean(covered) <= 0.98

    def test_no_change_still_has_a_width(self):
        hits = np.ones(100)
        estimate = intervals.change_of_shares(hits, hits)
        assert estimate.value == 0
        assert -estimate.low == pytest.approx(estimate.high)
        assert 0.03 < estimate.high < 0.05

    def test_sign(self):
        assert intervals.change_of_shares(np.ones(50), np.zeros(50)).value == 1
        assert intervals.change_of_shares(np.zeros(50), np.ones(50)).value == -1

    def test_a_few_samples_that_changed_in_part_prove_no_more_than_whole_ones(self):
        reference = np.full(60, 0.75)
        values = reference.copy()
        values[:3] = 0.5
        estimate = intervals.change_of_shares(values, reference)
        assert estimate.value == pytest.approx(-0.0125)
        assert estimate.low < -0.05
        assert estimate.high > 0.03

    def test_many_that_changed_a_little_are_told_by_the_bootstrap(self):
        reference = np.full(400, 0.75)
        values = reference + np.random.default_rng(0).normal(-0.01, 0.02, 400)
        estimate = intervals.change_of_shares(values, reference)
        assert estimate.high - estimate.low == pytest.approx(4 * 0.02 / 20, rel=0.15)


class TestMeanShare:
    def test_equal_figures_have_a_width(self):
        assert intervals.mean_share(np.full(10, 0.9)).low < 0.7

    def test_hits_have_wilsons_interval(self):
        hits = np.repeat([1.0, 0.0], [8, 2])
        assert intervals.mean_share(hits) == intervals.proportion(hits)

    def test_shares_that_vary_have_the_bootstraps(self):
        shares = np.random.default_rng(0).uniform(0.85, 0.95, 200)
        estimate = intervals.mean_share(shares)
        assert estimate == intervals.mean(shares)
        assert estimate.high - estimate.low < 0.01


@pytest.mark.parametrize(
    "estimate_of",
    [
        lambda values, confidence: intervals.mean(values, 0, confidence),
        lambda values, confidence: intervals.median(values, 0, confidence),
        lambda values, confidence: intervals.proportion((values > 3).astype(float), confidence),
        lambda values, confidence: intervals.change_of_shares(
            (values > 3).astype(float), (values > 4).astype(float), 0, confidence
        ),
        lambda values, confidence: intervals.of_subsets(
            lambda indices: float(values[indices].mean()), len(values), confidence
        ),
        lambda values, confidence: intervals.quantile_of_rounds(values[:, None], 0.5, confidence),
    ],
)
def test_more_confidence_is_wider(estimate_of):
    values = np.random.default_rng(0).normal(3, 1, 200)
    widths = [(e := estimate_of(values, confidence)).high - e.low for confidence in (0.8, 0.95, 0.999)]
    assert widths[0] < widths[1] < widths[2]


class TestQuantileOfRounds:
    @pytest.mark.parametrize(("quantile", "rounds"), [(0.5, 30), (0.5, 101), (0.95, 100), (0.95, 400)])
    def test_covers_the_truth(self, quantile, rounds):
        generator = np.random.default_rng(5)
        estimates = [
            intervals.quantile_of_rounds(generator.random((rounds, 1)), quantile) for _ in range(2000)
        ]
        assert np.mean([estimate.low <= quantile <= estimate.high for estimate in estimates]) >= 0.945

    def test_the_ranks_are_those_of_the_binomial(self):
        # the table of nonparametric intervals of the median: the 6th and the 15th of 20
        estimate = intervals.quantile_of_rounds(np.arange(1.0, 21)[:, None], 0.5)
        assert (estimate.low, estimate.high) == pytest.approx((6, 15))

    @pytest.mark.parametrize("quantile", [0.5, 0.05, 0.95, 0.99])
    @pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
    def test_too_few_rounds_bound_nothing(self, quantile, confidence):
        least = intervals.least_rounds(quantile, confidence)
        few, enough = (np.arange(float(count))[:, None] for count in (least - 1, least))
        assert intervals.quantile_of_rounds(few, quantile, confidence) is None
        assert intervals.quantile_of_rounds(enough, quantile, confidence) is not None

    def test_the_95th_percentile_takes_72(self):
        assert intervals.least_rounds(0.95) == 72


class TestOfSubsets:
    def test_equals_the_mean_where_the_statistic_is_one(self):
        values = np.random.default_rng(3).normal(size=400)
        estimate = intervals.of_subsets(lambda indices: float(values[indices].mean()), 400)
        error = values.std() / 20
        assert estimate.value == values.mean()
        assert (estimate.high - estimate.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.4)

    def test_a_single_observation_has_no_interval(self):
        assert intervals.of_subsets(lambda _: 0.5, 1) == intervals.Estimate(0.5, 0.5, 0.5, 1)
