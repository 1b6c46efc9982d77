"""The Markdown of a run, read by a parser: what it says, and that names stay names."""

from __future__ import annotations

import re

import pytest
import records
from markdown_it import MarkdownIt
from markdown_it.token import Token

from onnxprune.record import CheckRecord, Skip
from onnxprune.report.markdown import MOST_CHARACTERS, markdown
from onnxprune.report.markdown_text import code, prose

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])

#: Tags that the summary itself writes.
OURS = re.compile(r"</?(details|summary)>")


def tokens(text: str) -> list[Token]:
    """Return all tokens, those inside of lines too."""
    found: list[Token] = []
    for token in PARSER.parse(text):
        found += [token, *(token.children or [])]
    return found


def outside_code(text: str) -> str:
    """Return the text outside of code spans, which is where hosts look for mentions and links."""
    return "\n".join(token.content for token in tokens(text) if token.type == "text")


@pytest.mark.parametrize(
    "make", [records.hostile_record, records.failing_record, records.unclear_record, records.bare_record]
)
def test_names_are_no_markup(make):
    text = markdown(make())
    for token in tokens(text):
        assert token.type not in ("link_open", "image", "s_open", "em_open", "fence", "code_block", "hr")
        if token.type in ("html_block", "html_inline"):
            left = OURS.sub("", token.content)
            assert "<" not in left, left
    said = outside_code(text)
    assert not re.search(r"@\w|#\d|://|www\.|\$|:\w+:|GH-\d", said)
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_no_line_is_a_command_of_a_build_server():
    text = markdown(records.hostile_record())
    assert ":error" in text  # it is told, but is no command
    assert not re.search(r"^\s*::", text, re.MULTILINE)
    assert "##" not in re.sub(r"^#+ ", "", text, flags=re.MULTILINE)
    for command in ("##[error]gone", "##vso[task.setvariable]x", "a ##[group]b"):
        assert "##" not in code(command)
        assert "##" not in prose(command)


@pytest.mark.parametrize(
    "text",
    [
        "a|b", "`", "``a``", "a`b``c", " leading", "trailing `", "|", "\\|", "\\", "<b>", "a\\`b", "x" * 500,
        "*_~",
    ],
)  # fmt: skip
def test_a_name_comes_back_from_a_cell(text):
    """Parsed again, a name is one span of code with the same characters."""
    rows = f"| a | b |\n| --- | --- |\n| {code(text)} | end |\n"
    cells = [token for token in PARSER.parse(rows) if token.type == "inline"][2:]
    assert len(cells) == 2
    assert cells[1].content == "end"
    spans = [child for child in cells[0].children if child.type == "code_inline"]
    assert [child.type for child in cells[0].children if child.content] == ["code_inline"]
    shown = text.strip() if len(text) < 120 else f"{text[:120]}..."
    shown = shown.replace("\\|", "\\x5c|")
    assert spans[0].content.strip() == shown


def github_cells(line: str) -> int:
    """Return how many cells GitHub sees in a row: there, a backslash that is escaped escapes no bar."""
    return len(re.sub(r"\\[!-/:-@\[-`{-~]", "", line.strip()).strip("|").split("|"))


def test_no_name_ends_a_cell():
    assert github_cells(r"| `a\|b` | c |") == 2
    assert github_cells(r"| `a\\|b` | c |") == 3  # what a name with a backslash would do
    width = None
    for line in markdown(records.hostile_record()).splitlines():
        if line.startswith("|"):
            width = width or github_cells(line)
            assert github_cells(line) == width, line
        else:
            width = None


def test_an_empty_name_is_told():
    assert code("") == "(no name)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("top1 fell by 0.0037 (0.0015 to 0.0059) on 10,000 samples", None),
        ("at most 0.8 of the original's time", None),
        ("fell by -0.002, or 3%; 2.4e-06 is noise", None),
        ("12 zeros are lost in /fc/Gemm, and in a_b.", "12 zeros are lost in `/fc/Gemm`, and in `a_b`."),
        ("see @team and #12", "see `@team` and `#12`"),
        ("go to www.example.org now", "go to `www.example.org` now"),
        ("commit 1a2b3c4d5e6f of GH-12", "commit `1a2b3c4d5e6f` of `GH-12`"),
        ("- item", "`-` item"),
        ("1. item", "`1`. item"),
        (":tada: *bold* text", "`:tada: *bold*` text"),
    ],
)
def test_words_that_are_more_than_words_become_code(text, expected):
    assert prose(text) == (expected or text)


def test_what_failed_stands_first():
    text = markdown(records.failing_record())
    lines = text.splitlines()
    assert lines[0] == "### ❌ Failed: `digits_residual.onnx`"
    assert text.index("`accuracy_drop`") < text.index("`latency_ratio`")
    assert (
        "❌ **fail** | `accuracy_drop` | at most 0.001 below the original | 0.0037 (0.0015 to 0.0059)" in text
    )
    assert "- ❌ `zeros kept`: 12 of 3,752 zeros are lost in `/fc/Gemm`" in lines
    assert "and kept aside at `small.rejected.onnx`" in text
    assert "| `size_bytes` | 138 KiB | 137 KiB |" in text


def test_each_stage_has_its_row():
    table = markdown(records.passing_record()).split("**What each stage gave**")[1]
    rows = [line for line in table.splitlines() if line.startswith("| `")][:3]
    assert [row.split("`")[1] for row in rows] == ["original", "prune", "quantize"]
    assert "137 KiB 0.13×" in rows[2]
    assert "0.9834 (0.9807 to 0.9857)" in rows[2]
    assert "0.371 (0.360 to 0.384)" in rows[2]


def test_an_undecided_gate_does_not_look_passed():
    text = markdown(records.unclear_record())
    assert text.startswith("### ⚠️ Inconclusive")
    assert "about 3,400 samples would decide" in text
    assert "✅ Passed" not in text


def test_a_comment_is_never_too_long_and_never_cut_inside_a_block():
    record = records.large_record()
    names = [f"{number}{'|' * 200}" for number in range(3000)]
    failed = tuple(CheckRecord(name=name, passed=False, detail="_" * 400) for name in names)
    gates = tuple(record.gates[0].model_copy(update={"name": name}) for name in names)
    skipped = tuple(Skip(name=name, reason="x" * (number % 300)) for number, name in enumerate(names))
    huge = record.model_copy(
        update={"checks": failed, "gates": gates, "skipped": skipped, "commands": tuple(names)}
    )
    text = markdown(huge)
    assert len(text) <= MOST_CHARACTERS < 65_536
    assert "more" in text
    assert text.count("<details>") == text.count("</details>")
    assert text.count("| ✅ pass |") == 60
    assert len(markdown(record)) < 5000


def test_more_than_fits_is_said():
    record = records.passing_record()
    models = tuple(
        record.models[0].model_copy(update={"name": "|" * 100 + str(number)}) for number in range(500)
    )
    stages = record.model_copy(update={"models": models})
    gates = tuple(
        record.gates[0].model_copy(
            update={"name": "|" * 100 + str(number), "requirement": "`|" * 150, "verdict": "fail"}
        )
        for number in range(500)
    )
    text = markdown(stages.model_copy(update={"gates": gates, "checks": ()}))
    assert len(text) <= MOST_CHARACTERS
    assert "does not fit into a comment" in text
