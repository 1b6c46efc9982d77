from __future__ import annotations

import io

import pytest
from rich.console import Console

from onnxprune.report.table import cell, plain_text, render, shortened, size_text
from onnxprune.types import Check, Report, Skipped

ESTIMATE = {"value": 0.5, "low": 0.45, "high": 0.56, "count": 40}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("x", None, "-"),
        ("known", True, "yes"),
        ("open", False, "no"),
        ("macs", 1234567, "1,234,567"),
        ("median_ms", 0.123456, "0.1235"),
        ("sparsity", 0.5, "50.0%"),
        ("ratio", 0.25, "0.250"),
        ("latency_ratio", 1, "1.000"),
        ("size_bytes", 1023, "1023 B"),
        ("size_bytes", 1024, "1.00 KiB"),
        ("shape", (64, 3, 3, 3), "64x3x3x3"),
        ("shape", ["n", 3], "nx3"),
        ("shape", (), "scalar"),
        ("compared_batch_sizes", (1, 2, 5), "1, 2, 5"),
        ("input_shapes", {"x": (1, 3), "y": (2,)}, "x: 1x3, y: 2"),
        ("model", ESTIMATE, "0.50 (0.45 to 0.56)"),
        ("model", {"value": 1.0, "low": 1.0, "high": 1.0}, "1.0000 (1.0000 to 1.0000)"),
        ("name", "a\nb\x1b", "a\\nb\\x1b"),
    ],
)
def test_cells(key, value, expected):
    assert cell(key, value) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 B"), (1536, "1.50 KiB"), (12 << 10, "12.0 KiB"), (345 << 20, "345 MiB"), (5 << 40, "5.00 TiB"),
        (9 << 50, "9216 TiB"),
    ],
)  # fmt: skip
def test_sizes(size, expected):
    assert size_text(size) == expected


def test_names_lose_their_middle_and_keep_their_end():
    name = "encoder.layers.encoder_layer_11.self_attention.out_proj.weight"
    assert shortened(name, 100) == name
    found = shortened(name, 30)
    assert len(found) == 30
    assert found.startswith("encoder")
    assert found.endswith("out_proj.weight")


def rows(count, name="block{}.conv.weight"):
    return [
        {"tensor": name.format(i), "shape": [64, 64, 3, 3], "zeros": 7, "sparsity": 0.5} for i in range(count)
    ]


@pytest.fixture
def report():
    return Report(
        "prune a -> b",
        {"file": {"path": "a.onnx", "size_bytes": 2048}, "weights": rows(300), "empty": [], "none": {}},
        (Check("loads", True, "3 nodes"), Check("twin", False, "error 1.0")),
        tuple(Skipped(f"layer{i}", f"norm_{i} takes the mean") for i in range(300)),
        {"analyze": 1.0, "prove": 2.5, "cut": 0.001},
    )


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("verbose", [False, True])
def test_no_line_is_wider_than_asked(report, width, verbose):
    text = plain_text(report, width=width, verbose=verbose)
    assert max(len(line) for line in text.splitlines()) <= width


def test_a_long_model_stays_readable(report):
    text = plain_text(report, hint=" (--verbose)")
    assert len(text.splitlines()) < 60
    assert "... 280 more (--verbose)" in text
    assert "300" in text
    assert "layer0, layer1, layer2, ..." in text
    assert "3.50 s (analyze 1.00, prove 2.50)" in text


def test_verbose_leaves_nothing_out(report):
    text = plain_text(report, verbose=True)
    for i in range(300):
        assert f"block{i}.conv.weight" in text
        assert f"layer{i} " in text
    assert "cut 0.00" in text


def test_checks_say_which_failed(report):
    lines = plain_text(report).splitlines()
    assert any(line.startswith("ok") and "loads" in line for line in lines)
    assert any(line.startswith("FAILED") and "twin" in line for line in lines)


def test_empty_sections_have_no_heading(report):
    text = plain_text(report)
    assert "empty" not in text
    assert "none" not in text


def test_every_row_keeps_one_line_in_80_columns():
    long = rows(5, name="backbone.body.encoder.layers.{}.self_attention.output_projection.weight")
    lines = plain_text(
        Report("t", {"weights": [{**row, "pattern": "2:4", "operator": "MatMul"} for row in long]}), width=80
    )
    found = [line for line in lines.splitlines() if line.split()[-2:] == ["2:4", "MatMul"]]
    assert len(found) == 5
    assert all("64x64x3x3" in line and "50.0%" in line for line in found)


def test_intervals_go_below_their_figures_where_there_is_no_room():
    wide = [{"samples": "all samples", "reference": ESTIMATE, "model": ESTIMATE, "change": ESTIMATE}]
    assert plain_text(Report("t", {"accuracy": wide}), width=100).count("0.50 (0.45 to 0.56)") == 3
    narrow = plain_text(Report("t", {"accuracy": wide}), width=60)
    assert narrow.count("(0.45 to 0.56)") == 3
    assert max(map(len, narrow.splitlines())) <= 60


def test_names_from_models_are_no_markup_and_no_escapes():
    name = "[bold red]x[/] \x1b[2J\r\u202e [link=http://a]b"
    report = Report(
        name, {name: {name: name}, "rows": [{name: name}]}, (Check(name, True, name),), (Skipped(name, name),)
    )
    stream = io.StringIO()
    console = Console(file=stream, width=200, force_terminal=False, color_system=None)
    for verbose in (False, True):
        for part in render(report, width=200, verbose=verbose):
            console.print(part)
    text = stream.getvalue()
    assert not {"\x1b", "\r", "\u202e"} & set(text)
    assert text.count("[bold red]x[/]") == 20


def test_columns_without_room_go_and_are_named():
    wide = [
        {"tensor": "a" * 30, "consumer": "b" * 30, "operator": "Conv", **{f"n{i}": 10**9 for i in range(3)}}
    ]
    text = plain_text(Report("t", {"weights": wide}), width=80, hint=" (--verbose)")
    assert max(map(len, text.splitlines())) <= 80
    assert "... no room for consumer (--verbose)" in text
    assert text.count("1,000,000,000") == 3
    assert "Conv" in text
    assert "b" * 30 in plain_text(Report("t", {"weights": wide}), width=140)
    assert "consumer" not in plain_text(Report("t", {"weights": wide}), width=80).split("... no")[0]
