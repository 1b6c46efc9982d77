"""A target in time, from the wish to the plan, on a machine that is easy to foresee."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import small_models
from clocked import PretendMachine, model_ms

from onnxprune.errors import LimitMissed, NothingToPrune, RuntimeFailure, UsageError
from onnxprune.measure.intervals import Estimate
from onnxprune.pipeline import plan, prune
from onnxprune.planning import part_timer
from onnxprune.planning.latency import machine


@pytest.fixture
def pretend(monkeypatch) -> PretendMachine:
    return PretendMachine(monkeypatch)


def model_of(name: str, **options) -> ir.Model:
    return ir.from_proto(getattr(small_models, name)(**options))


@pytest.mark.parametrize("name", ["residual_net", "depthwise_net", "concat_net", "attention"])
@pytest.mark.parametrize("target", [0.7, 0.5])
def test_what_is_left_takes_what_it_may(pretend, name, target):
    model = model_of(name, width=64)
    result = prune(model, target_latency=target)
    share = model_ms(result.model) / model_ms(model)
    assert share <= target * 1.03
    assert share >= target * 0.8
    section = result.report.sections["latency"]
    assert section["measured share"] == pytest.approx(share, rel=0.02)  # folded constants come on top
    assert section["target"] == target
    assert 0 < result.report.sections["importance"]["share kept"] < 1
    assert result.plan.recipe["target_latency"] == target
    assert result.plan.recipe["scope"] == "knapsack"
    assert result.plan.recipe["measured_with"]["threads"] == 1


def test_milliseconds_are_a_target_too(pretend):
    model = model_of("residual_net", width=32)
    ms = model_ms(model) * 0.6
    result = prune(model, target_latency=f"{ms:.4f}ms")
    assert model_ms(result.model) <= ms * 1.03


def test_uniform_pruning_meets_a_target_in_time_as_well(pretend):
    model = model_of("residual_net", width=64)
    result = prune(model, target_latency=0.5, scope="uniform", align=1)
    assert model_ms(result.model) / model_ms(model) == pytest.approx(0.5, rel=0.06)
    shares = [1 - len(g.removed) / g.size for g in result.plan.groups if len(g.removed)]
    assert max(shares) - min(shares) < 0.05


def test_time_and_size_are_met_together(pretend):
    model = model_of("residual_net", width=64)
    result = prune(model, target_latency=0.9, target_macs=0.4)
    before, after = result.plan.predicted
    assert after.macs / before.macs <= 0.4
    assert model_ms(result.model) / model_ms(model) <= 0.9 * 1.03


def test_a_target_that_cannot_be_met_says_what_stands_in_the_way(pretend):
    with pytest.raises(LimitMissed) as missed:
        prune(model_of("residual_net", width=64), target_latency=0.05, protect=["block2*"])
    assert 0.05 < missed.value.reached < 1
    assert any("protected by 'block2*'" in line for line in missed.value.reasons)
    assert all("of the time stays" in line for line in missed.value.reasons)
    shares = [float(line.split(": ")[1].split("%")[0]) for line in missed.value.reasons if ": " in line]
    assert shares == sorted(shares, reverse=True)


def test_a_model_that_is_fast_enough_stays_as_it_is(pretend):
    with pytest.raises(NothingToPrune, match="meets the target"):
        prune(model_of("mlp"), target_latency="1000ms")


def test_no_part_is_timed_twice(pretend, tmp_path):
    model = model_of("residual_net", width=64)
    first = prune(model, target_latency=0.5, cache=tmp_path / "cache")
    timed = pretend.parts
    assert first.report.sections["latency"]["points timed"] == timed > 0
    second = prune(model, target_latency=0.5, cache=tmp_path / "cache")
    assert pretend.parts == timed
    assert second.report.sections["latency"]["points timed"] == 0
    assert {g.name: list(g.removed) for g in first.plan.groups} == {
        g.name: list(g.removed) for g in second.plan.groups
    }


def test_a_plan_alone_is_the_same_plan(pretend):
    model = model_of("residual_net", width=32)
    assert (
        plan(model, target_latency=0.5).removed.keys() == prune(model, target_latency=0.5).plan.removed.keys()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_latency": 0}, "in \\(0, 1\\], or as 12ms"),
        ({"target_latency": "12 seconds"}, "12ms"),
        ({"target_latency": 1.5}, "12ms"),
        ({"target_latency": 0.5, "amount": 0.5}, "either an amount or targets"),
        ({"target_latency": 0.5, "pattern": "2:4"}, "zeros take no less time"),
        ({"target_latency": 0.5, "pattern": "dead"}, "takes no target"),
        ({"target_latency": 0.5, "pattern": "layers"}, "whole branches"),
        ({"target_latency": 0.5, "rounds": 3, "recover": "bias", "data": "random:8"}, "one round"),
        ({"target_latency": 0.5, "latency_percentile": 100}, "between 0 and 100"),
        ({"target_latency": 0.5, "latency_batch": 0}, "from 1 on"),
        ({"target_latency": 0.5, "time_limit": 0}, "seconds"),
        ({"target_latency": 0.5, "provider": "abacus"}, "unknown provider"),
    ],
)
def test_nonsense_is_refused_before_long_work(pretend, options, message):
    with pytest.raises(UsageError, match=message):
        prune(model_of("residual_net"), **options)
    assert pretend.parts == 0


def test_where_a_provider_tells_no_kernels_parts_alone_stand_in(pretend, monkeypatch):
    monkeypatch.setattr(machine, "runs_on_cpu", lambda _: False)
    model = model_of("residual_net", width=64)
    result = prune(model, target_latency=0.5)
    assert model_ms(result.model) / model_ms(model) <= 0.5 * 1.03


def test_a_busy_machine_is_named(pretend, monkeypatch):
    quiet = pretend.quick_ratio

    def busy(*arguments, **options):
        ratio, a_ms, b_ms = quiet(*arguments, **options)
        return Estimate(ratio.value, ratio.value * 0.9, ratio.value * 1.1, 20), a_ms, b_ms

    assert not [s for s in prune(model_of("mlp"), target_latency=0.6).plan.skipped if "busy" in s.name]
    pretend.original_ms = None
    monkeypatch.setattr(machine, "quick_ratio", busy)
    notes = [s.reason for s in prune(model_of("mlp"), target_latency=0.6).plan.skipped if "busy" in s.name]
    assert notes == ["the original beside itself took 0.90 to 1.10 of its time: other work ran"]


def test_another_target_that_cannot_be_met_is_not_passed_over(pretend):
    with pytest.raises(LimitMissed, match="bytes can be brought to") as missed:
        prune(model_of("residual_net", width=64), target_latency=0.9, target_size=0.001)
    assert missed.value.reasons


def test_a_part_that_cannot_be_timed_at_some_counts_is_named(pretend, monkeypatch):
    whole = pretend.time_part
    calls = []

    def fails_later(*arguments, **options):
        calls.append(1)
        if len(calls) == 12:
            raise RuntimeFailure("no kernel")
        return whole(*arguments, **options)

    monkeypatch.setattr(part_timer, "time_part", fails_later)
    result = prune(model_of("residual_net", width=64), target_latency=0.5)
    assert any("could not be measured at some counts" in s.reason for s in result.plan.skipped)
