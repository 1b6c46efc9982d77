"""Repair and rounds as parts of a whole run: what is decided, cut, proved and repaired in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from cutting import graph, parameters

import onnxprune
from onnxprune import pruning, pruning_channels, pruning_weights
from onnxprune.data import Dataset
from onnxprune.errors import NothingToPrune, UsageError
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
    result = onnxprune.prune(model, amount=0.4, data=samples(name), recover=method, score="l2")
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
    result = onnxprune.prune(model, amount=0.5, data=data, recover="reconstruct", score="l2")
    after = {row["what"]: row["after"] for row in result.report.sections["cost"]}["parameters"]
    assert after == parameters(result.model) > 8 * 27 + 5 * 8


@pytest.mark.parametrize("name", SHAPES)
def test_rounds_end_where_one_step_ends(name: str) -> None:
    model, data = load(name), samples(name)
    once = onnxprune.prune(model, amount=0.5, data=data, recover="reconstruct", score="l2")
    rounds = onnxprune.prune(model, amount=0.5, data=data, recover="reconstruct", score="l2", rounds=3)
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
    apply_masks = pruning_weights.apply_masks

    def spy(model: ir.Model, some: Mapping[str, Any]) -> None:
        masks.append({name: mask.unpack() for name, mask in some.items()})
        apply_masks(model, some)

    monkeypatch.setattr(pruning_weights, "apply_masks", spy)
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


@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_repaired_file_is_held_against_the_original(name: str, pattern: str, tmp_path: Path) -> None:
    source, out = tmp_path / "model.onnx", tmp_path / "small.onnx"
    onnx.save(getattr(small_models, name)(), source)
    amount = None if pattern == "2:4" else 0.5
    result = onnxprune.prune(
        onnxprune.load(source), pattern=pattern, amount=amount, data=samples(name), recover="reconstruct"
    )
    report = onnxprune.save_pruned(result, out, against=source, plan_folder=tmp_path / "small.plan")
    checks = {check.name: check for check in report.checks}
    assert checks["graph unchanged"].passed
    assert checks["form of the weights"].passed
    tampered = onnx.load(out)
    node = next(n for n in tampered.graph.node if n.op_type == "Relu" or n.op_type == "Softmax")
    node.op_type = "Sigmoid" if node.op_type == "Relu" else "LogSoftmax"
    onnx.save(tampered, tmp_path / "tampered.onnx")
    again = onnxprune.verify(tmp_path / "tampered.onnx", against=source, plan=result.plan)
    assert [check.name for check in again.checks if not check.passed] == ["graph unchanged"]


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
        ({"amount": 0.5, "recover": "bias", "rounds": 2.0}, "from 1 on"),
        ({"pattern": "dead", "recover": "bias"}, "nothing to repair"),
        ({"pattern": "dead", "recover": "bias", "rounds": 2}, "nothing to repair"),
        ({"pattern": "layers", "amount": 0.5, "recover": "bias", "rounds": 2}, "in one round"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    data = None if "works on samples" in message else samples("mlp")
    with pytest.raises(UsageError, match=message):
        onnxprune.prune(load("mlp"), data=data, **options)


def test_checks_of_several_rounds_are_told_apart() -> None:
    checks = [Check("a", True, ""), Check("b", True, ""), Check("a", True, "")]
    assert [c.name for c in pruning.numbered(checks)] == ["a (round 1)", "b (round 1)", "a (round 2)"]
    assert [c.name for c in pruning.numbered(checks[:2])] == ["a", "b"]


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
    result = onnxprune.prune(model, target_params=0.4, data=data, recover="bias", score="l2", rounds=2)
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


def removed_by_round(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, set[int]]]:
    """Return a list that gets what is gone in all after each round of a run."""
    seen: list[dict[str, set[int]]] = []
    plan_more = pruning_channels.plan_more_channels

    def spy(earlier: Any, *rest: Any) -> Any:
        decision, then = plan_more(earlier, *rest)
        seen.extend(
            {name: set(gone.tolist()) for name, gone in each.removed.items()} for each in (earlier, decision)
        )
        return decision, then

    monkeypatch.setattr(pruning_channels, "plan_more_channels", spy)
    return seen


@pytest.mark.parametrize("scope", ["uniform", "global", "isomorphic", "sensitivity"])
@pytest.mark.parametrize("score", ["l2", "random", "wanda", "obs"])
@pytest.mark.parametrize("name", ["residual_net", pytest.param("attention", marks=pytest.mark.long)])
def test_whatever_the_scope_and_score_rounds_only_take(
    name: str, score: str, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = removed_by_round(monkeypatch)
    options = {"target_params": 0.6, "score": score, "scope": scope, "recover": "bias", "rounds": 3}
    result = onnxprune.prune(load(name), data=samples(name), **options)
    for earlier, later in pairwise(seen):
        assert all(gone <= later.get(group, set()) for group, gone in earlier.items())
    assert {n: set(gone.tolist()) for n, gone in result.plan.removed.items()} == seen[-1]
    before, after = result.plan.predicted
    assert after.params <= 0.6 * before.params


@pytest.mark.parametrize("scope", ["uniform", "global", "owl", "sensitivity"])
@pytest.mark.parametrize("score", ["l2", "random", "wanda", "obs"])
@pytest.mark.parametrize("pattern", ["unstructured", pytest.param("block:2x2", marks=pytest.mark.long)])
def test_a_plan_of_zeros_from_rounds_says_every_zero(pattern: str, score: str, scope: str) -> None:
    model, data = load("residual_net"), samples("residual_net", count=40)
    options = {"pattern": pattern, "amount": 0.5, "score": score, "scope": scope, "rounds": 3}
    result = onnxprune.prune(model, data=data, recover="bias", **options)  # bias moves no weight
    for name, mask in result.plan.masks.items():
        weights = result.model.graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]
        kept = mask.unpack()
        assert not weights[~kept].any()
        assert np.count_nonzero(weights[kept]) >= kept.sum() - (score == "obs") * 4, name
    sizes = [(mask.size, mask.kept) for mask in result.plan.masks.values()]
    assert sum(kept for _, kept in sizes) <= 0.53 * sum(size for size, _ in sizes)


def test_a_round_too_small_for_any_group_is_passed_over() -> None:
    """A share of 4 heads, and of channels that go by 4, is none at all in the first of 20 rounds."""
    for name, pattern in (("attention", "heads"), ("residual_net", "channels")):
        once = onnxprune.plan(load(name), pattern=pattern, amount=0.5)
        options = {"pattern": pattern, "amount": 0.5, "recover": "bias", "rounds": 20, "score": "l2"}
        result = onnxprune.prune(load(name), data=samples(name), **options)
        assert {n: len(g) for n, g in result.plan.removed.items()} == {
            n: len(g) for n, g in once.removed.items()
        }
        assert result.report.sections["rounds"][0]["round"] > 1
    with pytest.raises(NothingToPrune, match="stay whole"):
        onnxprune.prune(load("mlp"), data=samples("mlp"), **{**options, "pattern": "heads"})


def test_the_report_has_a_row_for_each_round() -> None:
    model, data = load("mlp"), samples("mlp")
    result = onnxprune.prune(model, amount=0.5, data=data, recover="reconstruct", rounds=3)
    rows, before_after = result.report.sections["rounds"], result.plan.predicted
    assert [row["round"] for row in rows] == [1, 2, 3]
    for key, field in (("parameters share", "params"), ("MACs share", "macs")):
        before, after = (getattr(cost, field) for cost in before_after)
        assert rows[0][key] > rows[1][key] > rows[2][key] == after / before
    summary = result.report.sections["repair"]
    assert rows[-1]["error before repair"] == summary["outputs differ on them, before"]
    assert all(row["error after"] <= row["error before repair"] for row in rows)
    masked = onnxprune.prune(
        model, pattern="unstructured", amount=0.5, data=data, recover="bias", rounds=2
    ).report.sections["rounds"]
    assert masked[-1]["weights share"] == pytest.approx(0.5, abs=0.01)
    assert "rounds" not in onnxprune.prune(model, amount=0.5, data=data, recover="bias").report.sections


def test_a_plan_in_rounds_is_the_plan_of_prune() -> None:
    options = {"amount": 0.5, "data": samples("mlp"), "recover": "bias", "rounds": 3}
    plan = onnxprune.plan(load("mlp"), **options)
    pruned = onnxprune.prune(load("mlp"), **options).plan
    assert plan.removed.keys() == pruned.removed.keys()
    assert all(np.array_equal(gone, pruned.removed[name]) for name, gone in plan.removed.items())
    assert (plan.recipe["recover"], plan.recipe["rounds"], plan.recipe["amount"]) == ("bias", 3, 0.5)


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    options = {"amount": np.float32(0.5), "rounds": np.int64(2), "align": np.int32(1)}
    result = onnxprune.prune(load("mlp"), data=samples("mlp"), recover="bias", **options)
    assert type(result.plan.recipe["amount"]) is float
    onnxprune.save_pruned(result, tmp_path / "small.onnx", plan_folder=tmp_path / "small.plan")
    assert onnxprune.load_plan(tmp_path / "small.plan").recipe == result.plan.recipe
    shapes = {"x": np.array([2, 16])}
    plan = onnxprune.plan(load("mlp"), amount=0.5, input_shapes=shapes)
    assert plan.recipe["input_shapes"] == {"x": [2, 16]}


def test_one_glob_protects_what_it_names() -> None:
    """A text is one glob, not a list of its letters, of which an asterisk would protect everything."""
    plan = onnxprune.plan(load("mlp"), amount=0.5, protect="fc1*")
    assert plan.recipe["protect"] == ["fc1*"]
    assert plan.removed
    assert "fc1" not in plan.removed


@pytest.mark.parametrize("pattern", ["channels", "heads", "layers", "unstructured"])
def test_apply_repairs_every_pattern_and_says_of_noise(pattern: str) -> None:
    model, data = load("attention"), samples("attention")
    if pattern == "layers":
        model = ir.from_proto(small_models.residual_net())
        data = samples("residual_net")
    plan = onnxprune.plan(model, pattern=pattern, amount=0.5, score="l2")
    again = onnxprune.apply_plan(model, plan, data=data, recover="reconstruct")
    assert again.report.sections["repair"]["method"] == "reconstruct"
    assert not any("noise" in entry.reason for entry in again.report.skipped)
    noisy = onnxprune.apply_plan(model, plan, data="random:32", recover="bias")
    assert [entry.name for entry in noisy.report.skipped if "noise" in entry.reason] == ["random:32"]


def test_how_models_are_run_reaches_the_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    run = pruning.repair

    def spy(*arguments: Any, **options: Any) -> Any:
        seen.append(options)
        return run(*arguments, **options)

    monkeypatch.setattr(pruning, "repair", spy)
    options = {"data": samples("mlp"), "recover": "bias", "batch": 7, "memory_limit": 123456, "threads": 2}
    model = load("mlp")
    plans = [
        onnxprune.prune(model, pattern=pattern, amount=0.5, **options).plan
        for pattern in ("channels", "unstructured")
    ]
    for plan in plans:
        onnxprune.apply_plan(model, plan, **options)
    assert [(each["batch"], each["limit_bytes"], each["threads"]) for each in seen] == [(7, 123456, 2)] * 4


def test_targets_grow_together_from_round_to_round() -> None:
    recipe = {
        "pattern": "channels",
        "target_macs": 0.6,
        "target_size": 0.2,
        "score": "l2",
        "scope": "knapsack",
    }
    steps = round_planning.recipes_by_round(recipe, 3, "linear")
    assert [step["target_size"] for step in steps] == pytest.approx([1 - 0.8 / 3, 1 - 1.6 / 3, 0.2])
    assert [step["target_macs"] for step in steps] == pytest.approx([1 - 0.4 / 3, 1 - 0.8 / 3, 0.6])
    assert steps[-1] == recipe


def test_rounds_meet_several_targets() -> None:
    model, data = load("residual_net"), samples("residual_net")
    options = {"target_macs": 0.6, "target_size": 0.5, "recover": "bias", "score": "l2", "align": 1}
    result = onnxprune.prune(model, data=data, rounds=2, **options)
    before, after = result.plan.predicted
    assert after.macs <= 0.6 * before.macs
    assert after.size_bytes <= 0.5 * before.size_bytes
    assert "importance" not in result.report.sections
