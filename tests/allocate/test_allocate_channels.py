"""Which channels go: shares, thresholds, targets, floors, steps and protection."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.allocate.channels import choose_channels
from onnxprune.allocate.limits import Holder, Limit
from onnxprune.allocate.options import Options
from onnxprune.errors import LimitMissed, UsageError
from onnxprune.types import ChannelGroup, Choice, IntArray, Kind, Member, Scores

FREE = Options(align=1, floor=0.0)


def group(name: str, size: int, kind: Kind = "channels", **more: object) -> ChannelGroup:
    at = np.arange(size, dtype=np.int32)
    member = Member(f"{name}.weight", 0, at, contracted=False, consumer="n")
    return ChannelGroup(name, kind, size, (member,), **more)  # type: ignore[arg-type]


def rising(*groups: ChannelGroup) -> Scores:
    """Channel i of a group scores i + 1, so the first ones go first."""
    return Scores("test", {g.name: np.arange(1.0, g.size + 1) for g in groups if g.frozen is None})


def removed(choices: tuple[Choice, ...]) -> dict[str, list[int]]:
    return {choice.group.name: choice.removed.tolist() for choice in choices}


def counts(choices: tuple[Choice, ...]) -> list[int]:
    return [len(choice.removed) for choice in choices]


def share_of(groups: list[ChannelGroup]) -> Callable[[Mapping[str, IntArray]], float]:
    """A cost that grows with the square of what a group keeps, as weights between layers do."""
    whole = sum(g.size**2 for g in groups)

    def cost(gone: Mapping[str, IntArray]) -> float:
        return sum((g.size - len(gone.get(g.name, ()))) ** 2 for g in groups) / whole

    return cost


# --- amounts ---


@pytest.mark.parametrize(
    ("amount", "expected"), [(0.0, [0, 0]), (0.25, [2, 4]), (0.5, [4, 8]), (0.9, [7, 14])]
)
def test_uniform_takes_the_same_share_of_every_group(amount: float, expected: list[int]) -> None:
    groups = [group("a", 8), group("b", 16)]
    choices = choose_channels(groups, rising(*groups), FREE, amount=amount)
    assert counts(choices) == expected


def test_the_weakest_go_in_ascending_order() -> None:
    a = group("a", 6)
    scores = Scores("test", {"a": np.array([5.0, 0.1, 3.0, 0.2, 4.0, 0.3])})
    (choice,) = choose_channels([a], scores, FREE, amount=0.5)
    assert choice.removed.tolist() == [1, 3, 5]
    assert choice.removed.dtype == np.int32
    assert choice.skipped is None


def test_ties_go_by_index() -> None:
    a = group("a", 6)
    (choice,) = choose_channels([a], Scores("test", {"a": np.ones(6)}), FREE, amount=0.5)
    assert choice.removed.tolist() == [0, 1, 2]


def test_global_compares_scores_relative_to_their_group() -> None:
    """All of b is larger, but flat; a has four channels that are weak for their group."""
    a, b = group("a", 8), group("b", 8)
    scores = Scores("test", {"a": np.array([0.01] * 4 + [1.0] * 4), "b": np.full(8, 100.0)})
    choices = choose_channels([a, b], scores, Options("global", align=1, floor=0), amount=0.25)
    assert removed(choices) == {"a": [0, 1, 2, 3], "b": []}


def test_global_does_not_depend_on_the_scale_of_a_group() -> None:
    groups = [group("a", 8), group("b", 8)]
    random = np.random.default_rng(0)
    values = {g.name: random.random(g.size) for g in groups}
    options = Options("global", align=1, floor=0)
    scaled = {"a": values["a"] * 1e6, "b": values["b"]}
    first = choose_channels(groups, Scores("t", values), options, amount=0.4)
    second = choose_channels(groups, Scores("t", scaled), options, amount=0.4)
    assert removed(first) == removed(second)


def test_global_takes_scores_as_shares_of_the_greatest() -> None:
    """By shares of the mean, the weakest of b would go before the third of a."""
    groups = [group("a", 4), group("b", 4)]
    scores = Scores("t", {"a": np.array([1.0, 1, 2, 10]), "b": np.array([0.5, 2, 2, 2])})
    choices = choose_channels(groups, scores, Options("global", align=1, floor=0), amount=3 / 8)
    assert removed(choices) == {"a": [0, 1, 2], "b": []}


def test_global_takes_losses_as_they_are() -> None:
    groups = [group("a", 4), group("b", 4)]
    values = {"a": np.array([0.1, 0.2, 0.3, 0.4]), "b": np.array([0.5, 1, 2, 40])}
    choices = choose_channels(
        groups, Scores("t", values, losses=True), Options("global", align=1, floor=0.25), amount=3 / 8
    )
    assert removed(choices) == {"a": [0, 1, 2], "b": []}


def test_global_meets_a_target_where_a_loss_saves_most() -> None:
    """Channels of b lose twice as much, and save four times as much."""
    groups = [group("a", 8), group("b", 8)]
    values = {"a": np.full(8, 1.0), "b": np.full(8, 2.0)}
    options = Options("global", align=1, floor=0)

    def cost(gone: Mapping[str, IntArray]) -> float:
        return 1 - (len(gone.get("a", ())) + 4 * len(gone.get("b", ()))) / 40

    limits = [Limit("macs", 0.6, cost)]
    choices = choose_channels(groups, Scores("t", values, losses=True), options, limits=limits)
    assert counts(choices) == [0, 4]


def test_a_target_for_groups_that_all_stay_is_left_to_the_caller() -> None:
    a = group("a", 16, frozen="because")
    (choice,) = choose_channels([a], rising(a), FREE, limits=[Limit("macs", 0.5, share_of([a]))])
    assert (len(choice.removed), choice.skipped) == (0, "because")


def test_global_with_scores_of_zero() -> None:
    groups = [group("a", 8), group("b", 8)]
    scores = Scores("t", {"a": np.zeros(8), "b": np.arange(8.0)})
    choices = choose_channels(groups, scores, Options("global", align=1, floor=0.25), amount=0.5)
    assert counts(choices)[0] <= 6


# --- floors, steps, protection ---


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(2, 200), min_size=1, max_size=5),
    st.floats(0, 0.999),
    st.floats(0, 1),
    st.sampled_from([1, 2, 4, 8, 16, "auto"]),
    st.sampled_from(["uniform", "global"]),
    st.integers(0, 1000),
)
def test_what_is_left_is_always_allowed(
    sizes: list[int], amount: float, floor: float, align: int | str, scope: str, seed: int
) -> None:
    groups = [group(f"g{i}", size) for i, size in enumerate(sizes)]
    random = np.random.default_rng(seed)
    scores = Scores("t", {g.name: random.random(g.size) for g in groups})
    choices = choose_channels(groups, scores, Options(scope, align, floor=floor), amount=amount)
    for choice in choices:
        size, kept = choice.group.size, choice.group.size - len(choice.removed)
        assert kept >= 1
        assert kept >= floor * size - 1e-9
        step = (
            align
            if isinstance(align, int)
            else 16
            if size >= 128
            else 8
            if size >= 64
            else 4
            if size >= 8
            else 1
        )
        assert kept == size or kept % step == 0
        assert len(np.unique(choice.removed)) == len(choice.removed)
        assert (np.diff(choice.removed) > 0).all()
        weakest = scores.channels[choice.group.name][choice.removed]
        left = np.delete(scores.channels[choice.group.name], choice.removed)
        assert weakest.max(initial=0) <= left.min()
        assert (choice.skipped is None) == (len(choice.removed) > 0)


def test_heads_are_counted_one_by_one() -> None:
    heads = group("h", 12, "heads")
    (choice,) = choose_channels([heads], rising(heads), Options(floor=0), amount=0.25)
    assert len(choice.removed) == 3


@pytest.mark.parametrize("pattern", ["a", "a.weight", "?", "*.weight"])
def test_protected_groups_stay(pattern: str) -> None:
    a, b = group("a", 8), group("conv", 8)
    choices = choose_channels([a, b], rising(a, b), Options(align=1, protect=[pattern]), amount=0.5)
    assert len(choices[0].removed) == 0
    assert choices[0].skipped == f"protected by {pattern!r}"


def test_frozen_groups_and_other_kinds_are_skipped_with_the_reason() -> None:
    a, b, c = group("a", 8), group("b", 8, frozen="an output"), group("c", 8, "head_dim")
    choices = choose_channels([a, b, c], rising(a, b, c), FREE, amount=0.5)
    assert counts(choices) == [4, 0, 0]
    assert [choice.skipped for choice in choices] == [
        None,
        "an output",
        "the pattern does not remove head dim",
    ]


def test_a_group_that_is_too_small_says_so() -> None:
    a = group("a", 8)
    (choice,) = choose_channels([a], rising(a), Options(align=8), amount=0.3)
    assert "all 8 channels stay" in str(choice.skipped)
    assert "steps of 8" in str(choice.skipped)


# --- targets ---


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.77])
@pytest.mark.parametrize("align", [1, 4])
def test_a_target_is_met_and_by_no_more_than_it_takes(scope: str, keep: float, align: int) -> None:
    groups = [group("a", 32), group("b", 48), group("c", 64)]
    random = np.random.default_rng(5)
    scores = Scores("t", {g.name: random.random(g.size) for g in groups})
    cost = share_of(groups)
    options = Options(scope, align, floor=0.05)
    choices = choose_channels(groups, scores, options, limits=[Limit("macs", keep, cost)])
    gone = {choice.group.name: choice.removed for choice in choices}
    assert cost(gone) <= keep
    assert cost(gone) > keep - 0.12  # a step of the largest group at most
    # The next smaller amount that differs misses the target.
    amount = sum(len(c.removed) for c in choices) / sum(g.size for g in groups)
    for less in np.linspace(amount, 0, 200):
        smaller = choose_channels(groups, scores, options, amount=float(less))
        if sum(counts(smaller)) < sum(counts(choices)) - 4 * align:
            assert cost({c.group.name: c.removed for c in smaller}) > keep
            break


def test_giving_back_any_single_step_would_miss_the_target() -> None:
    """With one group, the result is the largest that fits, exactly."""
    a = group("a", 100)
    cost = share_of([a])
    (choice,) = choose_channels([a], rising(a), FREE, limits=[Limit("params", 0.5, cost)])
    assert cost({"a": choice.removed}) <= 0.5
    assert cost({"a": choice.removed[1:]}) > 0.5


def test_a_target_of_everything_removes_nothing() -> None:
    a = group("a", 16)
    (choice,) = choose_channels([a], rising(a), FREE, limits=[Limit("macs", 1.0, share_of([a]))])
    assert len(choice.removed) == 0


def test_a_target_beyond_the_floors_is_missed() -> None:
    a, b = group("a", 16), group("b", 16)
    options = Options(align=1, floor=0.5, protect=["b"])
    with pytest.raises(LimitMissed, match=r"macs can be brought to 0\.625 of the original, not to 0\.3"):
        choose_channels([a, b], rising(a, b), options, limits=[Limit("macs", 0.3, share_of([a, b]))])


@pytest.mark.parametrize("scope", ["uniform", "knapsack"])
def test_what_stands_in_the_way_is_told_layer_by_layer(scope: str) -> None:
    a, b = group("a", 16), group("b", 16, frozen="an output of the model")

    def holders(gone: Mapping[str, IntArray]) -> list[Holder]:
        left = 1 - len(gone.get("a", ())) / 16
        return [
            Holder("small", 0.2 * left, ("a",)),
            Holder("large", 0.7 * left, ("a", "b")),
            Holder("fixed", 0.1, ()),
        ]

    def left(gone: Mapping[str, IntArray]) -> float:
        return sum(holder.share for holder in holders(gone))

    options = Options(scope, align=1, floor=0.25)
    limit = Limit("macs", 0.3, left, holders=holders)
    with pytest.raises(
        LimitMissed, match=r"macs can be brought to 0\.325 of the original, not to 0\.3"
    ) as caught:
        choose_channels([a, b], rising(a, b), options, limits=[limit])
    assert caught.value.reached == pytest.approx(0.325)
    assert caught.value.reasons == (
        "large: holds 17.5% of the original macs: a is at the least that may stay (4 of 16); "
        "b stays whole (an output of the model)",
        "fixed: holds 10.0% of the original macs: no channels of it can go",
        "small: holds 5.0% of the original macs: a is at the least that may stay (4 of 16)",
    )


def test_of_several_limits_the_one_that_is_missed_is_named() -> None:
    a, b = group("a", 16), group("b", 16)
    limits = [Limit("macs", 0.9, share_of([a, b])), Limit("bytes", 0.1, share_of([a, b]))]
    for scope in ("uniform", "global", "knapsack"):
        with pytest.raises(LimitMissed, match=r"bytes can be brought to 0\.250 .*not to 0\.1: every group"):
            choose_channels([a, b], rising(a, b), Options(scope, align=1, floor=0.5), limits=limits)


@pytest.mark.parametrize("scope", ["uniform", "global", "isomorphic", "knapsack"])
def test_several_limits_are_kept_together(scope: str) -> None:
    groups = [group("a", 32), group("b", 48), group("c", 64)]

    def of(weights: list[int]) -> Callable[[Mapping[str, IntArray]], float]:
        whole = sum(weight * g.size for weight, g in zip(weights, groups, strict=True))
        return lambda gone: sum(
            weight * (g.size - len(gone.get(g.name, ()))) for weight, g in zip(weights, groups, strict=True)
        ) / whole  # fmt: skip

    limits = [Limit("macs", 0.5, of([9, 1, 1])), Limit("params", 0.4, of([1, 1, 9]))]
    choices = choose_channels(groups, rising(*groups), Options(scope, align=1), limits=limits)
    gone = {choice.group.name: choice.removed for choice in choices}
    assert all(limit.left(gone) <= limit.keep for limit in limits)
    alone = choose_channels(groups, rising(*groups), Options(scope, align=1), limits=limits[:1])
    assert limits[1].left({choice.group.name: choice.removed for choice in alone}) > 0.4


def test_measured_steps_go_before_the_usual_ones() -> None:
    a, b = group("a", 64), group("b", 64)
    steps = {"a": 24}
    choices = choose_channels([a, b], rising(a, b), Options(floor=0), amount=0.5, steps=steps)
    assert counts(choices) == [64 - 24, 32]
    choices = choose_channels([a, b], rising(a, b), Options(align=1, floor=0), amount=0.5, steps=steps)
    assert counts(choices) == [32, 32]


# --- errors ---


@pytest.mark.parametrize(
    ("options", "how", "message"),
    [
        (FREE, {}, "either an amount or a target"),
        (FREE, {"amount": 0.5, "limits": [Limit("macs", 0.5, len)]}, "either an amount or a target"),
        (FREE, {"amount": 1.0}, r"\[0, 1\)"),
        (FREE, {"amount": -0.1}, r"\[0, 1\)"),
        (FREE, {"amount": float("nan")}, r"\[0, 1\)"),
        (
            Options("local"),
            {"amount": 0.5},
            "did you mean 'global'.*known: uniform, global, isomorphic, knapsack",
        ),
    ],
)
def test_errors(options: Options, how: dict[str, object], message: str) -> None:
    a = group("a", 8)
    with pytest.raises(UsageError, match=message):
        choose_channels([a], rising(a), options, **how)  # type: ignore[arg-type]
