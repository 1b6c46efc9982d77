"""The layers of a model by their time, as a picture: of one model, or of two beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune.messages import visible
from onnxprune.report.canvas import COLOUR, FAINT, INK, STYLE, check_plot, new_figure, write_figure
from onnxprune.report.table import shortened

#: Layers that a picture shows; the rest is one bar.
MOST_LAYERS = 40

_LONGEST_NAME = 44


def draw_layers(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw a bar for each layer, or two where rows tell of before and after, the slowest above.

    Args:
        rows: of `onnxprune.measure.profile.by_time` (``layer``, ``ms``) or ``compare`` (``before_ms``,
            ``after_ms``).
        title: above the picture.
        path: the file; its ending says the format.

    Raises:
        UsageError, OutputError, MissingExtra: as `onnxprune.report.plot.check_plot`.
    """
    check_plot(path)
    import matplotlib as mpl

    two = bool(rows) and "before_ms" in rows[0]
    keys = ("before_ms", "after_ms") if two else ("ms",)
    bars = _bars(rows, keys)
    with mpl.rc_context(STYLE):
        figure = new_figure(7.5, 0.19 * len(bars) * (1.3 if two else 1) + 1.1)
        axes = figure.subplots()
        height = 0.4 if two else 0.8
        series = zip(keys, (FAINT if two else COLOUR, COLOUR), ("before", "after"), strict=False)
        for offset, (key, colour, label) in enumerate(series):
            lines = [line + (offset - 0.5) * height if two else line for line in range(len(bars))]
            widths = [bar[key] for bar in bars]
            axes.barh(lines, widths, height=height, color=colour, linewidth=0, label=label)
        names = [shortened(visible(bar["layer"]), _LONGEST_NAME) for bar in bars]
        axes.set_yticks(range(len(bars)), names)
        axes.tick_params(axis="y", length=0, labelsize=6.5)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel("milliseconds of a run", color=INK)
        axes.grid(visible=True, axis="x", color="#eeeeee", linewidth=0.5)
        axes.set_axisbelow(True)
        if two:
            axes.legend(frameon=False, fontsize=7, loc="lower right")
        figure.suptitle(visible(title), fontsize=9, color=INK, x=0.01, ha="left")
        write_figure(figure, path)


def _bars(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    plain = [{"layer": row["layer"], **{key: row[key] or 0.0 for key in keys}} for row in rows]
    plain.sort(key=lambda bar: -max(bar[key] for key in keys))
    rest = plain[MOST_LAYERS:]
    if not rest:
        return plain
    total = {key: sum(bar[key] for bar in rest) for key in keys}
    return [*plain[:MOST_LAYERS], {"layer": f"{len(rest)} others together", **total}]
