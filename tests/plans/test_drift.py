"""How much of what goes is something else: counted by hand, and by what must hold of any two plans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import small_models
from renaming import renamed

import onnxprune
from onnxprune.errors import LimitMissed, PlanError
from onnxprune.plans import compare_plans
from onnxprune.types import Mask, Plan, PlannedGroup

PATTERNS = [
    {"amount": 0.5},
    {"pattern": "unstructured", "amount": 0.5},
    {"pattern": "2:4"},
    {"pattern": "layers", "amount": 0.5, "score": "l2"},
]


def plan_of(seed: int = 0, **options: object) -> Plan:
    return onnxprune.plan(ir.from_proto(small_models.residual_net(seed)), **options)


def with_removed(plan: Plan, *removed: list[int]) -> Plan:
    groups: list[PlannedGroup] = []
    for group, numbers in zip(plan.groups, removed, strict=False):
        groups.append(replace(group, removed=np.array(numbers, np.int32)))
    return replace(plan, groups=(*groups, *plan.groups[len(groups) :]))


@pytest.mark.parametrize("options", PATTERNS)
def test_a_plan_has_not_moved_from_itself(options: dict[str, object]) -> None:
    plan = plan_of(**options)
    drift = compare_plans(plan, plan)
    assert drift.moved == drift.total.jaccard_distance == 0
    assert drift.total.before == drift.total.both > 0
    assert all(row.moved == 0 for row in drift.rows)


@pytest.mark.parametrize("options", PATTERNS)
def test_names_play_no_part(options: dict[str, object]) -> None:
    first, second = ir.from_proto(small_models.residual_net(0)), ir.from_proto(small_models.residual_net(3))
    plain = compare_plans(onnxprune.plan(first, **options), onnxprune.plan(second, **options))
    other = compare_plans(onnxprune.plan(first, **options), onnxprune.plan(renamed(second, 5), **options))
    counts = [
        sorted((row.size, row.before, row.after, row.both) for row in drift.rows) for drift in (plain, other)
    ]
    assert counts[0] == counts[1]
    assert plain.moved > 0 or options["pattern"] == "layers"  # the same of two layers goes


def test_channels_are_counted() -> None:
    plan = plan_of(amount=0.5)
    before, after = with_removed(plan, [0, 1, 2, 3], [5]), with_removed(plan, [2, 3, 4], [5, 6])
    first, second, *_ = compare_plans(before, after).rows
    assert (first.size, first.before, first.after, first.both) == (16, 4, 3, 2)
    assert first.moved == pytest.approx(1 - 2 / 4)
    assert first.jaccard_distance == pytest.approx(1 - 2 / 5)
    assert first.both_by_chance == pytest.approx(4 * 3 / 16)
    assert first.moved_by_chance == pytest.approx(1 - 3 / 16)
    assert (second.before, second.after, second.both) == (1, 2, 1)
    total = compare_plans(before, after).total
    assert total.before == sum(row.before for row in compare_plans(before, after).rows)


def test_what_loses_nothing_is_no_row() -> None:
    plan = with_removed(plan_of(amount=0.5), [], [])
    assert all(row.before or row.after for row in compare_plans(plan, plan).rows)
    nothing = replace(plan, groups=tuple(replace(g, removed=np.zeros(0, np.int32)) for g in plan.groups))
    assert compare_plans(nothing, nothing).moved == 0
    assert compare_plans(nothing, plan_of(amount=0.5)).moved == 1


def test_weights_are_counted_by_tensor_where_one_plan_knows_it_alone() -> None:
    plan = plan_of(pattern="unstructured", amount=0.5)
    random = np.random.default_rng(0)
    kept = [random.random((5, 7)) < share for share in (0.3, 0.6, 0.5)]  # 35 weights: bits are left over
    before = replace(plan, masks={"a": Mask.pack(kept[0]), "b": Mask.pack(kept[1])})
    after = replace(plan, masks={"a": Mask.pack(kept[1]), "c": Mask.pack(kept[2])})
    rows = {row.name: row for row in compare_plans(before, after).rows}
    assert rows["a"].before == (~kept[0]).sum()
    assert rows["a"].after == (~kept[1]).sum()
    assert rows["a"].both == (~kept[0] & ~kept[1]).sum()
    assert (rows["b"].after, rows["b"].both, rows["b"].moved) == (0, 0, 1)
    assert (rows["c"].before, rows["c"].both, rows["c"].moved) == (0, 0, 1)


def test_independent_plans_move_as_much_as_chance_says() -> None:
    """The figure beside the drift is the mean of draws."""
    plan = plan_of(amount=0.5)
    random = np.random.default_rng(1)
    rows = [
        compare_plans(
            with_removed(plan, sorted(random.choice(16, 6, replace=False).tolist())),
            with_removed(plan, sorted(random.choice(16, 8, replace=False).tolist())),
        ).rows[0]
        for _ in range(400)
    ]
    assert np.mean([row.moved for row in rows]) == pytest.approx(rows[0].moved_by_chance, abs=0.03)


def test_layers_are_counted() -> None:
    options = {"pattern": "layers", "amount": 0.5, "score": "l2"}
    plan = plan_of(**options)
    (group,) = plan.groups
    other = replace(plan, groups=(replace(group, removed=1 - group.removed),))
    (row,) = compare_plans(plan, other).rows
    assert (row.size, row.before, row.after, row.both, row.moved) == (2, 1, 1, 0, 1)


def test_a_limit_is_named_with_what_moved_most() -> None:
    plan = plan_of(amount=0.5)
    drift = compare_plans(with_removed(plan, [0, 1, 2, 3], [4, 5]), with_removed(plan, [6, 7, 8, 9], [4, 6]))
    drift.check(None)
    drift.check(drift.moved)
    with pytest.raises(LimitMissed, match=r"goes is something else than before, more than 0\.1") as raised:
        drift.check(0.1)
    assert raised.value.reached == pytest.approx(drift.moved)
    assert raised.value.exit_status == 3
    assert raised.value.reasons[0].endswith("0 of 4 are as before")
    assert raised.value.reasons[1].endswith("1 of 2 are as before")


def test_what_can_not_be_compared_is_refused() -> None:
    with pytest.raises(PlanError, match="removes channels can't be compared with one that removes weights"):
        compare_plans(plan_of(amount=0.5), plan_of(pattern="2:4"))
    other = onnxprune.plan(ir.from_proto(small_models.mlp()), amount=0.5)
    with pytest.raises(PlanError, match="another graph"):
        compare_plans(plan_of(amount=0.5), other)
    with pytest.raises(PlanError, match="is not one of the later plan"):  # plans of earlier versions
        compare_plans(replace(plan_of(amount=0.5), graph=None), replace(other, graph=None))
    masked = plan_of(pattern="2:4")
    name = next(iter(masked.masks))
    smaller = replace(masked, masks={**masked.masks, name: Mask.pack(np.ones((2, 2), np.bool_))})
    with pytest.raises(PlanError, match=r"has shape \[2, 2\] now"):
        compare_plans(masked, smaller)
