"""onnxprune import."""

from __future__ import annotations

import importlib.util

import onnx
import pytest

MODULE = """
from torch import nn
from torch.nn.utils import prune

def factory():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    prune.l1_unstructured(net[0], "weight", 0.5)
    return net
"""


def test_an_onnx_file_is_checked_and_written_anew(run, saved, tmp_path):
    ran = run("import", saved["mlp"], "-o", tmp_path / "again.onnx", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.document["sections"]["written"] == {"model": str(tmp_path / "again.onnx")}
    assert ran.document["sections"]["free axes"] == [
        {"value": "x", "axes": {"0": "n"}},
        {"value": "y", "axes": {"0": "n"}},
    ]
    assert onnx.load(tmp_path / "again.onnx").graph.node == onnx.load(saved["mlp"]).graph.node


def test_an_onnx_file_takes_no_shapes(run, saved, tmp_path):
    ran = run("import", saved["mlp"], "-o", tmp_path / "o.onnx", "--input-shape", "1,16")
    assert ran.status == 2
    assert "PyTorch" in ran.error


@pytest.mark.parametrize("shapes", [["x=1,2", "3,4"], ["x=1,2", "x=3,4"], ["x=1,two"]])
def test_shapes_that_contradict_each_other_are_refused(run, tmp_path, shapes):
    options = [part for shape in shapes for part in ("--input-shape", shape)]
    ran = run("import", "some.module:net", "-o", tmp_path / "o.onnx", *options)
    assert ran.status == 2
    assert "NAME=SIZE" in ran.error


def test_without_torch_the_install_command_is_shown(monkeypatch, run, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    ran = run("import", "some.module:net", "-o", tmp_path / "o.onnx")
    assert ran.status == 1
    assert "pip install 'onnxprune[torch]'" in ran.error


@pytest.mark.long
def test_a_module_becomes_a_file_that_agrees_with_it(monkeypatch, run, tmp_path):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cli_import_example.py").write_text(MODULE)
    ran = run("import", "cli_import_example:factory", "-o", "net.onnx", "--input-shape", "1,6", "--json")
    assert ran.status == 0
    sections = ran.document["sections"]
    assert sections["difference from the source"]["max_abs_difference"] < 1e-5
    assert sections["baked masks"] == [{"weight": "0.weight (pruned): 50.0% zeros"}]
    assert onnx.load("net.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_param
    ran = run(
        "import", "cli_import_example:factory", "-o", "fixed.onnx", "--input-shape", "2,6", "--static-batch"
    )
    assert ran.status == 0
    assert "max abs difference" in ran.out
    assert onnx.load("fixed.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    ran = run("import", "cli_import_example:factori", "-o", "net.onnx", "--input-shape", "1,6")
    assert (ran.status, "factory" in ran.error) == (1, True)
