"""Which layers become int8, and how: steps that help are kept, and layers go back until the bound is met.

Only what is measured decides. A step is kept if the outputs on samples that were not calibrated on come
closer to those in float. Layers are put back in the order of what each alone changes at the outputs, as
few as it takes, found by bisection: first they compute in float again, with their weights still in 8 bits; if
that is not enough for all of them, weights stay in float too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxprune.quantization.layers import Layer
from onnxprune.quantization.output_errors import OutputError

#: What a step must take off the error at the outputs, as a share of it.
LEAST_GAIN = 0.02

#: Where a layer stands: it computes in integers; it computes in float and is stored in 8 bits; neither.
INTEGER, STORED, FLOAT = "integer", "stored", "float"


@dataclass(frozen=True, slots=True)
class Judged:
    """What a model is worth.

    Attributes:
        error: at its outputs, beside the model in float.
        lost: of the metric, beside the reference; what must stay within the bound.
        figures: what the report says of it.
    """

    error: OutputError
    lost: float
    figures: Mapping[str, Any]


@dataclass(slots=True)
class Trail:
    """What was tried, for the report, and who is told how far the work is.

    Attributes:
        bound: what the metric may lose.
        judge: of models.
        steps: a row for each step.
    """

    bound: float
    judge: Callable[[ir.Model], Judged]
    steps: list[dict[str, Any]] = field(default_factory=list)

    def note(self, step: str, judged: Judged, kept: bool, why: str = "") -> None:
        """Write down a step."""
        row = {"step": step, "output_sqnr_db": round(judged.error.sqnr_db, 2), **judged.figures}
        self.steps.append({**row, "kept": kept, "note": why})

    def passes(self, judged: Judged) -> bool:
        """Return whether a model is within the bound."""
        return judged.lost <= self.bound


#: Makes a model of a float model: some layers integer, some stored in 8 bits.
Make = Callable[[ir.Model, Sequence[Layer], Sequence[Layer]], ir.Model]

#: Changes a copy of a float model so that it loses less when it is rounded; None where it can't.
Step = Callable[[ir.Model], "ir.Model | None"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A float model, and the quantized one that was made of it."""

    work: ir.Model
    made: ir.Model
    judged: Judged


def improve(
    start: Candidate,
    name: str,
    step: Step,
    make: Callable[[ir.Model], ir.Model],
    trail: Trail,
    *,
    always: bool,
) -> Candidate:
    """Try one step; return the candidate that it leads to if it helps (or always), else the one before."""
    changed = step(start.work)
    if changed is None:
        return start
    made = make(changed)
    judged = trail.judge(made)
    better = judged.error.relative <= start.judged.error.relative * (1 - LEAST_GAIN)
    better = better and (trail.passes(judged) or not trail.passes(start.judged))
    kept = better or always
    gained = judged.error.sqnr_db - start.judged.error.sqnr_db
    trail.note(name, judged, kept, f"{gained:+.1f} dB at the outputs on samples not calibrated on")
    return Candidate(changed, made, judged) if kept else start


@dataclass(frozen=True, slots=True)
class Assigned:
    """The end of the search.

    Attributes:
        candidate: the model.
        places: `INTEGER`, `STORED` or `FLOAT`, by layer.
        reasons: why a layer is not what it could have been, by layer.
        effects: what each layer alone changes at the outputs, where that was measured.
    """

    candidate: Candidate
    places: Mapping[str, str]
    reasons: Mapping[str, str] = field(default_factory=dict)
    effects: Mapping[str, OutputError] = field(default_factory=dict)


def meet_bound(
    start: Candidate,
    layers: Sequence[Layer],
    place: str,
    make: Make,
    effects: Callable[[Candidate, str], Mapping[str, OutputError]],
    trail: Trail,
) -> Assigned:
    """Put back as few layers as it takes for the bound.

    Args:
        start: all layers quantized.
        layers: these.
        place: `INTEGER` or `STORED`: where they are in ``start``.
        make: makes a model of layers in integers and layers that are stored in 8 bits.
        effects: measures what each layer alone changes, in a candidate and a place.
        trail: judges, and takes notes.
    """
    names = [layer.name for layer in layers]
    if trail.passes(start.judged):
        return Assigned(start, dict.fromkeys(names, place))
    if place == INTEGER:
        found = effects(start, INTEGER)
        order = _ranked(layers, found)

        def half(count: int) -> Candidate:
            out = {layer.name for layer in order[:count]}
            integer = [layer for layer in layers if layer.name not in out]
            return _candidate(start.work, make(start.work, integer, order[:count]), trail)

        least, best = _bisect(len(order), half, trail)
        if best is not None:
            reasons = {layer.name: _reason("computes in float", layer, found) for layer in order[:least]}
            places = {name: STORED if name in reasons else INTEGER for name in names}
            trail.note(f"{least} of {len(layers)} layers compute in float", best.judged, True)
            return Assigned(best, places, reasons, found)
        start = _candidate(start.work, make(start.work, (), layers), trail)
        trail.note("all layers compute in float, stored in 8 bits", start.judged, False)
    found = effects(start, STORED)
    order = _ranked(layers, found)

    def stored(count: int) -> Candidate:
        out = {layer.name for layer in order[:count]}
        kept = [layer for layer in layers if layer.name not in out]
        return _candidate(start.work, make(start.work, (), kept), trail)

    least, best = _bisect(len(order), stored, trail)
    if best is None:  # float itself is not within the bound: then 8 bits are not what is wrong
        trail.note("the bound is not met in float either", start.judged, True)
        return Assigned(start, dict.fromkeys(names, STORED), {}, found)
    reasons = {layer.name: _reason("stays in float", layer, found) for layer in order[:least]}
    trail.note(f"weights of {least} of {len(layers)} layers stay in float", best.judged, True)
    return Assigned(best, {n: FLOAT if n in reasons else STORED for n in names}, reasons, found)


def _bisect(count: int, make: Callable[[int], Candidate], trail: Trail) -> tuple[int, Candidate | None]:
    """Return the least number of layers to put back, and what that gives; None if all are not enough."""
    low, high = 0, count
    best = make(high)
    if not trail.passes(best.judged):
        return count, None
    while high - low > 1:
        middle = (low + high) // 2
        tried = make(middle)
        if trail.passes(tried.judged):
            high, best = middle, tried
        else:
            low = middle
    return high, best


def _candidate(work: ir.Model, made: ir.Model, trail: Trail) -> Candidate:
    return Candidate(work, made, trail.judge(made))


def _ranked(layers: Sequence[Layer], effects: Mapping[str, OutputError]) -> list[Layer]:
    """Return layers, the most sensitive first; of equal ones the smaller first."""

    def key(layer: Layer) -> tuple[float, int]:
        effect = effects.get(layer.name)
        return (-effect.relative if effect is not None else 0.0, layer.size)

    return sorted(layers, key=key)


def _reason(what: str, layer: Layer, effects: Mapping[str, OutputError]) -> str:
    effect = effects.get(layer.name)
    alone = "" if effect is None else f": alone it leaves {effect.sqnr_db:.1f} dB at the outputs"
    return f"{what}, or the bound is missed{alone}"
