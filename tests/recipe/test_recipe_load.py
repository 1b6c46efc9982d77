"""Recipes: what they may say, and one line about what they may not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from onnxprune.errors import DataError, OnnxPruneError, RecipeError, UsageError
from onnxprune.recipe.load import load_recipe
from onnxprune.recipe.schema import KINDS
from onnxprune.record import read_record

TEXT = """
[model]
path = "model.onnx"

[data]
calibration = "calibration.npz"
evaluation = "${DATA}/evaluation.npz"

[[stages]]
kind = "cleanup"

[[stages]]
kind = "prune"
target_macs = 0.5

[gates]
accuracy_drop = 0.01

[output]
model = "small.onnx"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(TEXT)
    return path


def loaded(path: Path, *overrides: str, **options: object):
    return load_recipe(path, overrides, environment={"DATA": "/data"}, **options)


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(OnnxPruneError) as caught:
        loaded(path, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_paths_are_relative_to_the_recipe(recipe):
    found = loaded(recipe).recipe
    assert found.model.path == str(recipe.parent / "model.onnx")
    assert found.output.model == str(recipe.parent / "small.onnx")
    assert found.run.folder == str(recipe.parent / "run")


def test_variables_stand_in_paths_and_nowhere_else(recipe):
    assert loaded(recipe).recipe.data.evaluation == "/data/evaluation.npz"
    assert loaded(recipe, "title=${DATA}").recipe.title == "${DATA}"
    assert "'NONE' is not set" in refused(recipe, "model.path=${NONE}/model.onnx")


def test_what_is_recorded_holds_no_value_of_a_variable(recipe):
    assert "${DATA}" in loaded(recipe).text
    assert "/data" not in loaded(recipe).text


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("stages.prune.target_mac=0.5", ("stages.1.target_mac", "did you mean 'target_macs'?", "known:")),
        ("stages.prune.target_macs=1.5", ("stages.1.target_macs = 1.5", "at most 1", "multiply-accumulates")),
        ("stages.prune.target_macs=0", ("stages.1.target_macs = 0", "more than 0")),
        ("stages.prune.target_macs=half", ("stages.1.target_macs = 'half'", "a number")),
        (
            "stages.prune.recover=recon",
            ("stages.1.recover = 'recon'", "'bias', 'statistics' or 'reconstruct'"),
        ),
        ("stages.prune.align=x", ("stages.1.align = 'x'", "'auto' or must be a whole number")),
        ("stages.prune.allow_inexact=1", ("stages.1.allow_inexact = 1", "true or false")),
        ("stages.prune.target_latency=true", ("stages.1.target_latency = true", "number or must be text")),
        ("stages.prune.tuning.step=5", ("stages.1.tuning.step:", "did you mean 'steps'?")),
        ("stages.0.kind=clean", ("stages.0", "unknown kind 'clean' (did you mean 'cleanup'?)")),
        ("gates.acuracy_drop=0.1", ("gates.acuracy_drop", "did you mean 'accuracy_drop'?")),
        ("gates.accuracy_drop=-1", ("gates.accuracy_drop = -1", "at least 0")),
        ("stages=[]", ("stages", "at least 1")),
        ("model=3", ("model = 3", "a table of keys")),
        ("output={}", ("output.model: is missing (the compressed model)",)),
        ("run.input_shapes.x=[0]", ("run.input_shapes", "at least 1")),
        ("outputs.model=x", ("outputs: unknown key (did you mean 'output'?)",)),
    ],
)
def test_what_is_not_allowed_is_named_with_its_value_and_what_is(recipe, override, parts):
    message = refused(recipe, override)
    assert all(part in message for part in parts), message


def test_other_mistakes_are_counted(recipe):
    assert refused(recipe, "run.seed=-1", "run.pairs=0").endswith("(and 1 more)")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("nothing", "is not of the form key=value"),
        ("a..b=1", "is not of the form key=value"),
        ("stages.tune.steps=1", "there is no 'tune' (did you mean 'prune'?); there are: cleanup, prune"),
        ("stages.7.amount=1", "there is no '7'"),
        ("model.path.x=1", "holds no keys"),
    ],
)
def test_a_malformed_override_is_wrong_usage(recipe, override, part):
    with pytest.raises(UsageError, match=r"--set") as caught:
        loaded(recipe, override)
    assert part in str(caught.value)


def test_overrides_are_toml_or_plain_text(recipe):
    found = loaded(recipe, "stages.prune.protect=['a*', 'b']", "title=plain words", "run.seed=7").recipe
    assert found.stages[1].protect == ["a*", "b"]
    assert (found.title, found.run.seed) == ("plain words", 7)


def test_an_override_changes_the_digest_and_the_order_of_keys_does_not(recipe, tmp_path):
    assert loaded(recipe).digest != loaded(recipe, "run.seed=7").digest
    other = tmp_path / "other.toml"
    head, tail = TEXT.split("[gates]")
    other.write_text("[gates]" + tail.split("[output]")[0] + head + "[output]" + tail.split("[output]")[1])
    assert loaded(other).digest == loaded(recipe).digest


@pytest.mark.parametrize(
    "override",
    [
        "model.path=package.models:build", "model.path=model.pt2", "data.calibration=samples:draw",
        "data.metric=judges:mine", "stages.prune.data=samples:draw",
        "stages.prune.tuning={loss = 'losses:mine'}",
    ],
)  # fmt: skip
def test_code_is_run_only_where_the_user_trusts_it(recipe, override):
    assert "--trust-input-code" in refused(recipe, override)
    loaded(recipe, override, trust_code=True)


@pytest.mark.parametrize("later", [kind for kind in KINDS if kind != "apply"])
def test_quantization_comes_last(recipe, later):
    message = refused(recipe, f"stages=[{{kind='quantize'}}, {{kind='{later}', name='after'}}]")
    assert "'after' comes after quantize" in message


@pytest.mark.parametrize("later", ["channels", "heads", "layers"])
def test_zeros_come_after_cuts(recipe, later):
    zeros, cut = "{kind='prune', pattern='2:4', name='zeros'}", f"{{kind='prune', pattern='{later}'}}"
    message = refused(recipe, f"stages=[{zeros}, {cut}]")
    assert "'prune' cuts what 'zeros' left zeros in" in message
    loaded(recipe, "stages=[{kind='prune', amount=0.1}, {kind='prune', pattern='2:4'}]")


def test_an_unknown_pattern_is_refused_before_anything_runs(recipe):
    assert "chanels" in refused(recipe, "stages.prune.pattern=chanels")


def test_stages_have_names_of_their_own(recipe):
    names = loaded(recipe, "stages.cleanup={kind='prune', amount=0.1}").recipe.stage_names
    assert names == ("prune-1", "prune-2")
    twice = "stages=[{kind='cleanup', name='a-1'}, {kind='cleanup', name='a'}, {kind='cleanup', name='a'}]"
    assert "two are called 'a-1'" in refused(recipe, twice)


@pytest.mark.parametrize(
    ("name", "contents", "part"),
    [
        ("a.toml", b"model = ", "is no TOML"),
        ("a.toml", b"a = 1\na = 2", "is no TOML"),
        ("a.toml", b"\xff\xfe", "is no UTF-8"),
        ("a.toml", b"title = nan", "no finite number"),
        ("a.toml", b"title = 2026-01-01", "write it as text"),
        ("a.toml", b"#" * (1 << 20) + b"#", "larger than any recipe"),
        ("a.toml", b"a = " + b"[" * 3000 + b"]" * 3000, "nested too deeply"),
        ("a.json", b'{"a": 1, "a": 2}', "stands there twice"),
        ("a.json", b'{"a": NaN}', "NaN is no number"),
        ("a.json", b"[1]", "holds no table"),
        ("a.json", b"[" * 100000, "nested too deeply"),
        ("a.yaml", b"a: 1", ".toml or .json"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line(tmp_path, name, contents, part):
    path = tmp_path / name
    path.write_bytes(contents)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(RecipeError, match="is no regular file"):
        load_recipe(tmp_path / "pipe.toml")
    with pytest.raises(DataError, match="is no regular file"):
        read_record(tmp_path / "pipe.toml")


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(RecipeError, match="No such file"):
        load_recipe(tmp_path / "none.toml")


def test_values_do_as_well_as_a_file(recipe):
    values = json.loads(json.dumps(loaded(recipe).recipe.model_dump(by_alias=True, exclude_unset=True)))
    assert load_recipe(values).recipe.stage_names == ("cleanup", "prune")
