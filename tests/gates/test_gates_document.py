"""docs/gates.md: every gate is there, its numbers are computed, and its code runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from gate_evidence import changed, save_halves

from onnxprune.gates.settings import GATES, HOW
from onnxprune.measure.intervals import least_rounds, quantile_of
from onnxprune.measure.memory import REPEATS_WITHIN_MIB
from onnxprune.measure.paired import samples_to_resolve, score_interval

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "gates.md").read_text(encoding="utf-8")
Z = quantile_of(0.95)
SHARES = (0, 0.005, 0.01, 0.02, 0.05, 0.1)


def test_every_gate_has_its_row():
    rows = re.findall(r"^\| `([a-z0-9_]+)` \|", TEXT, re.MULTILINE)
    assert [row for row in rows if row in GATES] == sorted(GATES, key=rows.index)
    assert set(rows) - {"pass", "fail", "inconclusive"} == set(GATES)
    assert all(f"`{name}" in TEXT for name in HOW)


def test_the_table_of_samples_is_computed():
    rows = re.findall(r"^\| ([\d.]+) points? \| (.*) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 6
    for points, cells in rows:
        limit = float(points) / 100
        computed = [samples_to_resolve(share / 2, share / 2, limit, Z) for share in SHARES]
        assert [int(cell) for cell in cells.split(" | ")] == computed


def test_the_numbers_in_the_text():
    assert samples_to_resolve(0.0075, 0.0125, 0.01, Z) == 3398
    assert "3398 for 1 point at 2 %" in TEXT
    assert f"takes {least_rounds(0.95)} rounds at least" in TEXT
    assert f"repeat within {REPEATS_WITHIN_MIB:g} MiB" in TEXT
    assert pytest.approx(1 / 8, rel=0.1) == 0.99**200  # evaluations on 200 samples without a change
    assert pytest.approx(0.0097, abs=1e-5) == Z / 202  # Agresti and Min's end
    assert score_interval(0, 0, 200, Z)[0] < -0.003


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    first, last = save_halves(tmp_path)
    for path, name in ((first, "model.onnx"), (last, "small.onnx")):
        path.rename(tmp_path / name)
    model = onnx.load(tmp_path / "model.onnx")
    model.doc_string = "long " * 100
    onnx.save(model, tmp_path / "model.onnx")
    samples = changed(400, lost=2)
    np.savez(tmp_path / "eval.npz", **samples.arrays, label=samples.labels)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(code, "gates.md", "exec"), {})  # noqa: S102 # it is ours
    assert capsys.readouterr().out.startswith("True [('accuracy_drop', 'pass'")
