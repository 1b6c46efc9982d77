from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.report.as_json import SCHEMA, as_json, document, to_text
from onnxprune.types import Check, Cost, Report, Skipped


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (3, 3),
        ("text", "text"),
        (0.5, 0.5),
        (float("nan"), None),
        (float("-inf"), None),
        (np.float32(0.5), 0.5),
        (np.float64("inf"), None),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.array([[1, 2]], dtype=np.int32), [[1, 2]]),
        (np.array([0.5, np.nan]), [0.5, None]),
        (Path("a/b.onnx"), str(Path("a/b.onnx"))),
        ((1, "x", None), [1, "x", None]),
        ({"b", "a"}, ["a", "b"]),
        ({0: "batch", "x": (1, 2)}, {"0": "batch", "x": [1, 2]}),
        (Cost(1, 2, 3), {"params": 1, "macs": 2, "size_bytes": 3}),
        ([Check("loads", True, "2 nodes")], [{"name": "loads", "passed": True, "detail": "2 nodes"}]),
    ],
)
def test_values(value, expected):
    found = as_json(value)
    assert found == expected
    assert type(found) is type(expected)


def test_a_report_says_whether_it_passed():
    report = Report(
        "verify", {"file": {"size_bytes": np.int64(3)}}, (Check("a", False, "b"),), (Skipped("c", "d"),)
    )
    assert as_json(report) == {
        "title": "verify",
        "passed": False,
        "sections": {"file": {"size_bytes": 3}},
        "checks": [{"name": "a", "passed": False, "detail": "b"}],
        "skipped": [{"name": "c", "reason": "d"}],
        "seconds": {},
    }


@pytest.mark.parametrize(
    "value", [object(), b"bytes", 1j, Cost, ir.Model(ir.Graph([], [], nodes=[]), ir_version=8)]
)
def test_what_is_no_value_is_refused(value):
    with pytest.raises(TypeError, match="is no JSON value"):
        as_json({"deep": [value]})


def test_a_document_names_schema_command_and_version():
    made = document("verify", "0.1.0", Report("t"))
    assert list(made)[:3] == ["schema", "command", "version"]
    assert (made["schema"], made["command"], made["version"], made["title"]) == (
        SCHEMA,
        "verify",
        "0.1.0",
        "t",
    )
    with pytest.raises(TypeError):
        document("verify", "0.1.0", [1, 2])


def test_text_is_ascii_and_strict():
    text = to_text({"name": "\x1b[2J\u202e模型", "value": float("nan")})
    assert text.isascii()
    assert "\x1b" not in text
    assert json.loads(text) == {"name": "\x1b[2J\u202e模型", "value": None}


def test_results_of_any_stage_become_objects():
    @dataclasses.dataclass(frozen=True)
    class Result:
        low: float
        rows: tuple[Cost, ...]

    assert as_json(Result(np.float64(1), (Cost(1, 2, 3),))) == {
        "low": 1.0,
        "rows": [{"params": 1, "macs": 2, "size_bytes": 3}],
    }
