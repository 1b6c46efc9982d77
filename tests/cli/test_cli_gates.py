"""``--gate`` of validate and bench: status 3, and the gate by its name."""

from __future__ import annotations

import numpy as np
import pytest
from gate_evidence import changed, save_halves


@pytest.fixture
def halves(tmp_path):
    """Two models; the second is wrong about 20 of 400 samples."""
    return [str(path) for path in save_halves(tmp_path)]


@pytest.fixture
def data(tmp_path):
    samples = changed(400, lost=20)
    path = tmp_path / "eval.npz"
    segment = np.where(np.arange(400) < 200, "old", "new")
    np.savez(path, **samples.arrays, label=samples.labels, segment=segment)
    return str(path)


def gates(*texts):
    return [word for text in texts for word in ("--gate", text)]


class TestValidate:
    def test_a_kept_gate(self, run, halves, data):
        ran = run("validate", *halves, "--data", data, *gates("accuracy_drop=0.2", "agreement=0.8"), "--json")
        assert (ran.status, ran.err) == (0, "")
        rows = ran.document["sections"]["gates"]
        assert [(row["gate"], row["verdict"]) for row in rows] == [
            ("accuracy_drop", "pass"), ("agreement", "pass")
        ]  # fmt: skip

    def test_a_missed_gate_ends_with_3_and_is_named(self, run, halves, data):
        ran = run("validate", *halves, "--data", data, *gates("accuracy_drop=0.01", "accuracy=0.5"), "--json")
        assert ran.status == 3
        assert ran.err.startswith("error: failed accuracy_drop: at most 0.01 below the original; lost 0.05")
        assert [row["verdict"] for row in ran.document["sections"]["gates"]] == ["pass", "fail"]

    def test_inconclusive_is_no_pass_unless_one_says_so(self, run, halves, data):
        command = ["validate", *halves, "--data", data, *gates("accuracy_drop=0.05")]
        ran = run(*command)
        assert ran.status == 3
        assert ran.err.startswith("error: inconclusive accuracy_drop")
        assert run(*command, *gates("inconclusive=pass")).status == 0

    def test_segments(self, run, halves, data):
        ran = run("validate", *halves, "--data", data, *gates("segment_drop=0.05"))
        assert ran.status == 3
        assert "segment_drop[old]: at most" in ran.err
        assert "; lost 0.1" in ran.err
        assert "[new]" not in ran.err

    def test_without_gates_nothing_is_judged(self, run, halves, data):
        ran = run("validate", *halves, "--data", data, "--json")
        assert ran.status == 0
        assert "gates" not in ran.document["sections"]

    @pytest.mark.parametrize(
        ("texts", "status", "message"),
        [
            (["accuracy_drop"], 2, "not of the form KEY=VALUE"),
            (["accuracy_drop="], 2, "not of the form KEY=VALUE"),
            (["accuracy_dorp=1"], 2, "did you mean 'accuracy_drop'"),
            (["latency_ratio=1"], 2, "this command judges no such gate"),
            (["baseline_accuracy_drop=1"], 2, "this command judges no such gate"),
            (["accuracy=0.5", "accuracy=0.1"], 2, "given twice"),
            (["accuracy_drop=much"], 2, "accuracy_drop=much"),
            (["accuracy_drop=nan"], 2, "finite"),
            (["accuracy_drop=5"], 2, "one point of it is 0.01"),
            (["inconclusive=pass"], 2, "asks for nothing by itself"),
            (["segment_drop=0.1", "segments=odl"], 1, "did you mean 'old'"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, run, halves, data, texts, status, message):
        ran = run("validate", *halves, "--data", data, *gates(*texts))
        assert ran.status == status
        assert message in ran.err
        assert ran.err.count("\n") == 1

    def test_alone_there_is_nothing_to_compare_with(self, run, halves, data):
        command = ["validate", halves[0], "--data", data]
        ran = run(*command, *gates("accuracy_drop=0.1"))
        assert ran.status == 2
        assert "give both models" in ran.err
        assert run(*command, *gates("accuracy=0.95", "worst_segment=0.9")).status == 0


class TestBench:
    QUICK = ("--pairs", "20", "--no-memory")

    def test_kept_gates(self, run, halves):
        kept = [
            "latency_ratio=1000",
            "latency_p95_ms=10000",
            "size_ratio=1.5",
            "operators=MatMul",
            "opset=18",
        ]
        ran = run("bench", *halves, *self.QUICK, *gates(*kept), "--json")
        assert (ran.status, ran.err) == (0, "")
        rows = {row["gate"]: row["verdict"] for row in ran.document["sections"]["gates"]}
        assert rows == dict.fromkeys((text.partition("=")[0] for text in kept), "pass")

    def test_missed_gates_are_named(self, run, halves):
        ran = run("bench", *halves, *self.QUICK, *gates("latency_ratio=0.000001", "opset=17", "size=1 GB"))
        assert ran.status == 3
        assert "failed latency_ratio" in ran.err
        assert "opset: the ONNX operator set is at most 17; it is 18" in ran.err
        assert "size" not in ran.err

    def test_memory_is_measured_where_a_gate_asks(self, run, halves):
        ran = run("bench", halves[1], "--pairs", "20", "--no-memory", *gates("memory_mib=0.000001"), "--json")
        (row,) = ran.document["sections"]["gates"]
        assert (row["gate"], ran.status) == ("memory_mib", 3)
        assert len(ran.document["sections"]["memory"]) == 1

    def test_one_model(self, run, halves):
        ran = run("bench", halves[0], *self.QUICK, *gates("latency_p50_ms=10000", "sparsity=0.5"))
        assert ran.status == 0
        ran = run("bench", halves[0], *self.QUICK, *gates("latency_ratio=1"))
        assert ran.status == 2
        assert "give both models" in ran.err

    def test_accuracy_is_for_validate(self, run, halves):
        ran = run("bench", *halves, *self.QUICK, *gates("accuracy=1"))
        assert ran.status == 2
        assert "this command judges no such gate" in ran.err
