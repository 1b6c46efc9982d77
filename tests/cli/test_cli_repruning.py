"""apply --refresh, and plans in inspect: what a CI job of a model that is trained again calls."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import small_models
from renaming import renamed

import onnxprune


@pytest.fixture
def plan(run, saved, tmp_path) -> Path:
    path = tmp_path / "first.plan"
    ran = run(
        "prune", saved["residual_net"], "-o", tmp_path / "p.onnx", "--target-macs", "0.6", "--plan", path
    )
    assert ran.status == 0
    return path


@pytest.fixture
def retrained(tmp_path) -> Path:
    """The same network, trained again and exported under other names."""
    model = renamed(ir.from_proto(small_models.residual_net(seed=6)), 1)
    onnxprune.save(model, tmp_path / "retrained.onnx")
    return tmp_path / "retrained.onnx"


def test_apply_finds_other_names_and_saves_a_plan_for_them(run, tmp_path, plan, retrained):
    small, new = tmp_path / "small.onnx", tmp_path / "new.plan"
    ran = run("apply", plan, retrained, "-o", small, "--plan", new, "--json")
    assert ran.status == 0
    assert ran.document["sections"]["matched"]["of another name"] == 52
    assert ran.document["sections"]["written"] == {"model": str(small), "plan": str(new)}
    assert "drift" not in ran.document["sections"]
    ran = run("verify", small, "--against", retrained, "--plan", new)
    assert ran.status == 0
    assert "planned shapes" in ran.out


def test_refresh_tells_the_drift_and_keeps_the_shapes(run, tmp_path, plan, retrained):
    kept, fresh = tmp_path / "kept.onnx", tmp_path / "fresh.onnx"
    assert run("apply", plan, retrained, "-o", kept).status == 0
    ran = run("apply", plan, retrained, "-o", fresh, "--refresh", "--plan", tmp_path / "new.plan", "--json")
    assert ran.status == 0
    total, *rows = ran.document["sections"]["drift"]
    assert total["what"] == "in all"
    assert 0 < total["moved_share"] <= 1
    assert total["before"] == total["after"] == sum(row["after"] for row in rows)
    shapes = [
        {name: value.shape for name, value in onnxprune.load(path).graph.initializers.items()}
        for path in (kept, fresh)
    ]
    assert shapes[0] == shapes[1]
    assert kept.read_bytes() != fresh.read_bytes()


def test_a_limit_on_the_drift_ends_with_status_3_and_writes_nothing(run, tmp_path, plan, retrained):
    small, new = tmp_path / "small.onnx", tmp_path / "new.plan"
    arguments = ["-o", small, "--plan", new, "--refresh", "--max-drift", "0.05"]
    ran = run("apply", plan, retrained, *arguments, "--json")
    assert ran.status == 3
    assert "more than 0.05" in ran.error
    assert ran.document["error"]["reached"] > 0.05
    assert any("are as before" in reason for reason in ran.document["error"]["reasons"])
    assert not small.exists()
    assert not new.exists()
    assert run("apply", plan, retrained, *arguments[:-1], "1").status == 0


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--reallocate"], 2, "plays no part without refresh"),
        (["--max-drift", "0.5"], 2, "plays no part without refresh"),
        (["--refresh", "--max-drift", "2"], 2, "--max-drift"),
    ],
)
def test_options_that_make_no_sense(run, tmp_path, plan, retrained, arguments, status, words):
    ran = run("apply", plan, retrained, "-o", tmp_path / "o.onnx", *arguments)
    assert ran.status == status
    assert words in ran.error


def test_a_score_on_data_asks_for_data(run, saved, tmp_path, retrained):
    data, plan = tmp_path / "calib.npz", tmp_path / "wanda.plan"
    np.savez(data, x=np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32))
    arguments = ["--amount", "0.5", "--score", "wanda", "--data", data, "--plan", plan]
    assert run("prune", saved["residual_net"], "-o", tmp_path / "p.onnx", *arguments).status == 0
    ran = run("apply", plan, retrained, "-o", tmp_path / "o.onnx", "--refresh")
    assert ran.status == 2
    assert "give --data calib.npz" in ran.error
    assert run("apply", plan, retrained, "-o", tmp_path / "o.onnx", "--refresh", "--data", data).status == 0


def test_another_graph_is_named_in_one_line(run, saved, tmp_path, plan):
    ran = run("apply", plan, saved["mlp"], "-o", tmp_path / "o.onnx")
    assert ran.status == 1
    assert "the plan is for another graph: " in ran.error
    assert "in the model of the plan; " in ran.error


# --- inspect ------------------------------------------------------------------------------------------------


def test_inspect_shows_what_a_plan_removes(run, plan):
    ran = run("inspect", plan, "--json")
    assert ran.status == 0
    sections = ran.document["sections"]
    assert sections["plan"]["pattern"] == "channels"
    assert sections["plan"]["removed"] == sum(row["before"] - row["after"] for row in sections["groups"])
    assert sections["recipe"]["target_macs"] == 0.6
    assert [row["what"] for row in sections["cost"]] == ["parameters", "MACs", "bytes of weights"]
    assert run("inspect", plan).status == 0


def test_inspect_shows_the_drift_between_two_plans(run, tmp_path, plan, retrained):
    new = tmp_path / "new.plan"
    assert run("apply", plan, retrained, "-o", tmp_path / "o.onnx", "--refresh", "--plan", new).status == 0
    ran = run("inspect", plan, new, "--json")
    assert ran.status == 0
    drift = onnxprune.compare_plans(onnxprune.load_plan(plan), onnxprune.load_plan(new))
    assert ran.document["sections"]["drift"] == drift.table()
    assert run("inspect", plan, plan, "--max-drift", "0").status == 0
    ran = run("inspect", plan, new, "--max-drift", "0.05")
    assert ran.status == 3
    assert "are as before" in ran.out


def test_inspect_refuses_what_is_no_plan(run, saved, tmp_path, plan):
    (tmp_path / "empty").mkdir()
    ran = run("inspect", tmp_path / "empty")
    assert ran.status == 1
    assert "plan.json: cannot be read" in ran.error
    assert run("inspect", plan, saved["mlp"]).status == 1
    ran = run("inspect", saved["mlp"], "--max-drift", "0.1")
    assert ran.status == 2
    assert "takes two plans" in ran.error


def test_hostile_names_of_a_plan_are_shown_harmless(run, plan):
    text = (plan / "plan.json").read_text()
    name = json.loads(text)["groups"][0]["name"]
    (plan / "plan.json").write_text(text.replace(f'"{name}"', json.dumps("\x1b[2J\n::error::x\u202e")))
    ran = run("inspect", plan, "--verbose")
    for shown in (ran.out, ran.err):
        assert not {"\x1b", "\u202e"} & set(shown)
        assert not any(line.startswith("::") for line in shown.splitlines())
