"""Dead channels: which are found, which stay, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from cutting import graph_proto, parameters
from masking import cleaned, half_masked, masked, removed

import onnxprune
from onnxprune.errors import NothingToPrune, UsageError

MLP = """
    a = Gemm<transB = 1>(x, a_w, a_b) r = Relu(a) b = Gemm<transB = 1>(r, b_w, b_b) s = Tanh(b)
    y = Gemm(s, c_w)
"""
SHAPES = {"a_w": (8, 5), "a_b": (8,), "b_w": (9, 8), "b_b": (9,), "c_w": (9, 3)}


def mlp(seed: int = 0) -> onnx.ModelProto:
    return graph_proto(MLP, inputs="float[N,5] x", constants=SHAPES, seed=seed)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["residual_net", "depthwise_net", "concat_net", "mlp", "attention"])
def test_masked_networks_shrink_and_compute_the_same(name: str, axis: int) -> None:
    proto = half_masked(getattr(small_models, name)(), axis, seed=1)
    result = cleaned(proto)
    assert result.report.passed
    assert result.report.checks[0].name == "cut equals the original"
    ratio = next(row["ratio"] for row in result.report.sections["cost"] if row["what"] == "parameters")
    assert ratio < 0.8


def test_rows_of_zeros_are_found() -> None:
    result = cleaned(masked(mlp(), {"a_w": [0, 2, 7], "b_w": [4]}))
    assert removed(result) == {"a_w": [0, 2, 7], "b_w": [4]}


def test_columns_of_zeros_are_found() -> None:
    result = cleaned(masked(mlp(), {"b_w": [1, 5]}, axis=1))
    assert removed(result) == {"a_w": [1, 5]}
    assert "folded constants" not in result.report.sections  # their terms were zero


def test_what_only_dead_channels_read_is_dead() -> None:
    proto = masked(mlp(), {"c_w": [0, 1, 2]})  # three of b's channels are not read
    (weights,) = (t for t in proto.graph.initializer if t.name == "b_w")
    array = onnx.numpy_helper.to_array(weights).copy()
    array[3:, [4, 6]] = 0  # and two of a's channels are read by those three alone
    weights.CopyFrom(onnx.numpy_helper.from_array(array, "b_w"))
    assert removed(cleaned(proto)) == {"a_w": [4, 6], "b_w": [0, 1, 2]}


def test_one_channel_stays() -> None:
    result = cleaned(masked(mlp(), {"a_w": range(8)}))
    assert removed(result)["a_w"] == list(range(1, 8))


def test_floor_and_automatic_steps_keep_nothing_alive() -> None:
    proto = masked(small_models.residual_net(width=128), {"block1.conv1.weight": range(1, 127)})
    result = onnxprune.prune(ir.from_proto(proto), pattern="dead", floor=0.5)
    (numbers,) = removed(result).values()
    assert len(numbers) >= 125  # one may stay to carry the constants of the others


@pytest.mark.parametrize(("align", "left"), [(1, 5), (3, 6), (4, 8)])
def test_steps_that_were_asked_for_hold(align: int, left: int) -> None:
    proto = masked(mlp(), {"a_w": [0, 2, 7], "b_w": [1, 2, 3, 4]})
    result = cleaned(proto, align=align)
    sizes = {group.name: group.size - len(group.removed) for group in result.plan.groups}
    assert (sizes["a_w"], sizes["b_w"]) == (left, {1: 5, 3: 6, 4: 8}[align])


def test_protected_groups_stay() -> None:
    result = cleaned(masked(mlp(), {"a_w": [0], "b_w": [4]}), protect=["a_w"])
    assert removed(result) == {"b_w": [4]}
    assert any("protected by 'a_w'; 1 of its 8 channels are dead" in s.reason for s in result.report.skipped)


def test_frozen_groups_are_counted() -> None:
    proto = half_masked(small_models.attention(), 0)
    result = cleaned(proto)
    reasons = {s.name: s.reason for s in result.report.skipped}
    assert reasons["out"].endswith("; 16 of its 32 channels are dead")


def test_nothing_dead_is_said_for_every_group() -> None:
    with pytest.raises(NothingToPrune, match="nothing to remove by pattern 'dead'") as caught:
        onnxprune.prune(ir.from_proto(mlp()), pattern="dead")
    assert "a_w: no channel is dead" in caught.value.reasons


@pytest.mark.parametrize("option", ["amount", "target_macs", "target_params"])
def test_there_is_no_amount(option: str) -> None:
    with pytest.raises(UsageError, match=f"leave out {option}"):
        onnxprune.prune(ir.from_proto(mlp()), pattern="dead", **{option: 0.5})  # type: ignore[arg-type]


def test_dead_heads_go() -> None:
    """A head whose values are all constant, or that the projection behind it does not read."""
    proto = masked(small_models.attention(), {"value.weight": range(8, 16)}, axis=1)
    assert removed(cleaned(proto)) == {"query": [1]}
    proto = masked(small_models.attention(), {"out.weight": range(16, 24)})
    assert removed(cleaned(proto)) == {"query": [2]}


def test_other_patterns_take_dead_channels_first() -> None:
    proto = masked(mlp(), {"a_w": [2, 5]})
    for tensor in proto.graph.initializer:  # large biases and columns: by their norm these two matter most
        array = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name == "a_b":
            array[[2, 5]] = 50
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for scope in ("uniform", "global"):
        result = onnxprune.prune(ir.from_proto(proto), amount=0.25, scope=scope, align=1, protect=["c_w"])
        assert removed(result) == {"a_w": [2, 5]}
        assert result.report.checks[0].name == "cut equals the original"


def test_a_plan_folds_what_is_constant_in_the_model_it_is_applied_to(tmp_path: Path) -> None:
    plan = onnxprune.prune(ir.from_proto(masked(mlp(), {"a_w": [2, 5]})), pattern="dead").plan
    onnxprune.save_plan(plan, tmp_path / "p.plan")
    plan = onnxprune.load_plan(tmp_path / "p.plan")
    same = onnxprune.apply_plan(ir.from_proto(masked(mlp(1), {"a_w": [2, 5]})), plan)
    assert same.report.checks[0].name == "cut equals the original"
    other = onnxprune.apply_plan(ir.from_proto(mlp(1)), plan)  # nothing is dead there: an ordinary cut
    assert other.report.checks[0].name == "cut equals its exact twin"
    assert other.report.passed
    assert parameters(other.model) == parameters(same.model)


def test_a_cleaned_file_is_verified(tmp_path: Path) -> None:
    source, out = tmp_path / "masked.onnx", tmp_path / "small.onnx"
    onnx.save(half_masked(small_models.residual_net(), 0), source)
    result = onnxprune.prune(onnxprune.load(source), pattern="dead")
    report = onnxprune.save_pruned(result, out, against=source, plan_folder=tmp_path / "p.plan")
    assert report.passed
    again = onnxprune.verify(out, against=source, plan=onnxprune.load_plan(tmp_path / "p.plan"))
    assert again.passed, [check for check in again.checks if not check.passed]
    assert np.isfinite([row["ratio"] for row in report.sections["cost"]]).all()


@pytest.mark.parametrize("seed", range(3))
def test_statistics_that_change_carry_no_constants(seed: int) -> None:
    """Inexact cuts of masked models are proved too: behind a normalisation nothing is constant."""
    proto = half_masked(small_models.attention(), 1, seed)
    result = onnxprune.prune(ir.from_proto(proto), amount=0.5, allow_inexact=True, seed=seed)
    assert result.report.passed
    assert onnxprune.prune(ir.from_proto(proto), pattern="dead", allow_inexact=True).report.passed
