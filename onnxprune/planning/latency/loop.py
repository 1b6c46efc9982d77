"""The loop that delivers a target in time: search, cut, time the whole model, correct, and again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import onnx_ir as ir

from onnxprune.allocate.latency import LatencyModel
from onnxprune.allocate.limits import Limit
from onnxprune.errors import LimitMissed
from onnxprune.measure.intervals import Estimate
from onnxprune.planning.latency.table import Table
from onnxprune.types import FloatArray, IntArray

#: A measured share at most this far from the target, relative to it, meets it.
TOLERANCE = 0.03

#: A share this much above the target, relative to it, can't be told from it.
_NOISE = 0.01

#: Where a search aims, relative to the target: so that noise does not carry what it finds beyond it.
_AIM = 0.985

#: Times that a model is cut and timed, and the prediction corrected, at most; and at which it ends if
#: anything that was tried is near the target, from above too.
_MOST_ROUNDS = 8
_ENOUGH = 4

#: The prediction is corrected after so many rounds. If none of them met the target, what is beside the parts
#: follows other rules than theirs: the prediction then stays, and the aim follows what is measured.
_CORRECTIONS = 3
_DAMPING = 0.8

#: What was found is searched anew after its parts were timed, so often at most, unless it holds to this.
_MOST_SEARCHES = 5
_HOLDS = 0.01

#: Where a search finds again what was too far below the target, it aims higher by this, at most so often.
_HIGHER = 1.04
_MOST_RISES = 4

#: A whole model gains at most so many times, and at least the inverse, of what its kernels lose.
_MOST_STRETCH = 4.0


class Decided(Protocol):
    """What a search finds."""

    @property
    def removed(self) -> Mapping[str, IntArray]:
        """Int32 channel numbers by group name."""


D = TypeVar("D", bound=Decided)


class Machine(Protocol):
    """What runs whole models."""

    def share(self, model: ir.Model) -> Estimate:
        """Return the time of a model as a share of the original's, measured in turns with it."""

    def kernels_ms(self, model: ir.Model, whole_ms: float, counts: Mapping[str, int]) -> FloatArray:
        """Return the ms that the kernels of every part take inside a model, float64 [parts]."""


@dataclass(frozen=True, slots=True)
class Round(Generic[D]):
    """One cut that was timed.

    Attributes:
        decision: what went.
        predicted: share of the original's time, from before it was timed.
        measured: the share, and its interval.
        counts: kept channels by group name.
        kernels_ms: float64 [parts], what the kernels of each part take inside it.
    """

    decision: D
    predicted: float
    measured: Estimate
    counts: Mapping[str, int]
    kernels_ms: FloatArray


@dataclass(frozen=True, slots=True)
class Job(Generic[D]):
    """What a loop works with.

    Attributes:
        sizes: channels by group name.
        search: finds the choice that keeps most under a limit in time; raises LimitMissed if there is none.
        least: the choice that leaves the least of every group.
        cut: makes the model that is left.
        machine: times it.
        table: times parts.
        model: predicts.
        kernels_ms: float64 [parts], what the kernels of each part take inside the original.
    """

    sizes: Mapping[str, int]
    search: Callable[[Limit], D]
    least: Callable[[], D]
    cut: Callable[[Mapping[str, IntArray]], ir.Model]
    machine: Machine
    table: Table
    model: LatencyModel
    kernels_ms: FloatArray


def deliver(job: Job[D], target: float) -> tuple[Round[D], list[Round[D]]]:
    """Find a choice whose measured time is within `TOLERANCE` of the target, or as near below as it gets.

    Args:
        job: see there.
        target: share of the original's time that may stay, in (0, 1).

    Returns:
        The round that meets the target, and all rounds in order.

    Raises:
        LimitMissed: even the least that may be left takes longer, or nothing that was tried meets the target;
            ``reached`` is the lowest measured share.
    """
    rounds: list[Round[D]] = []
    aim, rises = target * _AIM, 0
    while len(rounds) < _MOST_ROUNDS:
        tried = {_key(job, each.decision.removed): each.measured.value for each in rounds}
        try:
            decision = _searched(job, limit_of(job, aim, tried))
            reachable = True
        except LimitMissed:
            decision, reachable = job.least(), False
        if _key(job, decision.removed) in tried:
            if not reachable or rises == _MOST_RISES:
                break
            aim, rises = aim * _HIGHER, rises + 1
            continue
        latest = _time(job, decision)
        rounds.append(latest)
        if _is_near(latest.measured.value, target) and latest.measured.value <= target * (1 + _NOISE):
            break
        if not reachable and latest.measured.value > target * (1 + TOLERANCE):
            break
        if len(rounds) >= _ENOUGH and any(_is_near(each.measured.value, target) for each in rounds):
            break
        if len(rounds) <= _CORRECTIONS:
            _correct(job, rounds, target)
        else:
            aim *= (target * _AIM / latest.measured.value) ** _DAMPING
    met = [each for each in rounds if each.measured.value <= target * (1 + TOLERANCE)]
    if not met:
        reached = min(each.measured.value for each in rounds)
        raise LimitMissed(
            f"the time can be brought to {reached:.3f} of the original's, not to {target:.4g}",
            reached=reached,
        )
    return min(met, key=lambda each: _miss(each.measured.value, target)), rounds


def _is_near(measured: float, target: float) -> bool:
    return abs(measured / target - 1) <= TOLERANCE


def _miss(measured: float, target: float) -> float:
    """Return how far a share is from the target, relative to it; above counts twice."""
    return 2 * (measured / target - 1) if measured > target else 1 - measured / target


def limit_of(job: Job[D], keep: float, tried: Mapping[tuple[int, ...], float]) -> Limit:
    """Return the limit of the predicted time; what was measured takes the place of its prediction."""

    def counts(removed: Mapping[str, IntArray]) -> dict[str, int]:
        return {name: job.sizes[name] - len(gone) for name, gone in removed.items()}

    def left(removed: Mapping[str, IntArray]) -> float:
        known = tried.get(_key(job, removed))
        return job.model.share(counts(removed)) if known is None else known

    def along(removed: Mapping[str, IntArray], name: str, options: Sequence[IntArray]) -> FloatArray:
        return job.model.along(counts(removed), name, [job.sizes[name] - len(gone) for gone in options])

    return Limit("latency_ms", keep, left, along)


def _searched(job: Job[D], limit: Limit) -> D:
    """Search, time the parts at what was found, and search again, until what is found holds when it is timed.

    A search finds what is predicted too low, if anything is. Timing parts costs less than timing the whole.
    """
    for _ in range(_MOST_SEARCHES):
        decision = job.search(limit)
        job.table.at({name: job.sizes[name] - len(gone) for name, gone in decision.removed.items()})
        if limit.left(decision.removed) <= limit.keep * (1 + _HOLDS):
            break
    return decision


def _time(job: Job[D], decision: D) -> Round[D]:
    """Cut and time a model, as a whole and inside."""
    counts = {name: job.sizes[name] - len(gone) for name, gone in decision.removed.items()}
    predicted = job.model.share(counts)
    model = job.cut(decision.removed)
    measured = job.machine.share(model)
    kernels_ms = job.machine.kernels_ms(model, measured.value * job.model.original_ms, counts)
    return Round(decision, predicted, measured, counts, kernels_ms)


def _correct(job: Job[D], rounds: Sequence[Round[D]], target: float) -> None:
    """Predict from here on relative to the round that came closest, at the rate that all rounds show.

    Kernels at their fastest and whole models as they come run on different clocks where a machine is busy.
    How much a whole model gains for each ms that its kernels lose is a line through the original, fitted to
    all rounds.
    """
    lost = np.array([float((job.kernels_ms - each.kernels_ms).sum()) for each in rounds])
    gained = np.array([(1 - each.measured.value) * job.model.original_ms for each in rounds])
    slope = float(lost @ gained / max(float(lost @ lost), 1e-12))
    rate = min(max(slope, 1 / _MOST_STRETCH), _MOST_STRETCH)
    best = min(rounds, key=lambda each: _miss(each.measured.value, target))
    job.model.anchor(best.counts, best.kernels_ms * rate, best.measured.value * job.model.original_ms)


def _key(job: Job[D], removed: Mapping[str, IntArray]) -> tuple[int, ...]:
    return tuple(len(removed.get(name, ())) for name in job.sizes)
