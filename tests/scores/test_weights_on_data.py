from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.patterns import count_bad_blocks, count_bad_runs, parse_pattern
from onnxprune.scores.weights_on_data import DATA_WEIGHT_SCORERS, Layer, energies, outlier_ratio

ROWS = 50


def layer(groups: int, outputs: int, channels: int, taps: int = 1, dead: Any = (), seed: int = 0) -> Layer:
    random = np.random.default_rng(seed)
    x = random.normal(size=(groups, ROWS, channels * taps)) * random.uniform(0.1, 3, channels * taps)
    x[..., list(dead)] = 0
    weights = random.normal(size=(groups, outputs, channels * taps)).astype(np.float32)
    return Layer("w", weights, x.transpose(0, 2, 1) @ x, ROWS, taps)


def decide(score: str, subject: Layer, pattern: str, share: float = 0.5) -> Any:
    return DATA_WEIGHT_SCORERS.get(score)(subject, parse_pattern(pattern), share)


def wanda_scores(subject: Layer) -> Any:
    return np.abs(subject.weights) * np.sqrt(np.einsum("gii->gi", subject.second))[:, None, :]


@pytest.mark.parametrize("share", [0.25, 0.5, 0.6])
def test_wanda_compares_inside_a_row(share: float) -> None:
    subject = layer(2, 5, 20)
    kept = decide("wanda", subject, "unstructured", share).kept
    scores = wanda_scores(subject)
    for row, stays in zip(scores.reshape(10, 20), kept.reshape(10, 20), strict=True):
        assert np.count_nonzero(~stays) == round(share * 20)
        assert row[~stays].max() < row[stays].min()


def test_wanda_rounds_rows_so_that_the_layer_loses_its_share() -> None:
    kept = decide("wanda", layer(1, 40, 7), "unstructured", 0.5).kept
    assert np.count_nonzero(~kept) == 140
    assert set(np.count_nonzero(~kept, axis=2).reshape(-1).tolist()) == {3, 4}


@pytest.mark.parametrize("score", ["obs", "wanda"])
def test_runs_go_along_channels_for_each_tap_and_group(score: str) -> None:
    subject = layer(3, 4, 8, taps=9)
    kept = decide(score, subject, "2:4").kept.reshape(3, 4, 8, 9)
    assert count_bad_runs(kept, parse_pattern("2:4"), 2) == 0
    assert np.count_nonzero(~kept) * 2 == kept.size


def test_wanda_keeps_the_highest_of_each_run() -> None:
    subject = layer(1, 3, 8, taps=2)
    kept = decide("wanda", subject, "1:4").kept
    runs = wanda_scores(subject).reshape(3, 2, 4, 2)
    assert np.array_equal(kept.reshape(3, 2, 4, 2), runs == runs.max(axis=2, keepdims=True))


@pytest.mark.parametrize("score", ["obs", "wanda"])
@pytest.mark.parametrize(("outputs", "channels", "taps"), [(8, 8, 1), (6, 10, 3)])
def test_blocks_hold(score: str, outputs: int, channels: int, taps: int) -> None:
    subject = layer(2, outputs, channels, taps)
    kept = decide(score, subject, "block:4x4").kept
    for mine in kept.reshape(2, outputs, channels, taps):
        assert count_bad_blocks(mine, parse_pattern("block:4x4"), 0, 1) == 0
    assert 0.3 < 1 - kept.mean() < 0.6


def test_wanda_drops_the_lowest_blocks_of_a_row_of_blocks() -> None:
    subject = layer(1, 4, 8)
    kept = decide("wanda", subject, "block:2x2").kept[0]
    means = wanda_scores(subject)[0].reshape(2, 2, 4, 2).mean(axis=(1, 3))
    blocks = kept.reshape(2, 2, 4, 2)[:, 0, :, 0]
    for row, stays in zip(means, blocks, strict=True):
        assert sorted(np.flatnonzero(stays)) == sorted(np.argsort(row)[2:])


def test_obs_compares_over_groups() -> None:
    """A group that is hardly heard gives nearly all; in another layer of groups each gives its share."""
    subject = layer(2, 3, 8)
    subject.second[0] *= 1e-6
    kept = decide("obs", subject, "unstructured").kept
    assert np.count_nonzero(~kept) == 24
    assert np.count_nonzero(kept[0]) < 4
    assert decide("obs", subject, "2:4").kept.mean(axis=(1, 2)).tolist() == [0.5, 0.5]


def test_a_group_that_no_sample_reached_is_not_removed() -> None:
    """An expert without samples counts as others do on average, though its energy is 0."""
    subject = layer(4, 6, 16)
    subject.second[1] = 0
    kept = decide("obs", subject, "unstructured").kept
    assert 0.25 < kept[1].mean() < 0.75


def test_obs_makes_up_for_what_goes_and_wanda_does_not() -> None:
    subject = layer(2, 5, 12)
    assert decide("wanda", subject, "2:4").weights is None
    weights = decide("obs", subject, "2:4").weights

    def error(changed: Any) -> float:
        change = changed - subject.weights
        return float(np.einsum("goi,gij,goj->", change, subject.second, change))

    assert error(weights) < 0.95 * error(subject.weights * (weights != 0))


def test_damping_that_was_raised_is_said() -> None:
    subject = layer(1, 2, 4)
    subject.second[0] = np.eye(4) + 2 * (1 - np.eye(4))
    assert "not positive definite" in decide("obs", subject, "2:4").warning


def test_energies_are_shares_of_the_output() -> None:
    subject = layer(1, 3, 4)
    found = energies(subject.weights, subject.squares(), subject.energy())
    total = np.einsum("oi,ij,oj->", subject.weights[0], subject.second[0], subject.weights[0]) / ROWS
    mean = np.diagonal(subject.second[0]).mean() / ROWS
    for output in range(3):
        for place in range(4):
            square = subject.second[0, place, place] / ROWS + 0.01 * mean
            expected = subject.weights[0, output, place] ** 2 * square / total
            assert found[0, output, place] == pytest.approx(expected, rel=1e-5)


def test_outliers_are_counted() -> None:
    subject = layer(1, 10, 10)
    subject.weights[...] = 1
    subject.second[0] = np.eye(10)
    subject.weights[0, :2, 0] = 100
    assert outlier_ratio(subject) == pytest.approx(0.02)
    assert outlier_ratio(subject, factor=1000) == 0
