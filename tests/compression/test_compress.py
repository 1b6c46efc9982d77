"""Whole runs of recipes: what they write, what they reuse, and what they leave alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import small_models
from onnx import TensorProto, helper, numpy_helper
from recipe_projects import RECIPE, Project, make_project

import onnxprune
from onnxprune.errors import DataError, LimitMissed, NothingToPrune, OutputError, RecipeError, UsageError
from onnxprune.record import Record, read_record
from onnxprune.runtime import admission
from onnxprune.verification import report as verification

PLANS = {f"small.{stage}.plan/{name}" for stage in ("prune", "zeros") for name in ("plan.json", "graph.json")}
REPORTS = {"report.json", "report.html", "report.md", "report.xml", "accepted.json"}
OUTPUTS = {"small.onnx", "small.zeros.plan/masks.safetensors", *PLANS, *REPORTS}
INPUTS = {"model.onnx", "calibration.npz", "evaluation.npz", "recipe.toml"}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose recipe has run; tests copy it."""
    project = make_project(tmp_path_factory.mktemp("finished") / "project")
    onnxprune.compress(project.recipe)
    return project


@pytest.fixture
def again(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished project."""
    shutil.copytree(finished.folder, tmp_path / "again")
    return Project(tmp_path / "again")


def reused(record: Record) -> list[bool]:
    return [stage.reused for stage in record.stages]


def test_all_outputs_are_written_and_nothing_else(finished, project):
    before = project.digests()
    assert finished.digests().keys() == INPUTS | OUTPUTS
    assert {name: digest for name, digest in finished.digests().items() if name in INPUTS} == before


def test_the_record_says_what_happened(finished):
    record = read_record(finished.folder / "report.json")
    assert record.accepted
    assert record.verdict == "pass"
    assert [stage.name for stage in record.stages] == ["cleanup", "prune", "zeros"]
    assert record.models[0].name == "original"
    assert record.models[-1].size_bytes == finished.output.stat().st_size
    assert record.models[-1].params < record.models[0].params
    assert record.models[-1].sparsity > record.models[0].sparsity
    assert [(gate.name, gate.verdict) for gate in record.gates] == [
        ("agreement", "pass"),
        ("size_ratio", "pass"),
    ]
    assert record.recipe.text == RECIPE
    assert record.layers
    assert all(check.passed for check in record.checks)
    assert {file.role for file in record.files} == {"model", "output", "calibration data", "evaluation data"}
    assert record == read_record(finished.folder / "accepted.json")


def test_the_record_has_curves_where_they_were_measured_and_a_trade_off(again):
    record = onnxprune.compress(
        again.recipe, overrides=["stages.prune.scope=sensitivity", "stages.prune.score=l2"]
    ).record
    assert [point.cost_of for point in record.pareto] == ["time", "time"]
    assert [point.chosen for point in record.pareto] == [False, True]
    assert {curve.name for curve in record.sensitivity} >= {"block1.conv1", "block2.conv1"}
    for curve in record.sensitivity:
        assert (curve.amount[0], curve.loss[0]) == (0.0, 0.0)
        assert list(curve.amount) == sorted(curve.amount)


def test_a_second_run_does_nothing_anew(again):
    before = again.digests()
    record = onnxprune.compress(again.recipe).record
    assert reused(record) == [True, True, True]
    same = {"small.onnx", *(name for name in OUTPUTS if ".plan/" in name)}
    assert {name: again.digests()[name] for name in same} == {name: before[name] for name in same}
    first = read_record(again.folder / "accepted.json")
    assert record.models == first.models  # times too: they were not measured again


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("gates.size_ratio=0.9", [True, True, True]),
        ("title=another", [True, True, True]),
        ("output.html=other.html", [True, True, True]),
        ("stages.zeros.amount=0.3", [True, True, False]),
        ("stages.prune.amount=0.2", [True, False, False]),
        ("run.seed=1", [False, False, False]),
        ("data.evaluation=calibration.npz", [True, True, True]),
    ],
)
def test_a_change_runs_only_what_depends_on_it(again, change, expected):
    first = read_record(again.folder / "accepted.json")
    record = onnxprune.compress(again.recipe, overrides=[change]).record
    assert reused(record) == expected
    measured_anew = record.models[-1].latency_samples_ms != first.models[-1].latency_samples_ms
    assert measured_anew == (expected[-1] is False or "evaluation" in change)


def test_another_model_runs_everything(again):
    model = onnx.load(again.folder / "model.onnx")
    weights = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    weights.raw_data = weights.raw_data[4:] + weights.raw_data[:4]
    onnx.save(model, again.folder / "model.onnx")
    assert reused(onnxprune.compress(again.recipe).record) == [False, False, False]


def test_a_damaged_result_is_made_anew_and_said(again):
    reference = again.digests()["small.onnx"]
    [victim] = [
        path
        for path in (again.folder / "run" / "results").glob("*/plan")
        if (path / "masks.safetensors").exists()
    ]
    (victim / "plan.json").write_text("{}")
    result = onnxprune.compress(again.recipe)
    assert reused(result.record) == [True, True, False]
    assert "is damaged" in result.notes[0]
    assert again.digests()["small.onnx"] == reference


def test_a_failed_gate_leaves_the_accepted_model_alone(again):
    before = again.digests()
    result = onnxprune.compress(again.recipe, overrides=["gates.size_ratio=0.01"])
    after = again.digests()
    assert not result.accepted
    assert result.record.verdict == "fail"
    assert result.model == again.folder / "small.rejected.onnx"
    onnx.checker.check_model(str(result.model))
    kept = {"small.onnx", "accepted.json", *(name for name in OUTPUTS if ".plan/" in name)} | INPUTS
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert not read_record(again.folder / "report.json").accepted


def test_an_inconclusive_gate_is_no_pass_unless_that_is_said(again):
    measured = read_record(again.folder / "accepted.json").accuracy.agreement
    ask = [f"gates.agreement={(measured.low + measured.high) / 2}"]  # in the middle of its interval
    strict = onnxprune.compress(again.recipe, overrides=ask)
    assert (strict.record.verdict, strict.accepted) == ("inconclusive", False)
    lax = onnxprune.compress(again.recipe, overrides=[*ask, "gates.inconclusive=pass"])
    assert (lax.record.verdict, lax.accepted) == ("inconclusive", True)


def test_the_accepted_record_is_the_next_baseline(again):
    record = onnxprune.compress(again.recipe).record
    assert record.baseline is not None
    assert record.baseline.path == str(again.folder / "accepted.json")


def test_the_first_run_has_no_baseline_and_says_so(project):
    asked = ["gates.baseline_size_ratio=1.01"]
    first = onnxprune.compress(project.recipe, overrides=asked)
    assert first.accepted
    assert "no run was accepted yet, so baseline_size_ratio" in first.notes[0]
    assert "baseline_size_ratio" not in {gate.name for gate in first.record.gates}
    assert first.notes[0] in {skip.reason for skip in first.record.skipped}
    second = onnxprune.compress(project.recipe, overrides=asked)
    assert [gate.verdict for gate in second.record.gates if gate.name == "baseline_size_ratio"] == ["pass"]
    nowhere = onnxprune.compress(
        project.recipe, overrides=[*asked, "gates.inconclusive=pass", f"output={{model='{project.output}'}}"]
    )
    assert (nowhere.record.verdict, nowhere.accepted) == ("inconclusive", False)


def test_a_rejected_run_is_no_baseline(again):
    onnxprune.compress(again.recipe, overrides=["gates.size_ratio=0.01"])
    with pytest.raises(RecipeError, match="not accepted"):
        onnxprune.compress(again.recipe, baseline=again.folder / "report.json")


def test_a_baseline_that_is_named_must_be_there(again):
    with pytest.raises(DataError, match="cannot be read"):
        onnxprune.compress(again.recipe, baseline=again.folder / "none.json")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("output.model=model.onnx", "is an input of this run"),
        ("output.json=recipe.toml", "is an input of this run"),
        ("stages.prune={kind='apply', plan='small.apply.plan'}", "output.plan of apply .* is an input"),
        ("output.html=report.md", "output.html and output.markdown are the same"),
        ("output.html=none/report.html", "there is no folder"),
        ("output.html=run", "is a folder"),
    ],
)
def test_outputs_are_checked_before_anything_runs(again, change, part):
    shutil.copytree(again.folder / "small.prune.plan", again.folder / "small.apply.plan")
    before = again.digests()
    with pytest.raises(OutputError, match=part):
        onnxprune.compress(again.recipe, overrides=[change, "run.seed=9"])
    assert again.digests() == before


def test_data_files_of_the_model_are_inputs_too(project):
    model = onnx.load(project.folder / "model.onnx")
    onnx.save(model, project.folder / "model.onnx", save_as_external_data=True, location="weights.bin")
    before = project.digests()
    with pytest.raises(OutputError, match="is an input of this run"):
        onnxprune.compress(project.recipe, overrides=["output.json=weights.bin"])
    assert project.digests() == before


def test_gates_that_could_never_be_judged_are_refused_before_anything_runs(project):
    with pytest.raises(UsageError, match="agreement"):
        onnxprune.compress(
            project.recipe, overrides=[f'data={{calibration = "{project.folder}/calibration.npz"}}']
        )
    assert not (project.folder / "run").exists()


def test_a_target_that_cannot_be_met_ends_the_run_without_outputs(project):
    with pytest.raises(LimitMissed):
        onnxprune.compress(project.recipe, overrides=["stages.prune={kind='prune', target_macs=0.0001}"])
    assert project.digests().keys() == INPUTS


def test_nothing_to_do_is_no_success(project):
    with pytest.raises(NothingToPrune, match="as it was"):
        onnxprune.compress(project.recipe, overrides=["stages=[{kind='cleanup'}]"])
    assert project.digests().keys() == INPUTS


def test_an_optional_stage_may_find_nothing(project):
    onnx.save(small_models.frozen_net(), project.folder / "model.onnx")
    record = onnxprune.compress(
        project.recipe, overrides=["stages.prune.optional=true", "gates.size_ratio=2"]
    ).record
    assert [model.name for model in record.models] == ["original", "zeros"]
    with pytest.raises(NothingToPrune):
        onnxprune.compress(project.recipe)


def test_an_input_that_changes_meanwhile_is_noticed(project, monkeypatch):
    from onnxprune.compression import run

    judge = run.judge

    def change(*arguments):
        (project.folder / "model.onnx").write_bytes(b"another")
        return judge(*arguments)

    monkeypatch.setattr(run, "judge", change)
    with pytest.raises(onnxprune.errors.ModelError):
        onnxprune.compress(project.recipe)
    assert not project.output.exists()


def test_a_recipe_in_memory_does_as_well(project, monkeypatch):
    monkeypatch.chdir(project.folder)
    values = {
        "model": {"path": "model.onnx"}, "stages": [{"kind": "prune", "amount": 0.3}],
        "output": {"model": "small.onnx", "json": "report.json"},
    }  # fmt: skip
    assert onnxprune.compress(values).accepted
    assert json.loads(Path("report.json").read_text())["recipe"]["path"] == ""


def test_the_final_file_is_stored_as_the_recipe_says(project):
    result = onnxprune.compress(project.recipe, overrides=["output.external_data=true"])
    data = [path for path in project.folder.iterdir() if path.suffix == ".data"]
    assert len(data) == 1
    assert result.record.models[-1].size_bytes == project.output.stat().st_size + data[0].stat().st_size


FACTORY = """
import torch


def build():
    torch.manual_seed(0)
    first, last = torch.nn.Linear(16, 32), torch.nn.Linear(32, 4)
    return torch.nn.Sequential(first, torch.nn.ReLU(), last)
"""


@pytest.mark.long
def test_a_recipe_may_import_its_model(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    (tmp_path / "networks_of_a_recipe.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    values = {
        "model": {"path": "networks_of_a_recipe:build", "import": {"input_shapes": {"input": [1, 16]}}},
        "stages": [{"kind": "prune", "amount": 0.5, "align": 1}],
        "output": {"model": "small.onnx"},
    }  # fmt: skip
    with pytest.raises(UsageError, match="trust-input-code"):
        onnxprune.compress(values)
    first = onnxprune.compress(values, trust_code=True)
    again = onnxprune.compress(values, trust_code=True)
    assert first.accepted
    assert first.record.models[-1].params < first.record.models[0].params
    assert reused(again.record) == [True]  # exported anew, to the same file


@pytest.mark.long
@pytest.mark.parametrize(
    "stage",
    [
        "{kind='prune', target_macs=0.6, tuning={steps=20}}",
        "{kind='prune', pattern='unstructured', amount=0.5, tuning={steps=20, rounds=2}}",
    ],
)
def test_a_stage_may_tune_while_it_prunes(project, stage):
    pytest.importorskip("torch")
    overrides = [f"stages=[{stage}]", "gates.agreement=0.0", "gates.size_ratio=1.1"]
    record = onnxprune.compress(project.recipe, overrides=overrides).record
    original, pruned = record.models
    assert pruned.macs <= 0.6 * original.macs or pruned.sparsity == pytest.approx(0.5, abs=0.01)
    assert reused(onnxprune.compress(project.recipe, overrides=overrides).record) == [True]


def test_what_the_disk_has_no_room_for_is_refused_before_any_work(project, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(OutputError, match="but its disk has 1 left"):
        onnxprune.compress(project.recipe)
    assert project.digests().keys() == INPUTS
    assert not list(project.folder.glob("*.run/results/*"))


@pytest.mark.parametrize("external", [False, True])
def test_a_file_of_the_same_bytes_is_given_to_other_libraries_once(project, monkeypatch, external):
    given = []
    for name in ("check_checker", "check_outputs_finite"):
        real = getattr(verification, name)

        def noted(*args, real=real, **options):
            given.extend(arg for arg in args[:2] if isinstance(arg, Path))
            return real(*args, **options)

        monkeypatch.setattr(verification, name, noted)
    overrides = [f"output.external_data={str(external).lower()}"]
    record = onnxprune.compress(project.recipe, overrides=overrides).record
    at_the_end = [p for p in given if p.parent == project.folder and p.name != "model.onnx"]
    assert len(given) > len(at_the_end)
    assert len(at_the_end) == (2 if external else 0), given  # the data file has another name there
    told = [check.name for check in record.checks]
    assert {"onnx checker", "zeros survive ONNX Runtime", "outputs finite"} < set(told)
    assert len(told) == len(set(told))


def test_runtime_is_asked_about_the_original_alone(project, monkeypatch):
    asked = []
    monkeypatch.setattr(admission, "_refusal", lambda model: asked.append(admission.label_of(model)))
    onnxprune.compress(project.recipe)
    assert set(asked) == {str(project.folder / "model.onnx")}


def test_outputs_are_verified_at_the_sizes_of_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weight = np.random.default_rng(0).standard_normal((28, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "flat"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])],
        "sevens",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "time", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        [numpy_helper.from_array(np.array([0, 28]), "flat"), numpy_helper.from_array(weight, "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), "model.onnx"
    )
    values = {
        "model": {"path": "model.onnx"},
        "stages": [{"kind": "prune", "pattern": "unstructured", "amount": 0.5}],
        "run": {"input_shapes": {"x": [2, 7, 4]}, "memory": False, "pairs": 20},
        "output": {"model": "small.onnx", "external_data": True},
    }
    (finite,) = [c for c in onnxprune.compress(values).record.checks if c.name == "outputs finite"]
    assert finite.detail.startswith("on 4 random inputs")
