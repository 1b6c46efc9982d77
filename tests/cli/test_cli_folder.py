"""onnxprune prune, on a folder."""

from __future__ import annotations

import onnx
import pytest
from small_models import frozen_net, mlp, residual_net


@pytest.fixture
def export(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    onnx.save(mlp(), folder / "encoder_model.onnx")
    onnx.save(residual_net(), folder / "decoder_model.onnx")
    (folder / "config.json").write_text("{}")
    return folder


def test_a_folder_becomes_a_folder(run, export, tmp_path):
    out, plans = tmp_path / "out", tmp_path / "plans"
    ran = run("prune", export, "-o", out, "--amount", "0.5", "--plan", plans, "--json")
    assert ran.status == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in export.iterdir())
    sections = ran.document["sections"]
    assert [row["model"] for row in sections["models"]] == ["decoder_model.onnx", "encoder_model.onnx"]
    assert sections["carried along"] == [{"file": "config.json"}]
    assert sections["written"] == {"folder": str(out), "plans": str(plans)}
    assert {row["model"] for row in sections["groups"]} == {"decoder_model.onnx", "encoder_model.onnx"}
    ran = run("prune", export, "-o", tmp_path / "more", "--amount", "0.5", "--only", "enc*")
    assert ran.status == 0
    assert "decoder_model.onnx" in ran.out.partition("carried along")[2].partition("groups")[0]


def test_nothing_is_overwritten(run, export, tmp_path):
    ran = run("prune", export, "-o", export, "--amount", "0.5")
    assert (ran.status, "input" in ran.error) == (1, True)
    (tmp_path / "out").mkdir()
    ran = run("prune", export, "-o", tmp_path / "out", "--amount", "0.5")
    assert (ran.status, "is there already" in ran.error) == (1, True)


def test_nothing_to_prune(run, tmp_path):
    (tmp_path / "export").mkdir()
    onnx.save(frozen_net(), tmp_path / "export" / "model.onnx")
    ran = run("prune", tmp_path / "export", "-o", tmp_path / "out", "--amount", "0.5")
    assert ran.status == 4
    assert "model.onnx" in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--targets", "0.8,0.6", "--targets-of", "macs"], "--targets"),
        (["--amount", "0.5", "--steps", "3"], "--steps"),
        (["--amount", "0.5", "--plot", "plot.svg"], "--plot"),
    ],
)
def test_options_of_one_model(run, export, tmp_path, arguments, flag):
    ran = run("prune", export, "-o", tmp_path / "out", *arguments)
    assert ran.status == 2
    assert flag in ran.err


def test_only_is_of_a_folder(run, saved, tmp_path):
    ran = run("prune", saved["mlp"], "-o", tmp_path / "out.onnx", "--amount", "0.5", "--only", "x")
    assert (ran.status, "--only" in ran.err) == (2, True)
