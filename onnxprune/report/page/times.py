"""Times of single runs: for each model a histogram, all on one axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from onnxprune.record import ModelRecord
from onnxprune.report.figures import milliseconds
from onnxprune.report.page.svg import Element, Scale, add, markup, picture, tick_text
from onnxprune.report.table import shortened

_WIDTH, _ROW, _HILL, _AXIS = 400.0, 62.0, 34.0, 34.0
_BINS = 140

#: Times above this quantile of a model are off the axis: one run that was disturbed would squeeze the rest.
_SHOWN = 0.95

#: Room beside the figures, as a share of their span.
_MARGIN = 0.15


def times_picture(models: Sequence[ModelRecord]) -> Markup:
    """Return the distribution of the times of every model that has some; empty if none has."""
    timed = [model for model in models if model.latency_samples_ms]
    if not timed:
        return Markup()
    samples = [np.asarray(model.latency_samples_ms) for model in timed]
    low = min(float(times.min()) for times in samples)
    high = max(float(np.quantile(times, _SHOWN)) for times in samples)
    room = (high - low or high or 1.0) * _MARGIN
    scale = Scale(max(0.0, low - room), high + room, 6, _WIDTH - 6)
    if not scale.low < scale.high < math.inf:
        return Markup()  # no times of a clock: the table has them
    beyond = sum(int((times > scale.high).sum()) for times in samples)
    height = _ROW * len(timed) + _AXIS
    root = picture("times", "Times of single runs", _told(timed, beyond), _WIDTH, height, "plot")
    _axis(root, scale, height, beyond)
    for number, (model, times) in enumerate(zip(timed, samples, strict=True)):
        _hill(root, model, times, scale, _ROW * (number + 1) - 4, "original" if number == 0 else "final")
    return markup(root)


def _told(models: Sequence[ModelRecord], beyond: int) -> str:
    parts = [
        f"{model.name}: median {milliseconds(model.latency_ms)} ms, "
        f"95th percentile {milliseconds(model.latency_p95_ms)} ms"
        for model in models[:6]
    ]
    rest = f" {beyond} runs took longer than the picture shows." if beyond else ""
    return f"{'; '.join(parts)}.{rest}"


def _axis(root: Element, scale: Scale, height: float, beyond: int) -> None:
    bottom = height - _AXIS
    ticks = scale.ticks(6)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 0.0
    for tick in ticks:
        add(root, "line", "grid", x1=scale(tick), x2=scale(tick), y1=0.0, y2=bottom)
        place = min(max(scale(tick), 12.0), _WIDTH - 12)
        add(root, "text", "tick middle", tick_text(tick, step), x=place, y=bottom + 15)
    rest = f"; {beyond} took longer" if beyond else ""
    add(root, "text", "label middle", f"milliseconds for one run{rest}", x=_WIDTH / 2, y=height - 4)


def _hill(
    root: Element, model: ModelRecord, times: np.ndarray, scale: Scale, base: float, class_: str
) -> None:
    counts, edges = np.histogram(times, bins=_BINS, range=(scale.low, scale.high))
    top = max(int(counts.max()), 1)
    path = [f"M{scale(edges[0]):.1f} {base:.1f}"]
    for count, right in zip(counts, edges[1:], strict=True):
        path.append(f"V{base - _HILL * count / top:.1f}H{scale(right):.1f}")
    name = f"{shortened(model.name, 34)}: {milliseconds(model.latency_ms)} ms"
    p95 = f", p95 {milliseconds(model.latency_p95_ms)}" if model.latency_p95_ms is not None else ""
    add(root, "text", "label", name + p95, x=6.0, y=base - _HILL - 8)
    add(root, "line", "grid", x1=6.0, x2=_WIDTH - 6, y1=base, y2=base)
    add(root, "path", f"hill {class_}", d=f"{''.join(path)}V{base:.1f}Z")
    for time, mark in ((model.latency_ms, "median"), (model.latency_p95_ms, "p95")):
        if time is not None:
            add(root, "line", mark, x1=scale(time), x2=scale(time), y1=base - _HILL - 3, y2=base)
