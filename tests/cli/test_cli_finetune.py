"""onnxprune finetune, as users type it."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("torch")

from tuning_models import classifier, three_classes, weights_of

import onnxprune

SHORT = ("--steps", "12", "--batch", "8", "--learning-rate", "0.05", "--evaluate-every", "4")


@pytest.fixture
def folder(tmp_path):
    """A pruned model, its original, a plan and data."""
    original = classifier()
    onnxprune.save(original, tmp_path / "model.onnx")
    pruned = onnxprune.prune(original, pattern="unstructured", amount=0.5)
    onnxprune.save_pruned(pruned, tmp_path / "small.onnx", plan_folder=tmp_path / "small.plan")
    for name, samples, seed in (("train", 60, 0), ("validation", 30, 1)):
        data = three_classes(samples, seed)
        np.savez(tmp_path / f"{name}.npz", x=data.arrays["x"], label=data.labels)
    np.savez(tmp_path / "unlabelled.npz", x=three_classes(60).arrays["x"])
    return tmp_path


@pytest.fixture
def finetune(run, folder):
    def finetune(*options, model="small.onnx", out="tuned.onnx", data="train.npz"):
        return run("finetune", folder / model, "-o", folder / out, "--data", folder / data, *SHORT, *options)

    return finetune


def zeros(path):
    return {name: array == 0 for name, array in weights_of(onnxprune.load(path)).items()}


def test_tables_say_what_was_done(finetune, folder):
    ran = finetune("--validation", folder / "validation.npz")
    assert (ran.status, ran.err) == (0, "")
    for text in (
        "accuracy",
        "before",
        "after",
        "top1",
        "cross_entropy (decided by the labels)",
        "history",
        "held zeros",
        "declared zeros",
        "only tuned weights changed",
        "graph unchanged",
    ):
        assert text in ran.out
    before, after = zeros(folder / "small.onnx"), zeros(folder / "tuned.onnx")
    assert all((before[name] == after[name]).all() for name in ("w1", "w2"))


def test_the_original_teaches_without_labels(finetune, folder):
    ran = finetune("--teacher", folder / "model.onnx", "--plan", folder / "small.plan", "--match", "hidden",
                   "--json", data="unlabelled.npz")  # fmt: skip
    assert ran.status == 0, ran.err
    sections = ran.document["sections"]
    assert sections["tuning"]["weight of the original"] == 1
    assert sections["tuning"]["matched inner values"] == "hidden"
    assert sections["written"] == {"model": str(folder / "tuned.onnx")}
    assert [row["step"] for row in sections["history"]] == [0, 4, 8, 12]
    assert set(ran.document["seconds"]) == {"read", "tune", "measure", "write and verify"}


@pytest.mark.parametrize(
    ("options", "status", "named"),
    [
        (("--epochs", "2"), 2, "--epochs and --steps"),
        (("--optimizer", "adm"), 2, "did you mean 'adam'"),
        (("--distil", "0.5"), 2, "--teacher"),
        (("--loss", "mse"), 1, "fit none of the outputs"),
        (("--precision", "float16"), 2, "bfloat16"),
        (("--device", "cuda:99"), 2, "device"),
        (("--device", "gpu"), 2, "device"),
        (("--validation", "nowhere.npz"), 1, "nowhere.npz"),
        (("--hold", "some"), 2, "hold"),
        (("--optimizer", "sgd", "--learning-rate", "1e30", "--clip", "0"), 1, "lower learning rate"),
        (("--match", "hiddn", "--teacher", "model.onnx", "--loss", "none", "--distil", "0.2"), 2, "labels"),
    ],
)
def test_what_can_not_be_done_is_one_line_and_nothing_is_written(
    finetune, folder, monkeypatch, options, status, named
):
    monkeypatch.chdir(folder)
    ran = finetune(*options)
    assert ran.status == status
    assert named in ran.err.splitlines()[-1]
    assert ran.out == ""
    assert not (folder / "tuned.onnx").exists()


def test_without_torch_it_says_what_to_install(finetune, folder, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "torch" else real(name, *more)
    )
    ran = finetune()
    assert (ran.status, ran.out) == (1, "")
    assert ran.error == "tuning needs torch: pip install 'onnxprune[torch]'"


def test_an_input_is_never_overwritten(finetune, folder):
    before = (folder / "small.onnx").read_bytes()
    ran = finetune(out="small.onnx")
    assert ran.status == 1
    assert (folder / "small.onnx").read_bytes() == before


def test_a_checkpoint_is_asked_about_and_used(finetune, folder):
    checkpoint = ("--checkpoint", folder / "run")
    assert finetune(*checkpoint).status == 0
    again = finetune(*checkpoint, out="again.onnx")
    assert (again.status, "--resume" in again.error) == (1, True)
    resumed = finetune(*checkpoint, "--resume", out="again.onnx")
    assert resumed.status == 0
    assert (folder / "again.onnx").read_bytes() == (folder / "tuned.onnx").read_bytes()
    other = finetune(*checkpoint, "--resume", "--seed", "1", out="other.onnx")
    assert other.status == 1
    assert "seed 0, now it is 1" in other.error


@pytest.mark.long
def test_a_command_that_is_killed_and_started_again_writes_the_same_file(folder):
    """Killed twice, wherever it is; the same command line goes on each time."""
    common = [sys.executable, "-c", "from onnxprune_cli.main import run; run()", "finetune",
              str(folder / "small.onnx"), "--data", str(folder / "train.npz"), "--steps", "400",
              "--batch", "8", "--checkpoint-every", "1", "--resume", "--quiet"]  # fmt: skip

    def start(name):
        return subprocess.Popen([*common, "-o", folder / f"{name}.onnx", "--checkpoint", folder / name])

    assert start("whole").wait(500) == 0
    for _ in range(2):
        process, state = start("killed"), folder / "killed" / "state.pt"
        begun = state.stat().st_mtime_ns if state.exists() else 0
        while process.poll() is None and not (state.exists() and state.stat().st_mtime_ns != begun):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was killed before its end"
        assert not (folder / "killed.onnx").exists()
    assert start("killed").wait(500) == 0
    assert (folder / "killed.onnx").read_bytes() == (folder / "whole.onnx").read_bytes()
