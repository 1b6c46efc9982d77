"""How much is removed by when."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnxprune.errors import UsageError
from onnxprune.schedule import SHAPES, Milestone, Schedule, shares_by_round


def test_the_formulas() -> None:
    assert shares_by_round(0.8, 4) == pytest.approx(
        (0.8 * (1 - 0.75**3), 0.8 * (1 - 0.5**3), 0.8 * (1 - 0.25**3), 0.8)
    )
    assert shares_by_round(0.8, 2, initial=0.4) == pytest.approx((0.8 - 0.4 / 8, 0.8))
    assert shares_by_round(0.8, 4, "linear") == pytest.approx((0.2, 0.4, 0.6, 0.8))
    assert shares_by_round(0.875, 3, "geometric") == pytest.approx((0.5, 0.75, 0.875))  # half each time
    assert shares_by_round(0.9, 2, "one-shot") == (0.9, 0.9)


@given(st.floats(0.01, 0.99), st.integers(1, 30), st.sampled_from(["linear", "cubic", "geometric"]))
def test_rounds_grow_and_end_where_they_should(final: float, rounds: int, shape: str) -> None:
    shares = shares_by_round(final, rounds, shape)
    assert len(shares) == rounds
    assert shares[-1] == final
    assert all(a < b for a, b in pairwise((0.0, *shares)))
    steps = [b - a for a, b in pairwise((0.0, *shares))]
    if shape != "linear":
        assert all(a >= b - 1e-12 for a, b in pairwise(steps)), "fast at first, slowly at the end"


def test_milestones_of_zhu_and_gupta() -> None:
    found = Schedule(0.9, 1000, warm_up=0.1, frequency=100, freeze=0.2).milestones()

    assert [m.step for m in found] == [200, 300, 400, 500, 600, 700, 800]  # at 100 nothing goes yet
    assert [m.share for m in found] == pytest.approx([0.9 * (1 - (1 - k / 7) ** 3) for k in range(1, 8)])


def test_an_initial_share_goes_at_the_first_pruning() -> None:
    found = Schedule(0.9, 100, "linear", initial=0.5, warm_up=0.2, frequency=20, freeze=0.4).milestones()

    assert found[0] == Milestone(20, 0.5)
    assert [m.share for m in found] == pytest.approx([0.5, 0.7, 0.9])


def test_one_shot_goes_before_the_first_step_unless_told_otherwise() -> None:
    assert Schedule(0.9, 100, "one-shot").milestones() == ((0, 0.9),)
    assert Schedule(0.9, 100, "one-shot", warm_up=0.2).milestones() == ((20, 0.9),)


@given(
    final=st.floats(0.01, 0.99),
    initial=st.floats(0, 0.98),
    steps=st.integers(1, 5000),
    shape=st.sampled_from(SHAPES),
    warm_up=st.one_of(st.none(), st.floats(0, 1)),
    freeze=st.floats(0, 1),
    frequency=st.one_of(st.none(), st.integers(1, 300)),
)
def test_milestones_grow_between_warm_up_and_freeze_and_end_at_the_final_share(
    final: float,
    initial: float,
    steps: int,
    shape: str,
    warm_up: float | None,
    freeze: float,
    frequency: int | None,
) -> None:
    assume(initial < final)
    try:
        schedule = Schedule(final, steps, shape, initial, warm_up, frequency, freeze)
    except UsageError:
        return
    found = schedule.milestones()

    assert found[-1].share == final
    assert all(a.step < b.step and a.share < b.share for a, b in pairwise(found))
    assert found[0].step >= int(schedule.warm_up_share * steps)
    assert found[-1].step <= max(found[0].step, steps * (1 - freeze) + 1e-9)
    assert found[-1].step <= steps
    if frequency is not None:
        assert all((b.step - a.step) % frequency == 0 for a, b in pairwise(found))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "qubic"}, "unknown schedule 'qubic'.*did you mean 'cubic'"),
        ({"steps": 0}, "steps is a whole number from 1 on, not 0"),
        ({"frequency": 0}, "frequency is a whole number from 1 on"),
        ({"final": 1.0}, "between 0 and 1, not 1.0"),
        ({"final": float("nan")}, "between 0 and 1"),
        ({"initial": 0.9}, "below the final one, 0.9"),
        ({"warm_up": 0.7, "freeze": 0.4}, "together at most 1"),
        ({"freeze": -0.1}, "shares of the steps"),
        ({"frequency": 90}, "65 steps lie between warm-up and freeze, fewer than the 90"),
    ],
)
def test_nonsense_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Schedule(**{"final": 0.9, "steps": 100, **options})  # type: ignore[arg-type]


def test_there_must_be_a_round() -> None:
    with pytest.raises(UsageError, match="whole number from 1 on"):
        shares_by_round(0.5, 0)
