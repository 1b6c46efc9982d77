"""The picture of a family: every model in it, its description inside, names apart and no markup."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from test_report_family import TOP1, rows_of

from onnxprune.errors import MissingExtra, UsageError
from onnxprune.report import pareto
from onnxprune.report.family import describe_family, family_report
from onnxprune.report.pareto import draw_family

matplotlib = pytest.importorskip("matplotlib", reason="plots are an extra")

SVG = "{http://www.w3.org/2000/svg}"
FIGURES = [(1.0, 100, 0.9), (0.8, 80, 0.89), (0.4, 40, 0.8), (0.41, 41, 0.7)]


def report_of(targets=(0.8, 0.4, 0.35), judged=TOP1, name="a"):
    rows = rows_of(*FIGURES)
    rows[1]["model"] = name
    for row, target in zip(rows[1:], targets, strict=True):
        row["target"] = target
    return replace(family_report(rows, judged=judged, setting={}, seconds={}), title="net: a family")


def drawn(path: Path, **options):
    draw_family(report_of(**options), path)
    return ET.parse(path).getroot()


def texts_of(root):
    return ["".join(node.itertext()) for node in root.iter(f"{SVG}text")]


@pytest.mark.parametrize(("judged", "panels"), [(TOP1, 2), (None, 1)])
def test_every_model_is_named_in_every_panel(tmp_path, judged, panels):
    texts = texts_of(drawn(tmp_path / "a.svg", judged=judged))
    assert [texts.count(name) for name in ("original", "0.35")] == [panels, panels]
    assert texts.count("latency, share of the original's") == 1
    assert texts.count("another is as good or better in everything") == (1 if judged else 0)


def test_who_can_not_see_it_can_read_it(tmp_path):
    root = drawn(tmp_path / "a.svg")
    assert root.get("role") == "img"
    by_id = {node.get("id"): node for node in root}
    title, description = (by_id[name] for name in str(root.get("aria-labelledby")).split())
    assert (title.tag, title.text) == (f"{SVG}title", "net: a family")
    assert (description.tag, description.text) == (f"{SVG}desc", describe_family(report_of()))
    assert len(root.findall(f"{SVG}title")) == 1


@pytest.mark.parametrize("ending", [".png", ".pdf"])
def test_other_formats_hold_the_description_too(tmp_path, ending):
    draw_family(report_of(), tmp_path / f"a{ending}")
    assert b"net: a family" in (tmp_path / f"a{ending}").read_bytes()
    assert b"leaves it behind" in (tmp_path / f"a{ending}").read_bytes()


def test_the_same_family_gives_the_same_file(tmp_path):
    for name in ("a.svg", "b.svg"):
        drawn(tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_targets_and_names_are_no_markup(tmp_path):
    root = drawn(tmp_path / "a.svg", targets=("$x$", "<b>&amp;</b>", "1\x1b[31m"), name="<b>&amp;</b>.onnx")
    (description,) = root.iter(f"{SVG}desc")
    assert "<b>&amp;</b>.onnx: 0.800" in str(description.text)
    texts = texts_of(root)
    assert {"$x$", "<b>&amp;</b>", "1\\x1b[31m"} <= set(texts)
    assert not any(node.tag == f"{SVG}b" for node in root.iter())


def test_names_do_not_lie_on_each_other():
    """Three marks at one place: each name gets a box of its own."""
    from matplotlib.figure import Figure

    with matplotlib.rc_context(pareto.STYLE):
        figure = Figure(figsize=(3, 3))
        axes = figure.subplots()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        figure.draw_without_rendering()
        rows = [{"target": target} for target in (0.5, 0.51, 0.52)]
        pareto._name(axes, rows, [(0.5, 0.5), (0.5, 0.501), (0.5, 0.502)])
        boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 3
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])


def test_what_can_not_be_drawn_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"ends in \.svg, \.png or \.pdf"):
        draw_family(report_of(), tmp_path / "a.gif")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"pip install onnxprune\[report\]"):
        draw_family(report_of(), tmp_path / "a.svg")
