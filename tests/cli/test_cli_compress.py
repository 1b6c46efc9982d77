"""onnxprune compress on the command line: statuses, one line for what is missed, one JSON document."""

from __future__ import annotations

import pytest
from recipe_projects import Project, make_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One project for all tests here: what they change are overrides and outputs."""
    return make_project(tmp_path_factory.mktemp("project") / "project")


def test_a_run_that_passes(run, project):
    ran = run("compress", project.recipe)
    assert ran.status == 0, ran.err
    assert "verdict   pass" in ran.out
    assert "size_ratio" in ran.out
    assert project.output.exists()


def test_a_gate_that_fails_is_status_3_and_is_named(run, project):
    run("compress", project.recipe)
    before = project.digests()["small.onnx"]
    ran = run("compress", project.recipe, "--set", "gates.size_ratio=0.1", "--quiet")
    assert ran.status == 3
    assert ran.error.startswith("failed size_ratio: ")
    assert "small.rejected.onnx" in ran.error
    assert project.digests()["small.onnx"] == before
    assert (project.folder / "small.rejected.onnx").exists()


def test_an_inconclusive_gate_is_status_3_and_says_so(run, project):
    ran = run("compress", project.recipe, "--set", "gates.agreement=0.99", "--quiet")
    assert ran.status == 3
    assert ran.error.startswith("inconclusive agreement: ")


def test_what_is_wrong_with_the_model_names_it_and_the_recipe(run, project):
    ran = run("compress", project.recipe, "--set", "stages.1.protect=['*']", "--set", "gates={}", "--quiet")
    assert ran.status == 4
    assert f".onnx ({project.recipe}): nothing to remove" in ran.error


def test_json_is_one_document(run, project):
    document = run("compress", project.recipe, "--json").document
    assert document["command"] == "compress"
    assert document["sections"]["verdict"]["accepted"] is True
    assert {row["gate"] for row in document["sections"]["gates"]} == {"size_ratio", "agreement"}


@pytest.mark.parametrize(
    ("override", "passed"),
    [
        ("gates.size_ratio=0.1", False),
        ("gates.agreement=0.99", False),
        ("gates={agreement=0.99, inconclusive='pass'}", True),
    ],
)
def test_json_has_not_passed_unless_the_gates_have(run, project, override, passed):
    ran = run("compress", project.recipe, "--json", "--set", override)
    assert ran.status == (0 if passed else 3)
    assert ran.document["passed"] is passed
    assert all(check["passed"] for check in ran.document["checks"] if not check["name"].startswith("gate "))


@pytest.mark.parametrize(
    ("override", "status", "part"),
    [
        ("stages.prune.amout=0.1", 1, "stages.1.amout: unknown key (did you mean 'amount'?)"),
        ("nonsense", 2, "is not of the form key=value"),
        ("model.path=none.onnx", 1, "none.onnx"),
        ("data.calibration=module:function", 2, "--trust-input-code"),
        ("stages.prune={kind='prune', target_macs=0.0001}", 3, "not to 0.0001"),
    ],
)
def test_what_goes_wrong_is_one_line(run, project, override, status, part):
    ran = run("compress", project.recipe, "--set", override, "--quiet")
    assert ran.status == status, ran.err
    assert part in ran.err.strip().splitlines()[-1]
    assert "Traceback" not in ran.err


def test_a_dry_run_writes_nothing(run, tmp_path):
    project = make_project(tmp_path / "project")
    before = project.digests()
    ran = run("compress", project.recipe, "--dry-run")
    assert ran.status == 0, ran.err
    assert "would run" in ran.out
    assert project.digests() == before
    assert not (project.folder / "run").exists()


def test_a_dry_run_says_what_is_there_already(run, project):
    run("compress", project.recipe)
    rows = run("compress", project.recipe, "--dry-run", "--json").document["sections"]["stages"]
    assert [row["what"] for row in rows[1:]] == ["is there already"] * 3
    changed = run("compress", project.recipe, "--dry-run", "--json", "--set", "stages.zeros.amount=0.4")
    assert [row["what"] for row in changed.document["sections"]["stages"][1:]] == [
        "is there already", "is there already", "would run"
    ]  # fmt: skip


def test_a_dry_run_predicts_what_the_run_gives(run, project):
    fresh = run("compress", project.recipe, "--dry-run", "--json", "--set", "run.folder=other")
    there = run("compress", project.recipe, "--dry-run", "--json")
    predicted, real = (ran.document["sections"]["stages"] for ran in (fresh, there))
    assert [row["params"] for row in predicted] == [row["params"] for row in real]
    assert [row["macs"] for row in predicted] == [row["macs"] for row in real]


def test_data_goes_with_init_only(run, project):
    ran = run("compress", project.recipe, "--data", "calibration.npz")
    assert ran.status == 2
    assert "--init" in ran.error
