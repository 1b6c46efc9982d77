"""Gates on accuracy, on models whose every answer is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from gate_evidence import answers, changed, evidence_on
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.data import Dataset
from onnxprune.gates.evidence import Evidence
from onnxprune.gates.judge import accepts, judge, verdict_of
from onnxprune.gates.settings import ON_DATA, GateSettings

steady = settings(derandomize=True, deadline=None, max_examples=25)


def one(data, metric="top1", **asked):
    wanted = GateSettings(**asked)
    (gate,) = judge(wanted, evidence_on(data, wanted, metric))
    return gate


class TestDrop:
    @pytest.mark.parametrize(
        ("data", "limit", "verdict"),
        [
            (changed(1000), 0.01, "pass"),
            (changed(1000, lost=30, gained=25), 0.05, "pass"),
            (changed(1000, lost=30), 0.01, "fail"),
            (changed(1000, lost=12), 0.01, "inconclusive"),
            (changed(1000, lost=8), 0.01, "inconclusive"),
            (changed(1000, gained=30), 0.0, "pass"),
            (changed(30), 0.01, "inconclusive"),
            (changed(1, lost=1), 0.01, "inconclusive"),
        ],
    )
    def test_the_whole_interval_has_to_lie_on_one_side(self, data, limit, verdict):
        assert one(data, accuracy_drop=limit).verdict == verdict

    @pytest.mark.parametrize("lost", [0, 1, 2, 5])
    @pytest.mark.parametrize("gained", [0, 1])
    def test_three_tenths_of_a_point_on_200_samples_never_pass(self, lost, gained):
        assert one(changed(200, lost, gained), accuracy_drop=0.003).verdict != "pass"

    def test_the_detail_tells_what_changed_and_how_many_samples_decide(self):
        gate = one(changed(200, lost=1), accuracy_drop=0.01)
        assert gate.verdict == "inconclusive"
        assert gate.measured.value == pytest.approx(0.005)
        assert "(1 became wrong, 0 right)" in gate.detail
        count = int(gate.detail.split("about ")[1].split()[0])
        assert one(changed(count, lost=count // 200), accuracy_drop=0.01).verdict == "pass"
        assert one(changed(count // 2, lost=count // 400), accuracy_drop=0.01).verdict == "inconclusive"

    def test_a_loss_on_the_limit_is_said_to_stay_open(self):
        assert "may never decide it" in one(changed(200, lost=2), accuracy_drop=0.01).detail

    @steady
    @given(st.integers(0, 60), st.integers(0, 60), st.tuples(st.floats(0, 0.3), st.floats(0, 0.3)))
    def test_a_stricter_limit_never_helps(self, lost, gained, limits):
        order = {"fail": 0, "inconclusive": 1, "pass": 2}
        strict, loose = (one(changed(300, lost, gained), accuracy_drop=limit) for limit in sorted(limits))
        assert order[strict.verdict] <= order[loose.verdict]

    def test_more_confidence_takes_more_samples(self):
        data = changed(1000, lost=1)
        assert one(data, accuracy_drop=0.006).verdict == "pass"
        assert one(data, accuracy_drop=0.006, confidence=0.9995).verdict == "inconclusive"

    def test_accepted_losses_are_true_in_39_of_40_runs(self):
        """A model that loses 3 points is passed at 2.9 in fewer than one of forty evaluations."""
        generator = np.random.default_rng(0)
        passed = 0
        for _ in range(60):
            drawn = generator.choice(3, size=400, p=[0.04, 0.01, 0.95])
            data = answers(drawn != 1, drawn != 0)
            passed += one(data, accuracy_drop=0.029).verdict == "pass"
        assert passed <= 4


class TestRelative:
    @pytest.mark.parametrize(
        ("data", "share", "verdict"),
        [
            (changed(2000, lost=10, wrong=500), 0.98, "pass"),
            (changed(2000, lost=200), 0.98, "fail"),
            (changed(2000, lost=44), 0.98, "inconclusive"),
            (changed(20, wrong=20), 0.5, "inconclusive"),
        ],
    )
    def test_of_the_originals_own(self, data, share, verdict):
        assert one(data, accuracy_relative=share).verdict == verdict

    def test_what_is_kept(self):
        gate = one(changed(2000, lost=100, wrong=1000), accuracy_relative=0.5)
        assert gate.measured.value == pytest.approx(0.9)
        assert gate.measured.low < 0.9 < gate.measured.high


class TestLevel:
    @pytest.mark.parametrize(
        ("wrong", "limit", "verdict"), [(0, 0.97, "pass"), (100, 0.95, "fail"), (30, 0.97, "inconclusive")]
    )
    def test_the_metric_itself(self, wrong, limit, verdict):
        assert one(changed(1000, wrong=wrong), accuracy=limit).verdict == verdict

    def test_a_handful_of_samples_proves_nothing(self):
        assert one(changed(10), accuracy=0.9).verdict == "inconclusive"


class TestLowerIsBetter:
    """Mean squared error against labels of the output's shape: the final model's outputs are further away."""

    @staticmethod
    def data(count, original_error, final_error):
        generator = np.random.default_rng(0)
        label = generator.normal(size=(count, 4)).astype(np.float32)
        errors = [original_error, final_error] * generator.normal(size=(count, 4, 2))
        x = np.concatenate([label + errors[..., 0], label + errors[..., 1]], axis=1).astype(np.float32)
        return Dataset.from_arrays({"x": x, "label": label})

    @pytest.mark.parametrize(
        ("final_error", "asked", "verdict"),
        [
            (0.2, {"accuracy_drop": 0.005}, "fail"),
            (0.2, {"accuracy_drop": 0.05}, "pass"),
            (0.05, {"accuracy_drop": 0}, "pass"),
            (0.2, {"accuracy": 0.05}, "pass"),
            (0.2, {"accuracy": 0.03}, "fail"),
            (0.2, {"accuracy_relative": 0.5}, "fail"),
            (0.12, {"accuracy_relative": 0.5}, "pass"),
            (0.05, {"accuracy_relative": 1}, "pass"),
        ],
    )
    def test_growth_is_loss(self, final_error, asked, verdict):
        assert one(self.data(400, 0.1, final_error), "mse", **asked).verdict == verdict

    def test_a_handful_of_samples_decides_nothing(self):
        gate = one(self.data(19, 0.1, 0.01), "mse", accuracy_drop=0.5)
        assert gate.verdict == "inconclusive"
        assert "20 samples or more, not 19" in gate.detail
        assert one(self.data(20, 0.1, 0.01), "mse", accuracy_drop=0.5).verdict == "pass"

    def test_compared_with_the_original_there_is_no_drop(self):
        x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
        data = Dataset.from_arrays({"x": x})
        assert one(data, "mse", accuracy_drop=5).verdict == "inconclusive"
        assert one(data, "mse", accuracy=5).verdict == "pass"
        assert one(data, "mse", accuracy_relative=0.1).verdict == "inconclusive"


def segments_of(**losses):
    """Data with 400 samples in each segment, of which so many become wrong."""
    names = [name for name in losses for _ in range(400)]
    final = [place >= lost for lost in losses.values() for place in range(400)]
    return answers([True] * len(names), final, names)


class TestSegments:
    def gates(self, data, **asked):
        wanted = GateSettings(**asked)
        return judge(wanted, evidence_on(data, wanted))

    def test_each_has_its_verdict(self):
        gates = self.gates(segments_of(day=0, night=60, rain=8), segment_drop=0.02)
        assert [(gate.name, gate.verdict) for gate in gates] == [
            ("segment_drop[day]", "pass"),
            ("segment_drop[night]", "fail"),
            ("segment_drop[rain]", "inconclusive"),
        ]
        assert verdict_of(gates) == "fail"

    def test_only_those_that_are_named(self):
        data = segments_of(day=0, night=60)
        (gate,) = self.gates(data, segment_drop=0.02, segments=["day"])
        assert (gate.name, gate.verdict) == ("segment_drop[day]", "pass")

    def test_one_of_many_fails_by_what_holds_for_all(self):
        """17 of 400 lost are beyond 2.5 points in 39 of 40 draws, but not in 799 of 800."""
        (alone,) = self.gates(segments_of(a=17), segment_drop=0.025)
        assert alone.verdict == "fail"
        names = [f"s{number}" for number in range(20)]
        gates = self.gates(segments_of(**dict.fromkeys(names, 0), worst=17), segment_drop=0.025)
        assert {gate.verdict for gate in gates[:-1]} == {"pass"}
        assert gates[-1].verdict == "inconclusive"
        assert "one of so many may by chance" in gates[-1].detail

    @pytest.mark.long
    def test_many_equal_segments_rarely_fail_by_chance(self):
        """All 30 segments lose exactly the limit: by plain intervals every other run would fail one."""
        generator = np.random.default_rng(1)
        plain = failed = 0
        for _ in range(20):
            final = generator.random(30 * 100) >= 0.1
            data = answers([True] * final.size, final, [f"{n // 100:02}" for n in range(final.size)])
            gates = self.gates(data, segment_drop=0.1)
            plain += any(gate.measured.low > 0.1 for gate in gates)
            failed += any(gate.verdict == "fail" for gate in gates)
        assert failed <= 3 < 8 <= plain

    @pytest.mark.parametrize(("limit", "verdict"), [(0.75, "pass"), (0.85, "inconclusive"), (0.95, "fail")])
    def test_the_worst_one(self, limit, verdict):
        (gate,) = self.gates(segments_of(day=0, night=60), worst_segment=limit)
        assert gate.verdict == verdict
        assert "night: 0.85" in gate.detail

    def test_a_small_segment_keeps_the_worst_open(self):
        data = answers([True] * 405, [True] * 405, ["large"] * 400 + ["small"] * 5)
        (gate,) = self.gates(data, worst_segment=0.9)
        assert gate.verdict == "inconclusive"
        assert gate.detail.startswith("small")

    def test_names_are_data(self):
        (gate,) = self.gates(answers([True] * 40, [True] * 40, ["a\n\x1b[31m"] * 40), segment_drop=0.5)
        assert gate.name == "segment_drop[a\\n\\x1b[31m]"


class TestLikeness:
    def test_agreement(self):
        assert one(changed(1000, lost=1), agreement=0.99).verdict == "pass"
        assert one(changed(1000, lost=50), agreement=0.99).verdict == "fail"
        assert one(changed(100), agreement=0.99).verdict == "inconclusive"

    def test_cosine(self):
        assert one(changed(1000), cosine=0.99).verdict == "pass"
        assert one(changed(1000, lost=500), cosine=0.99).verdict == "fail"
        assert one(changed(19), cosine=0.99).verdict == "inconclusive"

    def test_no_classes_no_agreement(self):
        data = Dataset.from_arrays({"x": np.ones((50, 8), np.float32)})
        assert one(data, "mse", agreement=0.5).verdict == "inconclusive"

    def test_near_the_boundary(self):
        """The original is least sure of the first 40 of 400, and all that is lost is lost there."""
        data = changed(400, lost=20)
        data.arrays["x"][:40, :4] *= 0.1
        assert one(data, accuracy_drop=0.1).verdict == "pass"
        gate = one(data, boundary_drop=0.1)
        assert (gate.verdict, gate.measured.value) == ("fail", 0.5)


@pytest.mark.parametrize("name", ON_DATA)
def test_without_a_measurement_nothing_passes(name):
    wanted = GateSettings(**{name: 0.5})
    (gate,) = judge(wanted, Evidence(models=()))
    assert gate.verdict == "inconclusive"
    assert not accepts(wanted, [gate])


def test_a_user_may_let_inconclusive_pass_but_never_fail():
    loose = GateSettings(accuracy_drop=0.01, inconclusive="pass")
    assert accepts(loose, judge(loose, evidence_on(changed(200, lost=1), loose)))
    assert not accepts(loose, judge(loose, evidence_on(changed(200, lost=30), loose)))
