"""onnxprune prune --targets, on files."""

from __future__ import annotations

import sys
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest

#: What a plan consists of, behind the name of its model.
PLAN = (".plan/graph.json", ".plan/plan.json")


def samples(path, labels=True):
    random = np.random.default_rng(0)
    arrays = {"x": random.standard_normal((40, 16)).astype(np.float32)}
    np.savez(path, **arrays, **({"label": random.integers(0, 4, 40)} if labels else {}))
    return path


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_model_for_each_target_and_one_report(run, saved, tmp_path):
    folder = tmp_path / "family"
    arguments = ["--targets", "0.7,0.4", "--targets-of", "macs", "--eval", samples(tmp_path / "eval.npz")]
    ran = run("prune", saved["mlp"], "-o", folder, *arguments, "--json")
    assert ran.status == 0
    names = ("mlp-macs-0.4", "mlp-macs-0.7")
    assert files_of(folder) == [name + end for name in names for end in (".onnx", *PLAN)]
    document = ran.document
    assert (document["command"], document["passed"]) == ("prune", True)
    rows = document["sections"]["family"]
    assert [row["target"] for row in rows] == [None, 0.7, 0.4]
    assert all({"value", "low", "high"} <= row["top1"].keys() for row in rows)
    assert document["sections"]["written"] == {
        f"macs-{target}": str(folder / f"mlp-macs-{target}.onnx") for target in (0.7, 0.4)
    }
    for row in document["sections"]["cost"][1:]:
        model = onnx.load(folder / row["model"])
        assert sum(np.prod(weight.dims) for weight in model.graph.initializer) == row["parameters"]
    table = run("prune", saved["mlp"], "-o", folder, "--targets", "0.7", "--targets-of", "macs").out
    for text in ("a family by macs", "latency ratio", "mlp-macs-0.7.onnx", "as zstd", "original"):
        assert text in " ".join(table.split())


def test_a_missed_target_is_named_and_the_others_are_written(run, saved, tmp_path):
    folder = tmp_path / "family"
    ran = run("prune", saved["mlp"], "-o", folder, "--targets", "0.7 0.001", "--targets-of", "macs", "--json")
    assert ran.status == 3
    assert "missed: macs-0.001: " in ran.error
    assert files_of(folder) == ["mlp-macs-0.7" + end for end in (".onnx", *PLAN)]
    (missed,) = ran.document["sections"]["missed"]
    assert missed["target"] == 0.001
    assert 0.001 < missed["reached"] < 0.7


def test_nothing_to_prune_is_not_a_missed_target(run, saved, tmp_path):
    ran = run(
        "prune", saved["frozen_net"], "-o", tmp_path / "f", "--targets", "0.7,0.5", "--targets-of", "macs"
    )
    assert ran.status == 4
    assert not (tmp_path / "f").exists()


def test_without_labels_outputs_are_compared_with_those_of_the_original(run, saved, tmp_path):
    data = samples(tmp_path / "calib.npz", labels=False)
    options = ["--targets", "0.5", "--targets-of", "params", "--data", data, "--recover", "reconstruct"]
    document = run("prune", saved["mlp"], "-o", tmp_path / "f", *options, "--json").document
    setting = document["sections"]["setting"]
    assert setting["metric"] == "agreement"
    assert setting["measured_on"] == f"{data}, which is what decided"


def test_a_family_is_timed_as_the_options_say(run, saved, tmp_path):
    options = ["--targets", "0.7", "--targets-of", "macs", "--latency-batch", "3", "--threads", "2"]
    setting = run("prune", saved["mlp"], "-o", tmp_path / "f", *options, "--json").document["sections"][
        "setting"
    ]
    assert setting["input_shapes"] == {"x": [3, 16]}
    assert (setting["threads"], setting["provider"], setting["targets_of"]) == (2, "cpu", "macs")


def test_the_family_is_drawn(run, saved, tmp_path):
    pytest.importorskip("matplotlib", reason="plots are an extra")
    plot = tmp_path / "family.svg"
    options = ["--targets", "0.7,0.4", "--targets-of", "macs", "--plot", plot]
    ran = run("prune", saved["mlp"], "-o", tmp_path / "f", *options, "--json")
    assert ran.document["sections"]["written"]["plot"] == str(plot)
    texts = ["".join(node.itertext()) for node in ET.parse(plot).iter()]
    assert {"0.7", "0.4", "original", "mlp: a family by macs"} <= set(texts)


def test_what_can_not_be_drawn_or_written_is_refused_before_long_work(run, saved, tmp_path, monkeypatch):
    targets = ["--targets", "0.7", "--targets-of", "macs"]
    ran = run("prune", saved["mlp"], "-o", tmp_path / "f", *targets, "--plot", tmp_path / "f.gif")
    assert (ran.status, "ends in .svg" in ran.error) == (2, True)
    ran = run("prune", saved["mlp"], "-o", saved["mlp"], *targets)
    assert (ran.status, "is an input of this command" in ran.error) == (1, True)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = run("prune", saved["mlp"], "-o", tmp_path / "f", *targets, "--plot", tmp_path / "f.svg")
    assert (ran.status, "pip install" in ran.error) == (1, True)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--amount", "0.5", "--targets-of", "macs"], "--targets-of is of a family: give --targets"),
        (["--amount", "0.5", "--eval", "e.npz"], "--eval is of a family"),
        (["--amount", "0.5", "--plot", "a.svg"], "--plot draws a schedule"),
        (["--targets", ","], "list of shares"),
        (["--targets", "0.5,x", "--targets-of", "macs"], "not 'x'"),
        (["--targets", "0.5", "--targets-of", "flops"], "--targets-of"),
        (["--targets", "0.5", "--plan", "p"], "leave --plan out"),
        (["--targets", "0.5", "--metric", "top1"], "give --eval"),
        (["--targets", "0.5", "--data", "d.npz", "--steps", "5"], "each model is tuned by itself"),
        (["--targets", "0.5", "--pattern", "2:4"], "says itself how much goes"),
        (["--targets", "0.5", "--pattern", "unstructured"], "--targets-of amount"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(run, saved, tmp_path, options, message):
    ran = run("prune", saved["mlp"], "-o", tmp_path / "f", *options)
    assert ran.status == 2
    assert message in ran.error
    assert not (tmp_path / "f").exists()
