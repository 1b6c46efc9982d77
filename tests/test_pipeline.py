"""From a wish to a proved file and back: prune, save, load, apply to a re-trained model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import graph, parameters
from generated import generated_model

import onnxprune
from onnxprune import pipeline, proving
from onnxprune.data import Dataset
from onnxprune.errors import LimitMissed, NothingToPrune, PlanError, ProofError, UsageError
from onnxprune.planning.channels import decide, limits_of
from onnxprune.planning.gathering import gather
from onnxprune.planning.watch import Watch
from onnxprune.types import Check

BODY = """
    h = Conv(x, a_w, a_b) r = Relu(h) b = Conv(r, b_w) s = Relu(b) p = GlobalAveragePool(s) f = Flatten(p)
    y = Gemm<transB = 1>(f, c_w)
"""
CONSTANTS = {"a_w": (16, 3, 3, 3), "a_b": (16,), "b_w": (24, 16, 1, 1), "c_w": (5, 24)}


def network(seed: int = 0) -> ir.Model:
    return graph(BODY, constants=CONSTANTS, seed=seed)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(ir.to_proto(network()), path)
    return path


def test_prune_save_load(file: Path, tmp_path: Path) -> None:
    model = onnxprune.load(file)
    result = onnxprune.prune(model, amount=0.5)
    out = tmp_path / "small.onnx"
    report = onnxprune.save_pruned(result, out, against=file, plan_folder=tmp_path / "small.plan")
    assert report.passed
    again = onnxprune.load(out)
    assert parameters(again) == parameters(result.model) < parameters(model)
    assert again.graph.initializers["a_w"].const_value.shape.numpy()[0] == 8  # type: ignore[union-attr]
    assert again.graph.initializers["b_w"].const_value.shape.numpy()[:2] == (12, 8)  # type: ignore[union-attr]
    assert onnxprune.load_plan(tmp_path / "small.plan").groups[0].removed.tolist() == (
        result.plan.groups[0].removed.tolist()
    )


def test_the_given_model_is_not_changed(file: Path) -> None:
    model = onnxprune.load(file)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    onnxprune.prune(model, amount=0.5)
    onnxprune.prune(model, pattern="unstructured", amount=0.5)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_the_report_says_what_happened() -> None:
    result = onnxprune.prune(network(), amount=0.5)
    costs = {row["what"]: row for row in result.report.sections["cost"]}
    assert costs["parameters"]["before"] == 16 * 27 + 16 + 24 * 16 + 5 * 24
    assert costs["parameters"]["after"] == parameters(result.model) == 8 * 27 + 8 + 12 * 8 + 5 * 12
    rows = {row["group"]: (row["before"], row["after"]) for row in result.report.sections["groups"]}
    assert rows == {"a_w": (16, 8), "b_w": (24, 12)}
    assert [check.name for check in result.report.checks] == ["cut equals its exact twin"]
    assert {"analyze", "score", "allocate", "cut", "prove"} <= set(result.report.seconds)
    assert any("output y" in skipped.reason for skipped in result.report.skipped)


@pytest.mark.parametrize(("option", "field"), [("target_macs", "macs"), ("target_params", "params")])
def test_targets_are_met(option: str, field: str) -> None:
    result = onnxprune.prune(network(), **{option: 0.5}, align=1)  # type: ignore[arg-type]
    before, after = result.plan.predicted
    assert 0.35 < getattr(after, field) / getattr(before, field) <= 0.5


def test_the_weakest_channels_go() -> None:
    model = network()
    tensor = model.graph.initializers["a_w"]
    weights = tensor.const_value.numpy().copy()  # type: ignore[union-attr]
    weights[[1, 4, 9, 12]] *= 100
    tensor.const_value = ir.tensor(weights, name="a_w")
    result = onnxprune.prune(model, amount=0.75, protect=["c_w"])
    assert result.plan.groups[0].removed.tolist() == [i for i in range(16) if i not in (1, 4, 9, 12)]


def test_plan_is_what_prune_would_do() -> None:
    for options in ({"amount": 0.5}, {"target_macs": 0.6, "score": "l1", "scope": "global"}):
        plan = onnxprune.plan(network(), **options)
        groups = onnxprune.prune(network(), **options).plan.groups  # type: ignore[arg-type]
        assert [(g.name, g.removed.tolist()) for g in plan.groups] == [
            (g.name, g.removed.tolist()) for g in groups
        ]


def test_a_seed_decides_random_choices() -> None:
    plans = [onnxprune.plan(network(), amount=0.5, score="random", seed=seed) for seed in (1, 1, 2)]
    first, again, other = ([g.removed.tolist() for g in plan.groups] for plan in plans)
    assert first == again != other


def test_a_plan_applies_to_a_retrained_model(tmp_path: Path) -> None:
    result = onnxprune.prune(network(0), amount=0.5)
    onnxprune.save_plan(result.plan, tmp_path / "p.plan")
    retrained = network(1)
    again = onnxprune.apply_plan(retrained, onnxprune.load_plan(tmp_path / "p.plan"))
    assert again.report.passed
    assert [g.removed.tolist() for g in again.plan.groups] == [g.removed.tolist() for g in result.plan.groups]
    rows = [i for i in range(16) if i not in result.plan.groups[0].removed]
    np.testing.assert_array_equal(
        again.model.graph.initializers["a_w"].const_value.numpy(),  # type: ignore[union-attr]
        retrained.graph.initializers["a_w"].const_value.numpy()[rows],  # type: ignore[union-attr]
    )
    onnx.checker.check_model(ir.to_proto(again.model), full_check=True)


@pytest.mark.parametrize("seed", range(4))
def test_plans_of_generated_graphs_apply_again(seed: int) -> None:
    model = ir.from_proto(generated_model(seed, 4))
    plan = onnxprune.plan(model, amount=0.4, align=1)
    assert onnxprune.apply_plan(ir.from_proto(generated_model(seed, 4)), plan).report.passed


def test_a_plan_for_another_graph_is_refused() -> None:
    plan = onnxprune.plan(network(), amount=0.5)
    other = graph(BODY.replace("Relu(b)", "Tanh(b)"), constants=CONSTANTS)
    with pytest.raises(PlanError, match="another graph"):
        onnxprune.apply_plan(other, plan)


def test_a_plan_with_another_group_is_refused() -> None:
    from dataclasses import replace

    plan = onnxprune.plan(network(), amount=0.5)
    first, *rest = plan.groups
    with pytest.raises(PlanError, match="a_w of 17 channels is not in this model"):
        onnxprune.apply_plan(network(), replace(plan, groups=(replace(first, size=17), *rest)))
    moved = replace(first, members=(replace(first.members[0], axis=1), *first.members[1:]))
    with pytest.raises(PlanError, match="other tensors or positions"):
        onnxprune.apply_plan(network(), replace(plan, groups=(moved, *rest)))


def test_nothing_to_prune_says_why_for_every_group() -> None:
    with pytest.raises(NothingToPrune, match="3 groups stay whole") as caught:
        onnxprune.prune(network(), amount=0.5, protect=["a_w", "b_w"])
    assert any(reason.startswith("a_w: protected by 'a_w'") for reason in caught.value.reasons)
    assert any("output y" in reason for reason in caught.value.reasons)
    with pytest.raises(NothingToPrune, match="no weights with channels"):
        onnxprune.prune(graph("y = Relu(x)"), amount=0.5)
    with pytest.raises(NothingToPrune):
        onnxprune.prune(network(), pattern="heads", amount=0.5)


def test_a_target_that_cannot_be_met() -> None:
    with pytest.raises(LimitMissed, match="params can be brought to"):
        onnxprune.prune(network(), target_params=0.01)


def test_a_failing_proof_stops_everything_and_names_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong cut of one group: only the proof stands between it and the user."""
    honest = proving.cut

    def wrong(model: ir.Model, channels: object, removed: np.ndarray) -> ir.Model:
        pruned = honest(model, channels, removed)  # type: ignore[arg-type]
        weight = pruned.graph.initializers["b_w"]
        array = weight.const_value.numpy()  # type: ignore[union-attr]
        if array.shape[1] < 16:
            weight.const_value = ir.tensor(np.roll(array, 1, axis=1), name="b_w")
        return pruned

    monkeypatch.setattr(proving, "cut", wrong)
    with pytest.raises(ProofError, match="the proof fails for group a_w: protect it"):
        onnxprune.prune(network(), amount=0.5)


def test_a_file_that_fails_verification_is_not_written(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxprune.errors import VerificationError
    from onnxprune.types import Report

    failed = Report("", checks=(Check("for the test", passed=False, detail="no"),))
    monkeypatch.setattr(pipeline, "verify", lambda *_, **__: failed)
    result = onnxprune.prune(onnxprune.load(file), amount=0.5)
    with pytest.raises(VerificationError, match="not written, for the test: no"):
        onnxprune.save_pruned(result, tmp_path / "small.onnx", against=file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def test_a_weight_that_is_an_input_as_well_is_pruned_and_verified(tmp_path: Path) -> None:
    """As files of old IR versions list them: nobody feeds such inputs, so they follow the cut."""
    inputs = "float[N,3,6,6] x, float[16,3,3,3] a_w, float[16] a_b, float[24,16,1,1] b_w, float[5,24] c_w"
    path = tmp_path / "old.onnx"
    onnx.save(ir.to_proto(graph(BODY, inputs=inputs, constants=CONSTANTS)), path)
    result = onnxprune.prune(onnxprune.load(path), amount=0.5)
    report = onnxprune.save_pruned(result, tmp_path / "small.onnx", against=path)
    assert report.passed
    assert parameters(onnxprune.load(tmp_path / "small.onnx")) == parameters(result.model)


# --- several targets ---


@pytest.mark.parametrize("scope", [None, "uniform", "global"])
def test_targets_are_met_together(scope: str | None) -> None:
    result = onnxprune.prune(network(), target_macs=0.7, target_size=0.5, scope=scope, align=1)
    before, after = result.plan.predicted
    assert after.macs <= 0.7 * before.macs
    assert after.size_bytes <= 0.5 * before.size_bytes
    assert result.plan.recipe["scope"] == (scope or "knapsack")
    assert 0 < result.report.sections["importance"]["share kept"] < 1


@pytest.mark.parametrize("target", ["target_macs", "target_params", "target_size"])
def test_knapsack_keeps_more_than_uniform_and_global(target: str) -> None:
    kept = {}
    for scope in ("knapsack", "uniform", "global"):
        options = {target: 0.5, "scope": scope, "align": 1}
        kept[scope] = onnxprune.prune(network(), **options).report.sections["importance"]["share kept"]  # type: ignore[arg-type]
    assert kept["knapsack"] > max(kept["uniform"], kept["global"])


def test_one_look_serves_many_decisions() -> None:
    recipe = {"pattern": "channels", "score": "l2", "scope": "knapsack"}
    gathered = gather(network(), recipe, None, 0, Watch())
    for targets in ({"target_macs": 0.7}, {"target_size": 0.4}, {"target_macs": 0.5, "target_params": 0.6}):
        decision = decide(gathered, {**recipe, **targets})
        alone = onnxprune.plan(network(), scope="knapsack", **targets)  # type: ignore[arg-type]
        assert {name: gone.tolist() for name, gone in decision.removed.items()} == {
            name: gone.tolist() for name, gone in alone.removed.items()
        }
        assert decision.plan.predicted == alone.predicted


def test_other_limits_take_the_place_of_those_of_the_recipe() -> None:
    recipe = {"pattern": "channels", "score": "l2", "scope": "knapsack", "align": 1}
    gathered = gather(network(), recipe, None, 0, Watch())
    (limit,) = limits_of(gathered, {**recipe, "target_macs": 0.6})
    decision = decide(gathered, recipe, [limit])
    assert limit.left(decision.removed) <= 0.6
    assert decision.removed.keys() == decide(gathered, {**recipe, "target_macs": 0.6}).removed.keys()


def test_a_target_that_is_missed_names_layers() -> None:
    with pytest.raises(LimitMissed) as caught:
        onnxprune.prune(network(), target_macs=0.7, target_size=0.01)
    assert caught.value.reached is not None
    assert 0.01 < caught.value.reached < 0.5
    assert any("is at the least that may stay" in reason for reason in caught.value.reasons)
    assert any("stays whole (output" in reason for reason in caught.value.reasons)


# --- options ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give amount, or one or more of target_macs, .*, target_latency, such as"),
        ({"amount": 0.5, "target_macs": 0.5}, "not amount and target_macs"),
        ({"target_macs": 0.0}, r"target_macs is the share that stays, in \(0, 1\], not 0"),
        ({"target_params": 1.5}, r"target_params is the share that stays"),
        ({"amount": 1.0}, r"\[0, 1\)"),
        ({"amount": 0.5, "score": "l7"}, "l7"),
        ({"amount": 0.5, "scope": "local"}, "unknown scope 'local'"),
        ({"amount": 0.5, "pattern": "chanels"}, "chanels"),
        ({"amount": 0.5, "input_shapes": {"z": [1]}}, "no input"),
        ({"amount": 0.5, "pattern": "unstructured", "scope": "local"}, "local"),
        ({"pattern": "unstructured", "target_macs": 0.5}, "needs a pattern that shrinks shapes"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        onnxprune.prune(network(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("align", [0, -4, "fast", 2.5])
def test_steps_that_make_no_sense(align: object) -> None:
    with pytest.raises(UsageError, match="align"):
        onnxprune.prune(network(), amount=0.5, align=align)  # type: ignore[arg-type]


@pytest.mark.parametrize("floor", [-0.1, 1.5])
def test_floors_that_make_no_sense(floor: float) -> None:
    with pytest.raises(UsageError, match="floor"):
        onnxprune.prune(network(), amount=0.5, floor=floor)


def test_plan_refuses_an_option_that_prune_does_not_have() -> None:
    with pytest.raises(UsageError, match="protct"):
        onnxprune.plan(network(), amount=0.5, protct=["a_w"])


@pytest.mark.parametrize("options", [{"amount": 0.5}, {"pattern": "unstructured", "amount": 0.5}])
def test_a_glob_that_protects_nothing_is_reported(options: dict[str, object]) -> None:
    report = onnxprune.prune(network(), protect=["a_ww", "c_w"], **options).report  # type: ignore[arg-type]
    unmatched = [entry.name for entry in report.skipped if "was to be protected" in entry.reason]
    assert unmatched == ["a_ww"]


def picky() -> ir.Model:
    """Reads rows of a table by a number that random inputs drive beyond its end."""
    body = """
        n = Mul(k, hundred) p = Cast<to = 7>(n) e = Gather(table, p) h = MatMul(x, a_w) s = Add(h, e)
        y = MatMul(s, c_w)
    """
    hundred = np.array(100, np.float32)
    constants = {"a_w": (6, 8), "c_w": (8, 3), "table": (2, 8), "hundred": hundred}
    return graph(body, inputs="float[N,6] x, float[N] k", constants=constants)


def test_a_wrong_cut_is_blamed_where_another_batch_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the original does not run at one of the sizes is no excuse: the others were compared."""
    body = "h = MatMul(x, a_w) f = Reshape(h, to) r = Relu(f) b = Reshape(r, back) y = MatMul(b, c_w)"
    constants = {"a_w": (6, 8), "c_w": (8, 3), "to": [2, 8], "back": [-1, 8]}
    model = graph(body, inputs="float[N,6] x", constants=constants)
    honest = proving.cut

    def wrong(model: ir.Model, channels: object, removed: np.ndarray) -> ir.Model:
        pruned = honest(model, channels, removed)  # type: ignore[arg-type]
        weight = pruned.graph.initializers["c_w"]
        weight.const_value = ir.tensor(np.roll(weight.const_value.numpy(), 1, axis=0), name="c_w")  # type: ignore[union-attr]
        return pruned

    monkeypatch.setattr(proving, "cut", wrong)
    with pytest.raises(ProofError, match=r"does not run at .*; the proof fails for group a_w: protect it"):
        onnxprune.prune(model, amount=0.5, align=1)


def test_a_model_that_takes_no_random_inputs_is_proved_on_real_ones() -> None:
    random = np.random.default_rng(0)
    real = Dataset.from_arrays(
        {
            "x": random.standard_normal((6, 6)).astype(np.float32),
            "k": np.array([0, 0.01, 0.01, 0, 0.01, 0], np.float32),
        }
    )
    with pytest.raises(ProofError, match=r"the original itself does not run on random inputs: give it real"):
        onnxprune.prune(picky(), amount=0.5, align=1)
    result = onnxprune.prune(picky(), amount=0.5, align=1, data=real)
    assert "inputs, real ones first (tol" in result.report.checks[0].detail
    assert onnxprune.apply_plan(picky(), result.plan, data=real).report.checks[0].passed
