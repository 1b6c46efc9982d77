"""How much goes where, by measured curves: against every combination, and never worse than other scopes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.allocate.channels import choose_channels, removed_at
from onnxprune.allocate.limits import Limit
from onnxprune.allocate.menus import Menu, make_menu, meet_amount
from onnxprune.allocate.options import Options
from onnxprune.allocate.search import CountLimit, _Search, keep_within, least_left
from onnxprune.errors import LimitMissed
from onnxprune.types import ChannelGroup, Curve, Scores

STEP = 8


def curve_of(name, generator, size):
    removed = np.unique([0, size // 8, size // 4, size // 2, size - STEP])
    steps = generator.exponential(size=len(removed)) ** 2
    steps[0] = 0
    return Curve(name, size, removed, np.cumsum(steps) * generator.exponential())


def problem(seed, groups=3, coupled=True):
    """Menus, and the cost of a network in which pairs of groups meet in layers."""
    generator = np.random.default_rng(seed)
    curves = [curve_of(f"group {number}", generator, 64) for number in range(groups)]
    menus = [make_menu(curve, range(0, curve.size, STEP)) for curve in curves]
    alone = generator.exponential(size=groups)
    pairs = (
        generator.exponential(size=(groups, groups)) * (generator.random((groups, groups)) < 0.5) * coupled
    )

    def cost(counts):
        left = np.array([1 - counts[menu.name] / 64 for menu in menus])
        return float((alone @ left + left @ pairs @ left) / (alone.sum() + pairs.sum()))

    return menus, cost


def predicted_loss(menus, counts):
    """The sum of what each group costs alone."""
    return float(sum(np.interp(counts.get(menu.name, 0), menu.counts, menu.losses) for menu in menus))


def best_of_all(menus, allowed):
    losses = [
        sum(menu.losses[place] for menu, place in zip(menus, places, strict=True))
        for places in itertools.product(*(range(len(menu.counts)) for menu in menus))
        if allowed({menu.name: int(menu.counts[p]) for menu, p in zip(menus, places, strict=True)})
    ]
    return min(losses, default=None)


@pytest.mark.parametrize("keep", [0.75, 0.5, 0.3])
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_the_target_is_met_at_the_least_loss(seed, coupled, keep):
    menus, cost = problem(seed, coupled=coupled)
    counts = keep_within(menus, [CountLimit(keep, cost)])
    best = best_of_all(menus, lambda counts: cost(counts) <= keep)
    assert (counts is None) == (best is None)
    if counts is not None:
        assert cost(counts) <= keep
        assert predicted_loss(menus, counts) == pytest.approx(best)


@pytest.mark.parametrize("amount", [0.0, 0.1, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(4))
def test_the_amount_goes_at_the_least_loss(seed, amount):
    menus, _ = problem(seed)
    wanted = amount * 64 * len(menus)
    counts = meet_amount(menus, wanted)
    best = best_of_all(menus, lambda counts: sum(counts.values()) >= wanted)
    assert sum(counts.values()) >= wanted
    assert predicted_loss(menus, counts) == pytest.approx(best, abs=1e-12)


def test_more_than_there_is_takes_all_there_is():
    menus, _ = problem(0)
    assert meet_amount(menus, 1e9) == {menu.name: int(menu.counts[-1]) for menu in menus}


def test_a_curve_is_made_monotone_and_not_extrapolated():
    curve = Curve("g", 32, np.array([0, 8, 16, 24]), np.array([0.0, 1.0, -2.0, 3.0]))
    menu = make_menu(curve, [4, 12, 20, 28])
    assert menu.counts.tolist() == [0, 4, 12, 20]
    assert menu.losses.tolist() == [0.0, 0.5, 1.0, 2.0]


# --- several limits, and costs that go in steps -----------------------------------------------------------


def staircase(generator, menus, coupled):
    """A share that is left of something timed: it goes in steps, and may be greater at a smaller count."""
    tables = {}
    for menu in menus:
        kept = 64 - menu.counts
        steps = np.ceil(kept / generator.choice([8, 16, 32])) + generator.random(len(kept)) * 0.8
        tables[menu.name] = steps * generator.exponential()
    whole = sum(float(table[0]) for table in tables.values()) + coupled
    at = {menu.name: menu.counts for menu in menus}

    def of(name, counts):
        return tables[name][np.searchsorted(at[name], counts)]

    def left(counts):
        shrunk = np.prod([1 - counts[menu.name] / 64 for menu in menus])
        return float((sum(float(of(name, counts[name])) for name in tables) + coupled * shrunk) / whole)

    def along(counts, name, options):
        return np.array([left({**counts, name: int(option)}) for option in options])

    return CountLimit(float(generator.uniform(0.45, 0.9)), left, along)


@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([0.0, 2.0]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_no_count_costs_as_much_as_a_larger_one(seed, groups, coupled, two):
    menus, cost = problem(seed, groups)
    limits = [staircase(np.random.default_rng(seed), menus, coupled)]
    limits += [CountLimit(0.8, cost)] if two else []
    counts = keep_within(menus, limits)
    if counts is None:
        return
    assert all(limit.left(counts) <= limit.keep for limit in limits)
    for menu in menus:
        for fewer in menu.counts[menu.counts < counts[menu.name]].tolist():
            trial = {**counts, menu.name: fewer}
            assert any(limit.left(trial) > limit.left(counts) for limit in limits), menu.name


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("coupled", [0.0, 2.0])
def test_several_limits_are_kept_at_the_least_loss(seed, coupled):
    """Within a tenth: what is coupled has many choices that no move of two groups makes better."""
    menus, cost = problem(seed, 3)
    limits = [staircase(np.random.default_rng(seed), menus, coupled), CountLimit(0.7, cost)]
    counts = keep_within(menus, limits)
    best = best_of_all(menus, lambda each: all(limit.left(each) <= limit.keep for limit in limits))
    assert (counts is None) == (best is None)
    if counts is not None:
        assert all(limit.left(counts) <= limit.keep for limit in limits)
        assert predicted_loss(menus, counts) <= best * 1.1


def test_a_target_below_the_cheapest_choice_is_not_reached():
    menus, cost = problem(0)
    least = cost({menu.name: int(menu.counts[-1]) for menu in menus})
    assert keep_within(menus, [CountLimit(least * 0.99, cost)]) is None
    assert keep_within(menus, [CountLimit(least, cost)]) is not None


def test_where_the_most_that_can_go_is_not_the_cheapest_the_target_is_reached():
    """The last step makes it slower."""
    table = np.array([1.0, 0.8, 0.5, 0.9])
    menu = Menu("g", np.arange(4), np.arange(4.0))

    def along(_counts, _name, options):
        return table[options]

    limit = CountLimit(0.6, lambda counts: float(table[counts["g"]]), along)
    assert keep_within([menu], [limit]) == {"g": 2}
    assert least_left([menu], limit) == {"g": 2}


def test_what_fits_beyond_a_count_that_does_not_is_given_back():
    """Two are gone: slow; one: fast enough. From three, a single step back finds nothing."""
    table = np.array([1.0, 0.5, 0.9, 0.4])
    menu = Menu("g", np.arange(4), np.arange(4.0))
    limit = CountLimit(0.6, lambda counts: float(table[counts["g"]]), lambda _counts, _name, at: table[at])
    search = _Search([menu], [limit])
    assert search._given_back((3,)) == (1,)
    assert search._given_back((3,), held=0) == (3,)


# --- with groups of channels ------------------------------------------------------------------------------


def groups_of(generator, count):
    sizes = generator.choice([24, 32, 64, 128], size=count)
    groups = [ChannelGroup(f"g{n}", "channels", int(size), ()) for n, size in enumerate(sizes)]
    scores = {group.name: generator.random(group.size) for group in groups}
    return groups, Scores("l2", scores)


def measured(groups, scores, options, generator):
    sets = removed_at(groups, scores, options, (0.1, 0.25, 0.5, 0.75, 0.9), first={}, last={})
    curves = {}
    for group in groups:
        removed = np.array([0, *(len(gone) for gone in sets[group.name])])
        increase = np.append(0.0, np.cumsum(generator.exponential(size=len(removed) - 1) ** 2))
        curves[group.name] = Curve(group.name, group.size, removed, increase * generator.exponential())
    return curves


def chain_cost(groups):
    """Multiply-accumulates of layers in a row."""

    def macs(left):
        return sum(a * b for a, b in itertools.pairwise([3, *left, 10]))

    whole = macs([group.size for group in groups])
    return lambda removed: macs([g.size - len(removed.get(g.name, ())) for g in groups]) / whole


@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0.25, 0.9), st.sampled_from([0.0, 0.1, 0.4]))
@settings(max_examples=60, deadline=None)
def test_the_prediction_is_never_worse_than_that_of_other_scopes(seed, count, keep, floor):
    generator = np.random.default_rng(seed)
    groups, scores = groups_of(generator, count)
    options = {scope: Options(scope, floor=floor) for scope in ("uniform", "global", "sensitivity")}
    curves = measured(groups, scores, options["uniform"], generator)
    cost = chain_cost(groups)
    chosen = {}
    try:
        for scope in options:
            choices = choose_channels(
                groups, scores, options[scope], limits=[Limit("macs", keep, cost)], curves=curves
            )
            chosen[scope] = {choice.group.name: choice.removed for choice in choices}
    except LimitMissed:
        assert not chosen  # what one scope can't reach, none can
        return
    losses = {
        scope: sum(
            np.interp(len(gone), curves[name].removed, np.maximum.accumulate(curves[name].increase))
            for name, gone in removed.items()
        )
        for scope, removed in chosen.items()
    }
    assert cost(chosen["sensitivity"]) <= keep
    assert losses["sensitivity"] <= min(losses.values()) + 1e-9
    for group in groups:
        left = group.size - len(chosen["sensitivity"][group.name])
        assert left >= max(1, floor * group.size)
        step = 16 if group.size >= 128 else 8 if group.size >= 64 else 4
        assert left % step == 0 or left == group.size


def test_the_weakest_channels_go():
    group = ChannelGroup("g", "hidden", 6, ())
    scores = Scores("l2", {"g": np.array([5.0, 1.0, 4.0, 0.5, 3.0, 2.0])})
    curves = {"g": Curve("g", 6, np.array([0, 5]), np.array([0.0, 1.0]))}
    (choice,) = choose_channels([group], scores, Options("sensitivity"), amount=0.5, curves=curves)
    assert choice.removed.tolist() == [1, 3, 5]


def test_what_was_not_measured_is_not_promised():
    groups, scores = groups_of(np.random.default_rng(0), 2)
    curves = {g.name: Curve(g.name, g.size, np.array([0, 8]), np.array([0.0, 1.0])) for g in groups}
    with pytest.raises(LimitMissed, match="could be measured"):
        choose_channels(
            groups, scores, Options("sensitivity"), limits=[Limit("macs", 0.2, chain_cost(groups))],
            curves=curves,
        )  # fmt: skip
