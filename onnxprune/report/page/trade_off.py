"""What candidates cost and keep, as points: the best of them lie on a line."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from onnxprune.record import PointRecord
from onnxprune.report.page.svg import Element, Scale, add, fitted, markup, picture, tick_text

_WIDTH, _HEIGHT = 400.0, 290.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 14.0, 14.0, 44.0
_RADIUS = 8.5


def best_points(points: Sequence[PointRecord], *, higher_is_better: bool = True) -> list[int]:
    """Return the numbers of those that no other beats in both, by ascending cost."""
    sign = 1 if higher_is_better else -1
    best: list[int] = []
    for number in sorted(range(len(points)), key=lambda n: (points[n].cost, -sign * points[n].accuracy)):
        if not best or sign * points[number].accuracy > sign * points[best[-1]].accuracy:
            best.append(number)
    return best


def trade_off_picture(points: Sequence[PointRecord], metric: str, higher_is_better: bool | None) -> Markup:
    """Return the points, numbered as in the table beside; empty if there are fewer than two."""
    if len(points) < 2:
        return Markup()
    best = [] if higher_is_better is None else best_points(points, higher_is_better=higher_is_better)
    x = fitted([point.cost for point in points], _LEFT + _RADIUS, _WIDTH - _RIGHT - _RADIUS, margin=0.08)
    y = fitted([point.accuracy for point in points], _HEIGHT - _BOTTOM - _RADIUS, _TOP + _RADIUS, margin=0.08)
    what = points[0].cost_of
    title = f"{metric} against {what}"
    told = f"{len(points)} candidates; " + "; ".join(
        f"{number + 1}: {points[number].cost:.3g} of the {what}, {points[number].accuracy:.4g}"
        for number in best[:8]
    )
    root = picture("trade-off", title, f"{told}.", _WIDTH, _HEIGHT, "plot")
    _axes(root, x, y, f"{what}, as a share of the original's", metric)
    line = " ".join(f"{x(points[n].cost):.1f},{y(points[n].accuracy):.1f}" for n in best)
    if len(best) > 1:
        add(root, "polyline", "front", points=line)
    for number, point in sorted(enumerate(points), key=lambda entry: entry[1].chosen):
        group = add(root, "g", "point chosen" if point.chosen else "point")
        add(group, "title", text=f"{point.name}: {point.cost:.3g}, {point.accuracy:.4g}")
        place = x(point.cost), y(point.accuracy)
        if point.chosen:
            add(
                group,
                "rect",
                x=place[0] - _RADIUS,
                y=place[1] - _RADIUS,
                width=2 * _RADIUS,
                height=2 * _RADIUS,
            )
        else:
            add(group, "circle", cx=place[0], cy=place[1], r=_RADIUS)
        add(group, "text", "number middle", str(number + 1), x=place[0], y=place[1] + 3.6)
    return markup(root)


def _axes(root: Element, x: Scale, y: Scale, below: str, beside: str) -> None:
    left, bottom, right = _LEFT, _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for tick in y.ticks(5):
        step = y.ticks(5)[1] - y.ticks(5)[0] if len(y.ticks(5)) > 1 else 0.0
        add(root, "line", "grid", x1=left, x2=right, y1=y(tick), y2=y(tick))
        add(root, "text", "tick end", tick_text(tick, step), x=left - 6, y=y(tick) + 4)
    for tick in x.ticks(6):
        step = x.ticks(6)[1] - x.ticks(6)[0] if len(x.ticks(6)) > 1 else 0.0
        add(root, "line", "grid", x1=x(tick), x2=x(tick), y1=_TOP, y2=bottom)
        add(root, "text", "tick middle", tick_text(tick, step), x=x(tick), y=bottom + 15)
    add(root, "text", "label middle", below, x=(left + right) / 2, y=_HEIGHT - 6)
    middle = (_TOP + bottom) / 2
    add(root, "text", "label middle", beside, transform=f"translate(12 {middle}) rotate(-90)")
