"""The multiple-choice knapsack, against every combination and against an integer program."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.allocate.knapsack import choose_options


def drawn(seed, menus, options):
    generator = np.random.default_rng(seed)
    losses, costs = [], []
    for _ in range(menus):
        count = generator.integers(1, options + 1)
        losses.append(np.sort(generator.exponential(size=count) ** 2))
        costs.append(np.sort(generator.exponential(size=count))[::-1].copy())
    return losses, costs


def total(arrays, places):
    return sum(array[place] for array, place in zip(arrays, places, strict=True))


def best_of_all(losses, costs, limit):
    fitting = [
        total(losses, places)
        for places in itertools.product(*(range(len(loss)) for loss in losses))
        if total(costs, places) <= limit
    ]
    return min(fitting, default=None)


@given(st.integers(0, 10**6), st.integers(1, 5), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_it_is_the_best_of_all_combinations(seed, menus, share):
    losses, costs = drawn(seed, menus, 5)
    low, high = (sum(getattr(cost, which)() for cost in costs) for which in ("min", "max"))
    limit = low + share * (high - low)
    places = choose_options(losses, costs, limit)
    assert places is not None
    assert total(costs, places) <= limit + 1e-9
    assert total(losses, places) == pytest.approx(best_of_all(losses, costs, limit + 1e-9))


@pytest.mark.parametrize("seed", range(8))
def test_large_ones_are_as_good_as_an_integer_program(seed):
    from scipy.optimize import Bounds, LinearConstraint, milp

    losses, costs = drawn(seed, 30, 16)
    low, high = (sum(getattr(cost, which)() for cost in costs) for which in ("min", "max"))
    limit = low + 0.4 * (high - low)
    sizes = [len(loss) for loss in losses]
    rows = np.zeros((len(losses) + 1, sum(sizes)))
    for number, end in enumerate(np.cumsum(sizes)):
        rows[number, end - sizes[number] : end] = 1
    rows[-1] = np.concatenate(costs)
    ones = np.ones(len(losses))
    bounds = LinearConstraint(rows, np.append(ones, -np.inf), np.append(ones, limit))
    program = milp(
        np.concatenate(losses), constraints=bounds, integrality=np.ones(sum(sizes)), bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-9},
    )  # fmt: skip
    places = choose_options(losses, costs, limit)
    assert places is not None
    assert total(costs, places) <= limit * (1 + 1e-9)
    assert total(losses, places) <= program.fun * (1 + 1e-6)


def test_nothing_fits():
    assert choose_options([np.array([0.0, 1.0])], [np.array([3.0, 2.0])], 1.9) is None
    assert choose_options([], [], -1.0) is None
    assert choose_options([], [], 0.0) == ()


def test_of_equal_losses_the_cheapest_is_taken():
    losses = [np.zeros(3), np.array([0.0, 5.0])]
    assert choose_options(losses, [np.array([3.0, 2.0, 1.0]), np.array([1.0, 0.0])], 10.0) == (2, 0)


def test_costs_may_be_negative():
    """At least six of something: costs count down."""
    losses = [np.array([0.0, 1.0, 4.0]), np.array([0.0, 2.0, 3.0])]
    costs = [-np.array([0.0, 4.0, 8.0]), -np.array([0.0, 3.0, 6.0])]
    assert choose_options(losses, costs, -6.0) in ((1, 1), (0, 2))
