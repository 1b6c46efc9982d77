"""Pictures of curves: there, the same each time, whatever the names are."""

from __future__ import annotations

import sys
from xml.etree import ElementTree as ET

import pytest

from onnxprune.errors import MissingExtra, OutputError, UsageError
from onnxprune.report import canvas, plot
from onnxprune.report.sensitivity import sensitivity_report
from onnxprune.types import Report

AMOUNTS = [0.25, 0.5, 0.75]


def report_of(names, scale=1.0):
    rows = [
        {
            "group": name, "size": 8, "removed": int(8 * amount), "removed_share": amount,
            "increase": scale * amount * (number + 1),
        }
        for number, name in enumerate(names)
        for amount in AMOUNTS
    ]  # fmt: skip
    whole = {"loss": 0.0, "top1_share": None}
    return sensitivity_report(rows, {}, metric="divergence", whole=whole, amounts=AMOUNTS, setting={})


def texts_of(path):
    return ["".join(node.itertext()) for node in ET.parse(path).iter() if node.tag.endswith("text")]


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib", reason="plots are an extra")


@pytest.mark.parametrize("count", [1, 5, plot._MOST_PICTURES, plot._MOST_PICTURES + 1])
def test_every_group_is_in_the_picture_the_most_sensitive_first(matplotlib, tmp_path, count):
    names = [f"layer{number:02}.conv" for number in range(count)]
    plot.draw_curves(report_of(names), tmp_path / "a.svg")
    shown = [text for text in texts_of(tmp_path / "a.svg") if text.startswith("layer")]
    assert shown == names[::-1]


@pytest.mark.parametrize("count", [3, 30])
def test_names_are_no_markup(matplotlib, tmp_path, count):
    names = ["a$\\frac{1}{0}$", "<script>x</script>", "b\x1b[31m", *(f"n{n}" for n in range(count))]
    plot.draw_curves(report_of(names), tmp_path / "a.svg")
    shown = texts_of(tmp_path / "a.svg")
    for name in ("a$\\frac{1}{0}$", "<script>x</script>", "b\\x1b[31m"):
        assert name in shown
    assert not any(node.tag.endswith("script") for node in ET.parse(tmp_path / "a.svg").iter())


def test_the_same_curves_give_the_same_file(matplotlib, tmp_path):
    for name in ("a.svg", "b.svg"):
        plot.draw_curves(report_of(["x", "y"]), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize(("ending", "begins"), [(".png", b"\x89PNG"), (".PDF", b"%PDF"), (".svg", b"<?xml")])
def test_the_ending_says_the_format(matplotlib, tmp_path, ending, begins):
    plot.draw_curves(report_of(["x"]), tmp_path / f"a{ending}")
    assert (tmp_path / f"a{ending}").read_bytes().startswith(begins)


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e9])
def test_any_size_of_figures_has_an_axis(matplotlib, tmp_path, scale):
    plot.draw_curves(report_of(["x", "y"], scale), tmp_path / "a.svg")
    assert "0" in texts_of(tmp_path / "a.svg")


def test_what_can_not_be_drawn_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"ends in \.svg, \.png or \.pdf"):
        canvas.check_plot(tmp_path / "a.gif")
    with pytest.raises(OutputError, match="no folder"):
        canvas.check_plot(tmp_path / "nowhere" / "a.svg")


def test_without_matplotlib_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"pip install onnxprune\[report\]"):
        canvas.check_plot(tmp_path / "a.svg")


def schedule_report():
    milestones = [{"step": 4, "share": 0.5}, {"step": 8, "share": 0.9}]
    progress = [{"step": step, "loss": 1 / (step + 1), "validation loss": None} for step in range(0, 12, 2)]
    return Report("pruned by <b>$x$</b>", {"milestones": milestones, "progress": progress})


def test_a_schedule_is_drawn_the_same_each_time(matplotlib, tmp_path):
    for name in ("a.svg", "b.svg"):
        plot.draw_schedule(schedule_report(), tmp_path / name)
    texts = texts_of(tmp_path / "a.svg")
    assert {"share removed", "steps", "loss", "pruned by <b>$x$</b>"} <= set(texts)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
