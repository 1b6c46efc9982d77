"""A limit and an interval: pass and fail exclude each other, and nothing passes by what is no number."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.gates.claims import Claim, flipped, worst
from onnxprune.record import Interval

steady = settings(derandomize=True, deadline=None)

numbers = st.floats(-10, 10)
ORDER = {"fail": 0, "inconclusive": 1, "pass": 2}


@st.composite
def intervals(draw):
    low, value, high = sorted(draw(st.tuples(numbers, numbers, numbers)))
    return Interval(value=value, low=low, high=high, count=7)


def claim(limit, at_least):
    return Claim("gate", "what is asked", limit, at_least)


@steady
@given(intervals(), numbers, st.booleans())
def test_a_verdict_is_what_the_interval_leaves(figure, limit, at_least):
    kept = (lambda x: x >= limit) if at_least else (lambda x: x <= limit)
    verdict = claim(limit, at_least).estimated(figure, "").verdict
    ends = kept(figure.low), kept(figure.high)
    assert verdict == {(True, True): "pass", (False, False): "fail"}.get(ends, "inconclusive")


@steady
@given(intervals(), st.tuples(numbers, numbers), st.booleans())
def test_a_stricter_limit_is_never_kept_more_easily(figure, limits, at_least):
    loose, strict = sorted(limits, reverse=not at_least)
    verdicts = [claim(limit, at_least).estimated(figure, "").verdict for limit in (loose, strict)]
    assert ORDER[verdicts[0]] >= ORDER[verdicts[1]]


@steady
@given(intervals(), numbers, st.floats(0, 5))
def test_less_certainty_decides_no_more(figure, limit, more):
    wider = Interval(value=figure.value, low=figure.low - more, high=figure.high + more, count=7)
    narrow, wide = (claim(limit, False).estimated(each, "").verdict for each in (figure, wider))
    assert wide in (narrow, "inconclusive")


@steady
@given(intervals(), numbers)
def test_at_most_mirrors_at_least(figure, limit):
    one = claim(limit, True).estimated(figure, "").verdict
    assert claim(-limit, False).estimated(flipped(figure), "").verdict == one


@steady
@given(intervals(), numbers, st.floats(0, 5))
def test_the_corrected_interval_only_saves_from_failing(figure, limit, more):
    corrected = Interval(value=figure.value, low=figure.low - more, high=figure.high + more, count=7)
    plain = claim(limit, False).estimated(figure, "").verdict
    verdict = claim(limit, False).estimated(figure, "", corrected).verdict
    assert verdict == plain or (plain == "fail" and verdict == "inconclusive")


@pytest.mark.parametrize("at_least", [True, False])
@pytest.mark.parametrize(
    ("low", "high"), [(math.nan, math.nan), (math.nan, 1.0), (-1.0, math.nan), (-math.inf, math.inf)]
)
def test_what_is_no_number_never_passes(low, high, at_least):
    assert claim(0.0, at_least).holds(low, high) != "pass"


def test_a_counted_figure_on_the_limit_passes():
    assert claim(0.5, False).exact(0.5, "").verdict == "pass"
    assert claim(0.5, True).exact(0.5, "").verdict == "pass"
    assert claim(0.5, False).exact(math.nextafter(0.5, 1), "").verdict == "fail"


def test_missing_evidence_is_inconclusive():
    gate = claim(0.5, False).missing("not measured")
    assert (gate.verdict, gate.measured, gate.detail) == ("inconclusive", None, "not measured")


@pytest.mark.parametrize(
    ("verdicts", "of_all"),
    [
        ((), "pass"),
        (("pass", "pass"), "pass"),
        (("pass", "inconclusive"), "inconclusive"),
        (("inconclusive", "fail", "pass"), "fail"),
    ],
)
def test_the_worst_verdict_counts(verdicts, of_all):
    assert worst(verdicts) == of_all
