"""Which branches go: shares, targets, floors of each kind, protection."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.allocate.branches import Limits, choose_branches
from onnxprune.errors import LimitMissed, UsageError
from onnxprune.types import Branch, BranchKind, Budget

FREE = Limits(floor=0.0)
KINDS: dict[str, BranchKind] = {"a": "attention", "f": "feed_forward", "c": "convolution"}


def branches(kinds: str) -> list[Branch]:
    """One branch for each letter."""
    return [
        Branch(f"b{i}", KINDS[k], f"add{i}", 0, f"f{i}", f"y{i}", 1, (f"w{i}",)) for i, k in enumerate(kinds)
    ]


def gone(kinds: str, scores: Sequence[float], limits: Limits = FREE, **how: object) -> list[int]:
    return choose_branches(branches(kinds), np.array(scores, float), limits, **how)[0].tolist()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("amount", "expected"), [(0.0, []), (0.1, []), (0.25, [3]), (0.5, [1, 3]), (0.6, [1, 3])]
)
def test_the_least_important_go(amount, expected):
    assert gone("aaaa", [4, 2, 3, 1], amount=amount) == expected


def test_ties_go_in_order_of_the_graph():
    assert gone("aaaa", [1, 1, 1, 1], amount=0.5) == [0, 1]


def test_all_kinds_compete_unless_uniform():
    scores = [1, 5, 2, 6, 3, 7, 4, 8]
    assert gone("afafafaf", scores, amount=0.25) == [0, 2]
    assert gone("afafafaf", scores, Limits("uniform", floor=0.0), amount=0.25) == [0, 1]


def test_one_of_every_kind_stays():
    chosen, reasons = choose_branches(
        branches("aafff"), np.array([1.0, 2.0, 3.0, 4.0, 5.0]), FREE, amount=0.8
    )
    assert chosen.tolist() == [0, 2, 3]
    assert reasons == {
        1: "the floor: 1 of 2 attention branches stay",
        4: "the floor: 1 of 3 feed forward branches stay",
    }


def test_a_floor_is_a_share_of_every_kind():
    assert gone("aaaaaf", range(6), Limits(floor=0.5), amount=0.9) == [0, 1]


@pytest.mark.parametrize("glob", ["b0", "add0", "w0", "*0"])
def test_protected_branches_stay_by_any_of_their_names(glob):
    chosen, reasons = choose_branches(
        branches("aaaa"), np.arange(4.0), Limits(protect=[glob], floor=0.0), amount=0.34
    )
    assert chosen.tolist() == [1]
    assert reasons == {0: f"protected by {glob!r}"}


def shares(costs: Sequence[float]):
    return lambda numbers, _metric: 1 - sum(costs[number] for number in numbers)


def test_a_target_takes_what_matters_least_for_its_cost():
    costs = [0.1, 0.4, 0.1, 0.1]
    assert gone("aaaa", [1, 2, 3, 4], budgets=[Budget("macs", 0.6)], cost=shares(costs)) == [1]


def test_what_is_not_needed_for_a_target_is_given_back():
    costs = [0.1, 0.4, 0.1, 0.1]
    # by score for its cost: 0 first, then 1, which is enough alone
    assert gone("aaaa", [0.1, 2, 3, 4], budgets=[Budget("macs", 0.6)], cost=shares(costs)) == [1]


def test_a_target_that_is_met_already_takes_nothing():
    assert gone("aa", [1, 2], budgets=[Budget("macs", 1.0)], cost=shares([0.5, 0.2])) == []


def test_a_target_beyond_the_floor_is_missed():
    with pytest.raises(LimitMissed, match=r"brought to 0\.700 .*not to 0\.5") as caught:
        gone("aa", [1, 2], budgets=[Budget("macs", 0.5)], cost=shares([0.3, 0.3]))
    assert caught.value.reached == pytest.approx(0.7)
    assert caught.value.reasons == ("b1: the floor: 1 of 2 attention branches stay",)


def test_several_targets_are_met_together():
    costs = {"macs": [0.1, 0.4, 0.1, 0.1], "bytes": [0.1, 0.0, 0.4, 0.1]}

    def cost(numbers, metric):
        return shares(costs[metric])(numbers, metric)

    budgets = [Budget("macs", 0.55), Budget("bytes", 0.65)]
    assert gone("aaaa", [1, 2, 2, 4], budgets=budgets, cost=cost) == [1, 2]
    assert gone("aaaa", [1, 2, 2, 4], budgets=budgets[:1], cost=cost) == [0, 1]
    with pytest.raises(LimitMissed, match=r"bytes can be brought to 0\.500"):
        gone("aaaa", [1, 2, 2, 4], budgets=[Budget("macs", 0.9), Budget("bytes", 0.3)], cost=cost)


def test_what_saves_nothing_goes_last():
    assert gone("aaa", [0, 1, 2], budgets=[Budget("params", 0.7)], cost=shares([0, 0.3, 0.3])) == [1]


def test_branches_that_must_not_go_together():
    def why_not(numbers: Sequence[int]) -> str | None:
        return "not both" if {0, 2} <= set(numbers) else None

    chosen, reasons = choose_branches(branches("aaaa"), np.arange(4.0), FREE, amount=0.5, why_not=why_not)
    assert (chosen.tolist(), reasons) == ([0, 1], {})
    scores = np.array([0.0, 3.0, 1.0, 2.0])
    chosen, reasons = choose_branches(branches("aaaa"), scores, FREE, amount=0.5, why_not=why_not)
    assert (chosen.tolist(), reasons) == ([0, 3], {2: "not both"})
    budgets = [Budget("macs", 0.6)]
    cost = shares([0.2] * 4)
    chosen, reasons = choose_branches(
        branches("aaaa"), scores, FREE, budgets=budgets, cost=cost, why_not=why_not
    )
    assert (chosen.tolist(), reasons) == ([0, 3], {2: "not both"})


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_choice_keeps_the_floors(data):
    kinds = data.draw(st.text("afc", min_size=1, max_size=12))
    scores = data.draw(st.lists(st.floats(0, 2), min_size=len(kinds), max_size=len(kinds)))
    limits = Limits(data.draw(st.sampled_from(["global", "uniform"])), floor=data.draw(st.floats(0, 1)))
    amount = data.draw(st.floats(0, 0.99))
    chosen = gone(kinds, scores, limits, amount=amount)
    assert len(chosen) <= amount * len(kinds) + 0.5 * len(set(kinds))
    for kind in set(kinds):
        left = [i for i, k in enumerate(kinds) if k == kind and i not in chosen]
        assert len(left) >= max(1, limits.floor * kinds.count(kind))


@pytest.mark.parametrize(
    ("limits", "how", "word"),
    [
        (Limits("sideways"), {"amount": 0.5}, "sideways"),
        (Limits(floor=2), {"amount": 0.5}, "floor"),
        (FREE, {"amount": 1.0}, "amount"),
        (FREE, {}, "either"),
        (FREE, {"budgets": [Budget("macs", 0.5)]}, "cost"),
    ],
)
def test_options_that_make_no_sense(limits, how, word):
    with pytest.raises(UsageError, match=word):
        gone("aa", [1, 2], limits, **how)
