"""Whole models: zeros chosen on samples, weights that make up for them, files that pass verify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.data import Dataset
from onnxprune.errors import ModelError, PlanError, UsageError
from onnxprune.model.stored import stored_values, tensor_of
from onnxprune.ops.linear import find_linear
from onnxprune.patterns import count_bad_runs, parse_pattern
from onnxprune.planning.masks_on_data import _fits
from onnxprune.rewrite.mask import replace_weights
from onnxprune.runtime import open_session

FLOAT = TensorProto.FLOAT


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def images(count: int = 24) -> Dataset:
    return Dataset.from_arrays({"x": normal(count, 3, 8, 8)})


def build(nodes: list[Any], arrays: dict[str, Any], x_shape: list[Any], y_shape: list[Any]) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, x_shape)],
        [helper.make_tensor_value_info("y", FLOAT, y_shape)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return ir.from_proto(model)


def weights_of(model: ir.Model) -> dict[str, Any]:
    return {name: np.asarray(tensor_of(value).numpy()) for name, (value,) in stored_values(model).items()}


def outputs(model: ir.Model, data: Dataset) -> Any:
    return open_session(model).run(dict(data.arrays))["y"]


def skipped(result: Any) -> dict[str, str]:
    return {entry.name: entry.reason for entry in result.report.skipped}


# --- what comes out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["residual_net", "depthwise_net", "mlp", "attention"])
@pytest.mark.parametrize("score", ["obs", "wanda"])
@pytest.mark.parametrize(("pattern", "amount"), [("2:4", None), ("unstructured", 0.6), ("block:4x4", 0.5)])
def test_saved_files_pass(
    tmp_path: Path, network: str, score: str, pattern: str, amount: float | None
) -> None:
    path = small_models.save_model(getattr(small_models, network)(), tmp_path / "model.onnx")
    model = onnxprune.load(path)
    shape = [24, *model.graph.inputs[0].shape[1:]]
    data = Dataset.from_arrays({"x": normal(*shape)})
    before = weights_of(model)
    result = onnxprune.prune(model, pattern=pattern, amount=amount, score=score, data=data)
    report = onnxprune.save_pruned(
        result, tmp_path / "small.onnx", against=path, plan_folder=tmp_path / "small.plan"
    )
    assert report.passed
    after = weights_of(onnxprune.load(tmp_path / "small.onnx"))
    changed = {name for name, mask in result.plan.masks.items()
               if not np.array_equal(after[name], before[name] * mask.unpack())}  # fmt: skip
    assert bool(changed) == (score == "obs")
    assert all(np.array_equal(weights_of(model)[name], before[name]) for name in before)
    masks = result.plan.masks.values()
    share = 1 - sum(mask.kept for mask in masks) / sum(mask.size for mask in masks)
    assert share == pytest.approx(amount or 0.5, abs=0.002 if pattern != "block:4x4" else 0.1)


@pytest.mark.parametrize("pattern", ["2:4", "unstructured", "block:4x4"])
def test_obs_stays_closer_to_the_original_than_magnitude(pattern: str) -> None:
    model = ir.from_proto(small_models.residual_net())
    options = {"pattern": pattern, "amount": None if pattern == "2:4" else 0.5}
    expected = outputs(model, images())

    def error(**more: Any) -> float:
        return float(
            np.square(outputs(onnxprune.prune(model, **options, **more).model, images()) - expected).mean()
        )

    assert error(score="obs", data=images()) < 0.5 * error(score="l2")


def test_runs_go_along_input_channels_of_each_group_and_tap() -> None:
    kernel = normal(8, 8, 3, 3)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", group=2, pads=[1, 1, 1, 1])]
    model = build(nodes, {"w": kernel}, ["n", 16, 6, 6], ["n", 8, 6, 6])
    data = Dataset.from_arrays({"x": normal(16, 16, 6, 6)})
    mask = onnxprune.prune(model, pattern="2:4", score="obs", data=data).plan.masks["w"].unpack()
    assert count_bad_runs(mask, parse_pattern("2:4"), 1) == 0
    assert mask.mean() == 0.5


def test_alpha_and_transposed_storage_are_undone() -> None:
    """The same product in three spellings gets the same zeros, and new weights that mean the same."""
    weight = normal(12, 8)
    spellings = {
        "matmul": ([helper.make_node("MatMul", ["x", "w"], ["y"])], weight),
        "gemm": ([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], weight.T.copy()),
        "alpha": ([helper.make_node("Gemm", ["x", "w"], ["y"], alpha=0.5)], weight * 2),
    }
    data = Dataset.from_arrays({"x": normal(40, 12)})
    found = {}
    for name, (nodes, stored) in spellings.items():
        model = build(nodes, {"w": stored}, ["n", 12], ["n", 8])
        found[name] = weights_of(onnxprune.prune(model, pattern="2:4", score="obs", data=data).model)["w"]
    np.testing.assert_allclose(found["gemm"].T, found["matmul"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["alpha"] / 2, found["matmul"], rtol=1e-4, atol=1e-6)


def test_half_precision_is_kept() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "w"], ["product"], name="product"),
        helper.make_node("Cast", ["product"], ["y"], to=FLOAT),
    ]
    model = build(nodes, {"w": normal(16, 8).astype(np.float16)}, ["n", 16], ["n", 8])
    result = onnxprune.prune(
        model, pattern="2:4", score="obs", data=Dataset.from_arrays({"x": normal(40, 16)})
    )
    after = weights_of(result.model)["w"]
    assert after.dtype == np.float16
    assert np.count_nonzero(after) == 64


# --- ties, and what is left alone ---------------------------------------------------------------------------


def test_moments_of_tied_uses_are_added_up() -> None:
    """One matrix that two inputs are multiplied with is judged as if their rows came one after the other."""
    weight = normal(8, 8)
    nodes = [
        helper.make_node("Split", ["x"], ["left", "right"], axis=1, num_outputs=2),
        helper.make_node("MatMul", ["left", "w"], ["a"], name="first"),
        helper.make_node("MatMul", ["right", "w"], ["b"], name="second"),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    tied = build(nodes, {"w": weight}, ["n", 16], ["n", 8])
    single = build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, ["n", 8], ["n", 8])
    x = normal(30, 16) * np.linspace(0.1, 4, 16, dtype=np.float32)
    stacked = np.concatenate([x[:, :8], x[:, 8:]])
    options: dict[str, Any] = {"pattern": "2:4", "score": "obs"}
    one = onnxprune.prune(tied, data=Dataset.from_arrays({"x": x}), **options)
    two = onnxprune.prune(single, data=Dataset.from_arrays({"x": stacked}), **options)
    assert np.array_equal(one.plan.masks["w"].unpack(), two.plan.masks["w"].unpack())
    np.testing.assert_allclose(weights_of(one.model)["w"], weights_of(two.model)["w"], rtol=1e-4, atol=1e-6)


def test_tied_uses_that_turn_the_weight_are_left_alone() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Gemm", ["a", "w"], ["b"], name="second", transB=1),
        helper.make_node("MatMul", ["b", "v"], ["y"], name="third"),
    ]
    model = build(nodes, {"w": normal(8, 8), "v": normal(8, 4)}, ["n", 8], ["n", 4])
    data = Dataset.from_arrays({"x": normal(20, 8)})
    result = onnxprune.prune(model, pattern="unstructured", amount=0.5, score="obs", data=data)
    assert set(result.plan.masks) == {"v"}
    assert "tied" in skipped(result)["w"]


def test_what_has_no_rows_is_left_alone_with_the_reason() -> None:
    """The state of a recurrent layer can't be watched; a score from weights takes it."""
    hidden = 8
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["", "last"], name="lstm", hidden_size=hidden),
        helper.make_node("MatMul", ["last", "v"], ["y"], name="head"),
    ]
    arrays = {"w": normal(1, 32, 12), "r": normal(1, 32, hidden), "v": normal(hidden, 4)}
    model = build(nodes, arrays, [5, 1, 12], [1, 1, 4])
    data = Dataset.from_arrays({"x": normal(5 * 6, 1, 12)})
    result = onnxprune.prune(model, pattern="unstructured", amount=0.5, score="obs", data=data)
    assert "r" not in result.plan.masks
    assert "a score from weights can take it" in skipped(result)["r"]
    assert "r" in onnxprune.prune(model, pattern="unstructured", amount=0.5, score="l2").plan.masks


def test_blocks_that_would_reach_over_groups_are_seen() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", group=2)]
    model = build(nodes, {"w": normal(12, 8, 1, 1)}, ["n", 16, 4, 4], ["n", 12, 4, 4])
    (linear,), _ = find_linear(model)
    assert _fits(linear, parse_pattern("block:3x4"), {})
    assert not _fits(linear, parse_pattern("block:4x4"), {})  # 6 outputs in a group
    data = Dataset.from_arrays({"x": normal(9, 16, 4, 4)})
    with pytest.raises(onnxprune.errors.NothingToPrune, match="reach over several of its matrices"):
        onnxprune.prune(model, pattern="block:4x4", amount=0.5, score="obs", data=data)


def test_protected_weights_stay() -> None:
    model = ir.from_proto(small_models.mlp())
    data = Dataset.from_arrays({"x": normal(30, 16)})
    result = onnxprune.prune(model, pattern="2:4", score="obs", data=data, protect=["fc2*"])
    assert all(not name.startswith("fc2") for name in result.plan.masks)


def test_weights_that_are_not_finite_are_named() -> None:
    weight = normal(8, 4)
    weight[3, 2] = np.nan
    model = build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, ["n", 8], ["n", 4])
    with pytest.raises(ModelError, match=r"'w' at \[3, 2\] is nan"):
        onnxprune.prune(model, pattern="2:4", score="obs", data=Dataset.from_arrays({"x": normal(9, 8)}))


# --- shares of layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["obs", "wanda", "l2"])
@pytest.mark.parametrize("scope", ["uniform", "global", "owl"])
def test_scopes_keep_the_amount(score: str, scope: str) -> None:
    model = ir.from_proto(small_models.mlp())
    data = Dataset.from_arrays({"x": normal(30, 16)})
    needed = score != "l2" or scope == "owl"
    result = onnxprune.prune(
        model, pattern="unstructured", amount=0.6, score=score, scope=scope, data=data if needed else None
    )
    masks = result.plan.masks
    shares = {name: 1 - mask.kept / mask.size for name, mask in masks.items()}
    assert sum(m.size - m.kept for m in masks.values()) == pytest.approx(
        0.6 * sum(m.size for m in masks.values()), abs=2
    )
    assert (max(shares.values()) - min(shares.values()) < 0.01) == (scope == "uniform")
    if scope == "owl":
        assert max(shares.values()) - min(shares.values()) < 0.17


def test_scores_from_data_compare_layers_unless_asked_otherwise() -> None:
    model = ir.from_proto(small_models.mlp())
    data = Dataset.from_arrays({"x": normal(30, 16)})
    plan = onnxprune.plan(model, pattern="unstructured", amount=0.5, score="obs", data=data)
    assert plan.recipe["scope"] == "global"
    assert onnxprune.plan(model, pattern="unstructured", amount=0.5).recipe["scope"] == "uniform"


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({"pattern": "2:4", "score": "obs"}, False, r"score 'obs' is measured on samples: give --data"),
        ({"pattern": "2:4", "score": "wnda"}, True, r"'wnda' \(did you mean 'wanda'\?\); known: l1,"),
        ({"pattern": "2:4", "score": "ablation"}, True, r"unknown score 'ablation' for zeros"),
        ({"pattern": "2:4", "score": "l2"}, True, r"score 'l2' goes by weights alone"),
        ({"pattern": "unstructured", "amount": 0.5, "scope": "owl"}, False, r"'owl' looks for outliers"),
        ({"pattern": "2:4", "score": "obs", "scope": "owl"}, True, r"same share everywhere"),
        ({"pattern": "2:4", "score": "obs", "scope": "global"}, True, r"same share everywhere"),
        ({"pattern": "2:4", "score": "obs", "scope": "owls"}, True, r"'owls' \(did you mean 'owl'\?\)"),
        ({"pattern": "unstructured", "score": "obs"}, True, r"needs an amount"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(options: dict[str, Any], given: bool, message: str) -> None:
    data = Dataset.from_arrays({"x": normal(30, 16)}) if given else None
    with pytest.raises(UsageError, match=message):
        onnxprune.prune(ir.from_proto(small_models.mlp()), data=data, **options)


# --- a file that claims more than it may --------------------------------------------------------------------


def test_verify_sees_other_tensors_that_were_changed(tmp_path: Path) -> None:
    path = small_models.save_model(small_models.mlp(), tmp_path / "model.onnx")
    data = Dataset.from_arrays({"x": normal(30, 16)})
    result = onnxprune.prune(onnxprune.load(path), pattern="2:4", score="obs", data=data)
    biases = [name for name, array in weights_of(result.model).items() if array.ndim == 1]
    replace_weights(result.model, {biases[0]: weights_of(result.model)[biases[0]] + 1})
    with pytest.raises(onnxprune.errors.VerificationError, match="other weights unchanged"):
        onnxprune.save_pruned(result, tmp_path / "small.onnx", against=path)


def test_new_weights_must_fit() -> None:
    model = ir.from_proto(small_models.mlp())
    name, array = next((name, array) for name, array in weights_of(model).items() if array.ndim == 2)
    for wrong in ({name: array[:1]}, {name: array.astype(np.float64)}, {"missing": array}):
        with pytest.raises(PlanError, match=next(iter(wrong))):
            replace_weights(model, wrong)
