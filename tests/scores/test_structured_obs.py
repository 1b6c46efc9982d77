"""Structured OBS: losses and orders against least squares that are solved anew for every choice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.linalg import lstsq

from onnxprune.scores.structured_obs import Layer, removal_order, rising

DAMPING = 1e-3


class Problem:
    """One layer with its rows."""

    def __init__(self, channels: int, places: int, others: int = 0, outputs: int = 3, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        inputs = channels * places + others
        self.x = random.standard_normal((4 * inputs, inputs))
        self.x = self.x @ (np.eye(inputs) + random.standard_normal((inputs, inputs)) / np.sqrt(inputs))
        self.weights = random.standard_normal((outputs, inputs))
        columns = random.permutation(inputs)[: channels * places]
        self.columns = columns.reshape(channels, places).astype(np.int32)

    def layer(self) -> Layer:
        hessian = 2 / len(self.x) * self.x.T @ self.x + DAMPING * np.eye(self.x.shape[1])
        return Layer(np.linalg.inv(hessian), self.weights.T.copy(), self.columns.copy())

    def loss(self, gone: Sequence[int]) -> float:
        """Solve ``min mean |(W' - W) x|**2 + DAMPING / 2 |W' - W|**2`` with no weights in some columns."""
        columns = self.columns[list(gone)]
        kept = np.setdiff1d(np.arange(self.x.shape[1]), columns[columns >= 0])
        rows = np.vstack([self.x / np.sqrt(len(self.x)), np.sqrt(DAMPING / 2) * np.eye(self.x.shape[1])])
        targets = rows @ self.weights.T
        solution, *_ = lstsq(rows[:, kept], targets)
        return float(np.square(rows[:, kept] @ solution - targets).sum())


def total(problems: Sequence[Problem], gone: Sequence[int]) -> float:
    return sum(problem.loss(gone) for problem in problems)


@pytest.mark.parametrize(
    "problems",
    [
        [Problem(6, 1)],
        [Problem(6, 1, others=5, outputs=1)],
        [Problem(5, 9, others=4)],
        [Problem(6, 2), Problem(6, 3, others=7, seed=1), Problem(6, 1, outputs=9, seed=2)],
    ],
    ids=["linear", "beside others", "taps", "three consumers"],
)
def test_every_step_is_the_best_one_and_loses_what_least_squares_lose(problems: list[Problem]) -> None:
    size = len(problems[0].columns)
    order, losses = removal_order([problem.layer() for problem in problems], size)
    assert sorted(order.tolist()) == list(range(size))
    for step in range(size):
        gone = order[:step].tolist()
        before = total(problems, gone) if gone else 0.0
        left = [channel for channel in range(size) if channel not in gone]
        by_channel = {channel: total(problems, [*gone, channel]) - before for channel in left}
        assert min(by_channel, key=lambda channel: by_channel[channel]) == order[step]
        assert losses[step] == pytest.approx(by_channel[int(order[step])], rel=1e-6)


def test_the_first_losses_of_all_channels() -> None:
    problem = Problem(7, 3, others=2)
    found = problem.layer().losses(np.arange(7, dtype=np.int32))
    np.testing.assert_allclose(found, [problem.loss([channel]) for channel in range(7)], rtol=1e-8)


def test_channels_with_fewer_places_than_others() -> None:
    problem = Problem(5, 3, others=2)
    problem.columns[1, 2] = problem.columns[3, 1] = -1
    problem.columns[4] = -1  # no place at all: nothing is lost with it
    order, losses = removal_order([problem.layer()], 5)
    assert (order[0], losses[0]) == (4, 0)
    for step in range(1, 5):
        assert losses[: step + 1].sum() == pytest.approx(problem.loss(order[: step + 1].tolist()), rel=1e-8)


@pytest.mark.parametrize("places", [1, 3])
def test_rounds_lose_exactly_what_they_say(places: int) -> None:
    """Several channels in a round are an approximation of the order, never of the losses."""
    problem = Problem(24, places, others=3, outputs=50 * places)
    order, losses = removal_order([problem.layer()], 24, rounds=4)
    assert sorted(order.tolist()) == list(range(24))
    for count in range(1, 25):
        assert losses[:count].sum() == pytest.approx(problem.loss(order[:count].tolist()), rel=1e-6)


def test_in_rounds_a_channel_that_became_indispensable_stays() -> None:
    """Pairs of copies are the weakest at first; once one of a pair is gone, the other one matters most."""
    random = np.random.default_rng(1)
    x = random.standard_normal((800, 16))
    x[:, 1:4:2] = x[:, 0:4:2] + 1e-3 * random.standard_normal((800, 2))
    hessian = 2 / len(x) * x.T @ x + 1e-7 * np.eye(16)
    weights = np.concatenate([np.full(4, 5.0), random.uniform(1, 2, 12)])[:, None]
    layer = Layer(np.linalg.inv(hessian), weights, np.arange(16, dtype=np.int32)[:, None])
    order, _ = removal_order([layer], 16, rounds=4)
    assert {channel // 2 for channel in order[:2].tolist()} == {0, 1}
    assert {channel // 2 for channel in order[-2:].tolist()} == {0, 1}


def test_two_that_stand_in_for_each_other_do_not_both_go_first() -> None:
    """Scores without downdates call both copies dispensable; only one of them is."""
    random = np.random.default_rng(0)
    x = random.standard_normal((500, 6))
    x[:, 1] = x[:, 0] + 1e-3 * random.standard_normal(500)
    hessian = 2 / len(x) * x.T @ x + 1e-6 * np.eye(6)
    weights = np.array([[3, 3, 1, 1, 1, 1]], float)
    columns = np.arange(6, dtype=np.int32)[:, None]
    layer = Layer(np.linalg.inv(hessian), weights.T.copy(), columns)
    alone = layer.losses(np.arange(6, dtype=np.int32))
    assert set(np.argsort(alone)[:2].tolist()) == {0, 1}
    order, losses = removal_order([layer], 6)
    assert order[0] in (0, 1)
    assert order[-1] in (0, 1)
    assert losses[-1] > 10


def test_scores_rise_along_the_order() -> None:
    order = np.array([2, 0, 3, 1, 4], np.int32)
    losses = np.array([1.0, 5.0, 2.0, 5.0, 7.0])
    scores = rising(order, losses)
    np.testing.assert_allclose(scores[order], [1, 5, 5, 5, 7], rtol=1e-8)
    assert (np.diff(scores[order]) > 0).all()
    assert np.argsort(scores / 3.7, kind="stable").tolist() == order.tolist()
