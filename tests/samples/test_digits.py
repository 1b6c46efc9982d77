from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.importers import import_model

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "digits"


@pytest.fixture(scope="module")
def models() -> ModuleType:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    spec = importlib.util.spec_from_file_location("digits_models", SAMPLE / "models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["digits_models"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["ResidualNetwork", "VisionTransformer"])
def test_the_networks_export_with_a_dynamic_batch(models: ModuleType, name: str) -> None:
    result = import_model(getattr(models, name)(), input_shapes=[(1, 1, 8, 8)])

    assert result.notes == ()
    assert result.dynamic_axes["image"] == {0: "batch"}
    assert result.max_relative_difference is not None
    assert result.max_relative_difference < 1e-5
    operators = {node.op_type for node in result.model.graph}
    assert operators >= ({"Conv", "Concat", "Gemm"} if name == "ResidualNetwork" else {"MatMul", "Softmax"})


def pick(rows: list[dict[str, Any]], model: str, pruned: str) -> dict[str, Any]:
    (row,) = (row for row in rows if row["model"] == model and row["pruned"] == pruned)
    return row


@pytest.mark.long
@pytest.mark.xdist_group("samples")
@pytest.mark.parametrize("model", ["residual", "vit"])
def test_half_of_the_work_really_goes(digits_rows: list[dict[str, Any]], model: str) -> None:
    dense, small = pick(digits_rows, model, "no"), pick(digits_rows, model, "50% MACs")

    for measure in ("macs", "params", "file_bytes"):
        assert small[measure] < 0.6 * dense[measure], measure
    assert small["macs"] <= 0.5 * dense["macs"]
    assert small["checks_passed"] > 1


@pytest.mark.long
@pytest.mark.xdist_group("samples")
def test_the_networks_are_right_before_and_the_residual_one_after(digits_rows: list[dict[str, Any]]) -> None:
    assert pick(digits_rows, "residual", "no")["metric"] > 0.97
    assert pick(digits_rows, "vit", "no")["metric"] > 0.96
    assert pick(digits_rows, "residual", "50% MACs")["metric"] > 0.9
    assert pick(digits_rows, "residual", "2:4")["metric"] > 0.95


@pytest.mark.long
@pytest.mark.xdist_group("samples")
@pytest.mark.parametrize("model", ["residual", "vit"])
def test_repair_brings_accuracy_back(digits_rows: list[dict[str, Any]], model: str) -> None:
    dense = pick(digits_rows, model, "no")["metric"]
    cut, repaired = (pick(digits_rows, model, f"50% MACs{how}") for how in ("", ", repaired"))
    zeros, obs = (pick(digits_rows, model, f"2:4{how}") for how in ("", ", obs"))

    assert repaired["macs"] == cut["macs"]
    assert repaired["params"] <= 1.01 * cut["params"]  # biases where there were none
    assert repaired["metric"] > 0.95
    assert dense - repaired["metric"] < 0.5 * (dense - cut["metric"]) + 0.01
    assert dense - obs["metric"] < 0.5 * (dense - zeros["metric"]) + 0.01


@pytest.mark.long
@pytest.mark.xdist_group("samples")
def test_two_of_four_input_channels_are_zero(digits_rows: list[dict[str, Any]], demo_folder: Path) -> None:
    model = onnx.load(demo_folder / "digits" / "residual-2of4.onnx")
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    checked = 0
    for node in model.graph.node:
        weight = weights[node.input[1]] if node.op_type in ("Conv", "Gemm") else np.zeros(0)
        if weight.ndim < 2 or weight.shape[1] % 4:
            continue  # the stem and the depthwise convolution have one input channel for each output
        fours = np.moveaxis(weight, 1, -1).reshape(-1, 4)
        assert (np.count_nonzero(fours, axis=1) <= 2).all(), node.name
        assert np.count_nonzero(fours) >= 0.45 * fours.size, node.name
        checked += 1
    assert checked >= 9
