"""This run beside the last accepted one."""

from __future__ import annotations

import numpy as np
import pytest
from gate_evidence import changed, evidence_on

from onnxprune.gates.baseline import compare_with_baseline, difference
from onnxprune.gates.evidence import Evidence, JudgedLatency
from onnxprune.gates.figures import interval as to_record
from onnxprune.gates.judge import judge
from onnxprune.gates.settings import GateSettings
from onnxprune.measure.intervals import proportion
from onnxprune.record import (
    Environment,
    GateRecord,
    Interval,
    LatencyRecord,
    ModelRecord,
    RecipeRecord,
    Record,
)

SETTING = {"provider": "cpu", "threads": 1, "input_shapes": {"x": [1, 8]}, "processor": "one"}


def interval(value, low, high):
    return Interval(value=value, low=low, high=high, count=100)


QUIET = interval(1, 0.999, 1.001)


def models(ratio, *, size=1000, original="original", macs=500):
    figures = {"params": 100, "zstd_bytes": 900, "sparsity": 0.0}
    return (
        ModelRecord(name="original", sha256=original, size_bytes=4000, macs=macs, **figures),
        ModelRecord(name="final", sha256="final", size_bytes=size, macs=200, latency_ratio=ratio, **figures),
    )


def run(ratio=None, data=None, *, setting=SETTING, original="original", size=1000, macs=500):
    """Evidence of a run."""
    ratio = ratio or interval(0.5, 0.49, 0.51)
    timed = JudgedLatency(
        ratio=ratio, p95_ratio=ratio, control=QUIET, p95_control=QUIET, p50_ms=None, p95_ms=None, rounds=50
    )
    latency = LatencyRecord(control_ratio=QUIET, verdict="faster", setting=setting)
    accuracy = evidence_on(changed(1000) if data is None else data, GateSettings())
    made = models(ratio, size=size, original=original, macs=macs)
    return accuracy.model_copy(update={"models": made, "latency": latency, "judged_latency": timed})


def record(evidence: Evidence, gates=()) -> Record:
    """What such a run would have left behind."""
    return Record(
        version="1", started="2026-01-01T00:00:00Z", finished="2026-01-01T00:01:00Z", title="m",
        verdict="pass", output="m.onnx", recipe=RecipeRecord(path="r.toml", text="", sha256=""),
        environment=Environment(hardware={}, system="", packages={}),
        models=evidence.models, accuracy=evidence.accuracy, latency=evidence.latency, gates=gates,
    )  # fmt: skip


def one(now, before, **asked):
    (gate,) = judge(GateSettings(**asked), now, None if before is None else record(before))
    return gate


GATES = {"baseline_accuracy_drop": 0.5, "baseline_latency_ratio": 99, "baseline_size_ratio": 99}


@pytest.mark.parametrize("name", GATES)
def test_without_a_baseline_nothing_passes(name):
    gate = one(run(), None, **{name: GATES[name]})
    assert gate.verdict == "inconclusive"
    assert "--baseline" in gate.detail


@pytest.mark.parametrize("name", GATES)
def test_the_same_again_passes(name):
    assert one(run(), run(), **{name: GATES[name]}).verdict == "pass"


@pytest.mark.parametrize("name", GATES)
def test_an_empty_record_is_no_baseline(name):
    empty = Evidence(models=())
    assert one(run(), empty, **{name: GATES[name]}).verdict == "inconclusive"
    assert one(empty, run(), **{name: GATES[name]}).verdict == "inconclusive"


class TestAccuracy:
    @pytest.mark.parametrize(
        ("lost", "limit", "verdict"), [(0, 0.01, "pass"), (100, 0.01, "fail"), (10, 0.01, "inconclusive")]
    )
    def test_what_is_lost_since(self, lost, limit, verdict):
        before = run(data=changed(1000))
        now = run(data=changed(1000, lost=lost))
        # the two data sets differ only so that the answers do
        now = now.model_copy(
            update={"accuracy": now.accuracy.model_copy(update={"data_sha256": before.accuracy.data_sha256})}
        )
        gate = one(now, before, baseline_accuracy_drop=limit)
        assert gate.verdict == verdict
        assert gate.measured.value == pytest.approx(lost / 1000)

    def test_another_original_compares_the_metrics_themselves(self):
        gates = [
            one(run(data=changed(1000, wrong=300), original=name), run(data=changed(1000, wrong=300)),
                baseline_accuracy_drop=0.01)
            for name in ("original", "re-trained")
        ]  # fmt: skip
        widths = [gate.measured.high - gate.measured.low for gate in gates]
        assert widths[1] > 5 * widths[0]

    def test_other_data_is_not_compared(self):
        gate = one(run(data=changed(1000)), run(data=changed(999)), baseline_accuracy_drop=0.5)
        assert (gate.verdict, gate.detail) == (
            "inconclusive",
            "the last accepted run was judged on other data",
        )

    def test_another_metric_is_not_compared(self):
        before = run()
        before = before.model_copy(update={"accuracy": before.accuracy.model_copy(update={"metric": "top5"})})
        assert "another metric: 'top5'" in one(run(), before, baseline_accuracy_drop=0.5).detail


class TestLatency:
    @pytest.mark.parametrize(
        ("ratio", "limit", "verdict"),
        [
            (interval(0.5, 0.49, 0.51), 1.1, "pass"),
            (interval(0.7, 0.69, 0.71), 1.1, "fail"),
            (interval(0.54, 0.52, 0.56), 1.1, "inconclusive"),
        ],
    )
    def test_against_the_original_now_and_before(self, ratio, limit, verdict):
        assert one(run(ratio), run(), baseline_latency_ratio=limit).verdict == verdict

    @pytest.mark.parametrize("key", ["provider", "threads", "processor"])
    def test_another_machine_is_not_compared(self, key):
        gate = one(run(), run(setting={**SETTING, key: "other"}), baseline_latency_ratio=9)
        assert gate.verdict == "inconclusive"
        assert gate.detail.endswith(key)

    def test_a_re_trained_original_is_compared_and_a_larger_one_not(self):
        assert one(run(original="re-trained"), run(), baseline_latency_ratio=9).verdict == "pass"
        assert one(run(macs=5000), run(), baseline_latency_ratio=9).verdict == "inconclusive"

    def test_settings_outlive_a_file(self):
        before = Record.model_validate_json(record(run()).to_text())
        now = run(setting={**SETTING, "input_shapes": {"x": (1, 8)}})
        (gate,) = judge(GateSettings(baseline_latency_ratio=1.1), now, before)
        assert gate.verdict == "pass"


@pytest.mark.parametrize(("size", "verdict"), [(1000, "pass"), (1001, "fail")])
def test_size(size, verdict):
    assert one(run(size=size), run(), baseline_size_ratio=1).verdict == verdict


def test_squares_and_adding():
    """Newcombe's own example: shares of 56 of 70 and 48 of 80, with Wilson's intervals."""
    shares = [np.repeat([1.0, 0.0], [hits, count - hits]) for hits, count in ((56, 70), (48, 80))]
    joined = difference(*(to_record(proportion(share)) for share in shares))
    assert (joined.value, joined.low, joined.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=6e-5)


class TestComparison:
    def rows(self, now, before, gates=(), earlier=()):
        found = compare_with_baseline(now, gates, record(before, earlier), "report.json")
        assert (found.path, found.finished) == ("report.json", "2026-01-01T00:01:00Z")
        return {row["figure"]: row for row in found.rows}

    def test_figures_before_and_now(self):
        rows = self.rows(run(interval(0.6, 0.59, 0.61), size=1500), run())
        assert rows["bytes on disk"] == {
            "figure": "bytes on disk", "before": 1000, "now": 1500, "change": 1.5
        }  # fmt: skip
        assert rows["time, as a share of the original's"]["change"] == pytest.approx(1.2)
        assert rows["top1, all samples"]["change"] == 0
        assert rows["agreement with the original"]["now"] == 1

    def test_what_can_not_be_compared_says_why(self):
        rows = self.rows(run(data=changed(500)), run(setting={**SETTING, "threads": 2}))
        assert rows["top1, all samples"]["change"] is None
        assert "other data" in rows["top1, all samples"]["note"]
        assert "threads" in rows["time, as a share of the original's"]["note"]
        assert rows["parameters"]["change"] == 1

    def test_what_was_not_measured_has_no_row(self):
        rows = self.rows(Evidence(models=()), Evidence(models=()))
        assert not any("top1" in figure or "time" in figure for figure in rows)
        assert rows["parameters"]["change"] is None

    def test_gates_that_passed_and_do_not_now(self):
        def gate(name, verdict):
            return GateRecord(
                name=name, requirement="", limit=1, measured=1.0, verdict=verdict, detail="a figure"
            )

        rows = self.rows(
            run(), run(), [gate("size", "fail"), gate("opset", "fail"), gate("sparsity", "pass")],
            [gate("size", "pass"), gate("opset", "fail"), gate("sparsity", "pass")],
        )  # fmt: skip
        regressed = {
            "figure": "gate size",
            "before": "pass",
            "now": "fail",
            "change": None,
            "note": "a figure",
        }
        assert [row for name, row in rows.items() if name.startswith("gate")] == [regressed]
