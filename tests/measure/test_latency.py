import collections
import itertools
import json

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import UsageError
from onnxprune.measure import latency
from onnxprune.measure.intervals import Estimate
from onnxprune.measure.latency import LatencyResult, benchmark, decide, quick_ratio, summarize
from onnxprune.measure.turns import TurnTimes
from onnxprune.runtime import Execution, open_session


def product_model(width, name="x", repeats=1) -> ir.Model:
    """y = x @ w @ w ... with w [width, width]"""
    weight = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32) / width
    names = [name, *(f"v{index}" for index in range(repeats - 1)), "y"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)]
    info = [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["n", width]) for value in (name, "y")]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], [numpy_helper.from_array(weight, "w")])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))


def synthetic(b_factor=1.0, control_factor=1.0, noise=0.01, cpu_factor=None, rounds=60, drift=0.0, seed=0):
    """Rounds in which a takes 10 ms, growing by ``drift`` over all rounds, each turn with noise."""
    generator = np.random.default_rng(seed)
    base = 0.010 * (1 + drift * np.linspace(0, 1, rounds))

    def turns(factor, noise):
        return base * factor * np.exp(generator.normal(0, noise, rounds))

    wall = {0: turns(1, noise), 1: turns(b_factor, noise), 2: turns(control_factor, noise)}
    cpu_factors = {0: 1, 1: cpu_factor or b_factor, 2: control_factor}
    cpu = {key: turns(2 * factor, noise / 2) for key, factor in cpu_factors.items()}
    return TurnTimes({key: array[:, None] for key, array in wall.items()}, cpu)


def judged(times, witness=False) -> LatencyResult:
    execution = Execution(threads=2 if witness else 1)
    return summarize(times, seed=0, execution=execution, input_shapes={"x": (1, 2)})


class TestVerdicts:
    def test_the_same_model_is_never_faster_or_slower(self):
        verdicts = collections.Counter(judged(synthetic(seed=seed)).verdict for seed in range(50))
        assert set(verdicts) <= {"no difference", "inconclusive"}
        assert verdicts["no difference"] > 40

    @pytest.mark.parametrize(("factor", "verdict"), [(0.9, "faster"), (1.1, "slower")])
    def test_a_tenth_is_seen_every_time(self, factor, verdict):
        assert {judged(synthetic(b_factor=factor, seed=seed)).verdict for seed in range(50)} == {verdict}

    def test_drift_of_the_machine_cancels(self):
        """Over the rounds everything becomes three times slower: means say nothing, the paired ratios do."""
        result = judged(synthetic(b_factor=0.9, drift=2.0))
        assert result.verdict == "faster"
        assert result.ratio.value == pytest.approx(0.9, abs=0.01)

    def test_a_gain_that_the_control_shows_too_is_none(self):
        result = judged(synthetic(b_factor=0.95, control_factor=0.95))
        assert result.verdict == "inconclusive"
        assert result.ratio.high < 1  # taken alone, the interval would have been convincing

    def test_each_percentile_has_its_control(self):
        result = judged(synthetic(b_factor=0.8, control_factor=1.1))
        assert [row.percentile for row in result.percentiles] == ["p50", "p95", "p99"]
        for row in result.percentiles:
            assert row.ratio.value == pytest.approx(0.8, abs=0.03)
            assert row.control.value == pytest.approx(1.1, abs=0.03)
        assert result.percentiles[0].ratio == result.ratio

    def test_noise_is_inconclusive_and_not_equality(self):
        assert {judged(synthetic(noise=0.5, seed=seed)).verdict for seed in range(20)} == {"inconclusive"}

    def test_cpu_time_that_says_the_opposite_overrules(self):
        result = judged(synthetic(b_factor=0.8, cpu_factor=1.5), witness=True)
        assert result.verdict == "inconclusive"
        assert result.cpu_ratio.value == pytest.approx(1.5, abs=0.02)
        assert judged(synthetic(b_factor=0.8, cpu_factor=0.8), witness=True).verdict == "faster"
        assert judged(synthetic(b_factor=0.8, cpu_factor=1.5), witness=False).cpu_ratio is None

    def test_a_coarse_cpu_clock_is_no_witness(self):
        times = synthetic(b_factor=0.8)
        coarse = TurnTimes(times.wall, {key: np.zeros_like(value) for key, value in times.cpu.items()})
        result = judged(coarse, witness=True)
        assert result.cpu_ratio is None
        assert result.verdict == "faster"

    @pytest.mark.parametrize(
        ("ratio", "control", "verdict"),
        [
            ((0.97, 0.985), (0.999, 1.001), "faster"),
            ((0.97, 0.985), (0.99, 1.02), "inconclusive"),
            (
                (0.985, 0.993),
                (0.999, 1.001),
                "no difference",
            ),  # sessions of one model may differ so
            ((0.990, 1.010), (0.995, 1.005), "no difference"),
            ((0.95, 1.05), (0.999, 1.001), "inconclusive"),
            ((0.99, 1.01), (0.95, 1.0), "inconclusive"),
            ((1.03, 1.04), (0.98, 1.0), "slower"),
            ((1.03, 1.04), (0.96, 1.0), "inconclusive"),  # the control's reach counts in both directions
        ],
    )
    def test_decide(self, ratio, control, verdict):
        def estimate(ends):
            return Estimate(sum(ends) / 2, *ends, count=60)

        assert decide(estimate(ratio), estimate(control)) == verdict


def test_figures():
    wall = {
        0: np.array([[0.001, 0.002, 0.009]] * 20),
        1: np.array([[0.004, 0.001, 0.001]] * 20),
        2: np.array([[0.002, 0.002, 0.002]] * 20),
    }
    result = judged(TurnTimes(wall, {key: value.sum(axis=1) for key, value in wall.items()}))
    assert (result.a.median_ms, result.a.minimum_ms, result.a.runs) == (2.0, 1.0, 60)
    assert result.a.p95_ms == pytest.approx(9.0)
    assert result.ratio == Estimate(0.5, 0.5, 0.5, 20)  # medians of turns, not means
    assert result.control == Estimate(1, 1, 1, 20)
    assert (result.pairs, result.repeats) == (20, 3)
    plain = json.loads(json.dumps(result.as_dict()))
    assert plain["ratio"] == {"value": 0.5, "low": 0.5, "high": 0.5, "count": 20}
    assert plain["input_shapes"] == {"x": [1, 2]}


class TestBenchmark:
    def test_a_model_with_hundred_times_the_work_is_slower(self):
        light, heavy = product_model(256), product_model(256, repeats=60)
        forth = benchmark(light, heavy, batch=16, pairs=20)
        back = benchmark(heavy, light, batch=16, pairs=20)
        assert (forth.verdict, back.verdict) == ("slower", "faster")
        assert forth.ratio.value > 5
        assert back.ratio.value < 0.2
        assert forth.input_shapes == {"x": (16, 256)}
        assert forth.pairs >= 20

    def test_alone(self):
        result = benchmark(product_model(8), pairs=20, execution=Execution(threads=2))
        assert (result.b, result.ratio, result.verdict) == (None, None, None)
        assert result.control.count == result.pairs
        assert result.cpu_control is not None
        assert result.input_shapes == {"x": (1, 8)}
        json.dumps(result.as_dict())

    def test_feeds_of_the_users_own(self):
        feeds = {"x": np.ones((5, 8), np.float32)}
        assert benchmark(product_model(8), pairs=20, feeds=feeds).input_shapes == {"x": (5, 8)}

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"pairs": 5}, "between 20 and 2000"),
            ({"feeds": {}, "batch": 3}, "either feeds"),
            ({"input_shapes": {"z": (1, 8)}}, "'z', which is no input"),
            ({"b": product_model(8, name="z")}, "different inputs"),
            ({"b": product_model(9)}, "disagree on input 'x'"),
        ],
    )
    def test_misuse(self, options, match):
        with pytest.raises(UsageError, match=match):
            benchmark(product_model(8), **options)


class TestQuickRatio:
    def test_the_originals_session_may_stay_open(self):
        light, heavy = product_model(256), product_model(256, repeats=60)
        feeds = {"x": np.ones((16, 256), np.float32)}
        session = open_session(heavy, execution=Execution())
        ratio, a_ms, b_ms = quick_ratio(session, light, feeds, pairs=21)
        assert ratio.high < 0.3
        assert ratio.count == 22  # whole cycles
        assert a_ms > b_ms > 0
        back, _, _ = quick_ratio(light, heavy, feeds, pairs=20, quantile=0.9)
        assert back.low > 3
        assert session.run(feeds)["y"].shape == (16, 256)

    @pytest.mark.parametrize(
        ("options", "match"), [({"pairs": 0}, "one pair or more"), ({"quantile": 95}, "between 0 and 1")]
    )
    def test_misuse(self, options, match):
        with pytest.raises(UsageError, match=match):
            quick_ratio(product_model(8), product_model(8), {"x": np.ones((1, 8), np.float32)}, **options)

    def test_models_that_take_different_inputs(self):
        with pytest.raises(UsageError, match="different inputs"):
            quick_ratio(product_model(8), product_model(8, name="z"), {"x": np.ones((1, 8), np.float32)})


def test_every_setting_is_told_and_taken(monkeypatch):
    seen = []
    original = latency.open_session
    monkeypatch.setattr(
        latency,
        "open_session",
        lambda model, **more: seen.append(more["execution"]) or original(model, **more),
    )
    execution = Execution(threads=2, spinning=True, arena=False)
    result = benchmark(product_model(8), product_model(8), execution=execution, pairs=20)
    assert seen == [execution] * 3
    plain = result.as_dict()
    assert {key: plain[key] for key in ("provider", "threads", "spinning", "arena", "pin", "options")} == {
        "provider": "cpu", "threads": 2, "spinning": True, "arena": False, "pin": None, "options": {},
    }  # fmt: skip
    assert plain["on_device"] is None
    assert result.a.warm_up_runs >= 3
    assert [row["percentile"] for row in plain["percentiles"]] == ["p50", "p95", "p99"]
    json.dumps(plain)


class TestBenchmarkEach:
    @pytest.fixture
    def taken(self, monkeypatch):
        """Every run of session k takes k + 1 seconds; returns who was run."""
        seen = []

        def take_turns(runs, pairs, progress=None):
            for run in runs.values():
                run()
            seen.append(sorted(runs))
            wall = {key: np.full((20, 1), 1.0 + key) for key in runs}
            return TurnTimes(wall, {key: array[:, 0] for key, array in wall.items()}, {})

        monkeypatch.setattr(latency, "take_turns", take_turns)
        return seen

    def test_each_is_beside_the_first_and_all_share_one_control(self, taken):
        models = [product_model(8) for _ in range(4)]
        results = latency.benchmark_each(models[0], models[1:], batch=1)
        assert [result.ratio.value for result in results] == [2.0, 4.0, 5.0]
        assert [result.control.value for result in results] == [3.0, 3.0, 3.0]
        assert taken == [[0, 1, 2, 3, 4]]  # one run of all

    def test_one_alone_is_what_benchmark_gives(self, taken):
        a, b = product_model(8), product_model(8)
        (each,) = latency.benchmark_each(a, [b], batch=1)
        assert each == benchmark(a, b, batch=1)
        assert each.ratio.value == 2.0

    def test_models_that_take_other_inputs_are_refused(self):
        with pytest.raises(UsageError, match="different inputs"):
            latency.benchmark_each(product_model(8), [product_model(8), product_model(8, name="z")])
