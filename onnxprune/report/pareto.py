"""A family of models as a picture: accuracy beside time, and beside size, with the front of the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.messages import visible
from onnxprune.report.canvas import COLOUR, FAINT, INK, STYLE, check_plot, new_figure, write_figure
from onnxprune.report.family import ORIGINAL, describe_family
from onnxprune.report.table import shortened
from onnxprune.types import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LONGEST_NAME = 18
_MIB = 1 << 20

#: In points: the width of a letter, the height of a line, half of a mark, and how far names are from marks.
_LETTER, _LINE, _MARK, _GAP = 4.2, 8.0, 3.0, 4.0

#: Left, bottom, right, top.
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class _Axis:
    """A figure of every model, with the ends of its interval: float tuples (value, low, high)."""

    label: str
    figures: Sequence[tuple[float, float, float]]

    @classmethod
    def of(cls, label: str, figures: Sequence[Any]) -> _Axis:
        """Take estimates as reports have them; plain numbers have no interval."""
        return cls(
            label,
            [
                (f["value"], f["low"], f["high"]) if isinstance(f, Mapping) else (float(f),) * 3
                for f in figures
            ],
        )


def draw_family(report: Report, path: Path, *, title: str | None = None) -> None:
    """Draw the models of a family: accuracy over time and over size; without accuracy, size over time.

    Filled marks are on the front (see `onnxprune.report.family`), with a line through them; hollow ones are
    left behind in everything. The picture holds its description as text.

    Args:
        report: by `family_report`.
        path: the file; its ending says the format.
        title: what stands above the picture; that of the report if None.

    Raises:
        UsageError, OutputError, MissingExtra: as `check_plot`.
    """
    check_plot(path)
    import matplotlib as mpl

    rows = report.sections["family"]
    sizes = {row["model"]: row["zstd_bytes"] / _MIB for row in report.sections["cost"]}
    metric = report.sections["setting"].get("metric")
    time = _Axis.of("latency, share of the original's", [row["latency_ratio"] for row in rows])
    size = _Axis.of("size as zstd, MiB", [sizes[row["model"]] for row in rows])
    panels = [(time, size)]
    if metric is not None:
        accuracy = _Axis.of(visible(metric).replace("_", " "), [row[metric] for row in rows])
        panels = [(time, accuracy), (size, accuracy)]
    title = visible(report.title if title is None else title)
    with mpl.rc_context(STYLE):
        figure = new_figure(3.7 * len(panels), 3.4)
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        figure.suptitle(title, fontsize=9, color=INK, x=0.01, ha="left")
        behind = {row["model"] for row in report.sections.get("not on the front", ())}
        for axes, (across, up) in zip(grid, panels, strict=True):
            _draw(axes, rows, behind, across, up)
        grid[0].set_ylabel(panels[0][1].label, color=INK)
        if metric is None:
            grid[0].set_ylim(bottom=0)
        if behind:
            grid[-1].plot(
                [], [], "o", markersize=2 * _MARK - 1, markerfacecolor="white", color=COLOUR,
                label="another is as good or better in everything",
            )  # fmt: skip
            grid[-1].legend(frameon=False, fontsize=7, loc="lower right", handletextpad=0.2)
        figure.draw_without_rendering()  # gives the axes their places, so that names can be kept apart
        for axes, (across, up) in zip(grid, panels, strict=True):
            _name(axes, rows, [(x[0], y[0]) for x, y in zip(across.figures, up.figures, strict=True)])
        write_figure(figure, path, title=title, description=describe_family(report))


def _draw(axes: Axes, rows: Sequence[Mapping[str, Any]], behind: set[str], across: _Axis, up: _Axis) -> None:
    """Draw every model with its intervals, and a line through those on the front."""
    line = []
    for row, x, y in zip(rows, across.figures, up.figures, strict=True):
        hollow = row["model"] in behind
        line += [] if hollow else [(x[0], y[0])]
        colour, mark = (INK, "s") if row["model"] == ORIGINAL else (COLOUR, "o")
        axes.errorbar(
            x[0], y[0], xerr=_reach(x), yerr=_reach(y), fmt=mark, markersize=2 * _MARK - 1, color=colour,
            elinewidth=0.7, zorder=2, markerfacecolor="white" if hollow else colour,
        )  # fmt: skip
    axes.plot(*zip(*sorted(line), strict=True), color=FAINT, linewidth=1.2, zorder=1)
    axes.set_xlabel(across.label, color=INK)
    axes.margins(x=0.08, y=0.15)
    axes.set_xlim(left=0)
    axes.grid(visible=True, color="#eeeeee", linewidth=0.5)
    axes.set_axisbelow(True)


def _reach(figure: tuple[float, float, float]) -> list[list[float]]:
    """Return how far an interval reaches below and above its figure."""
    value, low, high = figure
    return [[max(value - low, 0.0)], [max(high - value, 0.0)]]


def _name(axes: Axes, rows: Sequence[Mapping[str, Any]], places: Sequence[tuple[float, float]]) -> None:
    """Write the target of each model beside its mark, where no other mark or name is.

    The limits of the axes must be final; a pixel is a point until the figure is written.
    """
    marks = axes.transData.transform(places)
    taken = [(x - _MARK, y - _MARK, x + _MARK, y + _MARK) for x, y in marks]
    edge = axes.transAxes.transform((1.0, 1.0))[0]
    for row, place, (x, y) in zip(rows, places, marks, strict=True):
        text = visible(ORIGINAL if row["target"] is None else str(row["target"]))
        text = shortened(text, _LONGEST_NAME)
        width = _LETTER * len(text)
        boxes: dict[tuple[bool, float], Box] = {}
        for up in (_GAP, -_GAP - _LINE, _GAP + _LINE, -_GAP - 2 * _LINE):
            for right in (True, False):
                left = x + (_GAP if right else -_GAP - width)
                boxes[right, up] = (left, y + up, left + width, y + up + _LINE)
        free = [key for key, box in boxes.items() if box[2] < edge and not any(_meet(box, b) for b in taken)]
        right, up = free[0] if free else (False, _GAP)
        taken.append(boxes[right, up])
        axes.annotate(
            text, place, (_GAP if right else -_GAP, up), textcoords="offset points", fontsize=7, color=INK,
            ha="left" if right else "right",
        )  # fmt: skip


def _meet(one: Box, other: Box) -> bool:
    """Tell whether two boxes overlap."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
