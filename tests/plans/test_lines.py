"""JSON with a line for each entry: it says the same, and a change of one entry is a change of one line."""

from __future__ import annotations

import json

import pytest

from onnxprune.plans.lines import in_lines

DOCUMENT = {
    "schema": 1, "name": "größe\n", "none": None, "groups": [{"a": [1, 2]}, {"b": {"c": []}}], "empty": [],
    "map": {"x": [1.5], "y": {}}, "nothing": {},
}  # fmt: skip


def test_it_says_the_same():
    text = in_lines(DOCUMENT)
    assert json.loads(text) == DOCUMENT
    assert text.isascii()


def test_a_line_for_each_entry():
    one, other = (
        in_lines({"groups": [{"n": 1}, {"n": n}, {"n": 3}], "seed": 0}).splitlines() for n in (2, 7)
    )
    assert [a for a, b in zip(one, other, strict=True) if a != b] == ['  {"n": 2},']


def test_no_number_that_json_lacks():
    with pytest.raises(ValueError, match="JSON compliant"):
        in_lines({"map": {"x": float("nan")}})
