"""onnxprune sensitivity, and prune --scope sensitivity, on files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "calib.npz"
    np.savez(path, x=np.random.default_rng(0).standard_normal((7, 3, 8, 8)).astype(np.float32))
    return path


def test_a_table_of_all_groups(run, saved, data):
    ran = run("sensitivity", saved["residual_net"], "--data", data, "--amounts", "0.25, 0.5")
    assert (ran.status, ran.err) == (0, "")
    for text in (
        "divergence added by removing",
        "25%",
        "50%",
        "block1",
        "cost least",
        "left alone",
        "output",
    ):
        assert text in ran.out
    assert "removed share" not in ran.out  # the trials one by one are in --verbose and --json


def test_json_has_every_trial(run, saved, data):
    ran = run("sensitivity", saved["residual_net"], "--data", data, "--amounts", "0.5", "--json")
    assert ran.status == 0
    sections = ran.document["sections"]
    table = next(rows for name, rows in sections.items() if name.endswith("removing"))
    assert {row["group"] for row in sections["trials"]} == {row["group"] for row in table}
    assert all(row["increase"] > 0 for row in sections["trials"])
    assert sections["setting"]["samples"] == 7


def test_a_second_run_takes_everything_from_the_cache(run, saved, data, tmp_path):
    arguments = ("--data", data, "--amounts", "0.5", "--cache", tmp_path / "cache", "--json")
    first = run("sensitivity", saved["residual_net"], *arguments)
    again = run("sensitivity", saved["residual_net"], *arguments)
    assert again.document["sections"]["trials"] == first.document["sections"]["trials"]
    setting = again.document["sections"]["setting"]
    assert setting["from_cache"] == setting["trials"] > 0


def test_prune_by_sensitivity_shares_the_cache(run, saved, data, tmp_path):
    arguments = ("--data", data, "--cache", tmp_path / "cache")
    ran = run(
        "prune", saved["residual_net"], "-o", tmp_path / "small.onnx", "--scope", "sensitivity",
        "--target-macs", "0.6", *arguments,
    )  # fmt: skip
    assert (ran.status, ran.err) == (0, "")
    assert "increase" in ran.out
    found = run("sensitivity", saved["residual_net"], "--json", *arguments)
    setting = found.document["sections"]["setting"]
    assert setting["from_cache"] == setting["trials"]


def test_a_plot_is_written(run, saved, data, tmp_path):
    pytest.importorskip("matplotlib", reason="plots are an extra")
    path = tmp_path / "loss.svg"
    ran = run("sensitivity", saved["residual_net"], "--data", data, "--amounts", "0.5", "--plot", path)
    assert (ran.status, ran.err) == (0, "")
    assert path.read_text(encoding="utf-8").startswith("<?xml")


def test_a_plot_without_matplotlib_is_one_line(run, saved, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = run("sensitivity", saved["residual_net"], "--data", data, "--plot", tmp_path / "a.svg")
    assert (ran.status, ran.error) == (1, "a plot needs matplotlib: pip install onnxprune[report]")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--amounts", "half"], 2, "no list of shares"),
        (["--amounts", "0.5,1"], 2, "between 0 and 1"),
        (["--metric", "kll"], 2, "did you mean 'kl'"),
        (["--metric", "mse"], 1, "needs labels"),
        (["--protect", "*"], 4, "no group to try"),
    ],
)
def test_what_is_wrong_is_one_line(run, saved, data, arguments, status, message):
    ran = run("sensitivity", saved["residual_net"], "--data", data, *arguments)
    assert ran.status == status
    assert message in ran.error


def test_the_scope_without_data_is_one_line(run, saved, tmp_path):
    ran = run(
        "prune", saved["residual_net"], "-o", tmp_path / "s.onnx", "--amount", "0.5", "--scope", "sensitivity"
    )
    assert ran.status == 2
    assert "give --data" in ran.error
    assert not (tmp_path / "s.onnx").exists()


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="sends a signal to a group of processes")
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_interrupt_ends_all_processes_quietly(saved, tmp_path, jobs):
    data = tmp_path / "many.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((6000, 3, 8, 8)).astype(np.float32))
    cache = tmp_path / "cache"
    amounts = ",".join(str(number / 100) for number in range(2, 98))
    command = [
        sys.executable, "-c", "from onnxprune_cli.main import run; run()", "sensitivity",
        str(saved["residual_net"]), "--data", str(data), "--cache", str(cache), "--jobs", jobs,
        "--amounts", amounts,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (cache.is_dir() and len(list(cache.iterdir())) > 1):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("onnxprune sensitivity:")]
    assert lines == ["error: interrupted; nothing was left half written"]
    assert all(path.suffix == ".json" for path in cache.iterdir())
