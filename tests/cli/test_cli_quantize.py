"""onnxprune quantize."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import small_models


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "calibration.npz"
    np.savez(path, x=np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32))
    return path


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(small_models.residual_net(width=16), path)
    return path


def test_the_report_has_a_row_for_each_layer_and_the_size(run, model, data, tmp_path):
    out = tmp_path / "int8.onnx"
    ran = run("quantize", model, "-o", out, "--data", data, "--computing", "float", "--json")
    assert ran.status == 0
    report = ran.document["sections"]
    assert {row["bits"] for row in report["layers"] if row["weights"] >= 64} == {8}
    assert [row["step"] for row in report["steps"]] == ["weights stored in int8", "biases corrected"]
    assert report["size"]["file_bytes"] == out.stat().st_size
    assert report["quantization"]["metric"] == "agreement"


@pytest.mark.long
def test_every_option_reaches_the_library(run, model, data, tmp_path):
    ran = run(
        "quantize", model, "-o", tmp_path / "int8.onnx", "--data", data, "--evaluation", data, "--reference",
        model, "--metric", "cosine", "--max-drop", "0.2", "--keep-float", "stem*", "--per-tensor",
        "--calibration", "percentile", "--computing", "integer", "--equalize", "off", "--correct-bias", "off",
        "--batch", "16", "--seed", "3", "--inline",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    stored = {tensor.name: tensor for tensor in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    assert stored["stem.weight"].data_type == onnx.TensorProto.FLOAT
    assert "stays in float" in ran.out
    assert "percentile" not in ran.out


def test_without_data_it_says_what_to_do(run, model, tmp_path):
    ran = run("quantize", model, "-o", tmp_path / "int8.onnx")
    assert ran.status == 2
    assert "give data, or choose the form dynamic" in ran.error


def test_nothing_to_quantize_has_its_status_and_reasons(run, model, tmp_path):
    ran = run("quantize", model, "-o", tmp_path / "int4.onnx", "--form", "int4")
    assert ran.status == 4
    assert "no large MatMul" in ran.error
    assert ran.out.startswith("nothing could be quantized")
    assert "4 bits are for MatMul with 16384" in " ".join(ran.out.replace("y_node", "").split())
    assert not (tmp_path / "int4.onnx").exists()


def test_noise_is_taken_by_name_and_said(run, model, tmp_path):
    ran = run("quantize", model, "-o", tmp_path / "a.onnx", "--data", "random:8", "--computing", "float")
    assert ran.status == 0
    assert "random noise" in ran.out


def test_an_input_is_never_overwritten(run, model, data):
    before = model.read_bytes()
    ran = run("quantize", model, "-o", model, "--data", data, "--computing", "float")
    assert ran.status == 1
    assert model.read_bytes() == before


def test_what_the_disk_has_no_room_for_is_refused_before_any_work(run, model, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    ran = run("quantize", model, "-o", tmp_path / "q.onnx", "--form", "float16")
    assert ran.status == 1
    assert "but its disk has 100 left" in ran.error
    assert "quantize" not in ran.out
