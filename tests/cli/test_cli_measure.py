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


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["--provider", "nowhere"], 2, "nowhere"),
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
