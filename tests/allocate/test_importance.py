"""Scores as losses that add up over groups, and the share of the importance that a choice keeps."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.allocate.channels import choose_channels, share_kept
from onnxprune.allocate.importance import predicted_losses
from onnxprune.allocate.limits import Limit
from onnxprune.allocate.options import Options
from onnxprune.allocate.ranked import rank
from onnxprune.types import ChannelGroup, Member, Scores

FREE = Options("knapsack", align=1, floor=0.0)


def group(name, size, readers=1):
    at = np.arange(size, dtype=np.int32)
    members = [
        Member(f"{name}{n}", 1, at, contracted=True, consumer=f"{name} reader {n}") for n in range(readers)
    ]
    twice = [Member(f"{name}0", 2, at, contracted=True, consumer=f"{name} reader 0")]
    produced = [Member(f"{name}.weight", 0, at, contracted=False, consumer="producer")]
    return ChannelGroup(name, "channels", size, (*produced, *members, *twice))


def ranked(groups, scores, first=None, last=None):
    return rank(groups, scores, FREE, first or {}, last or {}, {}, {})


@pytest.mark.parametrize("readers", [1, 3])
def test_a_loss_is_the_logarithm_of_what_is_kept_for_every_reader(readers):
    a = group("a", 4, readers)
    curve = predicted_losses(ranked([a], Scores("t", {"a": np.array([4.0, 1.0, 2.0, 3.0])})), losses=False)[
        "a"
    ]
    assert curve.removed.tolist() == [0, 1, 2, 3, 4]
    assert curve.increase[:4] == pytest.approx(-readers * np.log([1, 0.9, 0.7, 0.4]))
    assert curve.increase[4] > 20 * readers  # nothing is kept


def test_losses_add_up_as_they_are():
    a = group("a", 3, 2)
    scores = Scores("t", {"a": np.array([0.5, 0.1, 0.2])}, losses=True)
    curve = predicted_losses(ranked([a], scores), losses=True)["a"]
    assert curve.increase == pytest.approx([0, 0.1, 0.3, 0.8])


@pytest.mark.parametrize("losses", [False, True])
def test_what_goes_first_costs_nothing_and_what_goes_last_as_much_as_any(losses):
    a = group("a", 4)
    scores = Scores("t", {"a": np.array([4.0, 1.0, 2.0, 1.0])}, losses=losses)
    first, last = ({"a": np.arange(4) == place} for place in (0, 1))
    curve = predicted_losses(ranked([a], scores, first, last), losses=losses)["a"]
    worth = np.array([0.0, 1.0, 2.0, 2.0])
    kept = 1 - np.append(0, worth.cumsum()) / worth.sum()
    expected = np.append(0, worth.cumsum()) if losses else -np.log(np.maximum(kept, 1e-12))
    assert curve.increase == pytest.approx(expected)


def test_scores_of_zero_lose_nothing():
    a = group("a", 3)
    curve = predicted_losses(ranked([a], Scores("t", {"a": np.zeros(3)})), losses=False)["a"]
    assert curve.increase.tolist() == [0, 0, 0, 0]


def test_the_share_kept_is_a_mean_over_readers_or_a_sum_of_losses():
    groups = [group("a", 4, 1), group("b", 4, 3)]
    scores = {"a": np.array([4.0, 1.0, 2.0, 3.0]), "b": np.array([1.0, 1.0, 1.0, 1.0])}
    removed = {"a": np.array([1], np.int32), "b": np.array([0, 1], np.int32)}
    options = {"first": {}, "last": {}}
    found = share_kept(groups, Scores("t", scores), FREE, removed, **options)
    assert found == pytest.approx((0.9 * 0.5**3) ** (1 / 4))
    found = share_kept(groups, Scores("t", scores, losses=True), FREE, removed, **options)
    assert found == pytest.approx(1 - 3 / 14)
    assert share_kept(groups, Scores("t", scores), FREE, {}, **options) == 1


def test_the_scale_of_a_group_plays_no_part_and_its_readers_do():
    """What a stream of many readers saves in each of them is no reason to empty it."""
    a, b = group("a", 32), group("b", 32, 3)
    values = np.linspace(1, 2, 32)
    scores = Scores("t", {"a": values * 1000, "b": values})

    def left(removed):
        return 1 - (len(removed.get("a", ())) + 3 * len(removed.get("b", ()))) / 128

    choices = choose_channels([a, b], scores, FREE, limits=[Limit("macs", 0.5, left)])
    assert abs(len(choices[0].removed) - len(choices[1].removed)) <= 3
    assert left({choice.group.name: choice.removed for choice in choices}) <= 0.5


@pytest.mark.parametrize("losses", [False, True])
@pytest.mark.parametrize("amount", [0.25, 0.6])
def test_it_keeps_at_least_as_much_as_any_other_scope(losses, amount):
    generator = np.random.default_rng(int(amount * 100))
    groups = [group(f"g{n}", int(size), n + 1) for n, size in enumerate([8, 16, 40])]
    values = {each.name: generator.exponential(size=each.size) ** 2 for each in groups}
    scores = Scores("t", values, losses=losses)
    kept, gone = {}, {}
    for scope in ("knapsack", "uniform", "global"):
        choices = choose_channels(groups, scores, Options(scope, align=1, floor=0.1), amount=amount)
        removed = {choice.group.name: choice.removed for choice in choices}
        gone[scope] = sum(len(numbers) for numbers in removed.values())
        kept[scope] = share_kept(groups, scores, FREE, removed, first={}, last={})
    assert gone["knapsack"] >= round(amount * 64)
    for scope in ("uniform", "global"):
        if gone[scope] >= gone["knapsack"]:
            assert kept["knapsack"] >= kept[scope] - 1e-12
