"""What the documents say is so: commands parse, code runs, tables are complete."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest
import small_models

import onnxprune
from onnxprune.allocate import masks
from onnxprune.allocate.options import KNAPSACK, SENSITIVITY
from onnxprune.allocate.ranked import RANKINGS
from onnxprune.ops import base, registry
from onnxprune.recover import METHODS
from onnxprune.scores import magnitude
from onnxprune.scores.influence import BRANCH_SCORERS
from onnxprune.scores.magnitude import CHANNEL_SCORERS
from onnxprune.scores.movement import MOVEMENT_SCORERS
from onnxprune.scores.on_data import DATA_SCORERS
from onnxprune.scores.weights import WEIGHT_SCORERS
from onnxprune.scores.weights_by_gradient import GRADIENT_WEIGHT_SCORERS
from onnxprune.scores.weights_on_data import DATA_WEIGHT_SCORERS
from onnxprune_cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for folder in (
        ".",
        "docs",
        "samples",
        "samples/ci",
        "samples/digits",
        "samples/gradual",
        "samples/text-direction",
        "benchmarks/accuracy",
        "benchmarks/latency",
    )
    for path in sorted((ROOT / folder).glob("*.md"))
}
COMMAND_LINES = [
    line
    for text in DOCUMENTS.values()
    for line in re.findall(r"^ *(?:\$ )?(onnxprune [a-z]+ .*?)(?: +#.*)?$", text, re.MULTILINE)
    if line.split()[1] in COMMANDS
]


def code_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_every_command_line_parses(line):
    _, name, *arguments = shlex.split(line)
    command = main.get_command(click.Context(main), name)
    with command.make_context(name, arguments) as context:
        assert context.params


def test_every_command_is_shown():
    shown = re.findall(r"^\$ onnxprune (\w+)", README, re.MULTILINE)
    assert set(shown) == set(COMMANDS)
    assert names_in(README, "command") == set(COMMANDS)


def test_every_operator_with_a_rule_is_in_the_table():
    table = DOCUMENTS["docs/operators.md"].split("\n\n")[2]
    listed = [name for row in table.splitlines()[2:] for name in row.split("|")[2].strip().split(", ")]
    known = [f"{domain}.{name}" if domain else name for domain, name in base._RULES]
    assert registry.FAMILIES
    assert len(listed) == len(set(listed))
    assert sorted(set(known) - set(listed)) == [], "add these to the table of docs/operators.md"
    assert sorted(set(listed) - set(known)) == [], (
        "these are in the table of docs/operators.md and have no rule"
    )


def test_every_public_name_is_mentioned():
    assert [name for name in onnxprune.__all__ if name[0].islower() and name not in README] == []


def test_the_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_models.save_model(small_models.residual_net(), Path("model.onnx"))
    (code,) = code_blocks(README)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 # our own text
    assert Path("small.onnx").stat().st_size < Path("model.onnx").stat().st_size
    assert Path("small.plan/plan.json").is_file()


def example_of(word: str) -> str:
    (code,) = (block for block in code_blocks(CONTRIBUTING) if word in block)
    return code


def test_the_example_of_an_operator_works(tmp_path, monkeypatch):
    monkeypatch.setattr(
        base, "_RULES", {key: rule for key, rule in base._RULES.items() if key[1] != "CumSum"}
    )
    proto = small_models.concat_net()
    for node in proto.graph.node:
        if node.op_type == "Relu" and node.output[0] == "stem_relu":
            node.op_type = "CumSum"
            node.input.append("axis")
    proto.graph.initializer.append(small_models.int_constant("axis", 3))
    path = small_models.save_model(proto, tmp_path / "m.onnx")

    def stem() -> str | None:
        groups = {group.name: group.frozen for group in onnxprune.find_groups(onnxprune.load(path))}
        return groups["stem"]

    assert "nothing is known of CumSum" in str(stem())
    code = example_of("@op_rule")
    assert len(code.splitlines()) <= 12
    exec(compile(code, "CONTRIBUTING.md", "exec"), dict(vars(base)))  # noqa: S102 # our own text
    assert stem() is None
    result = onnxprune.prune(onnxprune.load(path), amount=0.5)  # raises where the rule is wrong
    assert result.report.passed


def test_the_example_of_a_score_works(tmp_path, monkeypatch):
    monkeypatch.setattr(magnitude.CHANNEL_SCORERS, "_entries", dict(magnitude.CHANNEL_SCORERS._entries))
    exec(compile(example_of("@CHANNEL_SCORERS"), "CONTRIBUTING.md", "exec"), dict(vars(magnitude)))  # noqa: S102
    path = small_models.save_model(small_models.mlp(), tmp_path / "m.onnx")
    model = onnxprune.load(path)
    scores = onnxprune.score(model, onnxprune.find_groups(model), "l4")
    assert {name: values.shape for name, values in scores.channels.items()} == {"fc1": (32,), "fc2": (32,)}


def test_examples_are_python():
    for text in (README, CONTRIBUTING):
        for code in code_blocks(text):
            ast.parse(code)


def names_in(text: str, heading: str) -> set[str]:
    """Return what stands in backquotes in the first column of the table whose first heading this is."""
    (table,) = (part for part in text.split("\n\n") if part.startswith(f"| {heading} |"))
    return {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}


SCORES = {
    "channels": {*CHANNEL_SCORERS, *DATA_SCORERS, *MOVEMENT_SCORERS},
    "zeros": {*WEIGHT_SCORERS, *DATA_WEIGHT_SCORERS, *GRADIENT_WEIGHT_SCORERS, *MOVEMENT_SCORERS}
    - {"magnitude"},  # another name of l1
    "layers": set(BRANCH_SCORERS),
}


def test_every_score_is_in_the_tables():
    assert names_in(README, "`--score`") == set().union(*SCORES.values())
    for heading, known in zip(("Channels", "Zeros", "Layers"), SCORES.values(), strict=True):
        section = DOCUMENTS["docs/scores.md"].split(f"\n## {heading}")[1].split("\n## ")[0]
        assert names_in(section, "`--score`") == known, heading


def test_the_table_says_what_each_score_is_for():
    (table,) = (part for part in README.split("\n\n") if part.startswith("| `--score` |"))
    for row in table.splitlines()[2:]:
        names, patterns, data, _ = (cell.strip() for cell in row.split("|")[1:5])
        for name in re.findall(r"`(\w+)`", names):
            kinds = {kind for kind in SCORES if kind in patterns or patterns == "all"}
            kinds -= {"layers"} if name == "l1" else set()
            assert kinds == {kind for kind, known in SCORES.items() if name in known}, name
            on_data = {*DATA_SCORERS, *DATA_WEIGHT_SCORERS, *GRADIENT_WEIGHT_SCORERS, "influence"}
            assert (data == "yes") == (name in on_data), name


def test_every_scope_and_repair_is_in_the_tables():
    for text in (README, DOCUMENTS["docs/scores.md"]):
        assert names_in(text, "`--scope`") == {*RANKINGS, KNAPSACK, SENSITIVITY, *masks.SCOPES}
    for text in (README, DOCUMENTS["docs/repair.md"]):
        assert names_in(text, "`--recover`") == set(METHODS)


def test_links_lead_somewhere():
    found = 0
    for name, text in DOCUMENTS.items():
        for target, _, heading in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]*))?\)", text):
            file = (ROOT / name).parent / target if target else ROOT / name
            assert file.exists(), f"{name}: {target}"
            if heading:
                titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
                assert heading in slugs, f"{name}: {target}#{heading}"
            found += 1
    assert found > 10


def test_links_inside_the_project_lead_somewhere():
    for text in DOCUMENTS.values():
        for name in re.findall(r"`((?:onnxprune|cli|tests|samples|benchmarks)/[\w/.-]*)`", text):
            assert (ROOT / name).exists(), name


def test_every_promise_names_tests_that_are_there():
    security = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [line for line in security.splitlines() if line.startswith("| **")]
    assert len(rows) == 10
    for row in rows:
        named = re.findall(r"`(tests/[^`]+)`", row)
        assert named, row
        for name in named:
            place = ROOT / name
            assert place.is_file() or any(place.glob("test_*.py")), name
