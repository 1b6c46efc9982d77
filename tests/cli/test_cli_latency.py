"""onnxprune prune --target-latency, on a machine that is easy to foresee."""

from __future__ import annotations

import pytest
from clocked import PretendMachine


@pytest.fixture(autouse=True)
def pretend(monkeypatch) -> PretendMachine:
    return PretendMachine(monkeypatch)


def test_what_was_measured_is_told(run, saved, tmp_path):
    output = tmp_path / "small.onnx"
    ran = run(
        "prune", saved["residual_net"], "-o", output, "--target-latency", "0.6", "--plan", tmp_path / "p"
    )
    assert (ran.status, ran.err) == (0, "")
    assert output.is_file()
    for text in ("latency", "measured share", "original ms", "points timed", "latency rounds"):
        assert text in ran.out


def test_a_missed_target_says_what_stands_in_the_way(run, saved, tmp_path):
    output = tmp_path / "small.onnx"
    arguments = ["--target-latency", "0.01", "--json"]
    ran = run("prune", saved["residual_net"], "-o", output, *arguments)
    assert ran.status == 3
    assert not output.exists()
    error = ran.document["error"]
    assert "the time can be brought to 0." in error["message"]
    assert 0.01 < error["reached"] < 1
    assert any("of the time stays: " in line for line in error["reasons"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--amount", "0.5", "--latency-batch", "4"], "--latency-batch is of a target in time"),
        (["--amount", "0.5", "--target-latency", "0.5"], "exclude each other"),
        (["--target-latency", "fast"], "12ms"),
        (["--target-latency", "0.5", "--provider", "abacus"], "unknown provider"),
        (["--target-latency", "0.5", "--provider-option", "x"], "KEY=VALUE"),
    ],
)
def test_nonsense_is_wrong_usage(run, saved, tmp_path, arguments, message):
    ran = run("prune", saved["residual_net"], "-o", tmp_path / "small.onnx", *arguments)
    assert ran.status == 2
    assert message in ran.error
