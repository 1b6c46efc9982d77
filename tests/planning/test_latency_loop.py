"""The loop delivers what the machine measures, however wrong the prediction is at first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from onnxprune.allocate.latency import LatencyModel, PartTimes
from onnxprune.allocate.limits import Limit
from onnxprune.errors import LimitMissed
from onnxprune.measure.intervals import Estimate
from onnxprune.planning.latency.loop import TOLERANCE, Job, deliver
from onnxprune.types import IntArray

SIZE = 64
LEAST = 8
ORIGINAL_MS = 10.0

#: From kept counts of the two groups to the time of the whole, in ms.
Truth = Callable[[int, int], float]


@dataclass(frozen=True)
class Choice:
    removed: Mapping[str, IntArray]


def choice(*kept: int) -> Choice:
    return Choice(
        {name: np.arange(SIZE - count, dtype=np.int32) for name, count in zip("ab", kept, strict=True)}
    )


def kept(removed: Mapping[str, IntArray]) -> tuple[int, int]:
    return tuple(SIZE - len(removed[name]) for name in "ab")  # type: ignore[return-value]


class Clock:
    """A machine on which a model takes what its counts take; kernels at their fastest take a bit less."""

    def __init__(self, truth: Truth, inside: Truth) -> None:
        self.truth, self.inside = truth, inside
        self.timed: list[tuple[int, int]] = []

    def share(self, model: tuple[int, int]) -> Estimate:
        self.timed.append(model)
        value = self.truth(*model) / self.truth(SIZE, SIZE)
        return Estimate(value, value * 0.99, value * 1.01, 40)

    def kernels_ms(self, model: tuple[int, int], *_: object) -> np.ndarray:
        return np.array([self.inside(*model) * 0.8])


def alone(a: int, b: int) -> float:
    """The time of the only part as a model of its own."""
    return 1.0 + a * b / 512


@dataclass(frozen=True)
class Table:
    """Times the only part."""

    times: PartTimes

    def at(self, counts: Mapping[str, int]) -> None:
        self.times.add((counts["a"], counts["b"]), alone(counts["a"], counts["b"]))


def job(truth: Truth, clock: Clock, step: int = 4) -> Job[Choice]:
    times = PartTimes("part", ("a", "b"), np.array([SIZE, SIZE]), np.eye(2), np.zeros(2))
    for a, b in ((64, 64), (32, 32), (16, 16), (32, 64), (64, 32)):
        times.add((a, b), alone(a, b))
    model = LatencyModel([times], np.array([9.0]), ORIGINAL_MS)

    def search(limit: Limit) -> Choice:
        counts = range(LEAST, SIZE + 1, step)
        fitting = [
            c for c in (choice(a, b) for a in counts for b in counts) if limit.left(c.removed) <= limit.keep
        ]
        if not fitting:
            raise LimitMissed("too much is left", reached=1.0)
        return max(fitting, key=lambda c: sum(kept(c.removed)))

    return Job(
        {"a": SIZE, "b": SIZE},
        search,
        lambda: choice(LEAST, LEAST),
        kept,
        clock,
        Table(times),
        model,
        clock.kernels_ms((SIZE, SIZE), ORIGINAL_MS),
    )


@pytest.mark.parametrize("target", [0.8, 0.5, 0.3])
@pytest.mark.parametrize(
    ("inside", "beside"),
    [
        (alone, lambda *_: 1.0),  # as predicted
        (alone, lambda *_: 5.0),  # much of it stays
        (lambda a, b: alone(a, b) * (2 - a * b / 64**2), lambda *_: 0.5),  # small ones are slower inside
        (lambda a, b: alone(a, b) * (1 + a * b / 64**2), lambda *_: 0.5),  # and faster
        (alone, lambda a, b: (a + b) / 16),  # something else shrinks as well
    ],
)
def test_what_is_delivered_was_measured_on_target(inside, beside, target):
    def truth(a: int, b: int) -> float:
        return inside(a, b) + beside(a, b)

    clock = Clock(truth, inside)
    least = truth(LEAST, LEAST) / truth(SIZE, SIZE)
    if least > target * (1 + TOLERANCE):
        with pytest.raises(LimitMissed) as missed:
            deliver(job(truth, clock), target)
        assert missed.value.reached == pytest.approx(least)
        return
    best, rounds = deliver(job(truth, clock), target)
    assert best.measured.value == truth(*kept(best.decision.removed)) / truth(SIZE, SIZE)
    assert best.measured.value <= target * (1 + TOLERANCE)
    assert best.measured.value >= target * 0.85  # steps of four channels leave such gaps here
    assert len(rounds) == len(clock.timed) == len(set(clock.timed))


def test_where_counts_leave_a_gap_the_best_below_it_is_delivered():
    truth = lambda a, b: 1.0 if max(a, b) <= 32 else 10.0  # noqa: E731 # a cliff, and nothing in between
    best, _ = deliver(job(truth, Clock(truth, truth), step=8), 0.5)
    assert best.measured.value == pytest.approx(0.1)


def test_a_prediction_that_is_too_high_everywhere_is_no_refusal():
    truth = lambda a, b: 0.1 + a * b / 512  # noqa: E731
    tight = job(truth, Clock(truth, truth))
    tight.model.anchor({}, np.array([1.0]), ORIGINAL_MS)  # predicts that nine tenths stay whatever goes
    best, _ = deliver(tight, 0.3)
    assert best.measured.value <= 0.3 * (1 + TOLERANCE)
