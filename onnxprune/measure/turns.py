"""Sessions that take turns: raw times that can be compared on a machine shared with others.

Means of runs one after the other are wrong by tens of percent where other jobs come and go. So the sessions
live in one process and take turns, in an order that changes every round, and figures are made of ratios
within a round.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from onnxprune.errors import UsageError
from onnxprune.measure import intervals
from onnxprune.measure.intervals import Estimate
from onnxprune.workers import measuring

Vector = npt.NDArray[np.float64]
Run = Callable[[], object]

LEAST_PAIRS = 20  # fewer leave the ends of the bootstrap interval to single rounds
MOST_PAIRS = 2000
LEAST_SECONDS = 1.0

#: Runs are repeated within a turn until it lasts about this long, so that the caches are the model's own.
TURN_SECONDS = 0.0005
_MOST_REPEATS = 100

#: Runs before the measurement go on until two windows of this many runs differ by no more than `_SETTLED`.
_WINDOW = 3
_SETTLED = 0.03
_MOST_WINDOWS = 40

#: A session that does not settle is given up after this long, but not before one window is full.
WARM_UP_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What came before the measurement of a session.

    Attributes:
        runs: how many runs.
        settled: whether the times of the last ones differed by no more than the machine's noise.
    """

    runs: int
    settled: bool


@dataclass(frozen=True, slots=True)
class TurnTimes:
    """Raw times of the turns, in seconds, by session (0 = model a, 1 = model b, 2 = the control, or more).

    Attributes:
        wall: float64 [round, repeat], of single runs.
        cpu: float64 [round], of the whole turn, over all threads of the process.
        warm_up: what came before, by session.
    """

    wall: Mapping[int, Vector]
    cpu: Mapping[int, Vector]
    warm_up: Mapping[int, WarmUp] = field(default_factory=dict)

    def milliseconds(self, key: int, quantile: float = 0.5) -> float:
        """Return a quantile of the wall time of all runs of a session."""
        return float(np.quantile(self.wall[key], quantile)) * 1000


def ratio_of(
    times: TurnTimes,
    quantile: float = 0.5,
    *,
    key: int = 1,
    seed: int = 0,
    confidence: float = intervals.CONFIDENCE,
) -> Estimate:
    """Return the time of a session / the time of model a at a quantile, with its bootstrap interval.

    At the median it is the median over the rounds of the ratio of the medians of two turns, from which drift
    of the machine cancels. At other quantiles it is the ratio of the quantiles of all runs, and the interval
    comes from resampled rounds; rounds stay whole, so drift widens both alike.

    Args:
        times: of the turns.
        quantile: in (0, 1); 0.95 for the 95th percentile.
        key: of the session; 1 for model b, 2 for the control.
        seed: of the bootstrap.
        confidence: of the interval.

    Raises:
        UsageError: the quantile is not in (0, 1).
    """
    if not 0 < quantile < 1:
        raise UsageError(f"a quantile lies between 0 and 1, not {quantile}")
    own, base = times.wall[key], times.wall[0]
    if quantile == 0.5:
        return intervals.median(np.median(own, axis=1) / np.median(base, axis=1), seed, confidence)
    return intervals.ratio_of_quantiles(own, base, quantile, seed, confidence)


def take_turns(
    runs: Mapping[int, Run],
    pairs: int,
    *,
    least_seconds: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> TurnTimes:
    """Warm every session up, and let them take turns, while nothing else of ours runs on this machine.

    Args:
        runs: what runs a session once, by session; 0 must be among them, and one other or more.
        pairs: rounds, at least.
        least_seconds: rounds go on until this much time is over; `LEAST_SECONDS` if None.
        progress: called after every round with the share that is done, in (0, 1].
    """
    with measuring():
        return _take_turns(runs, pairs, LEAST_SECONDS if least_seconds is None else least_seconds, progress)


def _take_turns(
    runs: Mapping[int, Run], pairs: int, least_seconds: float, progress: Callable[[float], None] | None
) -> TurnTimes:
    orders = _orders(tuple(runs))
    warm_up = {key: warm(run) for key, run in runs.items()}
    repeats = _repeats(runs[0])
    wall: dict[int, list[list[float]]] = {key: [] for key in runs}
    cpu: dict[int, list[float]] = {key: [] for key in runs}
    collecting = gc.isenabled()
    gc.disable()  # a collection would fall into one turn and not into its partner
    try:
        started = time.perf_counter()
        share = 0.0
        while share < 1:
            count = len(wall[0])
            for key in orders[count % len(orders)]:
                turn, cpu_seconds = _turn(runs[key], repeats)
                wall[key].append(turn)
                cpu[key].append(cpu_seconds)
            elapsed = time.perf_counter() - started
            share = _share_done(count + 1, pairs, elapsed, len(orders), least_seconds)
            if progress is not None:
                progress(share)
    finally:
        if collecting:
            gc.enable()
    return TurnTimes(
        {key: np.asarray(turns) for key, turns in wall.items()},
        {key: np.asarray(seconds) for key, seconds in cpu.items()},
        warm_up,
    )


def warm(run: Run) -> WarmUp:
    """Run until the times settle: the medians of two windows of runs, one after the other, are about equal.

    First runs allocate memory, choose algorithms and fill caches; how many of them there are depends on the
    model and on where it runs. Bounded by `_MOST_WINDOWS` windows and `WARM_UP_SECONDS`.
    """
    started = time.perf_counter()
    last = None
    for window in range(1, _MOST_WINDOWS + 1):
        seconds, _ = _turn(run, _WINDOW)
        median = float(np.median(seconds))
        if last is not None and abs(median - last) <= _SETTLED * last:
            return WarmUp(window * _WINDOW, settled=True)
        if time.perf_counter() - started > WARM_UP_SECONDS:
            break
        last = median
    return WarmUp(window * _WINDOW, settled=False)


def _orders(keys: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return the orders of the turns, a cycle of twice as many rounds as there are sessions (two for two).

    Each is a shifted zigzag 0, 1, n - 1, 2, ..., and the one after it mirrors it: over the cycle each session
    comes first, second, last and after itself as often as the others, and after each of them as often (E. J.
    Williams 1949, "Experimental designs balanced for the estimation of residual effects of treatments").
    """
    keys, count = sorted(keys), len(keys)
    zigzag = [(step + 1) // 2 if step % 2 else (count - step // 2) % count for step in range(count)]
    shifts = range(count) if count > 2 else range(1)
    rows = [tuple(keys[(place + shift) % count] for place in zigzag) for shift in shifts]
    return tuple(order for row in rows for order in (row, row[::-1]))


def _share_done(rounds: int, pairs: int, elapsed_seconds: float, cycle: int, least_seconds: float) -> float:
    """Return 1 once enough rounds and time are over, and only after whole cycles of orders."""
    in_time = elapsed_seconds / least_seconds if least_seconds > 0 else 1.0
    share = min(1.0, rounds / pairs, max(in_time, rounds / MOST_PAIRS))
    return share if share < 1 or rounds % cycle == 0 else math.nextafter(1.0, 0.0)


def _turn(run: Run, repeats: int) -> tuple[list[float], float]:
    """Run a model ``repeats`` times; return the seconds of each run, and the CPU seconds of all of them."""
    clock = time.perf_counter
    cpu_started = time.process_time()
    seconds = []
    for _ in range(repeats):
        started = clock()
        run()
        seconds.append(clock() - started)
    return seconds, time.process_time() - cpu_started


def _repeats(run: Run) -> int:
    seconds, _ = _turn(run, 3)
    return max(1, min(_MOST_REPEATS, math.ceil(TURN_SECONDS / max(min(seconds), 1e-7))))


def cpu_ratio(times: TurnTimes, key: int, seed: int) -> Estimate | None:
    """Return the median ratio of CPU times, None where the system's CPU clock is too coarse to tell."""
    if min(times.cpu[0].min(), times.cpu[key].min()) <= 0:
        return None
    return intervals.median(times.cpu[key] / times.cpu[0], seed)
