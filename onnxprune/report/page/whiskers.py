"""Estimates with their intervals, each as a dot on a line, beside the figures in a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from onnxprune.record import GateRecord, Interval, SubsetRecord
from onnxprune.report.page.svg import Element, Scale, add, fitted, markup, ornament, tick_text

_WIDTH, _MARGIN = 260.0, 8.0
_LOW_HEIGHT, _HIGH_HEIGHT = 16.0, 26.0
_GATE_WIDTH = 130.0


def scale_of(intervals: Iterable[Interval | None], width: float = _WIDTH) -> Scale | None:
    """Return a scale for all intervals of a column; None if it has none."""
    ends = [
        end for interval in intervals if interval for end in (interval.low, interval.high, interval.value)
    ]
    return fitted(ends, _MARGIN, width - _MARGIN, margin=0.02) if ends else None


def whisker(interval: Interval | None, scale: Scale | None) -> Markup:
    """Return an estimate with its interval on the scale of its column."""
    if interval is None or scale is None:
        return Markup()
    root = ornament(scale.end + _MARGIN, _LOW_HEIGHT, "whisker")
    add(root, "line", "grid", x1=0.0, x2=scale.end + _MARGIN, y1=_LOW_HEIGHT / 2, y2=_LOW_HEIGHT / 2)
    _draw(root, interval, scale, _LOW_HEIGHT / 2, "final")
    return markup(root)


def subset_whiskers(subset: SubsetRecord, scale: Scale) -> Markup:
    """Return both models' figures on some samples: the original above, hollow, and the final one below."""
    root = ornament(_WIDTH, _HIGH_HEIGHT, "whisker")
    for tick in scale.ticks(4):
        add(root, "line", "grid", x1=scale(tick), x2=scale(tick), y1=0.0, y2=_HIGH_HEIGHT)
    if subset.original is not None:
        _draw(root, subset.original, scale, _HIGH_HEIGHT * 0.28, "original")
    _draw(root, subset.final, scale, _HIGH_HEIGHT * 0.72, "final")
    return markup(root)


def axis(scale: Scale) -> Markup:
    """Return the figures of a scale, to stand above a column of whiskers."""
    ticks = scale.ticks(4)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 0.0
    shown = _apart(ticks, scale, 40.0)
    root = ornament(_WIDTH, _LOW_HEIGHT, "whisker")
    for tick in shown:
        place = min(max(scale(tick), 14.0), _WIDTH - 14.0)
        add(root, "text", "tick middle", tick_text(tick, step), x=place, y=12.0)
    return markup(root)


def _apart(ticks: Sequence[float], scale: Scale, pixels: float) -> list[float]:
    shown: list[float] = []
    for tick in ticks:
        if not shown or scale(tick) - scale(shown[-1]) >= pixels:
            shown.append(tick)
    return shown


def gate_picture(gate: GateRecord) -> Markup:
    """Return what was found beside the limit; nothing where one of them is no number."""
    found = gate.measured
    if isinstance(found, (int, float)) and not isinstance(found, bool):
        found = Interval(value=found, low=found, high=found, count=1)
    if not isinstance(found, Interval) or not _is_number(gate.limit):
        return Markup()
    limit = float(gate.limit)
    figures = [found.low, found.high, found.value, limit]
    scale = fitted(figures, _MARGIN, _GATE_WIDTH - _MARGIN, margin=0.08)
    root = ornament(_GATE_WIDTH, _LOW_HEIGHT, "whisker")
    add(root, "line", "grid", x1=0.0, x2=_GATE_WIDTH, y1=_LOW_HEIGHT / 2, y2=_LOW_HEIGHT / 2)
    add(root, "line", "limit", x1=scale(limit), x2=scale(limit), y1=1.0, y2=_LOW_HEIGHT - 1)
    _draw(root, found, scale, _LOW_HEIGHT / 2, gate.verdict)
    return markup(root)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _draw(root: Element, interval: Interval, scale: Scale, y: float, class_: str) -> None:
    low, high = scale(interval.low), scale(interval.high)
    if high > low:
        add(root, "line", f"whisk {class_}", x1=low, x2=high, y1=y, y2=y)
        for end in (low, high):
            add(root, "line", f"whisk {class_}", x1=end, x2=end, y1=y - 3, y2=y + 3)
    add(root, "circle", f"dot {class_}", cx=scale(interval.value), cy=y, r=3.4)
