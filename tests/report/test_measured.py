from __future__ import annotations

import pytest

from onnxprune.report.measured import accuracy_report, latency_report

TIMING = {"median_ms": 1.0, "p95_ms": 1.5, "minimum_ms": 0.9, "runs": 60}


def estimate(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "count": 40}


def latency(**changes):
    return {
        "a": TIMING, "b": {**TIMING, "median_ms": 0.5}, "ratio": estimate(0.5), "control": estimate(1.0),
        "cpu_ratio": None, "cpu_control": None, "verdict": "faster", "pairs": 60, "repeats": 2,
        "provider": "cpu", "options": {}, "threads": 1, "spinning": False, "arena": True, "pin": None,
        "on_device": None, "input_shapes": {"x": (1, 3)},
        "percentiles": [{"percentile": "p95", "ratio": estimate(0.6), "control": estimate(1.0)}], **changes,
    }  # fmt: skip


def test_two_models_are_compared():
    sizes = [{"size_bytes": 10, "zstd_bytes": 9}, {"size_bytes": 5, "zstd_bytes": 4}]
    report = latency_report(["a.onnx", "b.onnx"], latency(), sizes=sizes)
    assert report.title == "bench b.onnx against a.onnx"
    assert [(row["model"], row["median_ms"]) for row in report.sections["latency"]] == [
        ("a.onnx", 1.0),
        ("b.onnx", 0.5),
    ]
    assert report.sections["comparison"] == {
        "verdict": "faster", "latency_ratio": estimate(0.5), "control_ratio": estimate(1.0),
    }  # fmt: skip
    assert report.sections["size on disk"][1] == {"model": "b.onnx", "size_bytes": 5, "zstd_bytes": 4}
    assert report.sections["percentiles"] == [
        {"percentile": "p95", "latency_ratio": estimate(0.6), "control_ratio": estimate(1.0)}
    ]
    assert not {"memory", "sweep"} & report.sections.keys()
    assert report.sections["setting"].keys() == {
        "provider", "threads", "spinning", "arena", "pairs", "repeats", "input_shapes"
    }  # fmt: skip


def test_sweeps_and_layers_have_sections_of_their_own():
    layers = {"layers by time": [{"layer": "a"}]}
    report = latency_report(["a.onnx", "b.onnx"], latency(), sweep=[{"batch": 1}], layers=layers)
    assert report.sections["sweep"] == [{"batch": 1}]
    assert report.sections["layers by time"] == [{"layer": "a"}]


def test_one_model_has_its_noise_only():
    report = latency_report(["a.onnx"], latency(b=None, ratio=None, verdict=None))
    assert report.title == "bench a.onnx"
    assert report.sections["noise"] == {"control_ratio": estimate(1.0)}
    assert "comparison" not in report.sections


def test_what_is_measured_must_be_there_for_every_model():
    with pytest.raises(ValueError, match="zip"):
        latency_report(["a.onnx", "b.onnx"], latency(), memory=[{"steady_mib": 1.0}])


def test_accuracy_is_a_row_for_each_part_of_the_data():
    subset = {"model": estimate(0.8), "reference": estimate(0.9), "change": estimate(-0.1)}
    agreement = {"argmax": None, "cosine": estimate(0.9), "mse": estimate(0.1), "largest_difference": 2.0}
    accuracy = {
        "metric": "top1", "higher_is_better": True, "compared_with": "labels", "output": "y",
        "overall": subset, "segments": {"old": subset}, "near_boundary": subset, "agreement": agreement,
        "data_digest": "d",
    }  # fmt: skip
    report = accuracy_report(["b.onnx", "a.onnx"], accuracy, samples=40)
    assert report.title == "validate b.onnx against a.onnx"
    rows = report.sections["accuracy"]
    assert [row["samples"] for row in rows] == ["all samples", "old", "least sure of"]
    assert rows[0] == {
        "samples": "all samples", "count": 40, "reference": estimate(0.9), "model": estimate(0.8),
        "change": estimate(-0.1),
    }  # fmt: skip
    assert set(report.sections["agreement with the reference"]) == {"cosine", "mse", "largest_difference"}
    assert report.sections["setting"]["reference"] == "a.onnx"
    alone = {**accuracy, "near_boundary": None, "agreement": None, "segments": {}}
    report = accuracy_report(["b.onnx"], alone, samples=40)
    assert len(report.sections["accuracy"]) == 1
    assert "agreement with the reference" not in report.sections
    assert "reference" not in report.sections["setting"]
