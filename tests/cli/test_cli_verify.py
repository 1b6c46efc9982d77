"""onnxprune verify: what is wrong with a file is said in one line, with status 1."""

from __future__ import annotations

import onnx
import pytest
from onnx import numpy_helper


@pytest.fixture
def pruned(run, saved, tmp_path):
    """A 2:4 model and its plan, from ``mlp``."""
    output, plan = tmp_path / "sparse.onnx", tmp_path / "sparse.plan"
    assert run("prune", saved["mlp"], "-o", output, "--pattern", "2:4", "--plan", plan).status == 0
    return output, plan


def plant(path, change):
    """Change the weight fc2 of a file by hand."""
    model = onnx.load(path)
    (weight,) = [w for w in model.graph.initializer if w.name == "fc2.weight"]
    array = numpy_helper.to_array(weight).copy()
    change(array)
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, path)


def test_a_sound_file_passes(run, saved, pruned):
    output, plan = pruned
    ran = run("verify", output, "--against", saved["mlp"], "--plan", plan, "--json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.document["passed"] is True
    assert "pattern 2:4" in {check["name"] for check in ran.document["checks"]}


def test_a_file_alone_can_be_checked(run, saved):
    ran = run("verify", saved["mlp"], "--threads", "2")
    assert ran.status == 0
    assert "outputs finite" in ran.out


def test_a_zero_removed_by_hand_is_seen(run, saved, pruned):
    output, plan = pruned

    def fill(array):
        array[array == 0] = 1e-3

    plant(output, fill)
    ran = run("verify", output, "--plan", plan)
    assert ran.status == 1
    assert "FAILED" in ran.out
    assert "declared zeros" in ran.error
    assert "fc2.weight" in ran.error


def test_a_zero_planted_by_hand_is_seen(run, saved, pruned):
    output, plan = pruned

    def add_zero(array):
        array[tuple(index[0] for index in array.nonzero())] = 0

    plant(output, add_zero)
    ran = run("verify", output, "--plan", plan, "--against", saved["mlp"], "--json")
    assert ran.status == 1
    assert ran.document["passed"] is False
    assert "error" not in ran.document
    assert "other weights unchanged" in ran.error


def test_quiet_says_only_what_is_wrong(run, pruned):
    output, plan = pruned
    plant(output, lambda array: array.fill(1.0))
    ran = run("verify", output, "--plan", plan, "--quiet")
    assert (ran.status, ran.out) == (1, "")
    assert "checks failed" in ran.error


def test_a_file_that_does_not_load_fails_the_first_check(run, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"nonsense")
    ran = run("verify", tmp_path / "m.onnx")
    assert ran.status == 1
    assert "loads" in ran.error
