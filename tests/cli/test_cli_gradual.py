"""onnxprune prune while it tunes, on files."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip("torch")


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "train.npz"
    np.savez(path, x=random.standard_normal((64, 16)).astype(np.float32), label=random.integers(0, 4, 64))
    return path


def zeros(path):
    arrays = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    matrices = [array for array in arrays if array.ndim == 2]
    return sum((array == 0).sum() for array in matrices) / sum(array.size for array in matrices)


def test_zeros_grow_while_it_learns(run, saved, data, tmp_path):
    output, plan = tmp_path / "small.onnx", tmp_path / "plan"
    ran = run(
        "prune", saved["mlp"], "-o", output, "--pattern", "unstructured", "--amount", "0.9", "--data", data,
        "--schedule", "cubic", "--steps", "12", "--schedule-every", "2", "--learning-rate", "0.002",
        "--plan", plan, "--json",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    milestones = ran.document["sections"]["milestones"]
    assert [row["step"] for row in milestones] == [3, 5, 7, 9]
    assert milestones[-1]["share"] == 0.9
    assert zeros(output) == pytest.approx(0.9, abs=1e-3)
    assert all(check["passed"] for check in ran.document["checks"])
    assert run("verify", output, "--against", saved["mlp"], "--plan", plan).status == 0
    assert run("apply", plan, saved["mlp"], "-o", tmp_path / "again.onnx").status == 0


def test_a_schedule_is_drawn(run, saved, data, tmp_path):
    pytest.importorskip("matplotlib", reason="plots are an extra")
    arguments = ("prune", saved["mlp"], "--amount", "0.5", "--data", data, "--steps", "6")
    ran = run(*arguments, "-o", tmp_path / "a.onnx", "--plot", tmp_path / "a.svg")
    assert (ran.status, ran.err) == (0, "")
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")
    ran = run(*arguments, "-o", tmp_path / "b.onnx", "--plot", tmp_path / "b.svg", "--rounds", "2")
    assert ran.status == 2
    assert "--plot draws one run" in ran.error


def test_channels_are_cut_after_rounds(run, saved, data, tmp_path):
    output = tmp_path / "small.onnx"
    ran = run(
        "prune", saved["mlp"], "-o", output, "--amount", "0.5", "--data", data, "--rounds", "2",
        "--steps", "4", "--distil", "1", "--checkpoint", tmp_path / "run",
    )  # fmt: skip
    assert (ran.status, ran.err) == (0, "")
    assert "cut equals its exact twin (round 2)" in ran.out
    shapes = {t.name: tuple(t.dims) for t in onnx.load(output).graph.initializer}
    before = {t.name: tuple(t.dims) for t in onnx.load(saved["mlp"]).graph.initializer}
    assert sum(np.prod(s) for s in shapes.values()) < 0.6 * sum(np.prod(s) for s in before.values())
    assert (tmp_path / "run" / "round-2").is_dir()


def test_a_lottery_ticket_and_a_random_one(run, saved, data, tmp_path):
    kept = {}
    for score in ("l2", "random"):
        output = tmp_path / f"{score}.onnx"
        ran = run(
            "prune", saved["mlp"], "-o", output, "--pattern", "unstructured", "--amount", "0.75",
            "--data", data, "--rounds", "2", "--steps", "3", "--rewind", saved["mlp"], "--score", score,
        )  # fmt: skip
        assert (ran.status, ran.err) == (0, "")
        kept[score] = zeros(output)
    assert kept["l2"] == pytest.approx(kept["random"], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--learning-rate", "0.1"], 2, "--learning-rate is of pruning while tuning: say how long"),
        (["--schedule-freeze", "0.1"], 2, "--schedule-freeze is of pruning while tuning"),
        (["--steps", "5", "--epochs", "2", "--data", "DATA"], 2, "exclude each other"),
        (["--steps", "5", "--recover", "bias", "--data", "DATA"], 2, "leave --recover out"),
        (["--steps", "5"], 2, "give --data train.npz"),
        (["--steps", "5", "--schedule", "qubic", "--data", "DATA"], 2, "did you mean 'cubic'"),
        (["--steps", "5", "--rewind", "missing.onnx", "--data", "DATA"], 1, "missing.onnx"),
        (["--steps", "5", "--rewind", "OTHER", "--data", "DATA"], 2, "another graph"),
    ],
)
def test_wrong_usage_is_one_line(run, saved, data, tmp_path, arguments, status, message):
    output = tmp_path / "small.onnx"
    given = [{"DATA": data, "OTHER": saved["residual_net"]}.get(word, word) for word in arguments]
    ran = run("prune", saved["mlp"], "-o", output, "--pattern", "unstructured", "--amount", "0.5", *given)
    assert ran.status == status
    assert message in ran.error
    assert not output.exists()


def test_help_has_a_section_of_its_own(run):
    ran = run("prune", "--help")
    first, heading, second = ran.out.partition("Pruning while tuning (")
    assert heading
    assert "--target-macs" in first
    assert "--rewind" in second
    assert "--target-macs SHARE" not in second
