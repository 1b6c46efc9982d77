"""What a user gets who names neither score nor scope."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import small_models
from cutting import graph

from onnxprune import plan, prune
from onnxprune.data import Dataset


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def network() -> tuple[ir.Model, Dataset]:
    model = graph(
        """h = MatMul(x, w1) r = Relu(h) k = MatMul(r, w2) s = Relu(k) y = MatMul(s, w3)""",
        inputs="float[N,6] x",
        constants={"w1": (6, 12), "w2": (12, 16), "w3": (16, 3)},
    )
    return model, Dataset.from_arrays({"x": normal(64, 6)})


@pytest.mark.parametrize("recover", ["bias", "statistics", "reconstruct"])
def test_with_a_repair_it_goes_by_the_losses_that_a_repair_leaves(recover: str) -> None:
    model, data = network()
    recipe = plan(model, target_macs=0.5, data=data, recover=recover).recipe
    assert (recipe["score"], recipe["scope"], recipe["stand_in"]) == ("obs", "global", "l2")


def test_without_a_repair_it_goes_by_weights() -> None:
    model, data = network()
    for given in ({}, {"data": data}):
        recipe = plan(model, target_macs=0.5, **given).recipe
        assert (recipe["score"], recipe["scope"]) == ("l2", "uniform")
        assert "stand_in" not in recipe


def test_what_is_given_stays() -> None:
    model, data = network()
    given = plan(model, target_macs=0.5, data=data, recover="bias", score="l1").recipe
    assert (given["score"], given["scope"]) == ("l1", "uniform")
    given = plan(model, target_macs=0.5, data=data, recover="bias", scope="uniform").recipe
    assert (given["score"], given["scope"]) == ("obs", "uniform")


def test_places_in_heads_and_zeros_go_by_weights() -> None:
    model, data = network()
    assert plan(model, pattern="unstructured", amount=0.5, data=data, recover="bias").recipe["score"] == "l2"
    attention = ir.from_proto(small_models.attention())
    samples = Dataset.from_arrays({"x": normal(8, 6, 32)})
    recipe = plan(attention, pattern="head_dim", amount=0.5, data=samples, recover="bias").recipe
    assert recipe["score"] == "l2"


def test_weights_stand_in_where_nothing_can_be_measured() -> None:
    """Rather than that the group stays whole; the report says so."""
    weights = normal(5, 8)
    weights[:, [1, 4, 6, 7]] *= 0.1
    model = graph(
        "h = MatMul(x, w)\n r = Relu(h)\n y = ReduceSum(r, axes)",
        inputs="float[N,5] x",
        constants={"w": weights, "axes": [1]},
    )
    data = Dataset.from_arrays({"x": normal(32, 5)})
    result = prune(model, amount=0.5, data=data, recover="bias")
    (group,) = result.plan.groups
    assert group.removed.tolist() == [1, 4, 6, 7]
    reasons = [entry.reason for entry in result.plan.skipped if entry.name == group.name]
    assert reasons == ["score 'l2' stands in for 'obs': there is nothing to measure in its consumers"]


def test_weights_stand_in_where_a_consumer_is_too_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = network()
    names = [group.name for group in plan(model, amount=0.5).groups]
    monkeypatch.setattr(
        "onnxprune.planning.gathering.too_wide", lambda _: dict.fromkeys(names[:1], "it is wide")
    )
    usual = plan(model, target_macs=0.4, data=data, recover="bias")
    told = {entry.name: entry.reason for entry in usual.skipped}
    assert told[names[0]] == "score 'l2' stands in for 'obs': it is wide"
    assert names[1] not in told
    asked = plan(model, target_macs=0.4, data=data, recover="bias", score="obs")
    assert names[0] not in {entry.name for entry in asked.skipped}


def test_rounds_take_the_same_defaults() -> None:
    model, data = network()
    result = prune(model, target_macs=0.5, data=data, recover="reconstruct", rounds=3)
    assert result.plan.recipe["score"] == "obs"
    assert result.report.passed
    assert result.plan.predicted[1].macs <= 0.5 * result.plan.predicted[0].macs
