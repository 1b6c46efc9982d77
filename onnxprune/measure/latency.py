"""Latency of one model, or of two against each other, that holds on a machine shared with others.

Means of runs one after the other are wrong by tens of percent where other jobs come and go. So the sessions
live in one process and take turns, in an order that changes every round; the figure is the median of the
ratios within a round; and a second session of the first model runs along. What that control seems to gain or
lose is noise, and a difference inside it is none.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.errors import UsageError
from onnxprune.measure import intervals
from onnxprune.measure.inputs import random_inputs
from onnxprune.measure.intervals import Estimate
from onnxprune.messages import one_line, quoted
from onnxprune.runtime import Session, open_session

Verdict = Literal["faster", "slower", "no difference", "inconclusive"]
Model: TypeAlias = "ir.Model | str | Path"
Vector = npt.NDArray[np.float64]

WARM_UP_RUNS = 3
LEAST_PAIRS = 20  # fewer leave the ends of the bootstrap interval to single rounds
MOST_PAIRS = 2000
LEAST_SECONDS = 1.0

#: Runs are repeated within a turn until it lasts about this long, so that the caches are the model's own.
_TURN_SECONDS = 0.0005
_MOST_REPEATS = 100

#: Two sessions of one model differ by up to this much for as long as they live, by where their memory happens
#: to lie, which no number of rounds averages out.
SESSION_SPREAD = 0.01

#: "no difference" is said only where a difference of this size would have been seen.
RESOLUTION = 0.02

#: Orders of the turns (0 = model a, 1 = model b, 2 = the control). Every second one mirrors the one before,
#: and over the cycle each session comes first, second, last and after itself as often as the others.
_ORDERS_OF_THREE = ((0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1), (2, 0, 1), (1, 0, 2))
_ORDERS_OF_TWO = ((0, 2), (2, 0))


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall time of single runs, in milliseconds."""

    median_ms: float
    p95_ms: float
    minimum_ms: float
    runs: int


@dataclass(frozen=True, slots=True)
class LatencyResult:
    """What `benchmark` found.

    Attributes:
        a: the first model.
        b: the second model, or None.
        ratio: median over the rounds of time of b / time of a; below 1 is faster. None without b.
        control: the same figure for a second session of a; it would be 1 without noise.
        cpu_ratio: like ``ratio``, of the process's CPU time over all threads; on CPU with several threads.
        cpu_control: like ``control``, of CPU time.
        verdict: of b against a; None without b.
        pairs: number of rounds.
        repeats: runs in a turn; a round compares the medians of the turns.
        provider: where it ran.
        threads: of one operator; 0 for one per core.
        input_shapes: by input name.
    """

    a: Timing
    b: Timing | None
    ratio: Estimate | None
    control: Estimate
    cpu_ratio: Estimate | None
    cpu_control: Estimate | None
    verdict: Verdict | None
    pairs: int
    repeats: int
    provider: str
    threads: int
    input_shapes: Mapping[str, tuple[int, ...]]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        plain = asdict(self)
        plain["input_shapes"] = {name: list(shape) for name, shape in self.input_shapes.items()}
        return plain


def benchmark(
    a: Model,
    b: Model | None = None,
    *,
    provider: str = "cpu",
    threads: int = 1,
    batch: int | None = None,
    pairs: int = 60,
    seed: int = 0,
    feeds: Mapping[str, npt.NDArray[Any]] | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    progress: Callable[[float], None] | None = None,
) -> LatencyResult:
    """Time a model, or two against each other, on the same inputs.

    Args:
        a: the model that others are compared with.
        b: the model that is compared, with the same inputs.
        provider: a key of `onnxprune.runtime.PROVIDERS`.
        threads: of one operator; 0 for one per core. Only 1 gives sharp figures on a shared machine.
        batch: size of the first axis where that is symbolic; 1 by default.
        pairs: rounds to run, at least; more follow until `LEAST_SECONDS` have passed.
        seed: of the random inputs and of the bootstrap.
        feeds: inputs to run on, instead of random ones.
        input_shapes: shapes of random inputs by name, where the guess does not do.
        progress: called after every round with the share that is done, in (0, 1].

    Raises:
        UsageError: too few pairs, contradicting sizes, or models that take different inputs.
        ModelError, RuntimeFailure: a model can't be read, opened or run.
    """
    if not LEAST_PAIRS <= pairs <= MOST_PAIRS:
        raise UsageError(f"pairs must lie between {LEAST_PAIRS} and {MOST_PAIRS}, not {pairs}")
    if feeds is None:
        feeds = random_inputs(a, batch=batch, input_shapes=input_shapes, seed=seed)
    elif batch is not None or input_shapes is not None:
        raise UsageError("give either feeds, or a batch or input shapes for random ones")

    def opened(model: Model, label: str) -> Session:
        name = str(model) if isinstance(model, (str, Path)) else label
        return open_session(model, provider=provider, threads=threads, spinning=False, label=name)

    sessions = {0: opened(a, "model a")}
    if b is not None:
        sessions[1] = opened(b, "model b")
        _check_same_inputs(sessions[0], sessions[1])
    sessions[2] = opened(a, "model a")
    times = _take_turns(sessions, feeds, pairs, progress)
    witness = threads != 1 and sessions[0].providers[0] == "CPUExecutionProvider"
    return summarize(
        times,
        witness=witness,
        seed=seed,
        provider=provider,
        threads=threads,
        input_shapes={name: tuple(array.shape) for name, array in feeds.items()},
    )


@dataclass(frozen=True, slots=True)
class TurnTimes:
    """Raw times of the turns, in seconds, by session (0 = model a, 1 = model b, 2 = the control).

    Attributes:
        wall: float64 [round, repeat], of single runs.
        cpu: float64 [round], of the whole turn, over all threads of the process.
    """

    wall: Mapping[int, Vector]
    cpu: Mapping[int, Vector]


def summarize(
    times: TurnTimes,
    *,
    witness: bool,
    seed: int,
    provider: str,
    threads: int,
    input_shapes: Mapping[str, tuple[int, ...]],
) -> LatencyResult:
    """Turn raw times into figures and a verdict; ``witness`` tells whether CPU time is one."""
    turns = {key: np.median(wall, axis=1) for key, wall in times.wall.items()}
    control = intervals.median(turns[2] / turns[0], seed)
    cpu_control = _median_of_ratios(times.cpu, 2, seed) if witness else None
    ratio = cpu_ratio = verdict = None
    if 1 in turns:
        ratio = intervals.median(turns[1] / turns[0], seed)
        cpu_ratio = _median_of_ratios(times.cpu, 1, seed) if witness else None
        verdict = decide(ratio, control)
        if cpu_ratio is not None and cpu_control is not None:
            verdict = _hear(verdict, decide(cpu_ratio, cpu_control))
    return LatencyResult(
        a=_timing(times.wall[0]),
        b=_timing(times.wall[1]) if 1 in turns else None,
        ratio=ratio,
        control=control,
        cpu_ratio=cpu_ratio,
        cpu_control=cpu_control,
        verdict=verdict,
        pairs=times.wall[0].shape[0],
        repeats=times.wall[0].shape[1],
        provider=provider,
        threads=threads,
        input_shapes=dict(input_shapes),
    )


def decide(ratio: Estimate, control: Estimate) -> Verdict:
    """Judge a ratio by its interval and by how far the control's interval reaches from 1, up or down.

    "faster" and "slower" need an interval that lies wholly outside the control's reach, and `SESSION_SPREAD`.
    "no difference" needs both to be narrower than `RESOLUTION`; otherwise it could not have been seen.
    """
    reach = max(abs(math.log(control.low)), abs(math.log(control.high)), math.log1p(SESSION_SPREAD))
    if math.log(ratio.high) < -reach:
        return "faster"
    if math.log(ratio.low) > reach:
        return "slower"
    furthest = max(abs(math.log(ratio.low)), abs(math.log(ratio.high)))
    return "no difference" if max(reach, furthest) <= math.log1p(RESOLUTION) else "inconclusive"


def _hear(verdict: Verdict, witness: Verdict) -> Verdict:
    """Return the verdict, unless CPU time says the opposite."""
    return "inconclusive" if {verdict, witness} == {"faster", "slower"} else verdict


def _take_turns(
    sessions: Mapping[int, Session],
    feeds: Mapping[str, npt.NDArray[Any]],
    pairs: int,
    progress: Callable[[float], None] | None,
) -> TurnTimes:
    orders = _ORDERS_OF_THREE if len(sessions) == 3 else _ORDERS_OF_TWO
    for session in sessions.values():
        for _ in range(WARM_UP_RUNS):
            session.run(feeds)
    repeats = _repeats(sessions[0], feeds)
    wall: dict[int, list[list[float]]] = {key: [] for key in sessions}
    cpu: dict[int, list[float]] = {key: [] for key in sessions}
    collecting = gc.isenabled()
    gc.disable()  # a collection would fall into one turn and not into its partner
    try:
        started = time.perf_counter()
        share = 0.0
        while share < 1:
            count = len(wall[0])
            for key in orders[count % len(orders)]:
                turn, cpu_seconds = _turn(sessions[key], feeds, repeats)
                wall[key].append(turn)
                cpu[key].append(cpu_seconds)
            elapsed = time.perf_counter() - started
            share = _share_done(count + 1, pairs, elapsed, len(orders))
            if progress is not None:
                progress(share)
    finally:
        if collecting:
            gc.enable()
    return TurnTimes(
        {key: np.asarray(turns) for key, turns in wall.items()},
        {key: np.asarray(seconds) for key, seconds in cpu.items()},
    )


def _share_done(rounds: int, pairs: int, elapsed_seconds: float, cycle: int) -> float:
    """Return 1 once enough rounds and time are over, and only after whole cycles of orders."""
    share = min(1.0, rounds / pairs, max(elapsed_seconds / LEAST_SECONDS, rounds / MOST_PAIRS))
    return share if share < 1 or rounds % cycle == 0 else math.nextafter(1.0, 0.0)


def _turn(session: Session, feeds: Mapping[str, npt.NDArray[Any]], repeats: int) -> tuple[list[float], float]:
    """Run a model ``repeats`` times; return the seconds of each run, and the CPU seconds of all of them."""
    run, clock = session.run, time.perf_counter
    cpu_started = time.process_time()
    seconds = []
    for _ in range(repeats):
        started = clock()
        run(feeds)
        seconds.append(clock() - started)
    return seconds, time.process_time() - cpu_started


def _repeats(session: Session, feeds: Mapping[str, npt.NDArray[Any]]) -> int:
    seconds, _ = _turn(session, feeds, 3)
    return max(1, min(_MOST_REPEATS, math.ceil(_TURN_SECONDS / max(min(seconds), 1e-7))))


def _median_of_ratios(cpu: Mapping[int, Vector], key: int, seed: int) -> Estimate | None:
    """Return the median ratio of CPU times, None where the system's CPU clock is too coarse to tell."""
    if min(cpu[0].min(), cpu[key].min()) <= 0:
        return None
    return intervals.median(cpu[key] / cpu[0], seed)


def _timing(wall: Vector) -> Timing:
    runs = wall.reshape(-1) * 1000
    return Timing(float(np.median(runs)), float(np.quantile(runs, 0.95)), float(runs.min()), runs.size)


def _check_same_inputs(a: Session, b: Session) -> None:
    if a.inputs.keys() != b.inputs.keys():
        names_a, names_b = (one_line(", ".join(session.inputs)) for session in (a, b))
        raise UsageError(f"the models take different inputs and cannot be compared: {names_a} and {names_b}")
    for name, one in a.inputs.items():
        other = b.inputs[name]
        if one.dtype != other.dtype or not _compatible(one.shape, other.shape):
            raise UsageError(
                f"the models disagree on input {quoted(name)}: {one.dtype}{list(one.shape)} "
                f"and {other.dtype}{list(other.shape)}"
            )


def _compatible(a: Sequence[int | None], b: Sequence[int | None]) -> bool:
    return len(a) == len(b) and all(x is None or y is None or x == y for x, y in zip(a, b, strict=True))
