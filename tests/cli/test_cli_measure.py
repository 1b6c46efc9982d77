"""onnxprune bench and validate. No test looks at how long anything took."""

from __future__ import annotations

import numpy as np
import pytest
import small_models


@pytest.fixture
def data(tmp_path):
    """Forty samples for ``mlp``, in two segments, labelled by what seed 0 says of them."""
    random = np.random.default_rng(0)
    x = random.standard_normal((40, 16)).astype(np.float32)
    path = tmp_path / "eval.npz"
    np.savez(path, x=x, label=random.integers(0, 4, 40), segment=np.where(np.arange(40) < 20, "old", "new"))
    return path


@pytest.fixture
def other(tmp_path):
    return small_models.save_model(small_models.mlp(seed=1), tmp_path / "other.onnx")


def test_two_models_are_timed_against_each_other(run, saved, other):
    ran = run("bench", saved["mlp"], other, "--pairs", "20", "--batch", "3", "--json")
    assert (ran.status, ran.err) == (0, "")
    sections = ran.document["sections"]
    assert [row["model"] for row in sections["latency"]] == [str(saved["mlp"]), str(other)]
    assert sections["comparison"]["verdict"] in ("faster", "slower", "no difference", "inconclusive")
    assert set(sections["comparison"]["latency_ratio"]) == {"value", "low", "high", "count"}
    assert sections["setting"]["input_shapes"] == {"x": [3, 16]}
    assert sections["setting"]["threads"] == 1
    assert sections["size on disk"][0]["size_bytes"] == saved["mlp"].stat().st_size
    assert 0 < sections["size on disk"][0]["zstd_bytes"] < saved["mlp"].stat().st_size
    assert len(sections["memory"]) == 2


def test_one_model_is_timed_beside_its_control(run, saved):
    ran = run("bench", saved["mlp"], "--pairs", "20", "--no-memory")
    assert ran.status == 0
    for text in ("latency", "noise", "size on disk", "setting"):
        assert f"\n{text}\n" in ran.out
    assert "\nmemory\n" not in ran.out
    assert "comparison" not in ran.out


def test_every_setting_is_taken_and_told(run, saved):
    options = ["--threads", "2", "--spinning", "--no-arena", "--no-io-binding", "--seed", "3"]
    ran = run("bench", saved["mlp"], "--pairs", "20", *options, "--json")
    assert ran.status == 0
    setting = ran.document["sections"]["setting"]
    assert (setting["threads"], setting["spinning"], setting["arena"]) == (2, True, False)
    assert "on_device" not in setting
    (row,) = ran.document["sections"]["latency"]
    assert row["warm_up_runs"] >= 3
    assert {"median_ms", "p95_ms", "p99_ms", "settled"} <= row.keys()
    rows = ran.document["sections"]["percentiles"]
    assert [(one["percentile"], one["latency_ratio"]) for one in rows] == [
        ("p50", None), ("p95", None), ("p99", None)
    ]  # fmt: skip


def test_a_profile_of_one_model(run, saved):
    ran = run("bench", saved["mlp"], "--pairs", "20", "--no-memory", "--profile", "--batch", "5", "--json")
    assert ran.status == 0
    rows = ran.document["sections"]["layers by time"]
    assert rows[-1]["cumulative_share"] == pytest.approx(1)
    assert sum(row["macs"] or 0 for row in rows) == 5 * (16 * 32 + 32 * 32 + 32 * 4)
    assert ran.document["sections"]["where the time goes"]["attributed_share"] > 0
    assert "layers by time" in run("bench", saved["mlp"], "--pairs", "20", "--no-memory", "--profile").out


def test_layers_before_and_after(run, saved, other):
    ran = run("bench", saved["mlp"], other, "--pairs", "20", "--no-memory", "--profile", "--json")
    assert ran.status == 0
    rows = ran.document["sections"]["layers before and after"]
    assert len(rows) >= 3
    assert all(row["before_ms"] is not None and row["after_ms"] is not None for row in rows)
    assert [row["model"] for row in ran.document["sections"]["where the time goes"]] == [
        str(saved["mlp"]), str(other)
    ]  # fmt: skip


def test_a_picture_of_the_profile(run, saved, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "layers.svg"
    ran = run("bench", saved["mlp"], saved["mlp"], "--pairs", "20", "--no-memory", "--plot", picture)
    assert ran.status == 0
    assert "before" in picture.read_text()
    assert "layers before and after" in ran.out


def test_sweeps(run, saved):
    sweep = ["--sweep-batch", "1,3", "--sweep-threads", "1 2"]
    ran = run("bench", saved["mlp"], "--pairs", "20", "--no-memory", *sweep, "--json")
    assert ran.status == 0
    rows = ran.document["sections"]["sweep"]
    assert [(row["batch"], row["threads"]) for row in rows] == [(1, 1), (1, 2), (3, 1), (3, 2)]


def test_providers_are_listed(run):
    ran = run("bench", "--providers")
    assert ran.status == 0
    for name in ("cpu", "cuda", "tensorrt", "openvino", "coreml", "directml", "qnn"):
        assert f"\n{name} " in ran.out
    assert "pip install onnxruntime-gpu" in ran.out


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["--provider", "nowhere"], 2, "nowhere"),
        (["--provider", "qnn"], 1, "pip install onnxruntime-qnn"),
        (["--provider-option", "device_id=1"], 2, "takes no options"),
        (["--provider-option", "device_id"], 2, "KEY=VALUE"),
        (["--provider-option", "a=1", "--provider-option", "a=2"], 2, "twice"),
        (["--pin", "0-1"], 2, "2 cores for 1 threads"),
        (["--pin", "x"], 2, "no list of cores"),
        (["--sweep-batch", "0"], 2, "whole numbers from 1"),
        (["--sweep-batch", ""], 2, "one number or more"),
        (["--sweep-threads", "two"], 2, "whole numbers from 0"),
        (["--plot", "layers.txt"], 2, ".svg"),
        (["--pairs", "1"], 2, "pairs"),
        (["--input-shape", "x=2,17"], 2, "x"),
    ],
)
def test_bench_refuses(run, saved, arguments, status, word):
    ran = run("bench", saved["mlp"], "--no-memory", *arguments)
    assert (ran.status, word in ran.error) == (status, True)


def test_models_of_different_inputs_are_not_compared(run, saved):
    ran = run("bench", saved["mlp"], saved["residual_net"], "--no-memory")
    assert ran.status == 2
    assert "x" in ran.error


def test_one_model_is_judged(run, saved, data):
    ran = run("validate", saved["mlp"], "--data", data, "--json")
    assert (ran.status, ran.err) == (0, "")
    rows = {row["samples"]: row for row in ran.document["sections"]["accuracy"]}
    assert {name: row["count"] for name, row in rows.items()} == {
        "all samples": 40, "new": 20, "old": 20, "least sure of": 20,
    }  # fmt: skip
    assert rows["all samples"]["reference"] is None
    assert "agreement with the reference" not in ran.document["sections"]


def test_the_second_model_is_judged_beside_the_first(run, saved, other, data):
    ran = run("validate", saved["mlp"], other, "--data", data, "--metric", "agreement", "--json")
    assert ran.status == 0
    setting = ran.document["sections"]["setting"]
    assert (setting["model"], setting["reference"]) == (str(other), str(saved["mlp"]))
    assert setting["metric"] == "agreement"
    agreement = ran.document["sections"]["agreement with the reference"]
    assert agreement["argmax"]["value"] == ran.document["sections"]["accuracy"][0]["model"]["value"]


def test_a_model_agrees_with_itself(run, saved, data):
    ran = run("validate", saved["mlp"], saved["mlp"], "--data", data, "--batch", "7", "--threads", "2")
    assert ran.status == 0
    assert "change" in ran.out
    assert "1.000 (" in ran.out.split("argmax")[1].splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["--metric", "top9000x"], 2, "top9000x"),
        (["--output", "z"], 2, "z"),
        (["--metric", "agreement"], 2, "reference"),
    ],
)
def test_validate_refuses(run, saved, data, arguments, status, word):
    ran = run("validate", saved["mlp"], "--data", data, *arguments)
    assert (ran.status, word in ran.error) == (status, True)


def test_data_that_does_not_fit_is_one_line(run, saved, tmp_path):
    np.savez(tmp_path / "bad.npz", x=np.zeros((4, 17), dtype=np.float32), label=np.zeros(4, dtype=np.int64))
    ran = run("validate", saved["mlp"], "--data", tmp_path / "bad.npz")
    assert (ran.status, "shape" in ran.error) == (1, True)
    ran = run("validate", saved["mlp"], "--data", tmp_path / "missing.npz", "--json")
    assert ran.document["error"]["type"] == "DataError"
