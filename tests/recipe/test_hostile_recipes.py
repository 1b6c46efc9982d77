"""Recipes that are wrong, too much, or written to do harm: one line each, at once, and nothing is run."""

from __future__ import annotations

import os
import time

import pytest
import recipe_projects

from onnxprune.errors import OnnxPruneError, RecipeError, UsageError
from onnxprune.recipe.load import load_recipe
from onnxprune_cli.main import execute

PRUNE = """
[model]
path = "model.onnx"
[[stages]]
kind = "prune"
{}
[output]
model = "out.onnx"
"""


def refused(folder, text, name="recipe.toml"):
    """Return the one line about a recipe, which is told within seconds."""
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    before = time.monotonic()
    with pytest.raises(OnnxPruneError) as caught:
        load_recipe(path)
    assert time.monotonic() - before < 20
    said = str(caught.value)
    assert name in said
    assert said.isprintable()
    assert len(said) < 1000
    return said


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("amount = 1.5", "must be less than 1"),
        ("amount = -0.1", "must be at least 0"),
        ("amount = 1.0", "must be less than 1"),
        ("amount = nan", "no finite number"),
        ("amount = inf", "no finite number"),
        ("amount = 1e999", "no finite number"),
        ("amount = '0.5'", "must be a number"),
        ("amount = 'half'", "must be a number"),
        ("amount = [0.5]", "must be a number"),
        ("amount = {a = 1}", "must be a number"),
        ("amount = true", "must be a number"),
        ("amount = 1:30", "is no TOML"),
        ("amount = 1979-05-27T07:32:00Z", "write it as text"),
        ("amount = 99999999999999999999999999", "too large"),
        ("amount = 0xffffffffffffffffffff", "too large"),
        (f"amount = {'9' * 5000}", "is no TOML"),
        ("amount = 0.5\namount = 0.5", "is no TOML"),
        ("amuont = 0.5", "did you mean"),
        ("floor = -1", "must be at least 0"),
        ("rounds = 0", "must be at least 1"),
        ("rounds = 1.5", "whole number"),
        ("protect = 'x'", "must be a list"),
        ("protect = [1]", "must be text"),
        ("pattern = 5", "must be text"),
        ("pattern = 'channles'", "unknown pattern 'channles'"),
        ('"a\\u001b[31m" = 1', "unknown key"),
        ('"a\\u202e" = 1', "unknown key"),
        ("__class__ = 1", "unknown key"),
        ('before = "\\u0000"', "names no file"),
        ("before = ''", "names no file"),
        ("before = '${NO_SUCH_VARIABLE}'", "is not set"),
        ("before = '${a b}'", "is not set"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, line, part):
    assert part in refused(tmp_path, PRUNE.format(line))


@pytest.mark.parametrize(
    "text",
    [
        "", "# nothing", "[]", "5", "x", "= 1", "[model", "[[stages]]\n[stages]", "a.b = 1\na.b.c = 2",
        "\x00", "\x1b[31m",
        "\t\tmodel", "model: x\nstages: []", "!!python/object/apply:os.system ['id']",
        "<?xml version='1.0'?>",
        "[model]\npath = '''", "stages = {}", "stages = []", "stages = [[]]", "stages = [1]",
        "[[stages]]\nkind = 1",
        "[stages.prune]\nkind = 'prune'",
    ],
)  # fmt: skip
def test_what_is_no_recipe(tmp_path, text):
    refused(tmp_path, text)
    refused(tmp_path, text, "recipe.json")


@pytest.mark.parametrize(
    "contents",
    [
        b"\xff\xfem\0o\0d\0e\0l\0",
        b"\xed\xa0\x80 = 1",
        b"a = '\xc0\x80'",
        os.urandom(512) + b"\xff",
        b"a." * 400_000 + b"a = 1",
        b"a = " + b"[" * 400_000,
        b"a = " + b"{a=" * 200_000,
        b"[" + b"a." * 400_000 + b"a]",
        b"a = '" + b"x" * 1_000_000,
        b"[[a]]\n" * 170_000,
        b"a = [" + b"1," * 500_000 + b"]",
        b"\n" * (1 << 20),
        b"a = 0x" + b"f" * 1_000_000,
        b"x" * (100 << 20),
    ],
    ids=range(14),
)
def test_too_much_of_anything_ends_soon(tmp_path, contents):
    refused(tmp_path, contents)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": ' * 50_000, "[" * 100_000, '{"a": 1e999}', '{"a": -Infinity}', '{"a": 1, "a": 2}', "{} {}",
        '{"a": 1',
        '{"__proto__": 1}', '{"model": "\\ud800"}', "9" * 5000, '"text"', "null", "{\"a\": 0x1}", "{'a': 1}",
    ],
)  # fmt: skip
def test_json_that_is_no_recipe(tmp_path, text):
    refused(tmp_path, text, "recipe.json")


def test_the_mark_of_some_editors_and_their_line_ends(tmp_path):
    text = PRUNE.format("amount = 0.5")
    for contents in (b"\xef\xbb\xbf" + text.encode(), text.replace("\n", "\r\n").encode()):
        (tmp_path / "recipe.toml").write_bytes(contents)
        assert load_recipe(tmp_path / "recipe.toml").recipe.stages[0].amount == 0.5


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('path = "model.onnx"', 'path = "payload:run"'),
        ('path = "model.onnx"', 'path = "payload.pt2"'),
        ('path = "model.onnx"', 'path = "payload.py"'),
        ('calibration = "calibration.npz"', 'calibration = "payload:run"'),
        ('evaluation = "evaluation.npz"', 'evaluation = "payload:run"'),
        ('metric = "agreement"', 'metric = "payload:run"'),
        ('recover = "reconstruct"', 'recover = "reconstruct"\ndata = "payload:run"'),
    ],
)
def test_code_is_not_run_for_a_recipe(tmp_path, monkeypatch, old, new):
    monkeypatch.chdir(tmp_path)
    ran = tmp_path / "ran"
    (tmp_path / "payload.py").write_text(
        f"from pathlib import Path\nPath({str(ran)!r}).touch()\ndef run(): pass\n"
    )
    (tmp_path / "payload.pt2").write_bytes(b"\x80\x04}.")
    text = recipe_projects.RECIPE.replace(old, new)
    assert text != recipe_projects.RECIPE
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises((UsageError, RecipeError), match="trust-input-code"):
        load_recipe(path)
    assert not ran.exists()


def test_code_by_an_override_or_a_variable(tmp_path, monkeypatch):
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_projects.RECIPE)
    with pytest.raises(UsageError, match="trust-input-code"):
        load_recipe(path, ["data.evaluation=payload:run"])
    path.write_text(recipe_projects.RECIPE.replace("calibration.npz", "${WHERE}"))
    loaded = load_recipe(path, environment={"WHERE": "payload:run"})
    assert loaded.recipe.data.calibration == str(tmp_path / "payload:run")  # a file of that name, no code


def test_the_command_tells_one_line(tmp_path, capsys):
    path = tmp_path / "recipe.toml"
    path.write_text(PRUNE.format('"\\u001b]0;x\\u0007::error::" = 1'))
    assert execute(["compress", str(path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.rstrip("\n").isprintable()
