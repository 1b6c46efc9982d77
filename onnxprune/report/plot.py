"""Curves as pictures: small multiples for a few groups, a map of colours for many; that of a schedule too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.messages import visible
from onnxprune.report.canvas import COLOUR, FAINT, INK, STYLE, check_plot, new_figure, write_figure
from onnxprune.report.table import shortened
from onnxprune.types import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Groups that get a picture of their own each; more are drawn as one map.
_MOST_PICTURES = 24

#: Groups that a map shows; the rest, which are the least sensitive, would not be readable.
_MOST_LINES = 120

_COLUMNS = 4
_LONGEST_TITLE = 28
_LONGEST_NAME = 44

#: Below this share of the largest figure, an axis is linear: the difference is no longer of interest.
_LINEAR = 1e-3


def draw_curves(report: Report, path: Path) -> None:
    """Draw the curves of all groups of a report by `sensitivity_report`, the most sensitive first.

    Args:
        report: with its sections as they were made.
        path: the file; its ending says the format.

    Raises:
        UsageError, OutputError, MissingExtra: as `check_plot`.
    """
    check_plot(path)
    import matplotlib as mpl

    metric = next(iter(report.sections["setting"]))
    order = [row["group"] for row in next(r for n, r in report.sections.items() if n.endswith("by removing"))]
    curves = _points(report.sections["trials"], order)
    with mpl.rc_context(STYLE):
        draw = _pictures if len(curves) <= _MOST_PICTURES else _map
        write_figure(draw(curves, metric.replace("_", " "), visible(report.title)), path)


def draw_schedule(report: Report, path: Path) -> None:
    """Draw what was gone after which step of tuning, and how the loss went meanwhile.

    Args:
        report: of pruning while tuning in one run: with milestones, and rows of progress.
        path: the file; its ending says the format.

    Raises:
        UsageError, OutputError, MissingExtra: as `check_plot`.
    """
    check_plot(path)
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure = new_figure(5.0, 3.6)
        above, below = figure.subplots(2, 1, sharex=True)
        progress = report.sections["progress"]
        last = progress[-1]["step"]
        gone = [(0, 0.0), *((row["step"], row["share"]) for row in report.sections["milestones"])]
        steps, shares = zip(*gone, (last, gone[-1][1]), strict=True)
        above.step(steps, shares, where="post", color=COLOUR, linewidth=1.6)
        _share_axis(above)
        for name, colour in (("loss", FAINT), ("validation loss", COLOUR)):
            points = [(row["step"], row[name]) for row in progress if row.get(name) is not None]
            if points:
                below.plot(*zip(*points, strict=True), color=colour, linewidth=1.2, label=name)
        below.set_ylabel("loss", color=INK)
        below.set_ylim(bottom=0)
        below.set_xlabel("steps", color=INK)
        below.legend(frameon=False, fontsize=7)
        for axes in (above, below):
            axes.grid(visible=True, color="#eeeeee", linewidth=0.5)
            axes.set_axisbelow(True)
        figure.suptitle(visible(report.title), fontsize=9, color=INK, x=0.01, ha="left")
        write_figure(figure, path)


def _share_axis(axes: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol="%"))
    axes.set_ylabel("share removed", color=INK)


Points = list[tuple[float, float]]


def _points(rows: Sequence[Mapping[str, Any]], order: Sequence[str]) -> dict[str, Points]:
    """Return (share removed, loss added) of each group, from nothing on, in an order."""
    curves: dict[str, Points] = {name: [(0.0, 0.0)] for name in order}
    for row in rows:
        if row["increase"] is not None:
            curves[row["group"]].append((row["removed_share"], max(0.0, row["increase"])))
    return curves


def _largest(curves: Mapping[str, Points]) -> float:
    return max((y for points in curves.values() for _, y in points), default=0.0) or 1.0


def _pictures(curves: Mapping[str, Points], metric: str, title: str) -> Figure:
    """One small picture for each group, all on the same axes, the other groups behind it in grey."""
    columns = min(_COLUMNS, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = new_figure(2.2 * columns + 0.6, 1.55 * rows + 0.7)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    top = _largest(curves)
    for number, axes in enumerate(grid.flat):
        if number >= len(curves):
            axes.set_axis_off()
            continue
        name = list(curves)[number]
        for other, points in curves.items():
            if other != name:
                axes.plot(*zip(*points, strict=True), color=FAINT, linewidth=0.6)
        axes.plot(*zip(*curves[name], strict=True), color=COLOUR, linewidth=1.6, marker="o", markersize=2.5)
        axes.set_title(shortened(visible(name), _LONGEST_TITLE), fontsize=7.5, color=INK, loc="left")
        _scale(axes, top)
        below = number + columns >= len(curves)
        axes.tick_params(labelbottom=below, length=2, labelsize=7)
    figure.suptitle(title, fontsize=9, color=INK, x=0.01, ha="left")
    figure.supxlabel("share removed from this group alone", fontsize=8, color=INK)
    figure.supylabel(f"{metric} added", fontsize=8, color=INK)
    return figure


def _scale(axes: Axes, top: float) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_yscale("symlog", linthresh=top * _LINEAR, linscale=0.6)
    axes.set_ylim(0, top * 1.6)
    axes.set_yticks(_ticks(top), [f"{tick:g}" for tick in _ticks(top)])
    axes.yaxis.minorticks_off()
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol="%"))
    axes.grid(visible=True, color="#eeeeee", linewidth=0.5)
    axes.set_axisbelow(True)


def _ticks(top: float) -> list[float]:
    """Return 0 and the powers of ten up to the largest figure, well above where the axis is linear."""
    exponent = math.floor(math.log10(top))
    powers = [10.0 ** (exponent - step) for step in range(4)]
    return [0.0, *(power for power in reversed(powers) if power > 2 * top * _LINEAR)]


def _map(curves: Mapping[str, Points], metric: str, title: str) -> Figure:
    """A line of cells for each group, a cell for each trial, the darker the more it costs."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import SymLogNorm
    from matplotlib.ticker import PercentFormatter

    shown = dict(list(curves.items())[:_MOST_LINES])
    figure = new_figure(7.5, 0.145 * len(shown) + 1.3)
    axes = figure.subplots()
    top = _largest(curves)
    norm = SymLogNorm(top * _LINEAR, linscale=0.6, vmin=0, vmax=top)
    colours = ScalarMappable(norm, "YlOrRd")
    for line, points in enumerate(shown.values()):
        shares = [*(share for share, _ in points), 1.0]
        edges = [0.0, *((a + b) / 2 for a, b in pairwise(shares[1:-1])), 1.0]
        shades = colours.to_rgba(np.array([loss for _, loss in points[1:]]))
        for left, right, shade in zip(edges, edges[1:], shades, strict=False):
            axes.barh(line, right - left, left=left, height=0.92, color=shade, linewidth=0)
    axes.set_yticks(range(len(shown)), [shortened(visible(name), _LONGEST_NAME) for name in shown])
    axes.tick_params(axis="y", length=0, labelsize=6)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol="%"))
    axes.set_xlabel("share removed from this group alone (each colour: the trial nearest to it)", color=INK)
    bar = figure.colorbar(colours, ax=axes, location="top", fraction=0.02, aspect=60, pad=0.01)
    bar.set_ticks(_ticks(top), labels=[f"{tick:g}" for tick in _ticks(top)])
    bar.minorticks_off()
    bar.set_label(f"{metric} added", color=INK)
    rest = len(curves) - len(shown)
    more = f" (the {rest} least sensitive groups are left out)" if rest else ""
    figure.suptitle(f"{title}{more}", fontsize=9, color=INK, x=0.01, ha="left")
    return figure
