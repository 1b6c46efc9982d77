"""The report of a family: who is on the front, what was reached, and sentences that say it all."""

from __future__ import annotations

import pytest

from onnxprune.report.as_json import to_text
from onnxprune.report.family import Judged, describe_family, family_report, front
from onnxprune.report.table import plain_text

TOP1 = Judged("top1", True, "eval.npz")


def estimate(value, half=0.01):
    return {"value": value, "low": value - half, "high": value + half, "count": 60}


def row(model, time, zstd, accuracy=None, target=0.5):
    first = model == "original"
    return {
        "model": model, "target": None if first else target, "reached_ratio": None,
        "latency_ratio": estimate(time),
        "verdict": None if first else "faster", "macs": int(1000 * time), "params": zstd // 4,
        "size_bytes": 2 * zstd, "zstd_bytes": zstd,
        "accuracy": None if accuracy is None else estimate(accuracy), "change": None,
    }  # fmt: skip


def rows_of(*figures):
    """From (time, size, accuracy) of the original and of members a, b, ..."""
    names = ["original", *"abcdef"]
    return [row(name, *figure) for name, figure in zip(names, figures, strict=False)]


@pytest.mark.parametrize(
    ("figures", "behind"),
    [
        ([(1.0, 100, 0.9), (0.5, 50, 0.8)], {}),
        ([(1.0, 100, 0.9), (0.5, 50, 0.9)], {0: 1}),  # as accurate, faster, smaller
        ([(1.0, 100, 0.9), (0.5, 50, 0.8), (0.5, 50, 0.8)], {}),  # two alike leave neither behind
        (
            [(1.0, 100, 0.9), (0.5, 50, 0.8), (0.6, 40, 0.7)],
            {},
        ),  # the smallest
        ([(1.0, 100, 0.9), (0.5, 50, 0.8), (0.6, 50, 0.7)], {2: 1}),
        (
            [(1.0, 100, 0.9), (0.5, 50, 0.80), (0.4, 40, 0.85), (0.6, 60, 0.7)],
            {1: 2, 3: 2},
        ),  # the best
    ],
)
def test_the_front_is_what_nothing_leaves_behind(figures, behind):
    assert front(rows_of(*figures), higher_is_better=True) == behind


def test_the_direction_of_the_metric_counts():
    rows = rows_of((1.0, 100, 0.1), (0.5, 50, 0.2))
    assert front(rows, higher_is_better=True) == {0: 1}
    assert front(rows, higher_is_better=False) == {}


def test_costs_are_shares_of_the_original():
    report = family_report(rows_of((1.0, 100, 0.9), (0.5, 40, 0.8)), judged=TOP1, setting={}, seconds={})
    (_, member) = report.sections["cost"]
    assert (member["MACs_ratio"], member["parameters_ratio"], member["zstd_ratio"]) == (0.5, 0.4, 0.4)
    assert report.sections["family"][1]["top1"] == estimate(0.8)


def test_without_accuracy_or_a_direction_there_is_no_front():
    rows = rows_of((1.0, 100, 0.9), (0.5, 50, 0.9))
    for judged in (None, Judged("mine:metric", None, "eval.npz")):
        report = family_report(rows, judged=judged, setting={}, seconds={})
        assert "not on the front" not in report.sections
    told = family_report(rows, judged=TOP1, setting={}, seconds={})
    assert told.sections["not on the front"] == [{"model": "original", "because_of": "a"}]


def test_a_missed_target_is_in_all_forms_of_the_report():
    reasons = ("stem: frozen: an output", "tail: at its floor")
    missed = [
        {"target": 0.05, "reached": 0.11, "reason": "within the floors 0.110 stays", "reasons": reasons}
    ]
    rows = rows_of((1.0, 100, 0.9), (0.5, 50, 0.8))
    report = family_report(rows, judged=TOP1, missed=missed, setting={"threads": 1}, seconds={})
    assert "within the floors 0.110 stays" in plain_text(report)
    assert "within the floors 0.110 stays" in to_text(report)
    assert "Target 0.05 was missed." in describe_family(report)
    assert report.sections["in the way of 0.05"] == [
        {"what": "stem", "reason": "frozen: an output"},
        {"what": "tail", "reason": "at its floor"},
    ]


def test_the_sentences_say_what_the_picture_shows():
    rows = rows_of((1.0, 1 << 20, 0.9), (0.5, 1 << 19, 0.8), (0.6, 1 << 19, 0.7))
    text = describe_family(family_report(rows, judged=TOP1, setting={}, seconds={}))
    assert "a: 0.500 (0.490 to 0.510) of the time, 512 KiB as zstd, top1 0.800 (0.790 to 0.810)." in text
    assert "b: 0.600 (0.590 to 0.610) of the time" in text
    assert text.endswith("top1 0.700 (0.690 to 0.710); a leaves it behind.")
    assert text.count("leaves it behind") == 1
