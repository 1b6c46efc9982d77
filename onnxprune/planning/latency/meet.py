"""A wish in time becomes a decision about channels: the parts are timed, then the loop runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.allocate.latency import LatencyModel, PartTimes
from onnxprune.allocate.limits import Limit
from onnxprune.allocate.options import Options, reason_to_skip
from onnxprune.analyze import Analysis, analyze
from onnxprune.errors import LimitMissed, NothingToPrune, RuntimeFailure
from onnxprune.measure.inputs import random_inputs
from onnxprune.parts import Part, split_into_parts
from onnxprune.planning.latency.elsewhere import Elsewhere
from onnxprune.planning.latency.forms import Sizes
from onnxprune.planning.latency.loop import Job, Round, deliver
from onnxprune.planning.latency.machine import Machine
from onnxprune.planning.latency.table import Table
from onnxprune.planning.latency.wish import LatencyWish
from onnxprune.planning.part_timer import FIELDS, PartTimer
from onnxprune.result_cache import ResultCache
from onnxprune.types import ChannelGroup, FloatArray, IntArray, Skipped

#: Parts whose time alone is so many times what it usually is, beside that inside the model, are timed again.
_OUT_OF_PROPORTION = 1.2

#: Why a group is not part of the prediction, though it may lose channels.
_ELSEWHERE = "what it saves is not predicted: at the sizes that are timed, it has other channels"

#: Where the original beside itself is known no better than this, other work disturbed what was measured.
_SHARP = 0.06

#: Parts that take less than this share of the original's time are not reported one by one.
_WORTH_TELLING = 0.005


@dataclass(frozen=True, slots=True)
class Shrinking:
    """What is to become faster.

    Attributes:
        analysis: of the model.
        options: with which it was made.
        groups: those that may lose channels, by name.
        lowest: the least kept count of each.
        reasons: why other groups stay whole, by name.
        seed: of the inputs.
    """

    analysis: Analysis
    options: Mapping[str, Any]
    groups: Mapping[str, ChannelGroup]
    lowest: Mapping[str, int]
    reasons: Mapping[str, str]
    seed: int


@dataclass(frozen=True, slots=True)
class Deciding:
    """How choices are made, and become models.

    Attributes:
        search: from a limit in time, and measured steps of kept counts by group name, to the choice that
            keeps most; raises LimitMissed.
        least: from the steps to the choice that leaves the least of every group.
        cut: from int32 channel numbers by group name to the model that is left.
    """

    search: Callable[[Limit, Mapping[str, int]], Any]
    least: Callable[[Mapping[str, int]], Any]
    cut: Callable[[Mapping[str, IntArray]], ir.Model]


@dataclass(frozen=True, slots=True)
class Met:
    """A target in time that was met.

    Attributes:
        decision: what goes.
        section: figures for the report.
        rounds: a row for each cut that was timed.
        skipped: parts that could not be timed, with reasons.
    """

    decision: Any
    section: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]
    skipped: Sequence[Skipped]


class Latency:
    """The time of one model on one machine: measured once, then asked for any number of targets.

    Args:
        model: what is to become faster.
        wish: on which machine, and how long measuring may take; its target is not read.

    Raises:
        RuntimeFailure: the model can't be run, or the provider is missing.
    """

    def __init__(self, model: Shrinking, wish: LatencyWish) -> None:
        started = time.monotonic()
        self._model, self._wish = model, wish
        given, shapes = model.analysis.given, model.options.get("input_shapes")
        feeds = random_inputs(given, batch=wish.batch, input_shapes=_tuples(shapes), seed=model.seed)
        timed = _at_shapes(model, {name: tuple(array.shape) for name, array in feeds.items()})
        parts = split_into_parts(timed.model.graph, timed.channels)
        part_of = {str(node.name): number for number, part in enumerate(parts) for node in part.nodes}
        self.machine = Machine(given, feeds, wish.execution, wish.quantile, part_of, len(parts))
        cache = None if wish.cache is None else ResultCache(wish.cache, FIELDS)
        self._timer = PartTimer(timed, parts, wish.execution, cache, feeds=feeds, seed=model.seed)
        self._elsewhere = Elsewhere(given, model.options, wish, model.seed, self._timer, parts)
        fastest_ms = self.machine.fastest_ms()
        self._failed: dict[str, str] = {}
        self._parts = parts
        kernels_ms = self.machine.kernels_ms(model.analysis.model, fastest_ms)
        present = _present(model.groups, timed)
        self.skipped = [Skipped(name, _ELSEWHERE) for name in model.groups if name not in present]
        times = self._time_whole(kernels_ms, Sizes(timed, present))
        self._numbers = list(times)
        if kernels_ms is None:
            kernels_ms = np.zeros(len(parts))
            kernels_ms[self._numbers] = [part.one({}) for part in times.values()]
        self._kernels_ms = kernels_ms
        self._whole_context = kernels_ms * (
            self.machine.original_ms / max(fastest_ms, float(kernels_ms.sum()))
        )
        self._check_whole(times)
        self._stop = started + wish.time_limit
        self.prediction = LatencyModel(
            list(times.values()), self._whole_context[self._numbers], self.machine.original_ms
        )
        self.table = Table(
            self.prediction.parts, self._whole_context[self._numbers], model.groups, model.lowest,
            self._time_part,
            self._has_time, self._time_elsewhere,
        )  # fmt: skip
        self.table.probe()
        self.table.fill()
        self.seconds = time.monotonic() - started

    def _has_time(self) -> bool:
        return time.monotonic() < self._stop

    def _time_elsewhere(self, points: Sequence[tuple[int, Mapping[str, int]]]) -> None:
        """Let others time points of parts of the prediction, if there are any."""
        self._elsewhere.time([(self._numbers[number], kept) for number, kept in points], self._has_time)

    def _time_part(self, number: int, kept: Mapping[str, int]) -> float | None:
        """Return the time of a part of the prediction; None where it can't be timed at these counts."""
        try:
            return self._timer.time_ms(self._parts[self._numbers[number]], kept)
        except RuntimeFailure as failure:  # a gap in the table; what the whole model takes decides
            name = self._parts[self._numbers[number]].name
            self._failed.setdefault(name, f"its time could not be measured at some counts: {failure}")
            return None

    def _time_whole(self, kernels_ms: FloatArray | None, sizes: Sizes) -> dict[int, PartTimes]:
        """Return what is known at first of every part that shrinks: its time as it is."""
        found = {}
        for number, part in enumerate(self._parts):
            names = tuple(name for name in self._timer.groups_of(part) if name in sizes.groups)
            if not names or (kernels_ms is not None and not kernels_ms[number]):
                continue
            if (reason := self._timer.obstacle(part)) is not None:
                self.skipped.append(Skipped(part.name, f"its time is taken to stay as it is: {reason}"))
                continue
            forms, offsets = sizes.forms_of(part, names)
            whole = np.array([self._model.groups[name].size for name in names])
            found[number] = PartTimes(part.name, names, whole, forms, offsets)
            found[number].add(whole.tolist(), self._timer.time_ms(part, {}))
        return found

    def _check_whole(self, found: Mapping[int, PartTimes]) -> None:
        """Time again the parts whose time alone is out of proportion to their time inside the original.

        All predictions of a part go by its time as it is.
        """
        if not found:
            return
        alone = {number: self._timer.time_ms(self._parts[number], {}) for number in found}
        ratios = {number: ms / float(self._whole_context[number]) for number, ms in alone.items()}
        usual = float(np.median(list(ratios.values())))
        for number, times in found.items():
            if ratios[number] > usual * _OUT_OF_PROPORTION:
                times.add(times.whole.tolist(), self._timer.again(self._parts[number], {}))

    # --- meeting a target -----------------------------------------------------------------------------------

    def meet(self, deciding: Deciding, share: float | None, ms: float | None) -> Met:
        """Find what goes so that the measured time meets a target.

        Args:
            deciding: how choices are made, and become models.
            share: of the original's time that may stay; None where ``ms`` is given.
            ms: milliseconds that may stay.

        Raises:
            LimitMissed: the target can't be met; ``reasons`` says what stands in the way.
            NothingToPrune: the original meets the target already.
        """
        original_ms = self.machine.original_ms
        target = share if ms is None else ms / original_ms
        if target is None or target >= 1:
            raise NothingToPrune(
                f"the model takes {original_ms:.3g} ms as it is, which meets the target: nothing needs to go"
            )
        started = time.monotonic()
        context = self._whole_context[self._numbers]
        self.prediction.anchor({}, context, original_ms)
        self._stop = started + self._wish.time_limit
        sizes = {name: group.size for name, group in self._model.groups.items()}
        job: Job[Any] = Job(
            sizes,
            lambda limit: deciding.search(limit, self.table.steps),
            lambda: deciding.least(self.table.steps),
            deciding.cut,
            _Inside(self.machine, self._numbers, self.prediction.parts),
            self.table,
            self.prediction,
            self._kernels_ms[self._numbers],
        )
        try:
            best, rounds = deliver(job, target)
        except LimitMissed as missed:
            reasons = missed.reasons or self._obstacles()
            raise LimitMissed(str(missed), reached=missed.reached, reasons=reasons) from None
        rows = [_row(number, each) for number, each in enumerate(rounds, start=1)]
        section = self._section(target, ms, rounds, best, time.monotonic() - started)
        failed = [Skipped(name, reason) for name, reason in self._failed.items()]
        return Met(best.decision, section, rows, (*self.skipped, *failed, *self._busy()))

    def _busy(self) -> list[Skipped]:
        """Say so if the machine was too busy for sharp figures."""
        noise = self.machine.noise
        if noise.high - noise.low <= _SHARP:
            return []
        reason = (
            f"the original beside itself took {noise.low:.2f} to {noise.high:.2f} of its time: other work ran"
        )
        return [Skipped("the machine was busy", reason)]

    def _section(
        self, target: float, ms: float | None, rounds: Sequence[Round[Any]], best: Round[Any], seconds: float
    ) -> dict[str, Any]:
        machine, wish = self.machine, self._wish
        measured = best.measured
        return {
            "target": f"{ms:g} ms" if ms is not None else target,
            "percentile": wish.percentile,
            "provider": wish.execution.provider,
            "threads": wish.execution.threads,
            "original ms": machine.original_ms,
            "predicted share": rounds[0].predicted,
            "measured share": measured.value,
            "measured low": measured.low,
            "measured high": measured.high,
            "original beside itself": machine.noise.value,
            "rounds": len(rounds),
            "points timed": self._timer.measured,
            "points left out": self.table.refused,
            "seconds of timing": self.seconds,
            "seconds of search": seconds,
        }

    def _obstacles(self) -> tuple[str, ...]:
        """Say what takes the time that is left once as much as may go is gone, part by part."""
        model, lines = self._model, []
        shares = self.prediction.part_shares(dict(model.lowest))
        left = dict(zip(self._numbers, shares, strict=True))
        fixed = self._whole_context / self.machine.original_ms
        order = sorted(range(len(self._parts)), key=lambda number: -left.get(number, fixed[number]))
        for number in order:
            part, share = self._parts[number], left.get(number, float(fixed[number]))
            if share < _WORTH_TELLING:
                break
            what = self._timer.describe(part, model.lowest)
            why = self._why(number, part)
            lines.append(f"{part.name}: {share:.1%} of the time stays: {what}: {why}")
        rest = self.prediction.rest_ms / self.machine.original_ms - sum(
            share for number, share in enumerate(fixed) if number not in left
        )
        if rest >= _WORTH_TELLING:
            lines.append(f"between operators: {rest:.1%} of the time stays")
        return tuple(lines)

    def _why(self, number: int, part: Part) -> str:
        if number in self._numbers:
            return "at its floor"
        names = {str(node.name) for node in part.nodes}
        reasons = [
            f"{group.name}: {self._model.reasons[group.name]}"
            for group in self._model.analysis.groups
            if group.name in self._model.reasons and any(m.consumer in names for m in group.members)
        ]
        untimed = [each.reason for each in self.skipped if each.name == part.name]
        operators = ", ".join(dict.fromkeys(node.op_type for node in part.nodes))
        return (*reasons, *untimed, f"no channels to remove in it ({operators})")[0]


class _Inside:
    """The machine, for some of the parts."""

    def __init__(self, machine: Machine, numbers: Sequence[int], parts: Sequence[PartTimes]) -> None:
        self.share = machine.share
        self._machine, self._numbers, self._parts = machine, list(numbers), parts

    def kernels_ms(self, model: ir.Model, whole_ms: float, counts: Mapping[str, int]) -> FloatArray:
        """Return the ms that the kernels of these parts take inside a model, float64 [these parts].

        Where the provider does not tell, it is what the parts take alone.
        """
        found = self._machine.kernels_ms(model, whole_ms)
        if found is None:
            return np.array([part.one(counts) for part in self._parts])
        return found[self._numbers]


def shrinking(
    analysis: Analysis,
    options: Mapping[str, Any],
    groups: Sequence[ChannelGroup],
    channels: Options,
    seed: int,
) -> Shrinking:
    """Return what is to become faster, from what its channels are chosen from.

    Args:
        analysis: of the model.
        options: with which it was made.
        groups: all of them, frozen where they have no scores.
        channels: which of them may go.
        seed: of the inputs.
    """
    reasons = {group.name: reason for group in groups if (reason := reason_to_skip(group, channels))}
    open_ = {group.name: group for group in groups if group.name not in reasons}
    lowest = {name: max(1, math.ceil(channels.floor * group.size)) for name, group in open_.items()}
    return Shrinking(analysis, options, open_, lowest, reasons, seed)


def _at_shapes(model: Shrinking, shapes: Mapping[str, tuple[int, ...]]) -> Analysis:
    """Return the analysis at the sizes that are timed."""
    if dict(model.analysis.shapes.input_shapes) == dict(shapes):
        return model.analysis
    return analyze(model.analysis.given, **{**model.options, "input_shapes": shapes})


def _present(groups: Mapping[str, ChannelGroup], timed: Analysis) -> dict[str, ChannelGroup]:
    """Return the groups that are the same at the sizes that are timed."""
    there = {group.name: group.size for group in timed.groups}
    return {name: group for name, group in groups.items() if there.get(name) == group.size}


def _tuples(shapes: Mapping[str, Sequence[int]] | None) -> dict[str, tuple[int, ...]] | None:
    return None if shapes is None else {name: tuple(shape) for name, shape in shapes.items()}


def _row(number: int, each: Round[Any]) -> dict[str, Any]:
    return {
        "round": number,
        "predicted share": each.predicted,
        "measured share": each.measured.value,
        "low": each.measured.low,
        "high": each.measured.high,
    }
