"""What may be asked, and what is refused before anything is measured."""

from __future__ import annotations

import pytest
from gate_evidence import answers, changed
from pydantic import ValidationError

from onnxprune.errors import DataError, UsageError
from onnxprune.gates.settings import (
    GATES,
    HOW,
    ON_DATA,
    ON_MEMORY,
    ON_TIME,
    GateSettings,
    check_data,
    check_settings,
)


def test_every_key_says_what_it_means():
    assert all(field.description for field in GateSettings.model_fields.values())
    assert {*GATES, *HOW} == set(GateSettings.model_fields)
    assert {*ON_DATA, *ON_TIME, *ON_MEMORY} <= set(GATES)


def test_nothing_is_asked_by_default():
    assert GateSettings().asked() == ()
    assert GateSettings(accuracy_drop=0, confidence=0.9).asked() == ("accuracy_drop",)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("accuracy_dorp", 0.1),
        ("accuracy_drop", -0.1),
        ("accuracy_drop", float("nan")),
        ("accuracy_drop", float("inf")),
        ("accuracy_drop", True),
        ("accuracy_drop", "one"),
        ("accuracy_relative", 0),
        ("accuracy_relative", 1.1),
        ("agreement", 95),
        ("latency_ratio", 0),
        ("latency_p95_ms", -1),
        ("size", "4 elephants"),
        ("size", 0),
        ("size", -5),
        ("size", True),
        ("sparsity", 50),
        ("operators", []),
        ("operators", [""]),
        ("operators", ["Relux"]),
        ("operators_forbidden", ["QGemm"]),
        ("opset", 0),
        ("opset", 17.5),
        ("confidence", 1),
        ("confidence", 0.5),
        ("confidence", 95),
        ("inconclusive", "ignore"),
    ],
)
def test_what_is_out_of_range_is_refused(key, value):
    with pytest.raises(ValidationError):
        GateSettings(**{key: value})


@pytest.mark.parametrize(
    ("text", "size"), [("4 MiB", 4 << 20), ("500 kB", 500_000), ("1234", 1234), (1234, 1234)]
)
def test_sizes_have_units(text, size):
    assert GateSettings(size=text).size == size


def test_values_may_come_as_text():
    settings = GateSettings(accuracy_drop="0.01", opset="17", operators="Conv, com.microsoft:QGemm")
    assert (settings.accuracy_drop, settings.opset) == (0.01, 17)
    assert settings.operators == ("Conv", "com.microsoft:QGemm")


def test_a_misspelt_operator_forbids_nothing_and_is_refused():
    with pytest.raises(ValidationError, match=r"'Softmx' is no ONNX operator \(did you mean 'Softmax'\?\)"):
        GateSettings(operators_forbidden=["Softmx"])
    names = ("Conv", "com.microsoft:QGemm", "*Norm*", "ai.onnx:Upsample")
    assert GateSettings(operators=names).operators == ("Conv", "com.microsoft:QGemm", "*Norm*", "Upsample")


@pytest.mark.parametrize(
    ("asked", "metric", "message"),
    [
        ({"accuracy_drop": 1}, "top1", "one point of it is 0.01"),
        ({"segment_drop": 5}, "top5", "one point of it is 0.01"),
        ({"accuracy": 92}, "top1", "a share between 0 and 1"),
        ({"accuracy": 0}, "top1", "a share between 0 and 1"),
        ({"worst_segment": -1}, "top1", "a share between 0 and 1"),
        ({"boundary_drop": 0.1}, "mse", "needs classes"),
        ({"accuracy_drop": 0.1}, "agreement", "use the gate accuracy"),
        ({"accuracy_drop": 0.1, "higher_is_better": False}, "top1", "higher is better"),
        ({"accuracy_drop": 0.1, "higher_is_better": True}, "mse", "lower is better"),
        ({"accuracy": 3.0}, "math:fsum", "set higher_is_better"),
        ({"segments": ["day"]}, "top1", "neither is asked for"),
    ],
)
def test_gates_that_could_not_be_judged_are_refused(asked, metric, message):
    with pytest.raises(UsageError, match=message):
        check_settings(GateSettings(**asked), has_data=True, metric=metric)


@pytest.mark.parametrize("name", ON_DATA)
def test_accuracy_needs_data(name):
    with pytest.raises(UsageError, match=f"gate {name} needs evaluation data"):
        check_settings(GateSettings(**{name: 0.5}), has_data=False, metric="top1")


def test_other_gates_need_none():
    check_settings(GateSettings(latency_ratio=1, size=5), has_data=False, metric="nonsense")


def test_the_direction_of_ones_own_metric():
    settings = GateSettings(accuracy=3.0, higher_is_better=False)
    check_settings(settings, has_data=True, metric="math:fsum")
    assert settings.direction(None) is False
    assert GateSettings().direction(True) is True


class TestSegments:
    data = answers([True] * 4, [True] * 4, ["day", "day", "night", "night"])

    def test_all_of_them_by_default(self):
        assert check_data(GateSettings(segment_drop=0.1), self.data, "top1") == ("day", "night")

    def test_those_that_are_named(self):
        settings = GateSettings(worst_segment=0.1, segments=["night"])
        assert check_data(settings, self.data, "top1") == ("night",)

    def test_none_where_no_gate_asks(self):
        assert check_data(GateSettings(accuracy_drop=0.1), self.data, "top1") == ()

    def test_a_missing_one(self):
        settings = GateSettings(segment_drop=0.1, segments=["day", "nigt"])
        with pytest.raises(DataError, match=r"no segment 'nigt' \(did you mean 'night'\?\)"):
            check_data(settings, self.data, "top1")

    def test_data_without_segments(self):
        with pytest.raises(DataError, match="segment_drop needs segments"):
            check_data(GateSettings(segment_drop=0.1), changed(20), "top1")


def test_data_without_labels_is_found_before_anything_runs():
    data = type(changed(20)).from_arrays(dict(changed(20).arrays), "bare.npz")
    with pytest.raises(DataError, match=r"bare\.npz: metric 'top1' needs labels"):
        check_data(GateSettings(accuracy=0.5), data, "top1")
    assert check_data(GateSettings(accuracy=0.5), data, "agreement") == ()
