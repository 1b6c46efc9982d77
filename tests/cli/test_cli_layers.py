"""onnxprune prune --pattern layers, on files."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "calib.npz"
    np.savez(path, x=np.random.default_rng(0).standard_normal((7, 3, 8, 8)).astype(np.float32))
    return path


def convolutions(path):
    return sum(node.op_type == "Conv" for node in onnx.load(path).graph.node)


def test_a_layer_is_gone_from_the_file(run, saved, data, tmp_path):
    output, plan = tmp_path / "small.onnx", tmp_path / "small.plan"
    arguments = ["--pattern", "layers", "--amount", "0.5", "--data", data, "--plan", plan]
    ran = run("prune", saved["residual_net"], "-o", output, *arguments)
    assert (ran.status, ran.err) == (0, "")
    assert (convolutions(saved["residual_net"]), convolutions(output)) == (5, 3)
    for text in ("layers", "block1", "block2", "convolution", "score", "planned layers"):
        assert text in ran.out
    contents = json.loads((plan / "plan.json").read_text())
    assert [branch["name"] for branch in contents["groups"][0]["branches"]] == ["block1", "block2"]
    assert contents["recipe"]["score"] == "influence"
    ran = run("verify", output, "--against", saved["residual_net"], "--plan", plan)
    assert ran.status == 0
    again = tmp_path / "again.onnx"
    assert run("apply", plan, saved["residual_net"], "-o", again).status == 0
    assert convolutions(again) == 3


def test_verify_refuses_another_file(run, saved, data, tmp_path):
    output, plan = tmp_path / "small.onnx", tmp_path / "small.plan"
    arguments = ["--pattern", "layers", "--amount", "0.5", "--data", data, "--plan", plan]
    run("prune", saved["residual_net"], "-o", output, *arguments)
    ran = run("verify", saved["residual_net"], "--plan", plan)
    assert ran.status == 1
    assert "should be gone" in ran.out


def test_without_data_the_option_is_named_in_one_line(run, saved, tmp_path):
    output = tmp_path / "small.onnx"
    ran = run("prune", saved["residual_net"], "-o", output, "--pattern", "layers", "--amount", "0.5")
    assert ran.status == 2
    assert "--data" in ran.err
    assert ran.err.count("\n") == 1
    assert not output.exists()


def test_weights_alone_need_no_data(run, saved, tmp_path):
    output = tmp_path / "small.onnx"
    arguments = ["--pattern", "layers", "--amount", "0.5", "--score", "l2", "--json"]
    ran = run("prune", saved["residual_net"], "-o", output, *arguments)
    assert ran.status == 0
    assert [row["removed"] for row in ran.document["sections"]["layers"]] == [True, False]


def test_no_branch_no_file(run, saved, tmp_path):
    output = tmp_path / "small.onnx"
    ran = run("prune", saved["mlp"], "-o", output, "--pattern", "layers", "--amount", "0.5", "--score", "l2")
    assert ran.status == 4
    assert "no residual branch" in ran.err
    assert not output.exists()
