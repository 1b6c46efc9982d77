"""Verdicts on time, size, memory and the graph, from evidence made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from gate_evidence import changed, evidence_on

from onnxprune.gates.evidence import Evidence, JudgedLatency
from onnxprune.gates.figures import judge_latency
from onnxprune.gates.judge import accepts, judge
from onnxprune.gates.settings import GATES, ON_DATA, GateSettings
from onnxprune.measure.latency import Timed
from onnxprune.measure.turns import TurnTimes
from onnxprune.record import Interval, MemoryRecord, ModelRecord
from onnxprune.runtime import DEFAULT


def interval(value, low, high):
    return Interval(value=value, low=low, high=high, count=100)


QUIET = interval(1, 0.999, 1.001)


def model(name="original", **more):
    figures = {"params": 1000, "macs": 5000, "size_bytes": 4000, "zstd_bytes": 3600, "sparsity": 0.0}
    return ModelRecord(name=name, sha256=name, **{**figures, **more})


def timing(ratio=QUIET, control=QUIET, **more):
    others = {"p95_ratio": ratio, "p95_control": control, "p50_ms": None, "p95_ms": None}
    return JudgedLatency(**{"ratio": ratio, "control": control, "rounds": 100, **others, **more})


def memory(*peaks, reason=None):
    return tuple(
        MemoryRecord(name=str(place), load_peak_mib=load, steady_mib=1.0, run_peak_mib=run, reason=reason)
        for place, (load, run) in enumerate(peaks)
    )


EVIDENCE = Evidence(
    models=(model(), model("final", params=400, macs=1500, size_bytes=1000, zstd_bytes=720, sparsity=0.5)),
    judged_latency=timing(
        interval(0.5, 0.49, 0.51), p50_ms=interval(2, 1.9, 2.1), p95_ms=interval(3, 2.5, 3.5)
    ),
    memory=memory((100, 90), (40, 50)),
    operators=("Conv", "Relu", "com.microsoft:QGemm"),
    opset=17,
    ir_version=8,
)


def one(evidence=EVIDENCE, **asked):
    (gate,) = judge(GateSettings(**asked), evidence)
    return gate


@pytest.mark.parametrize(
    ("name", "passing", "failing"),
    [
        ("latency_ratio", 0.6, 0.4),
        ("latency_p95_ratio", 0.6, 0.4),
        ("latency_p50_ms", 2.2, 1.8),
        ("latency_p95_ms", 3.6, 2.4),
        ("size", 1000, 999),
        ("size_ratio", 0.25, 0.249),
        ("zstd_size", 720, 719),
        ("zstd_ratio", 0.2, 0.19),
        ("memory_mib", 53, 46),
        ("memory_ratio", 0.6, 0.4),
        ("params_ratio", 0.4, 0.39),
        ("macs_ratio", 0.3, 0.29),
        ("sparsity", 0.5, 0.51),
        ("operators", ["Conv", "Relu", "com.microsoft:*"], ["Conv", "Relu"]),
        ("operators_forbidden", ["Gemm", "com.microsoft:MatMulNBits"], ["com.microsoft:*"]),
        ("opset", 17, 16),
        ("ir_version", 8, 7),
    ],
)
def test_every_gate_passes_and_fails(name, passing, failing):
    gates = [one(**{name: limit}) for limit in (passing, failing)]
    assert [gate.verdict for gate in gates] == ["pass", "fail"]
    for gate in gates:
        assert gate.name == name
        assert gate.requirement
        assert gate.detail
        assert "\n" not in gate.requirement + gate.detail


@pytest.mark.parametrize("name", [name for name in GATES if name not in ON_DATA])
def test_without_evidence_nothing_passes(name):
    value = {"operators": ["*"], "operators_forbidden": ["Relu"], "opset": 99, "ir_version": 99}.get(
        name, 0.5
    )
    wanted = GateSettings(**{name: 9**9 if name.endswith(("size", "_ms", "_mib", "_ratio")) else value})
    (gate,) = judge(wanted, Evidence(models=()))
    assert gate.verdict == "inconclusive"
    assert not accepts(wanted, [gate])


def test_shares_are_of_the_original_not_of_the_stage_before():
    stages = (EVIDENCE.models[0], model("prune", size_bytes=2000), EVIDENCE.models[1])
    gate = one(EVIDENCE.model_copy(update={"models": stages}), size_ratio=0.25)
    assert (gate.verdict, gate.measured) == ("pass", 0.25)


class TestTimes:
    def test_the_control_widens_the_interval(self):
        narrow = interval(0.79, 0.785, 0.795)
        quiet = Evidence(models=(), judged_latency=timing(narrow))
        noisy = Evidence(models=(), judged_latency=timing(narrow, interval(1, 0.9, 1.05)))
        assert one(quiet, latency_ratio=0.81).verdict == "pass"
        gate = one(noisy, latency_ratio=0.81)
        assert gate.verdict == "inconclusive"
        assert "a quieter machine may decide it" in gate.detail
        assert one(noisy, latency_ratio=0.9).verdict == "pass"
        assert one(noisy, latency_ratio=0.77).verdict == "inconclusive"
        assert one(noisy, latency_ratio=0.7).verdict == "fail"

    def test_two_sessions_of_one_model_differ_by_up_to_a_hundredth(self):
        evidence = Evidence(models=(), judged_latency=timing(interval(0.799, 0.7985, 0.7995)))
        assert one(evidence, latency_ratio=0.8).verdict == "inconclusive"

    def test_a_wide_interval_asks_for_more_rounds(self):
        evidence = Evidence(models=(), judged_latency=timing(interval(0.8, 0.6, 1.1)))
        assert "more rounds" in one(evidence, latency_ratio=0.9).detail

    def test_percentiles_need_rounds(self):
        evidence = Evidence(models=(), judged_latency=timing())
        gate = one(evidence, latency_p95_ms=100)
        assert gate.verdict == "inconclusive"
        assert "run more pairs" in gate.detail

    def test_what_the_clock_does_not_see_is_not_judged(self):
        evidence = Evidence(models=(), judged_latency=timing(interval(0.5, 0.0, 0.6)))
        assert one(evidence, latency_ratio=0.9).verdict == "inconclusive"

    def test_intervals_are_of_the_confidence_that_is_asked_for(self):
        generator = np.random.default_rng(0)
        wall = {key: generator.lognormal(mean, 0.1, (200, 2)) for key, mean in ((0, 0), (1, -0.7), (2, 0))}
        times = TurnTimes(wall, {key: seconds.sum(axis=1) for key, seconds in wall.items()})
        timed = Timed(times, 0, DEFAULT, None, {})
        plain, sure = (judge_latency(timed, 1, timed.beside(1), c) for c in (0.95, 0.999))
        for name in ("ratio", "p95_ratio", "control", "p95_control", "p50_ms"):
            narrow, wide = getattr(plain, name), getattr(sure, name)
            assert wide.low < narrow.low <= narrow.value <= narrow.high < wide.high
            assert wide.value == narrow.value
        assert plain.ratio.value == pytest.approx(0.5, rel=0.05)
        assert plain.p50_ms.value == pytest.approx(500, rel=0.05)
        assert plain.p95_ms is not None


class TestMemory:
    def test_the_peak_of_loading_counts_too(self):
        evidence = Evidence(models=(), memory=memory((10, 10), (80, 20)))
        assert one(evidence, memory_mib=50).verdict == "fail"

    def test_near_the_limit_it_may_be_either(self):
        assert one(memory_mib=49).verdict == "inconclusive"
        assert one(memory_mib=51).verdict == "inconclusive"

    def test_what_is_not_known_is_not_judged(self):
        evidence = Evidence(models=(), memory=memory((None, None), (None, None), reason="not on this system"))
        gate = one(evidence, memory_mib=5000)
        assert (gate.verdict, gate.detail) == ("inconclusive", "not on this system")

    def test_a_small_original_is_no_measure(self):
        evidence = Evidence(models=(), memory=memory((2, 2), (1, 1)))
        assert one(evidence, memory_ratio=0.9).verdict == "inconclusive"


class TestGraph:
    def test_a_pattern_has_to_match_the_whole_name(self):
        assert one(operators=["ConvTranspose", "Relu", "com.microsoft:QGemm"]).verdict == "fail"
        assert "not allowed: Conv" in one(operators=["Relu", "com.microsoft:*"]).detail

    def test_onnx_has_two_names(self):
        assert one(operators=["ai.onnx:Conv", "Relu", "com.microsoft:QGemm"]).verdict == "pass"
        assert one(operators_forbidden=["ai.onnx:Conv"]).verdict == "fail"

    def test_a_domain_is_part_of_the_name(self):
        assert one(operators_forbidden=["*:QGemm"]).verdict == "fail"
        assert one(operators_forbidden=["other:QGemm"]).verdict == "pass"

    def test_zeros_that_can_not_be_told_may_be_any(self):
        evidence = EVIDENCE.model_copy(update={"unknown_weights": ("w: it is computed",)})
        gate = one(evidence, sparsity=0.1)
        assert gate.verdict == "inconclusive"
        assert "w: it is computed" in gate.detail

    def test_an_original_without_macs_has_no_share(self):
        evidence = Evidence(models=(model(macs=0), model("final", macs=0)))
        assert one(evidence, macs_ratio=1).verdict == "inconclusive"


def test_gates_come_in_the_order_of_the_keys():
    wanted = GateSettings(opset=17, size=5000, latency_ratio=0.6, accuracy_drop=0.1, baseline_size_ratio=1)
    evidence = evidence_on(
        changed(100), wanted, judged_latency=EVIDENCE.judged_latency, opset=17, ir_version=8, operators=()
    )
    names = [gate.name for gate in judge(wanted, evidence)]
    assert names == ["accuracy_drop", "latency_ratio", "size", "opset", "baseline_size_ratio"]


def test_verdicts_outlive_a_file():
    for gate in judge(GateSettings(size="1 kB", operators=["Conv"], latency_ratio=0.5), EVIDENCE):
        assert type(gate).model_validate_json(gate.model_dump_json()) == gate
