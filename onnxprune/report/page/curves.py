"""What removing from one layer alone costs: all curves on one pair of axes, the steepest ones marked."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from onnxprune.record import CurveRecord
from onnxprune.report.page.svg import Element, Scale, add, markup, picture

_WIDTH, _HEIGHT = 400.0, 290.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 26.0, 14.0, 44.0

#: Curves that are numbered; they differ in their dashes too.
MARKED = 5

#: Pixels from one line of text to the next.
_LINE = 13.0

#: Below this share of the largest loss, a loss is drawn at the bottom: the difference is of no interest.
_LEAST = 1e-3


def by_sensitivity(curves: Sequence[CurveRecord]) -> list[CurveRecord]:
    """Return the curves, that with the largest loss first."""
    return sorted(curves, key=lambda curve: -max(curve.loss, default=0.0))


def curves_picture(curves: Sequence[CurveRecord]) -> Markup:
    """Return all curves, in the order of `by_sensitivity`; empty if no loss is above zero."""
    top = max((loss for curve in curves for loss in curve.loss), default=0.0)
    if top <= 0:
        return Markup()
    metric = curves[0].metric
    x = Scale(0.0, 1.0, _LEFT, _WIDTH - _RIGHT)
    y = Scale(math.log10(top * _LEAST), math.log10(top), _HEIGHT - _BOTTOM, _TOP)
    told = f"{len(curves)} layers. The most sensitive: " + "; ".join(
        f"{curve.name}, up to {max(curve.loss):.3g}" for curve in curves[:3] if curve.loss
    )
    root = picture("curves", f"Growth of {metric} by share removed", f"{told}.", _WIDTH, _HEIGHT, "plot")
    _axes(root, x, y, metric)
    places = [_places(curve, x, y) for curve in curves]
    for number in reversed(range(len(curves))):
        class_ = f"curve marked dash-{number}" if number < MARKED else "curve"
        group = add(root, "g", class_)
        add(group, "title", text=curves[number].name)
        points = " ".join(f"{across:.1f},{up:.1f}" for across, up in places[number])
        add(group, "polyline", points=points)
    _numbers(root, places[:MARKED])
    return markup(root)


def _places(curve: CurveRecord, x: Scale, y: Scale) -> list[tuple[float, float]]:
    """Return the pixels of a curve; a loss of zero or less lies at the bottom."""
    return [
        (x(amount), y(math.log10(loss)) if loss > 0 else y(y.low))
        for amount, loss in zip(curve.amount, curve.loss, strict=False)
    ]


def _numbers(root: Element, marked: Sequence[Sequence[tuple[float, float]]]) -> None:
    """Write the numbers of the marked curves beside their ends, in one column, each below the one before."""
    ends = [(places[-1], number) for number, places in enumerate(marked, 1) if places]
    beside = max((across for (across, _), _ in ends), default=0.0) + 6
    lowest = -_LINE
    for (_, up), number in sorted(ends, key=lambda end: end[0][1]):
        lowest = max(up + 4, lowest + _LINE)
        add(root, "text", "number", str(number), x=beside, y=lowest)


def _axes(root: Element, x: Scale, y: Scale, metric: str) -> None:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        add(root, "line", "grid", x1=x(tick), x2=x(tick), y1=_TOP, y2=bottom)
        add(root, "text", "tick middle", f"{tick:.0%}", x=x(tick), y=bottom + 15)
    for power in range(math.ceil(y.low - 1e-9), math.floor(y.high + 1e-9) + 1):
        add(root, "line", "grid", x1=_LEFT, x2=right, y1=y(power), y2=y(power))
        add(root, "text", "tick end", f"{10.0**power:g}", x=_LEFT - 6, y=y(power) + 4)
    add(
        root,
        "text",
        "label middle",
        "share removed from this layer alone",
        x=(_LEFT + right) / 2,
        y=_HEIGHT - 6,
    )
    middle = (_TOP + bottom) / 2
    add(root, "text", "label middle", f"{metric} added", transform=f"translate(12 {middle}) rotate(-90)")
