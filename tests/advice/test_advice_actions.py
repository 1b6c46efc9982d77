"""What is worth doing, in which order, at what risk, and the command lines for it."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from onnxprune.advice.accuracy import Accuracy
from onnxprune.advice.actions import Words, actions_of
from onnxprune.advice.candidates import Candidate, Made
from onnxprune.advice.trials import Trial
from onnxprune.measure.intervals import Estimate

WORDS = Words("my model.onnx", None)


def trial(
    name, ratio, *, pattern="channels", amount=0.5, verdict="faster", macs=None, options=None, bound=0.2
):
    candidate = Candidate(name, pattern, amount, options or {}, lambda: Made("", 1.0))
    estimate = None if ratio is None else Estimate(ratio, ratio - 0.01, ratio + 0.01, 20)
    return Trial(
        candidate,
        0.5,
        macs,
        estimate,
        verdict if ratio else None,
        bound,
        skipped=None if ratio else "not timed: why",
    )


def accuracy(lost, metric="top1"):
    value = Estimate(0.9 - lost, 0.9 - lost, 0.9 - lost, 100)
    before = Estimate(0.9, 0.9, 0.9, 100)
    return Accuracy(metric, value, before, Estimate(-lost, -lost, -lost, 100), lost)


def titles(actions, worth=True):
    return [action.title for action in actions if action.worth == worth]


def test_the_most_gain_for_the_least_risk_comes_first():
    found = actions_of(
        [
            trial("three quarters", 0.1, amount=0.75),
            trial("a half", 0.4),
            trial("int8", 0.5, pattern="int8", amount=None),
            trial("dead", 0.8, pattern="dead", amount=None),
        ],
        {},
        WORDS,
    )
    assert titles(found) == ["int8", "dead", "a half", "three quarters"]
    assert [action.risk for action in found] == ["low", "none", "high", "very high"]


@pytest.mark.parametrize(
    ("tried", "said"),
    [
        (trial("x", 1.2, verdict="slower"), "slower here"),
        (trial("x", 1.0, verdict="no difference"), "the time does not change"),
        (trial("x", 0.7, verdict="inconclusive", bound=None), "noise"),
        (trial("x", 0.7, verdict="inconclusive", macs=0.5, bound=0.98), "about 0.98 of the time"),
        (trial("x", 0.97), "3.0% of the time"),
        (trial("x", 0.9, macs=0.3), "70% of the multiply-accumulates go for 10% of the time"),
        (trial("x", None), "not timed: why"),
        (trial("x", 1.0, pattern="2:4", amount=None, verdict="no difference"), "zeros save disk"),
        (trial("x", 0.97, pattern="2:4", amount=None), "zeros save disk"),
        (trial("x", 0.5, pattern="fold", amount=None), "every pruned model gets this"),
    ],
)
def test_what_is_not_worth_it_says_why(tried, said):
    (action,) = actions_of([tried], {}, WORDS)
    assert not action.worth
    assert said in action.reason


def test_zeros_that_kernels_leave_out_are_worth_it():
    (action,) = actions_of([trial("x", 0.6, pattern="2:4", amount=None)], {}, WORDS)
    assert action.worth


def test_what_folding_does_is_no_merit_of_pruning():
    folded = trial("fold", 0.5, pattern="fold", amount=None)
    found = actions_of([folded, trial("same", 0.49, macs=0.5), trial("better", 0.3, macs=0.5)], {}, WORDS)
    assert titles(found) == ["better"]
    assert "folding what is constant does as much" in found[-1].reason
    alone = actions_of([trial("same", 0.49, macs=0.5)], {}, WORDS)
    assert titles(alone) == ["same"]


def test_measured_accuracy_is_the_risk():
    tried = [trial("breaks", 0.3), trial("holds", 0.5, amount=0.75), trial("frays", 0.4)]
    costs = {"breaks": accuracy(0.5), "holds": accuracy(0.001), "frays": accuracy(0.05)}
    found = actions_of(tried, costs, WORDS)
    assert titles(found) == ["holds", "frays"]
    assert [action.risk for action in found] == ["none", "high", "very high"]
    assert "top1 0.4, 0.9 before: too much" in found[-1].reason
    assert "top1 0.899, 0.9 before" in found[0].reason


def test_accuracy_that_could_not_be_judged_is_said():
    (action,) = actions_of([trial("x", 0.5)], {"x": "no labels"}, WORDS)
    assert action.worth
    assert "what it costs can't be said: no labels" in action.reason


def test_the_basis_is_told():
    measured, bounded = actions_of([trial("b", None, macs=0.3), trial("a", 0.2)], {}, WORDS)
    assert (measured.basis, bounded.basis) == ("measured", "bounded")
    assert "not known without --data" in measured.reason
    assert bounded.worth
    assert "about 0.20 of the time would be left by Amdahl's law; not timed: why" in bounded.reason


def test_a_poor_trade_by_amdahls_law_is_not_worth_it():
    (action,) = actions_of([trial("b", None, macs=0.1, bound=0.75)], {}, WORDS)
    assert not action.worth


def test_command_lines_survive_a_shell():
    (action,) = actions_of([trial("x", 0.5, pattern="heads", options={"align": 4})], {}, WORDS)
    words = shlex.split(action.command)
    assert words[:5] == ["onnxprune", "prune", "my model.onnx", "-o", "my model.heads50.onnx"]
    assert words[5:] == ["--pattern", "heads", "--amount", "0.5", "--align", "4"]


def test_repair_takes_the_data_of_the_user():
    options = {"recover": "reconstruct"}
    with_data = Words("m.onnx", "some data.npz")
    (action,) = actions_of([trial("x", 0.5, options=options)], {}, with_data)
    assert shlex.split(action.command)[-4:] == ["--recover", "reconstruct", "--data", "some data.npz"]
    (plain,) = actions_of([trial("x", 0.5)], {}, with_data)
    assert "--data" not in plain.command


def test_what_noise_hides_is_judged_by_amdahls_law():
    (action,) = actions_of([trial("b", 0.4, verdict="inconclusive", macs=0.3, bound=0.35)], {}, WORDS)
    assert (action.worth, action.basis) == (True, "bounded")
    assert "about 0.35 of the time would be left by Amdahl's law; the noise" in action.reason


@pytest.mark.parametrize(
    ("ratio", "said"), [(0.7, "off the grid of the kernels are dear"), (0.9, "explains it all")]
)
def test_counts_off_the_grid_are_blamed_only_for_what_they_cost(ratio, said):
    tried = trial("grid", ratio, amount=0.03, options={"align": 4}, macs=0.9, bound=0.88)
    (action,) = actions_of([tried], {}, WORDS)
    assert said in action.reason


def test_merit_goes_by_what_is_sure():
    vague = replace(trial("vague", 0.2), ratio=Estimate(0.2, 0.1, 0.9, 20))
    assert titles(actions_of([vague, trial("sharp", 0.4)], {}, WORDS)) == ["sharp", "vague"]


def test_folding_that_was_only_seen_in_passing_counts_too():
    found = actions_of([trial("same", 0.49, macs=0.5)], {}, WORDS, 0.5)
    assert titles(found) == []
