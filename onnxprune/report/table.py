"""A report as tables: for a terminal, and as plain text of a fixed width.

What stands in a report may come from a model file, so nothing in it is read as markup or reaches a terminal
unescaped.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from onnxprune.messages import visible, without_commands
from onnxprune.report.reasons import gather
from onnxprune.types import Check, Report, Skipped

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

#: Rows that a section shows unless all are asked for.
MOST_ROWS = 20

#: Names that are listed beside one reason, unless all are asked for.
MOST_NAMES = 3

_LONGEST_CELL = 400
_PLAIN_WIDTH = 100
#: Where the key itself would not do: cells of sizes say their unit.
_HEADINGS = {
    "size_bytes": "size",
    "tensor_bytes": "tensors",
    "zstd_bytes": "as zstd",
    "macs": "MACs",
    "gmacs_per_s": "GMACs/s",
    "a_per_s": "a: samples/s",
    "b_per_s": "b: samples/s",
    "a_ms": "a: ms",
    "b_ms": "b: ms",
}

_COLUMN_GAP = 2
_LEAST_COLUMN = 12
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def render(
    report: Report, *, width: int = _PLAIN_WIDTH, verbose: bool = False, hint: str = ""
) -> list[RenderableType]:
    """Return what a terminal shows of a report, in order.

    Args:
        report: any report.
        width: columns to fill; longer names are shortened in their middle.
        verbose: all rows of long sections, names in full, and what was skipped one by one.
        hint: how to see the rest, where rows are left out.
    """
    from rich.text import Text

    parts: list[RenderableType] = [Text(visible(report.title, _LONGEST_CELL), style="bold")]
    for name, section in report.sections.items():
        if not section:
            continue
        if isinstance(section, Mapping):
            parts.append(_pairs(name, section))
        else:
            most = len(section) if verbose else MOST_ROWS
            table, dropped = _rows(name, section[:most], 0 if verbose else width)
            parts.append(table)
            left_out = [f"{len(section) - most} more"] if len(section) > most else []
            left_out += [f"no room for {', '.join(map(heading, dropped))}"] if dropped else []
            if left_out:
                parts.append(Text(f"... {'; '.join(left_out)}{hint}", style="dim"))
    if report.checks:
        parts.append(_checks(report.checks))
    if report.skipped:
        parts.append(_each(report.skipped) if verbose else _by_reason(report.skipped))
    if report.seconds:
        parts.append(Text(f"\n{_seconds(report.seconds, verbose)}", style="dim"))
    return parts


def plain_text(report: Report, *, width: int = _PLAIN_WIDTH, verbose: bool = False, hint: str = "") -> str:
    """Return a report as text without colours, at most ``width`` columns wide."""
    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, force_terminal=False, legacy_windows=False)
    for part in render(report, width=width, verbose=verbose, hint=hint):
        console.print(part)
    # a text that was folded may go on with what would be a command
    return "\n".join(without_commands(line.rstrip()) for line in stream.getvalue().splitlines()) + "\n"


def cell(key: str, value: object) -> str:
    """Return one value as people read it; the end of its key says the unit (``_bytes``, ``ratio``, ...)."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return _mapping(value)
    if isinstance(value, (list, tuple)):
        listed = (", " if key.endswith("sizes") else "x").join(str(entry) for entry in value)
        return visible(listed, _LONGEST_CELL) or "scalar"
    if isinstance(value, (int, float)):
        return _number(key, value)
    return visible(str(value), _LONGEST_CELL)


def _mapping(value: Mapping[str, Any]) -> str:
    if {"value", "low", "high"} <= value.keys():
        return estimate(value["value"], value["low"], value["high"])
    return ", ".join(
        f"{visible(str(name), _LONGEST_CELL)}: {cell(str(name), entry)}" for name, entry in value.items()
    )


def decimals_for(width: float) -> int:
    """Return how many decimals show two digits of the width of an interval."""
    if not 0 < width < math.inf:
        return 4
    return min(max(1 - math.floor(math.log10(width)), 0), 9)


def estimate(value: float, low: float, high: float, decimals: int | None = None) -> str:
    """Return a figure and its interval, with two digits of the interval's width, or as given."""
    decimals = decimals_for(high - low) if decimals is None else decimals
    value_text, low_text, high_text = (_fixed(figure, decimals) for figure in (value, low, high))
    return f"{value_text} ({low_text} to {high_text})"


def _fixed(figure: float, decimals: int) -> str:
    """Return a figure with so many decimals; what rounds to zero has no sign."""
    text = f"{figure:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _number(key: str, value: float) -> str:
    if key.endswith("bytes"):
        return size_text(int(value))
    if key.endswith(("sparsity", "share")):
        return f"{value:.1%}"
    if key.endswith("ratio"):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def size_text(size_bytes: int) -> str:
    """Return a number of bytes with a binary unit and about three digits."""
    size, unit = float(size_bytes), 0
    while abs(size) >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size_bytes} B" if unit == 0 else f"{size:.{_digits(size)}f} {_UNITS[unit]}"


def _digits(size: float) -> int:
    return 2 if size < 10 else 1 if size < 100 else 0


def heading(key: str) -> str:
    """Return a key as a heading."""
    return _HEADINGS.get(key) or visible(key.replace("_", " ").replace("mib", "MiB"))


def shortened(text: str, width: int) -> str:
    """Return ``text`` in at most ``width`` characters, cut in the middle: names differ most at their end."""
    if len(text) <= width:
        return text
    tail = (width - 3) * 2 // 3
    return f"{text[: width - 3 - tail]}...{text[len(text) - tail :]}"


# --- parts --------------------------------------------------------------------------------------------------


def _pairs(name: str, section: Mapping[str, Any]) -> Table:
    from rich.text import Text

    table = _table(name)
    table.show_header = False
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in section.items():
        table.add_row(Text(heading(key)), Text(cell(key, value)))
    return table


def _rows(name: str, rows: Sequence[Mapping[str, Any]], width: int) -> tuple[Table, list[str]]:
    """Make a table of rows, fitted to ``width`` or folded if that is 0; return what found no room, too."""
    from rich.text import Text

    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = {
        key: [cell(key, row.get(key)) for row in rows]
        for key in keys
        if any(row.get(key) is not None for row in rows)
    }
    dropped = _fit(columns, rows, width) if width else []
    table = _table(name)
    for key, entries in columns.items():
        numeric = all(row.get(key) is None or isinstance(row.get(key), (int, float)) for row in rows)
        title = Text(_broken(heading(key), entries))
        justify: Literal["right", "left"] = "right" if numeric else "left"
        table.add_column(title, justify=justify, overflow="fold", no_wrap=numeric or width > 0)
    for line in zip(*columns.values(), strict=True):
        table.add_row(*(Text(entry) for entry in line))
    return table, dropped


def _broken(title: str, entries: Sequence[str]) -> str:
    """Return a heading with a line for each word where it would be wider than what stands below it."""
    return title.replace(" ", "\n") if len(title) > max(map(len, entries)) else title


def _fit(columns: dict[str, list[str]], rows: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """Make rows at most ``width`` wide, and return the keys of columns that had to go for it.

    Intervals go below their figures, then names lose their middle, then columns of names go, from the left
    but for the first, which says what a row is about.
    """
    widths = {key: _column_width(key, entries) for key, entries in columns.items()}

    def spare() -> int:
        return width - _COLUMN_GAP * (len(widths) - 1) - sum(widths.values())

    for key in columns:
        if spare() < 0 and any(isinstance(row.get(key), Mapping) for row in rows):
            columns[key] = [entry.replace(" (", "\n(") for entry in columns[key]]
            widths[key] = _column_width(key, columns[key])
    first = next(iter(columns))
    dropped = []
    while spare() < 0:
        names = [key for key in columns if any(isinstance(row.get(key), str) for row in rows)]
        long = [key for key in names if widths[key] > _LEAST_COLUMN]
        if long:  # the first column gets twice the room of the others
            widths[max(long, key=lambda key: widths[key] * (1 if key == first else 2))] -= 1
            continue
        others = [key for key in names if key != first]
        if not others:
            break
        dropped.append(others[0])
        del columns[dropped[-1]]
        widths = {key: _column_width(key, entries) for key, entries in columns.items()}
    for key in columns:
        if any(isinstance(row.get(key), str) for row in rows):
            columns[key] = [shortened(entry, widths[key]) for entry in columns[key]]
    return dropped


def _column_width(key: str, entries: Sequence[str]) -> int:
    lines = [line for text in (*entries, _broken(heading(key), entries)) for line in text.split("\n")]
    return max(map(len, lines))


def _seconds(seconds: Mapping[str, float], verbose: bool) -> str:
    total = sum(seconds.values())
    shown = {name: taken for name, taken in seconds.items() if verbose or taken >= 0.05 * total}
    steps = ", ".join(f"{visible(name)} {taken:.2f}" for name, taken in shown.items())
    return f"{total:.2f} s ({steps})"


def _checks(checks: Sequence[Check]) -> Table:
    from rich.text import Text

    table = _table("checks")
    for name in ("", "check", "found"):
        table.add_column(name, overflow="fold")
    for check in checks:
        mark = Text("ok", style="green") if check.passed else Text("FAILED", style="bold red")
        table.add_row(mark, Text(visible(check.name)), Text(visible(check.detail, _LONGEST_CELL)))
    return table


def _by_reason(skipped: Sequence[Skipped]) -> Table:
    from rich.text import Text

    table = _table("left alone")
    table.add_column("count", justify="right")
    table.add_column("why", overflow="fold", ratio=3)
    table.add_column("which", overflow="fold", ratio=2)
    for together in gather(skipped):
        names = ", ".join(visible(name, 60) for name in together.names[:MOST_NAMES])
        more = ", ..." if len(together.names) > MOST_NAMES else ""
        why = visible(together.reason, _LONGEST_CELL)
        table.add_row(str(len(together.names)), Text(why), Text(names + more))
    return table


def _each(skipped: Sequence[Skipped]) -> Table:
    return _rows("left alone", [{"which": entry.name, "why": entry.reason} for entry in skipped], 0)[0]


def _table(name: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    return Table(
        title=Text(f"\n{heading(name)}", style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        header_style="dim",
    )
