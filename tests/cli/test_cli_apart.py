"""Outputs that are inputs, under whatever name, or each other."""

from __future__ import annotations

import os

import numpy as np
import pytest
from small_models import mlp, save_model

from onnxprune_cli.main import execute


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(mlp(), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 8), np.float32))
    os.link(tmp_path / "data.npz", tmp_path / "hard.npz")
    (tmp_path / "link.npz").symlink_to("data.npz")
    return tmp_path


WANDA = ("--score", "wanda", "--data", "data.npz", "--amount", "0.5")


@pytest.mark.parametrize(
    "arguments",
    [
        ("prune", "model.onnx", "-o", "data.npz", *WANDA),
        ("prune", "model.onnx", "-o", "./hard.npz", *WANDA),
        ("prune", "model.onnx", "-o", "link.npz", *WANDA),
        ("prune", "model.onnx", "-o", "out.onnx", "--plan", "data.npz", *WANDA),
        ("prune", "model.onnx", "-o", "model.onnx", "--amount", "0.5"),
        ("prune", "model.onnx", "-o", "out.onnx", "--checkpoint", "model.onnx", "--amount", "0.5"),
        ("apply", "p.plan", "model.onnx", "-o", "p.plan/plan.json"),
        ("apply", "p.plan", "model.onnx", "-o", "out.onnx", "--plan", "p.plan"),
        ("quantize", "model.onnx", "-o", "data.npz", "--data", "data.npz"),
        ("validate", "model.onnx", "--data", "data.npz", "--plot", "data.npz"),
        ("sensitivity", "model.onnx", "--data", "data.npz", "--plot", "data.npz"),
    ],
)
def test_an_input_is_never_written(folder, capfd, arguments):
    (folder / "p.plan").mkdir()
    (folder / "p.plan" / "plan.json").write_text("{}")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    status = execute(arguments)
    (line,) = capfd.readouterr().err.splitlines()
    assert status in (1, 2)
    if "validate" not in arguments:  # which draws nothing
        assert "is an input of this command; inputs are never changed: name another file" in line
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_outputs_are_apart(folder, capfd):
    assert execute(("prune", "model.onnx", "-o", "out", "--plan", "./out", "--amount", "0.5")) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "--output and --plan are both out" in line
    assert not (folder / "out").exists()
