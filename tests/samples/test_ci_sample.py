from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "ci"

#: Does what `onnxprune compress` promises, as far as the sample looks; FAULT names what it does otherwise.
COMMAND = """
import json, os, pathlib, sys
fault, recipe, tight = os.environ.get("FAULT"), sys.argv[2], "--set" in sys.argv
retrained = recipe == "recipe-retrained.toml"
if retrained:
    assert pathlib.Path("retrained.onnx").exists()
    assert pathlib.Path("small.plan/plan.json").exists()
runs = pathlib.Path("runs")
runs.write_text(runs.read_text() + "x" if runs.exists() else "")
verdict = "fail" if tight and fault != "passes all" else "pass"
model = {"accuracy": {"value": 1.0}, "size_bytes": 9, "latency_ratio": {"value": 1.0}}
stages = [{"reused": runs.read_text() != "" and not retrained and fault != "does all again"}] * 2
gates = [{"name": "size_ratio", "verdict": verdict}]
record = {"verdict": verdict, "models": [model, model], "stages": stages, "gates": gates}
pathlib.Path("report.json").write_text(json.dumps(record))
told = f"{verdict} size_ratio"
pathlib.Path("report.html").write_text("" if fault == "empty page" else told)
pathlib.Path("report.md").write_text("size_ratio" if fault == "no verdict in the summary" else told)
failure = "<failure/>" if tight and fault != "all test cases pass" else ""
pathlib.Path("report.xml").write_text(f"<testsuites><testcase>{failure}</testcase></testsuites>")
if not tight or fault == "replaces the accepted model":
    pathlib.Path("small.plan").mkdir(exist_ok=True)
    for name in ("small.onnx", "small.plan/plan.json", "accepted.json"):
        pathlib.Path(name).write_text("tight" if tight else "accepted")
if tight and fault != "keeps nothing aside":
    pathlib.Path("small.rejected.onnx").write_text("")
if tight and fault == "takes the record of the last accepted run away":
    pathlib.Path("accepted.json").write_text("other")
print("table: nothing" if fault == "empty table" else told)
if verdict == "fail":
    named = "" if fault == "does not name the gate" else "size_ratio"
    print(f"error: failed {named}", file=sys.stderr)
    sys.exit(1 if fault == "ends with another status" else 3)
"""


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with stand-ins for the command and for the training."""
    spec = importlib.util.spec_from_file_location("ci_sample", SAMPLE / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ci_sample", module)
    spec.loader.exec_module(module)

    def train(folder: Path, *arguments: str) -> None:
        name = arguments[arguments.index("--name") + 1] if "--name" in arguments else "model.onnx"
        (folder / name).write_text("")

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "ONNXPRUNE", (sys.executable, "-c", COMMAND))
    return module


def test_every_step_is_done(sample: ModuleType, tmp_path: Path) -> None:
    rows = sample.run(tmp_path)

    assert [(row.status, row.verdict) for row in rows] == [(0, "pass"), (0, "pass"), (3, "fail"), (0, "pass")]
    assert [row.reused for row in rows] == ["0 of 2", "2 of 2", "2 of 2", "0 of 2"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("passes all", "ended with status 0, 3 was expected"),
        ("ends with another status", "ended with status 1, 3 was expected"),
        ("does not name the gate", "the gate is not named"),
        ("replaces the accepted model", "has changed: small.onnx"),
        ("takes the record of the last accepted run away", "has changed: accepted.json"),
        ("keeps nothing aside", "not kept aside"),
        ("does all again", "0 of 2 stages were reused"),
        ("empty table", "the table report lacks"),
        ("empty page", "the html report lacks"),
        ("no verdict in the summary", "the markdown report lacks"),
        ("all test cases pass", "the JUnit report has 0 failures"),
    ],
)
def test_what_goes_wrong_is_seen(
    sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    monkeypatch.setenv("FAULT", fault)
    with pytest.raises(sample.Wrong, match=said):
        sample.run(tmp_path)


@pytest.mark.long
@pytest.mark.xdist_group("samples")
def test_the_whole_step(run_script: Callable[..., Any], needs: Callable[..., None], tmp_path: Path) -> None:
    needs("torch", "onnxscript", "sklearn")
    run_script("ci/run.py", "--out", tmp_path, "--epochs", 15, "--json", tmp_path / "rows.json")
    first, again, tight, retrained = json.loads((tmp_path / "rows.json").read_text())

    assert [row["status"] for row in (first, again, tight, retrained)] == [0, 0, 3, 0]
    for row in (first, tight, retrained):
        assert row["accuracy"] > row["original_accuracy"] - 0.02
        assert row["size_ratio"] < 1 / 6
    assert retrained["original_accuracy"] > 0.95
    assert first["seconds"] > 0
