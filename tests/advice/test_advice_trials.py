"""Candidates are made, bounded and timed, as far as the time goes; what fails says so."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from onnxprune.advice.candidates import Candidate, Made
from onnxprune.advice.trials import Clock, run_trial
from onnxprune.errors import NothingToPrune, RuntimeFailure
from onnxprune.measure.intervals import Estimate

SOMETHING = Made("a model", 0.5, 0.25)


def candidate(make=lambda: SOMETHING, name="remove 50% of the channels"):
    return Candidate(name, "channels", 0.5, {}, make)


def compared(made):
    return SimpleNamespace(
        ratio=Estimate(0.4, 0.39, 0.41, 20), control=Estimate(1.0, 0.93, 1.02, 20), verdict="faster"
    )


def fail(error):
    def make():
        raise error

    return make


def trials(*candidates, compare=compared, clock=None, needed_seconds=0.1, told=None):
    told = told if told is not None else []
    return [
        run_trial(
            each,
            compare,
            lambda _: 0.3,
            clock or Clock(60),
            needed_seconds=needed_seconds,
            progress=told.append,
        )
        for each in candidates
    ]


def test_a_candidate_is_made_bounded_and_timed():
    told = []
    ((trial, made),) = trials(candidate(), told=told)
    assert made is SOMETHING
    assert (trial.size_ratio, trial.macs_ratio, trial.bound) == (0.5, 0.25, 0.3)
    assert (trial.ratio.value, trial.verdict, trial.skipped) == (0.4, "faster", None)
    assert trial.noise == pytest.approx(0.07)
    assert told == ["remove 50% of the channels"]


def test_without_time_it_is_bounded_but_not_timed():
    clock = Clock(10)
    ((trial, _),) = trials(candidate(), clock=clock, needed_seconds=72.0)
    assert (trial.ratio, trial.bound) == (None, 0.3)
    assert "72 s" in trial.skipped
    assert "10 s of --time-limit" in trial.skipped


def test_what_is_made_in_seconds_is_still_bounded_when_the_time_is_just_over():
    clock = Clock(100)
    clock._end -= 110
    (cheap, _), (dear, _) = trials(candidate(), replace(candidate(), cheap=False), clock=clock)
    assert (cheap.bound, dear.bound) == (0.3, None)
    assert cheap.ratio is None


def test_once_the_time_is_over_nothing_is_even_made():
    ((trial, made),) = trials(candidate(fail(AssertionError("made"))), clock=Clock(-1))
    assert made is None
    assert "--time-limit" in trial.skipped


@pytest.mark.parametrize(
    ("make", "compare", "said"),
    [
        (fail(NothingToPrune("no head may go")), compared, "it removes nothing: no head may go"),
        (fail(RuntimeFailure("too deep")), compared, "it can't be made: too deep"),
        (lambda: SOMETHING, lambda _: fail(RuntimeFailure("no kernel"))(), "it can't be timed: no kernel"),
    ],
)
def test_what_fails_says_why_and_the_next_one_goes_on(make, compare, said):
    (first, _), (second, _) = trials(candidate(make), candidate(), compare=compare)
    assert first.skipped == said
    assert second.candidate.name == "remove 50% of the channels"


def test_a_bug_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        trials(candidate(lambda: 1 // 0))
