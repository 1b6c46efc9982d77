"""onnxprune inspect."""

from __future__ import annotations

import onnx
import pytest
import small_models
from onnx import helper


def test_the_interface_and_the_cost_are_shown(run, saved):
    document = run("inspect", saved["mlp"], "--json").document
    sections = document["sections"]
    parameters = 16 * 32 + 32 + 32 * 32 + 32 + 32 * 4 + 4
    assert sections["model"]["parameters"] == parameters
    assert sections["model"]["size_bytes"] == saved["mlp"].stat().st_size
    assert sections["model"]["opsets"] == f"ai.onnx {small_models.OPSET}"
    batch = sections["model"]["analyzed_at"]["x"][0]
    assert sections["model"]["macs"] == 16 * 32 + 32 * 32 + 32 * 4  # of one sample
    assert sections["inputs"] == [
        {"name": "x", "type": "float", "shape": ["n", 16], "analyzed_at": [batch, 16]}
    ]
    assert {row["operator"]: row["nodes"] for row in sections["operators"]} == {"Gemm": 3, "Relu": 2}
    assert [row["tensor"] for row in sections["weights"]] == ["fc1.weight", "fc2.weight", "fc3.weight"]
    assert [row["summed_axis"] for row in sections["weights"]] == [1, 1, 1]


@pytest.mark.parametrize(
    ("which", "expected"),
    [("all", {"fc1", "fc2", "fc3"}), ("open", {"fc1", "fc2"}), ("frozen", {"fc3"})],
)
def test_groups_can_be_chosen(run, saved, which, expected):
    document = run("inspect", saved["mlp"], "--groups", which, "--json").document
    assert {row["group"] for row in document["sections"]["groups"]} == expected
    frozen = {"name": "fc3", "reason": "output y of the model"}
    assert (frozen in document["skipped"]) == (which != "open")


def test_the_table_says_why_a_group_is_frozen(run, saved):
    ran = run("inspect", saved["mlp"])
    assert ran.status == 0
    assert "output y of the model" in ran.out
    assert "fc2.weight" in ran.out


def test_an_operator_that_nothing_is_known_of_is_listed(run, tmp_path):
    model = small_models.mlp()
    first = model.graph.node[1]
    first.op_type, first.domain = "Mystery", "acme"
    model.opset_import.append(helper.make_opsetid("acme", 1))
    shape = helper.make_tensor_value_info(first.output[0], onnx.TensorProto.FLOAT, ["n", 32])
    model.graph.value_info.append(shape)
    ran = run("inspect", small_models.save_model(model, tmp_path / "m.onnx"), "--json")
    assert ran.status in (0, 1)
    if ran.status == 0:
        assert {"operator": "acme.Mystery", "nodes": 1, "known": False} in ran.document["sections"][
            "operators"
        ]
        assert any("acme.Mystery" in entry["reason"] for entry in ran.document["skipped"])


def test_input_shapes_are_used(run, saved):
    document = run("inspect", saved["mlp"], "--input-shape", "x=7,16", "--json").document
    assert document["sections"]["model"]["analyzed_at"] == {"x": [7, 16]}
    ran = run("inspect", saved["mlp"], "--input-shape", "x=7,17")
    assert (ran.status, "x" in ran.error) == (2, True)


def test_quiet_prints_nothing_and_verbose_more(run, saved):
    assert run("inspect", saved["residual_net"], "--quiet").out == ""
    assert "block1.conv2" in run("inspect", saved["residual_net"], "--verbose").out
