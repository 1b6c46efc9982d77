"""Repair and rounds as parts of a whole run: what is decided, cut, proved and repaired in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import small_models
from cutting import graph, parameters

import onnxprune
from onnxprune import pruning
from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.planning import rounds as round_planning
from onnxprune.runtime import open_session
from onnxprune.types import Check

SHAPES = {"residual_net": (3, 8, 8), "mlp": (16,), "attention": (6, 32), "concat_net": (3, 8, 8)}


def samples(name: str, count: int = 96, seed: int = 5) -> Dataset:
    """Inputs in which few directions carry most of the energy, as in real data: what goes can be replaced."""
    random = np.random.default_rng(seed)
    size = int(np.prod(SHAPES[name]))
    mixing = np.random.default_rng(1).standard_normal((max(3, size // 8), size))
    noise = 0.05 * random.standard_normal((count, size))
    arrays = random.standard_normal((count, len(mixing))) @ mixing / np.sqrt(len(mixing)) + noise
    return Dataset.from_arrays({"x": arrays.reshape(count, *SHAPES[name]).astype(np.float32)})


def load(name: str) -> ir.Model:
    return ir.from_proto(getattr(small_models, name)())


def outputs(model: ir.Model, data: Dataset) -> np.ndarray:
    return open_session(model).run(dict(data.arrays))["y"]


def error(model: ir.Model, original: ir.Model, data: Dataset) -> float:
    ours, theirs = outputs(original, data), outputs(model, data)
    return float(np.square(theirs - ours).sum() / np.square(ours - ours.mean(axis=0)).sum())


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("method", ["bias", "statistics", "reconstruct"])
def test_repair_brings_outputs_back(name: str, method: str) -> None:
    model, fresh = load(name), samples(name, seed=6)
    plain = onnxprune.prune(model, amount=0.4)
    result = onnxprune.prune(model, amount=0.4, data=samples(name), recover=method)
    assert [g.removed.tolist() for g in result.plan.groups] == [g.removed.tolist() for g in plain.plan.groups]
    before, after = error(plain.model, model, fresh), error(result.model, model, fresh)
    assert after < before * (0.3 if method == "reconstruct" else 1.0)
    summary = result.report.sections["repair"]
    assert summary["method"] == method
    assert summary["layers repaired"] > 0
    assert summary["outputs differ on them, after"] <= summary["outputs differ on them, before"]
    assert result.plan.recipe["recover"] == method


def test_the_cost_counts_biases_that_a_repair_adds() -> None:
    body = "a = Conv(x, a_w) r = Relu(a) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB = 1>(f, c_w)"
    model = graph(body, constants={"a_w": (16, 3, 3, 3), "c_w": (5, 16)})
    arrays = np.random.default_rng(0).standard_normal((40, 3, 6, 6)).astype(np.float32)
    data = Dataset.from_arrays({"x": arrays})
    result = onnxprune.prune(model, amount=0.5, data=data, recover="reconstruct")
    after = {row["what"]: row["after"] for row in result.report.sections["cost"]}["parameters"]
    assert after == parameters(result.model) > 8 * 27 + 5 * 8


@pytest.mark.parametrize("name", SHAPES)
def test_rounds_end_where_one_step_ends(name: str) -> None:
    model, data = load(name), samples(name)
    once = onnxprune.prune(model, amount=0.5, data=data, recover="reconstruct")
    rounds = onnxprune.prune(model, amount=0.5, data=data, recover="reconstruct", rounds=3)
    assert {g.name: len(g.removed) for g in rounds.plan.groups} == {
        g.name: len(g.removed) for g in once.plan.groups
    }
    assert rounds.plan.recipe["amount"] == 0.5
    assert rounds.plan.recipe["rounds"] == 3
    assert error(rounds.model, model, samples(name, seed=6)) < error(
        onnxprune.prune(model, amount=0.5).model, model, samples(name, seed=6)
    )
    names = [check.name for check in rounds.report.checks]
    assert names[:2] == [f"cut equals its exact twin (round {number})" for number in (1, 2)]


@pytest.mark.parametrize("name", SHAPES)
def test_a_plan_from_rounds_is_the_same_cut(name: str) -> None:
    """What several cuts removed, by numbers of the original, must be what the last model lacks."""
    model, data = load(name), samples(name)
    rounds = onnxprune.prune(model, amount=0.5, data=data, recover="bias", rounds=3, score="l1")
    again = onnxprune.apply_plan(model, rounds.plan)
    matrices = [
        {
            tensor: value.const_value.numpy()
            for tensor, value in pruned.graph.initializers.items()
            if value.const_value is not None and len(value.const_value.shape) > 1
        }
        for pruned in (rounds.model, again.model)
    ]
    assert matrices[0].keys() == matrices[1].keys()
    for tensor, array in matrices[1].items():  # repair by bias moves no weight
        assert np.array_equal(array, matrices[0][tensor]), tensor


def test_later_rounds_score_the_repaired_model(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    look = round_planning.look

    def spy(model: ir.Model, *rest: Any) -> Any:
        seen.append(parameters(model))
        return look(model, *rest)

    monkeypatch.setattr(round_planning, "look", spy)
    model = load("residual_net")
    onnxprune.prune(model, amount=0.5, data=samples("residual_net"), recover="bias", rounds=3)
    assert len(seen) == 2
    assert parameters(model) > seen[0] > seen[1]


def test_masks_grow_from_round_to_round(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Mapping[str, Any]] = []
    apply_masks = pruning.apply_masks

    def spy(model: ir.Model, some: Mapping[str, Any]) -> None:
        masks.append({name: mask.unpack() for name, mask in some.items()})
        apply_masks(model, some)

    monkeypatch.setattr(pruning, "apply_masks", spy)
    model, data = load("mlp"), samples("mlp")
    result = onnxprune.prune(
        model, pattern="unstructured", amount=0.7, data=data, recover="reconstruct", rounds=3
    )
    assert len(masks) == 3
    for earlier, later in pairwise(masks):
        assert all((later[name] <= earlier[name]).all() for name in later)
    for name, kept in masks[-1].items():
        weights = result.model.graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]
        assert not weights[~kept].any()
        assert np.count_nonzero(weights) / weights.size == pytest.approx(0.3, abs=0.03)
    fresh = samples("mlp", seed=6)
    plain = onnxprune.prune(model, pattern="unstructured", amount=0.7)
    assert error(result.model, model, fresh) < 0.5 * error(plain.model, model, fresh)


@pytest.mark.parametrize("pattern", ["2:4", "block:2x2", "unstructured"])
def test_masked_weights_are_repaired_and_saved(pattern: str, tmp_path: Path) -> None:
    model, data = load("mlp"), samples("mlp")
    amount = None if pattern == "2:4" else 0.5
    result = onnxprune.prune(model, pattern=pattern, amount=amount, data=data, recover="reconstruct")
    report = onnxprune.save_pruned(result, tmp_path / "small.onnx", plan_folder=tmp_path / "small.plan")
    assert report.passed
    plain = onnxprune.apply_plan(model, onnxprune.load_plan(tmp_path / "small.plan"))
    fresh = samples("mlp", seed=6)
    assert error(result.model, model, fresh) < 0.7 * error(plain.model, model, fresh)
    assert [s.reason for s in plain.plan.skipped if s.name == "repair"] == [
        "not repaired: the plan was made with --recover reconstruct, which takes --data"
    ]
    again = onnxprune.apply_plan(model, result.plan, data=data)
    assert error(again.model, model, fresh) == pytest.approx(error(result.model, model, fresh), rel=1e-3)


def test_a_plan_says_that_it_holds_no_weights() -> None:
    model, data = load("mlp"), samples("mlp")
    plan = onnxprune.prune(model, pattern="2:4", score="obs", data=data).plan

    def noted(**options: Any) -> bool:
        applied = onnxprune.apply_plan(model, plan, **options).plan
        return any(s.name == "weights that stay" for s in applied.skipped)

    assert noted()
    assert not noted(data=data, recover="reconstruct")


def test_nodes_without_names_are_repaired() -> None:
    model = load("mlp")
    for node in model.graph:
        node.name = ""
    result = onnxprune.prune(model, pattern="2:4", data=samples("mlp"), recover="reconstruct")
    assert result.report.sections["repair"]["layers repaired"] == 3
    assert result.plan.structure_digest == onnxprune.plan(model, pattern="2:4").structure_digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amount": 0.5, "recover": "reconstruct"}, "works on samples: give --data"),
        ({"amount": 0.5, "recover": "reconstrut"}, "did you mean 'reconstruct'"),
        ({"amount": 0.5, "rounds": 3}, "leave out --rounds"),
        ({"amount": 0.5, "recover": "bias", "rounds": 0}, "from 1 on"),
        ({"pattern": "dead", "recover": "bias"}, "nothing to repair"),
        ({"pattern": "2:4", "recover": "bias", "rounds": 2}, "goes in one round"),
        ({"pattern": "layers", "amount": 0.5, "recover": "bias", "rounds": 2}, "in one round"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    data = None if "works on samples" in message else samples("mlp")
    with pytest.raises(UsageError, match=message):
        onnxprune.prune(load("mlp"), data=data, **options)


def test_checks_of_several_rounds_are_told_apart() -> None:
    checks = [Check("a", True, ""), Check("b", True, ""), Check("a", True, "")]
    assert [c.name for c in pruning._numbered(checks)] == ["a (round 1)", "b (round 1)", "a (round 2)"]
    assert [c.name for c in pruning._numbered(checks[:2])] == ["a", "b"]


def test_what_can_not_be_scored_any_more_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that a later round does not find again stays as it is, and its removed channels are counted."""
    look = round_planning.look

    def lose(*arguments: Any) -> Any:
        analysis, sums, scores = look(*arguments)
        left = {name: values for name, values in scores.channels.items() if name != lost}
        return analysis, sums, replace(scores, channels=left)

    model, data = load("mlp"), samples("mlp")
    lost = next(g.name for g in onnxprune.plan(model, amount=0.5).groups if len(g.removed))
    monkeypatch.setattr(round_planning, "look", lose)
    result = onnxprune.prune(model, target_params=0.4, data=data, recover="bias", rounds=2)
    first = onnxprune.plan(model, target_params=1 - 0.6 * (1 - 0.5**3))
    gone = {g.name: len(g.removed) for g in result.plan.groups}
    assert gone[lost] == {g.name: len(g.removed) for g in first.groups}[lost]
    before, after = result.plan.predicted
    assert 0.3 < after.params / before.params <= 0.4


def test_scope_sensitivity_in_rounds_brings_nothing_back() -> None:
    model, data = load("residual_net"), samples("residual_net")
    result = onnxprune.prune(
        model, target_macs=0.4, scope="sensitivity", data=data, recover="bias", rounds=3, align=1
    )
    before, after = result.plan.predicted
    assert 0.35 < after.macs / before.macs <= 0.4
