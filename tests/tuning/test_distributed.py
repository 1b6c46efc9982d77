"""Two real processes have one gradient, and write what one process writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tuning_models import classifier, three_classes, weights_of  # noqa: E402

import onnxprune  # noqa: E402
from onnxprune.errors import TuningError  # noqa: E402
from onnxprune.model.io import load, save  # noqa: E402
from onnxprune.tuning import loop  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from onnxprune_cli.main import execute
sys.exit(execute(sys.argv[1:]))
"""


@pytest.fixture
def run(tmp_path):
    """Write a model and data, and return a function that tunes in one process or in several."""
    script = tmp_path / "command.py"
    script.write_text(SCRIPT.format(root=str(ROOT)))
    data = three_classes(50)
    np.savez(tmp_path / "train.npz", x=data.arrays["x"], label=data.labels)

    def start(model, out, *options, processes=1):
        save(model, tmp_path / "model.onnx")
        launch = [sys.executable, script]
        if processes > 1:
            torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
            launch = [sys.executable, *torchrun, script]
        command = [
            "finetune", tmp_path / "model.onnx", "-o", tmp_path / out, "--data", tmp_path / "train.npz",
            "--steps", "15", "--batch", "8", "--evaluate-every", "5", "--json", *options,
        ]  # fmt: skip
        return subprocess.run([*launch, *command], capture_output=True, text=True, cwd=tmp_path, timeout=500)

    return start


@pytest.mark.long
@pytest.mark.parametrize(
    ("batch", "options"),
    [
        ("N", ["--optimizer", "adam", "--accumulate", "2"]),
        ("N", ["--optimizer", "sgd", "--nesterov", "--clip", "0.5", "--weight-decay", "0.1"]),
        ("8", ["--optimizer", "sgd", "--accumulate", "2"]),
    ],
)
def test_two_processes_tune_as_one_does(tmp_path, run, batch, options):
    model = classifier(batch=batch)
    pruned = onnxprune.prune(model, pattern="unstructured", amount=0.5).model
    alone, together = run(pruned, "alone.onnx", *options), run(pruned, "both.onnx", *options, processes=2)
    assert alone.returncode == 0, alone.stderr
    assert together.returncode == 0, together.stderr
    reports = [json.loads(done.stdout) for done in (alone, together)]  # one document: one process prints
    looks = [[row["validation loss"] for row in report["sections"]["history"]] for report in reports]
    np.testing.assert_allclose(*looks, rtol=1e-6)
    weights = [weights_of(load(tmp_path / name)) for name in ("alone.onnx", "both.onnx")]
    before = weights_of(pruned)
    for name, array in weights[0].items():
        assert np.abs(array - before[name]).max() > 1e-3, "it was tuned"
        np.testing.assert_allclose(weights[1][name], array, rtol=0, atol=1e-6)
        assert ((weights[1][name] == 0) == (array == 0)).all()


@pytest.mark.parametrize(("steps", "agree"), [([4, 4], True), ([4, 0], False)])
def test_processes_that_find_different_checkpoints_do_not_begin(tmp_path, steps, agree):
    run = object.__new__(loop._Run)
    run.step = steps[0]
    run.processes = SimpleNamespace(count=2, sums=lambda _: [float(sum(steps))])
    if agree:
        run._check_together(tmp_path)
    else:
        with pytest.raises(TuningError, match="all machines see"):
            run._check_together(tmp_path)


@pytest.mark.long
def test_processes_that_can_not_share_a_batch_say_so(run):
    done = run(classifier(), "out.onnx", "--batch", "7", processes=2)
    assert done.returncode != 0
    assert "batch 7 can't be divided among 2 processes" in done.stderr
