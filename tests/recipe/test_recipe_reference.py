"""The reference in the documents is what the schema says."""

from __future__ import annotations

from pathlib import Path

from onnxprune.recipe.reference import reference

DOCUMENT = Path(__file__).parents[2] / "docs" / "recipe.md"
COMMAND = "python -m onnxprune.recipe.reference"


def test_the_document_holds_the_reference():
    _, marker, written = DOCUMENT.read_text(encoding="utf-8").partition(f"printed by: {COMMAND} -->\n")
    assert marker
    assert written.strip() == reference().strip(), f"put what {COMMAND} prints at the end of {DOCUMENT.name}"


def test_every_key_says_what_it_means():
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert not [row for row in rows if row.endswith("| None |")]
