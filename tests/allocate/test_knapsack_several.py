"""The multiple-choice knapsack with several limits, against every combination and against a bound."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.allocate.knapsack_several import choose_within, lower_bound


def drawn(seed, menus, options, limits):
    """Menus whose costs fall with the loss, the first in a few large steps; the limits are half of them."""
    generator = np.random.default_rng(seed)
    losses, costs = [], []
    for _ in range(menus):
        count = generator.integers(1, options + 1)
        losses.append(np.append(0.0, np.cumsum(generator.exponential(size=count - 1) ** 2)))
        rows = np.sort(generator.exponential(size=(limits, count)), axis=1)[:, ::-1].copy()
        rows[0] = np.ceil(rows[0] * 2) / 2
        costs.append(rows)
    low, high = (sum(getattr(cost, which)(axis=1) for cost in costs) for which in ("min", "max"))
    return losses, costs, (low + high) / 2


def total(losses, places):
    return sum(loss[place] for loss, place in zip(losses, places, strict=True))


def fits(costs, places, limits, slack=1e-9):
    spent = sum(cost[:, place] for cost, place in zip(costs, places, strict=True))
    return bool((spent <= limits + slack).all())


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(2, 3), st.floats(0.6, 1.4))
@settings(max_examples=100, deadline=None)
def test_it_is_the_best_of_all_combinations(seed, menus, count, tightness):
    losses, costs, limits = drawn(seed, menus, 5, count)
    limits = limits * tightness
    combinations = itertools.product(*(range(len(loss)) for loss in losses))
    best = min((total(losses, each) for each in combinations if fits(costs, each, limits)), default=None)
    places = choose_within(losses, costs, limits)
    assert (places is None) == (best is None)
    if places is not None:
        assert fits(costs, places, limits)
        assert total(losses, places) == pytest.approx(best)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_large_ones_come_close_to_the_bound(seed, count):
    losses, costs, limits = drawn(seed, 60, 30, count)
    places = choose_within(losses, costs, limits)
    assert places is not None
    assert fits(costs, places, limits)
    bound = lower_bound(losses, costs, limits)
    assert bound is not None
    assert bound <= total(losses, places) <= bound * 1.02


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_is_that_of_the_linear_program(seed):
    from scipy.optimize import linprog

    losses, costs, limits = drawn(seed, 12, 8, 2)
    sizes = [len(loss) for loss in losses]
    each = np.zeros((len(losses), sum(sizes)))
    for number, end in enumerate(np.cumsum(sizes)):
        each[number, end - sizes[number] : end] = 1
    program = linprog(
        np.concatenate(losses), A_ub=np.concatenate(costs, axis=1), b_ub=limits, A_eq=each,
        b_eq=np.ones(len(losses)),
    )  # fmt: skip
    assert lower_bound(losses, costs, limits) == pytest.approx(program.fun, rel=1e-6)


def test_one_limit_is_the_knapsack_of_one():
    losses, costs, limits = drawn(3, 8, 6, 1)
    places = choose_within(losses, costs, limits)
    assert places is not None
    assert fits(costs, places, limits)


def test_what_fits_each_limit_alone_need_not_fit_both():
    """Each option is cheap in one way and dear in the other."""
    losses, costs = [np.zeros(2)], [np.array([[1.0, 0.0], [0.0, 1.0]])]
    assert choose_within(losses, costs, np.array([1.0, 0.0])) == (0,)
    assert choose_within(losses, costs, np.array([0.0, 1.0])) == (1,)
    assert choose_within(losses, costs, np.array([0.4, 0.4])) is None
    assert choose_within([], [], np.array([0.0, -1.0])) is None
    assert choose_within([], [], np.array([0.0, 1.0])) == ()
