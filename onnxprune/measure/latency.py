"""Latency of one model, or of two against each other, that holds on a machine shared with others.

The sessions take turns (`onnxprune.measure.turns`); the figure is the median of the ratios within a round;
and a second session of the first model runs along. What that control seems to gain or lose is noise, and a
difference inside it is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy.typing as npt
import onnx_ir as ir

from onnxprune.errors import UsageError
from onnxprune.measure.inputs import random_inputs
from onnxprune.measure.intervals import Estimate
from onnxprune.measure.turns import (
    LEAST_PAIRS,
    MOST_PAIRS,
    TurnTimes,
    WarmUp,
    cpu_ratio,
    ratio_of,
    take_turns,
)
from onnxprune.messages import one_line, quoted
from onnxprune.runtime import DEFAULT, Execution, Session, open_session, pinned

Verdict = Literal["faster", "slower", "no difference", "inconclusive"]
Model: TypeAlias = "ir.Model | str | Path"
Feeds: TypeAlias = Mapping[str, npt.NDArray[Any]]

#: Two sessions of one model differ by up to this much for as long as they live, by where their memory happens
#: to lie, which no number of rounds averages out.
SESSION_SPREAD = 0.01

#: "no difference" is said only where a difference of this size would have been seen.
RESOLUTION = 0.02

#: Quantiles that are compared beside the median.
PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall time of single runs, in milliseconds.

    Attributes:
        median_ms, p95_ms, p99_ms, minimum_ms: of all runs.
        runs: how many.
        warm_up_runs: how many came before.
        settled: whether the times had settled by then; where not, the machine is busy or the model slow.
    """

    median_ms: float
    p95_ms: float
    p99_ms: float
    minimum_ms: float
    runs: int
    warm_up_runs: int
    settled: bool


@dataclass(frozen=True, slots=True)
class Percentile:
    """Time of b / time of a at one percentile (None without b), and what the control seems to gain there."""

    percentile: str
    ratio: Estimate | None
    control: Estimate


@dataclass(frozen=True, slots=True)
class LatencyResult:
    """What `benchmark` found.

    Attributes:
        a: the first model.
        b: the second model, or None.
        ratio: median over the rounds of time of b / time of a; below 1 is faster. None without b.
        control: the same figure for a second session of a; it would be 1 without noise.
        percentiles: the same at each of `PERCENTILES`.
        cpu_ratio: like ``ratio``, of the process's CPU time over all threads; on CPU with several threads.
        cpu_control: like ``control``, of CPU time.
        verdict: of b against a; None without b.
        pairs: number of rounds.
        repeats: runs in a turn; a round compares the medians of the turns.
        execution: where and how they ran.
        on_device: the kind of device on which inputs and outputs stayed, so that copies are not counted; None
            where they were in main memory.
        input_shapes: by input name.
    """

    a: Timing
    b: Timing | None
    ratio: Estimate | None
    control: Estimate
    percentiles: tuple[Percentile, ...]
    cpu_ratio: Estimate | None
    cpu_control: Estimate | None
    verdict: Verdict | None
    pairs: int
    repeats: int
    execution: Execution
    on_device: str | None
    input_shapes: Mapping[str, tuple[int, ...]]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values; the settings of ``execution`` stand among the others."""
        plain = asdict(self)
        plain |= plain.pop("execution")
        plain["options"] = dict(plain["options"])
        plain["percentiles"] = list(plain["percentiles"])
        plain["input_shapes"] = {name: list(shape) for name, shape in self.input_shapes.items()}
        return plain


def benchmark(
    a: Model,
    b: Model | None = None,
    *,
    execution: Execution = DEFAULT,
    io_binding: bool = True,
    batch: int | None = None,
    pairs: int = 60,
    seed: int = 0,
    feeds: Feeds | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    progress: Callable[[float], None] | None = None,
) -> LatencyResult:
    """Time a model, or two against each other, on the same inputs.

    Args:
        a: the model that others are compared with.
        b: the model that is compared, with the same inputs.
        execution: where and how they run. Only one thread gives sharp figures on a shared machine.
        io_binding: on a provider with memory of its own, keep inputs and outputs there, so that copies are
            not counted.
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
    others = () if b is None else (b,)
    timed = time_in_turns(
        a, others, execution=execution, io_binding=io_binding, batch=batch, pairs=pairs, seed=seed,
        feeds=feeds, input_shapes=input_shapes, progress=progress,
    )  # fmt: skip
    return timed.beside(None if b is None else 1)


def benchmark_each(
    a: Model,
    others: Sequence[Model],
    *,
    execution: Execution = DEFAULT,
    io_binding: bool = True,
    batch: int | None = None,
    pairs: int = 60,
    seed: int = 0,
    feeds: Feeds | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[LatencyResult, ...]:
    """Time several models against one, all of them in turns in one run, and return a result for each.

    All sessions are open at once, with one more of the first model, the control. Arguments and errors are
    those of `benchmark`; rounds are whole cycles of orders, of which there are twice as many as sessions.
    """
    timed = time_in_turns(
        a, others, execution=execution, io_binding=io_binding, batch=batch, pairs=pairs, seed=seed,
        feeds=feeds, input_shapes=input_shapes, progress=progress,
    )  # fmt: skip
    return tuple(timed.beside(key) for key in timed.others)


#: The session of the control.
CONTROL = 2


@dataclass(frozen=True, slots=True)
class Timed:
    """Sessions that took turns, and how.

    Attributes:
        times: raw times by session: 0 is model a, `CONTROL` the control, and the models that are compared
            are `others`.
        seed: of the bootstrap.
        execution, on_device, input_shapes: as in `LatencyResult`.
    """

    times: TurnTimes
    seed: int
    execution: Execution
    on_device: str | None
    input_shapes: Mapping[str, tuple[int, ...]]

    @property
    def others(self) -> tuple[int, ...]:
        """The sessions of the models that are compared, in their order."""
        return tuple(key for key in self.times.wall if key not in (0, CONTROL))

    def beside(self, key: int | None) -> LatencyResult:
        """Return the figures of one session beside model a; of model a alone for None."""
        chosen = {0: 0, CONTROL: CONTROL} | ({} if key is None else {1: key})
        times = TurnTimes(
            {place: self.times.wall[of] for place, of in chosen.items()},
            {place: self.times.cpu[of] for place, of in chosen.items()},
            {place: self.times.warm_up[of] for place, of in chosen.items() if of in self.times.warm_up},
        )
        return summarize(
            times,
            seed=self.seed,
            execution=self.execution,
            on_device=self.on_device,
            input_shapes=self.input_shapes,
        )


def time_in_turns(
    a: Model,
    others: Sequence[Model],
    *,
    execution: Execution = DEFAULT,
    io_binding: bool = True,
    batch: int | None = None,
    pairs: int = 60,
    seed: int = 0,
    feeds: Feeds | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Timed:
    """Let a model, others and a control take turns, and return raw times: arguments as in `benchmark`."""
    if not LEAST_PAIRS <= pairs <= MOST_PAIRS:
        raise UsageError(f"pairs must lie between {LEAST_PAIRS} and {MOST_PAIRS}, not {pairs}")
    if feeds is None:
        feeds = random_inputs(a, batch=batch, input_shapes=input_shapes, seed=seed)
    elif batch is not None or input_shapes is not None:
        raise UsageError("give either feeds, or a batch or input shapes for random ones")
    sessions = {0: _opened(a, "model a", execution)}
    for key, other in zip((1, *range(CONTROL + 1, len(others) + 2)), others, strict=False):
        sessions[key] = _opened(other, f"model {'b' if key == 1 else key}", execution)
        _check_same_inputs(sessions[0], sessions[key])
    sessions[CONTROL] = _opened(a, "model a", execution)
    with pinned(execution):
        runs = {key: session.runner(feeds, on_device=io_binding) for key, session in sessions.items()}
        times = take_turns(runs, pairs, progress=progress)
    on_device = sessions[0].device if io_binding else None
    shapes = {name: tuple(array.shape) for name, array in feeds.items()}
    return Timed(times, seed, execution, on_device, shapes)


def quick_ratio(
    original: Session | Model,
    model: Model,
    feeds: Feeds,
    execution: Execution = DEFAULT,
    *,
    pairs: int = LEAST_PAIRS,
    quantile: float = 0.5,
    seed: int = 0,
) -> tuple[Estimate, float, float]:
    """Time a model against another in turns, as `benchmark` does, but without a control and a verdict.

    For a search that asks many times: the first model's session may stay open between the calls. Call
    `benchmark` for a figure that is told to anyone.

    Args:
        original: what is compared with; a session must have been opened with the same execution.
        model: what is compared.
        feeds: inputs of both.
        execution: where and how they run.
        pairs: rounds.
        quantile: of the times, in (0, 1), as in `onnxprune.measure.turns.ratio_of`.
        seed: of the bootstrap.

    Returns:
        time of the model / time of the original, and both times at the quantile, in milliseconds.

    Raises:
        UsageError: the quantile is out of range, there are no pairs, or the inputs differ.
        ModelError, RuntimeFailure: a model can't be read, opened or run.
    """
    if pairs < 1:
        raise UsageError(f"a comparison takes one pair or more, not {pairs}")
    first = original if isinstance(original, Session) else _opened(original, "the original", execution)
    second = _opened(model, "the model", execution)
    _check_same_inputs(first, second)
    with pinned(execution):
        runs = {0: first.runner(feeds), 1: second.runner(feeds)}
        times = take_turns(runs, pairs, least_seconds=0.0)
    ratio = ratio_of(times, quantile, seed=seed)
    return ratio, times.milliseconds(0, quantile), times.milliseconds(1, quantile)


def summarize(
    times: TurnTimes,
    *,
    seed: int,
    execution: Execution,
    on_device: str | None = None,
    input_shapes: Mapping[str, tuple[int, ...]],
) -> LatencyResult:
    """Turn raw times into figures and a verdict; CPU time is a witness where several threads ran on it."""
    witness = execution.threads != 1 and execution.provider in ("cpu", "CPUExecutionProvider")
    both = 1 in times.wall
    control = ratio_of(times, key=2, seed=seed)
    cpu_control = cpu_ratio(times, 2, seed) if witness else None
    ratio = ratio_of(times, seed=seed) if both else None
    of_cpu = cpu_ratio(times, 1, seed) if both and witness else None
    verdict = decide(ratio, control) if ratio is not None else None
    if verdict is not None and of_cpu is not None and cpu_control is not None:
        verdict = _hear(verdict, decide(of_cpu, cpu_control))
    return LatencyResult(
        a=_timing(times, 0),
        b=_timing(times, 1) if both else None,
        ratio=ratio,
        control=control,
        percentiles=tuple(
            Percentile(
                name,
                ratio_of(times, quantile, seed=seed) if both else None,
                ratio_of(times, quantile, key=2, seed=seed),
            )
            for name, quantile in PERCENTILES.items()
        ),
        cpu_ratio=of_cpu,
        cpu_control=cpu_control,
        verdict=verdict,
        pairs=times.wall[0].shape[0],
        repeats=times.wall[0].shape[1],
        execution=execution,
        on_device=on_device,
        input_shapes=dict(input_shapes),
    )


def reach_of(low: float, high: float) -> float:
    """Return the natural logarithm of the largest ratio that may be noise: `SESSION_SPREAD` at least.

    Args:
        low: lower end of the control's interval; positive.
        high: upper end of it.
    """
    return max(abs(math.log(low)), abs(math.log(high)), math.log1p(SESSION_SPREAD))


def decide(ratio: Estimate, control: Estimate) -> Verdict:
    """Judge a ratio by its interval and by how far the control's interval reaches from 1, up or down.

    "faster" and "slower" need an interval that lies wholly outside the control's reach, and `SESSION_SPREAD`.
    "no difference" needs both to be narrower than `RESOLUTION`; otherwise it could not have been seen.
    """
    reach = reach_of(control.low, control.high)
    if math.log(ratio.high) < -reach:
        return "faster"
    if math.log(ratio.low) > reach:
        return "slower"
    furthest = max(abs(math.log(ratio.low)), abs(math.log(ratio.high)))
    return "no difference" if max(reach, furthest) <= math.log1p(RESOLUTION) else "inconclusive"


def _hear(verdict: Verdict, witness: Verdict) -> Verdict:
    """Return the verdict, unless CPU time says the opposite."""
    return "inconclusive" if {verdict, witness} == {"faster", "slower"} else verdict


def _opened(model: Model, label: str, execution: Execution) -> Session:
    name = str(model) if isinstance(model, (str, Path)) else label
    return open_session(model, execution=execution, label=name)


def _timing(times: TurnTimes, key: int) -> Timing:
    before = times.warm_up.get(key, WarmUp(0, settled=False))
    median_ms, p95_ms, p99_ms = (times.milliseconds(key, quantile) for quantile in PERCENTILES.values())
    return Timing(
        median_ms=median_ms,
        p95_ms=p95_ms,
        p99_ms=p99_ms,
        minimum_ms=float(times.wall[key].min()) * 1000,
        runs=times.wall[key].size,
        warm_up_runs=before.runs,
        settled=before.settled,
    )


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
