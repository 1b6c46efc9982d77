"""onnxprune prune and apply, on files."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import small_models
from onnx import numpy_helper


def weights_of(path):
    return {w.name: numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}


def test_channels_are_gone_from_the_file(run, saved, tmp_path):
    output = tmp_path / "small.onnx"
    ran = run("prune", saved["residual_net"], "-o", output, "--amount", "0.5")
    assert (ran.status, ran.err) == (0, "")
    assert weights_of(saved["residual_net"])["stem.weight"].shape == (16, 3, 3, 3)
    assert weights_of(output)["stem.weight"].shape == (8, 3, 3, 3)
    for text in (
        "prune",
        "parameters",
        "MACs",
        "stem",
        "cut equals its exact twin",
        "left alone",
        "output y",
    ):
        assert text in ran.out


def test_without_a_budget_half_goes_and_that_is_said(run, saved, tmp_path):
    asked, usual = tmp_path / "asked.onnx", tmp_path / "usual.onnx"
    assert run("prune", saved["residual_net"], "-o", asked, "--amount", "0.5").err == ""
    ran = run("prune", saved["residual_net"], "-o", usual)
    assert (ran.status, ran.err) == (0, "note: no budget was given: --amount 0.5\n")
    assert usual.read_bytes() == asked.read_bytes()
    assert run("prune", saved["residual_net"], "-o", usual, "-q").err == ""
    for pattern in ("2:4", "dead"):
        assert "no budget" not in run("prune", saved["residual_net"], "-o", usual, "--pattern", pattern).err


def test_the_document_holds_the_whole_report(run, saved, tmp_path):
    output, plan = tmp_path / "small.onnx", tmp_path / "small.plan"
    arguments = ["--target-macs", "0.5", "--score", "l1", "--scope", "global", "--align", "2", "--plan", plan]
    ran = run("prune", saved["residual_net"], "-o", output, *arguments, "--json")
    assert ran.status == 0
    document = ran.document
    assert {
        "schema",
        "command",
        "version",
        "title",
        "passed",
        "sections",
        "checks",
        "skipped",
        "seconds",
    } == set(document)
    assert (document["schema"], document["command"], document["passed"]) == (1, "prune", True)
    assert document["sections"]["written"] == {"model": str(output), "plan": str(plan)}
    macs = next(row for row in document["sections"]["cost"] if row["what"] == "MACs")
    assert 0.3 < macs["ratio"] <= 0.5
    assert all(check["passed"] for check in document["checks"])
    recipe = json.loads((plan / "plan.json").read_text())["recipe"]
    assert recipe == {
        "pattern": "channels", "target_macs": 0.5, "score": "l1", "scope": "global", "align": 2, "floor": 0.1,
    }  # fmt: skip


def test_every_option_reaches_the_recipe(run, saved, tmp_path):
    plan = tmp_path / "p.plan"
    arguments = [
        "--pattern",
        "heads",
        "--amount",
        "0.5",
        "--protect",
        "up*",
        "--protect",
        "down*",
        "--floor",
        "0.3",
    ]
    shape = ["--input-shape", "x=3,6,32", "--seed", "7"]
    ran = run("prune", saved["attention"], "-o", tmp_path / "o.onnx", *arguments, *shape, "--plan", plan)
    assert ran.status == 0
    contents = json.loads((plan / "plan.json").read_text())
    assert contents["seed"] == 7
    assert contents["recipe"]["pattern"] == "heads"
    assert contents["recipe"]["protect"] == ["up*", "down*"]
    assert contents["recipe"]["floor"] == 0.3
    assert contents["recipe"]["input_shapes"] == {"x": [3, 6, 32]}


def test_two_of_four_along_the_summed_axis(run, saved, tmp_path):
    output = tmp_path / "sparse.onnx"
    assert run("prune", saved["mlp"], "-o", output, "--pattern", "2:4", "-q").out == ""
    weight = weights_of(output)["fc2.weight"]  # Gemm with transB: [outputs, inputs]
    assert ((weight.reshape(32, 8, 4) != 0).sum(axis=2) == 2).all()


def test_weights_can_go_beside_the_model(run, saved, tmp_path):
    output = tmp_path / "small.onnx"
    assert run("prune", saved["mlp"], "-o", output, "--amount", "0.5", "--external-data").status == 0
    assert len(list(tmp_path.iterdir())) == 2
    assert output.stat().st_size < 2000


def test_weights_can_be_stored_sparse(run, saved, tmp_path):
    output = tmp_path / "sparse.onnx"
    arguments = ["--pattern", "unstructured", "--amount", "0.9", "--sparse-storage"]
    assert run("prune", saved["mlp"], "-o", output, *arguments).status == 0
    assert len(onnx.load(output).graph.sparse_initializer) > 0


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--amount", "0.5", "--score", "l3"], 2, ["l3", "l2"]),
        (["--amount", "0.5", "--scope", "everywhere"], 2, ["everywhere", "global"]),
        (["--amount", "0.5", "--pattern", "chanels"], 2, ["chanels"]),
        (["--amount", "nan"], 2, ["amount"]),
        (["--pattern", "2:4", "--target-macs", "0.5"], 2, ["target_macs"]),
        (["--amount", "0.5", "--input-shape", "y=1,3,8,8"], 2, ["y"]),
        (["--target-macs", "0.0001"], 3, ["floor"]),
        (["--target-params", "0.0001"], 3, ["floor"]),
        (["--amount", "0.5", "--protect", "*"], 4, ["protected"]),
    ],
)
def test_a_refusal_writes_nothing(run, saved, tmp_path, arguments, status, words):
    ran = run(
        "prune", saved["residual_net"], "-o", tmp_path / "o.onnx", "--plan", tmp_path / "o.plan", *arguments
    )
    assert ran.status == status
    for word in words:
        assert word in ran.error
    assert list(tmp_path.iterdir()) == []


def test_a_missed_target_says_what_is_in_the_way(run, saved, tmp_path):
    arguments = ["prune", saved["residual_net"], "-o", tmp_path / "o.onnx", "--target-size", "0.01"]
    ran = run(*arguments, "--verbose")
    assert ran.status == 3
    assert "bytes can be brought to" in ran.error
    assert "what is in the way" in ran.out
    assert "is at the least that may stay" in ran.out
    details = run(*arguments, "--json").document["error"]
    assert details["exit_status"] == 3
    assert details["type"] == "LimitMissed"
    assert 0.01 < details["reached"] < 1
    assert all(": holds " in reason for reason in details["reasons"])
    assert list(tmp_path.iterdir()) == []


def test_several_targets_are_met_together(run, saved, tmp_path):
    targets = ["--target-macs", "0.8", "--target-size", "0.4", "--align", "1"]
    ran = run("prune", saved["residual_net"], "-o", tmp_path / "o.onnx", *targets, "--json")
    assert ran.status == 0
    ratios = {row["what"]: row["ratio"] for row in ran.document["sections"]["cost"]}
    assert ratios["MACs"] <= 0.8
    assert ratios["bytes of weights"] <= 0.4


def test_nothing_to_prune_lists_the_reasons(run, saved, tmp_path):
    ran = run("prune", saved["frozen_net"], "-o", tmp_path / "o.onnx", "--amount", "0.5")
    assert ran.status == 4
    assert "output y of the model" in ran.out
    assert "nothing" in ran.error
    document = run(
        "prune", saved["frozen_net"], "-o", tmp_path / "o.onnx", "--amount", "0.5", "--json"
    ).document
    assert document["error"]["reasons"] == ["only: output y of the model"]
    assert run("prune", saved["frozen_net"], "-o", tmp_path / "o.onnx", "--amount", "0.5", "-q").out == ""


def test_an_input_is_never_the_output(run, saved, tmp_path):
    model = tmp_path / "m.onnx"
    model.write_bytes(saved["mlp"].read_bytes())
    ran = run("prune", model, "-o", model, "--amount", "0.5")
    assert ran.status == 1
    assert "input" in ran.error
    assert model.read_bytes() == saved["mlp"].read_bytes()


@pytest.mark.parametrize("command", ["prune", "apply", "import"])
def test_an_output_that_cannot_be_is_refused_before_the_work(run, tmp_path, command):
    arguments = {"prune": ["m.onnx", "--amount", "0.5"], "apply": ["m.plan", "m.onnx"], "import": ["m.onnx"]}[
        command
    ]
    ran = run(command, *arguments, "-o", tmp_path / "no" / "o.onnx")
    assert ran.status == 1
    assert "there is no folder" in ran.error
    assert run(command, *arguments, "-o", tmp_path).status == 1


@pytest.mark.parametrize("name", ["missing.onnx", "folder", "text.onnx", "empty.onnx"])
def test_a_bad_model_is_one_line(run, tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.onnx").write_text("not a model")
    (tmp_path / "empty.onnx").write_bytes(b"")
    ran = run("prune", tmp_path / name, "-o", tmp_path / "o.onnx", "--amount", "0.5")
    assert ran.status == 1
    assert name in ran.error
    assert not (tmp_path / "o.onnx").exists()


def test_hostile_names_are_shown_harmless(run, tmp_path):
    name = "[red]evil[/red]\x1b[2J\r\n::error::\u202e"
    model = small_models.save_model(small_models.frozen_net(name=name), tmp_path / "m.onnx")
    ran = run("prune", model, "-o", tmp_path / "o.onnx", "--amount", "0.5")
    assert ran.status == 4
    for shown in (ran.out, ran.err):
        assert not {"\x1b", "\r", "\u202e"} & set(shown)
        assert not any(line.startswith("::") for line in shown.splitlines())
    assert "[red]evil[/red]\\x1b[2J\\r" in ran.out.replace("\n", "")


# --- apply --------------------------------------------------------------------------------------------------


@pytest.fixture
def plan(run, saved, tmp_path):
    path = tmp_path / "residual.plan"
    assert (
        run(
            "prune", saved["residual_net"], "-o", tmp_path / "p.onnx", "--amount", "0.5", "--plan", path
        ).status
        == 0
    )
    return path


def test_a_plan_gives_the_same_file_again(run, saved, tmp_path, plan):
    ran = run("apply", plan, saved["residual_net"], "-o", tmp_path / "again.onnx", "--json")
    assert ran.status == 0
    assert ran.document["command"] == "apply"
    assert ran.document["sections"]["written"] == {"model": str(tmp_path / "again.onnx")}
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "p.onnx").read_bytes()


def test_a_plan_fits_other_weights_of_the_same_graph(run, tmp_path, plan):
    other = small_models.save_model(small_models.residual_net(seed=5), tmp_path / "retrained.onnx")
    assert run("apply", plan, other, "-o", tmp_path / "o.onnx").status == 0
    kept = [
        row for row in json.loads((plan / "plan.json").read_text())["groups"] if row["name"] == "block1.conv1"
    ]
    rows = np.delete(weights_of(other)["block1.conv1.bias"], kept[0]["removed"])
    assert np.array_equal(weights_of(tmp_path / "o.onnx")["block1.conv1.bias"], rows)


def test_a_plan_for_another_graph_is_refused(run, saved, tmp_path, plan):
    ran = run("apply", plan, saved["mlp"], "-o", tmp_path / "o.onnx")
    assert ran.status == 1
    assert f"{saved['mlp']}: the plan is for another graph" in ran.error, "it names the model"
    assert not (tmp_path / "o.onnx").exists()


def test_a_damaged_plan_is_refused(run, saved, tmp_path, plan):
    (plan / "plan.json").write_text("{}")
    ran = run("apply", plan, saved["residual_net"], "-o", tmp_path / "o.onnx", "--json")
    assert ran.status == 1
    assert ran.document["error"]["type"] == "PlanError"
    assert run("apply", tmp_path / "nowhere", saved["mlp"], "-o", tmp_path / "o.onnx").status == 1


@pytest.fixture
def calibration(tmp_path):
    def write(name="x", shape=(20, 16)):
        values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        np.savez(tmp_path / "calib.npz", **{name: values, "label": np.zeros(len(values), np.int64)})
        return tmp_path / "calib.npz"

    return write


@pytest.mark.parametrize("score", ["activation", "wanda"])
def test_scores_on_data(run, saved, tmp_path, calibration, score):
    plan, output = tmp_path / "p.plan", tmp_path / "o.onnx"
    arguments = ["-o", output, "--amount", "0.5", "--score", score, "--data", calibration(), "--plan", plan]
    assert run("prune", saved["mlp"], *arguments).status == 0
    assert weights_of(output)["fc2.weight"].shape == (16, 16)
    recipe = json.loads((plan / "plan.json").read_text())["recipe"]
    assert recipe["score"] == score
    assert recipe["data"] == str(tmp_path / "calib.npz")
    assert len(recipe["data_digest"]) == 64
    again = tmp_path / "again.onnx"
    assert run("apply", plan, saved["mlp"], "-o", again).status == 0  # without the data
    np.testing.assert_array_equal(weights_of(again)["fc2.weight"], weights_of(output)["fc2.weight"])


def test_heads_on_data(run, saved, tmp_path, calibration):
    output = tmp_path / "o.onnx"
    arguments = ["--pattern", "heads", "--amount", "0.5", "--score", "activation"]
    ran = run("prune", saved["attention"], "-o", output, *arguments, "--data", calibration(shape=(5, 6, 32)))
    assert ran.status == 0
    assert weights_of(output)["query.weight"].shape == (32, 16)


@pytest.mark.parametrize(
    ("arguments", "data", "status", "words"),
    [
        (
            ["--score", "activation"],
            None,
            2,
            "score 'activation' is measured on samples: give --data calib.npz",
        ),
        (["--score", "l2"], {"shape": (20, 15)}, 1, "'x' has shape (20, 15), the model takes [samples, 16]"),
        (["--score", "wanda"], {"name": "z"}, 1, "'z' is no input of the model"),
        (
            ["--score", "wanda"],
            {"shape": (20, 15)},
            1,
            "'x' has shape (20, 15), the model takes [samples, 16]",
        ),
        (["--score", "wanda"], "random:0", 2, "expected random or random:N with a number of samples"),
        (["--score", "wanda"], "missing.npz", 1, "missing.npz: no such file"),
        (["--pattern", "2:4"], {}, 2, "score 'l2' goes by weights alone"),
    ],
)
def test_data_that_does_not_fit(run, saved, tmp_path, calibration, arguments, data, status, words):
    source = data if isinstance(data, str) else None if data is None else calibration(**data)
    given = [] if source is None else ["--data", source]
    amount = [] if "2:4" in arguments else ["--amount", "0.5"]
    ran = run("prune", saved["mlp"], "-o", tmp_path / "o.onnx", *amount, *arguments, *given)
    assert (ran.status, ran.out) == (status, "")
    assert words in ran.error
    assert not (tmp_path / "o.onnx").exists()
