"""Figures as reports write them."""

from __future__ import annotations

import pytest
import records

from onnxprune.record import Interval
from onnxprune.report import figures


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"), (7, "7"), (999, "999"), (1000, "1.00 k"), (9994, "9.99 k"), (9996, "10.0 k"),
        (99_960, "100 k"),
        (272_474, "272 k"), (999_499, "999 k"), (999_600, "1.00 M"), (41_211_904, "41.2 M"),
        (7.4e9, "7.40 G"),
    ],
)  # fmt: skip
def test_counts_have_three_digits(count, text):
    assert figures.count_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.9, "9.9 s"),
        (41.3, "41 s"),
        (59.7, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations(seconds, text):
    assert figures.seconds_text(seconds) == text


def test_a_column_has_one_number_of_decimals():
    narrow = Interval(value=0.98341, low=0.9807, high=0.9857, count=1)
    wide = Interval(value=0.8, low=0.7, high=0.9, count=1)
    digits = figures.common_decimals([narrow, None, wide])
    assert figures.interval_text(narrow, digits) == "0.9834 (0.9807 to 0.9857)"
    assert figures.interval_text(wide, digits) == "0.8000 (0.7000 to 0.9000)"
    assert figures.interval_text(wide) == "0.80 (0.70 to 0.90)"
    assert figures.interval_text(None) == "–"


def test_zero_has_no_sign():
    assert (
        figures.interval_text(Interval(value=-0.0, low=-0.006, high=0.006, count=1))
        == "0.000 (-0.006 to 0.006)"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2026-03-14T09:12:03Z", "2026-03-14 09:12:03 UTC"),
        ("2026-03-14T10:12:03+01:00", "2026-03-14 09:12:03 UTC"),
        ("2026-03-14T09:12:03", "2026-03-14 09:12:03 UTC"),
        ("yester\nday", "yester\\nday"),
    ],
)
def test_times(text, shown):
    assert figures.time_text(text) == shown


def test_gates_in_bytes_have_a_unit():
    gate = records.passing_record().gates[2]
    size = gate.model_copy(update={"name": "size", "measured": 139_778.0})
    assert figures.measured_text(size) == "137 KiB"
    assert figures.measured_text(gate) == "0.127"
    assert figures.measured_text(gate.model_copy(update={"measured": None})) == "not measured"


@pytest.mark.parametrize(
    ("ratio", "told"),
    [
        ((0.5, 0.45, 0.55), ("2.00×", "as fast")),
        ((1.25, 1.2, 1.3), ("1.25×", "the time")),
        ((0.99, 0.97, 1.01), ("", "no difference in time")),
    ],
)
def test_a_gain_in_time_is_told_only_where_its_interval_says_so(ratio, told):
    record = records.passing_record()
    value, low, high = ratio
    last = record.models[-1].model_copy(
        update={"latency_ratio": Interval(value=value, low=low, high=high, count=9)}
    )
    record = record.model_copy(update={"models": (*record.models[:-1], last)})
    assert figures.time_gain(record) == told
    assert told[1] in figures.gain_line(record)


def test_a_larger_file_is_no_gain():
    record = records.passing_record()
    turned = record.model_copy(update={"models": record.models[::-1]})
    assert figures.size_gain(record) == ("7.9×", "smaller")
    assert figures.size_gain(turned) == ("7.9×", "larger")
