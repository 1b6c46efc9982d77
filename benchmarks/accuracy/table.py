"""Rows of single runs become a page: one table for each model, figures as mean and spread over the seeds."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rows import Row, as_json

from accuracy.grid import Run

HEAD = (
    "pattern", "score", "repair", "top-1 %", "of dense %", "agreement %", "seconds", "MiB", "MACs kept",
    "parameters kept",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure over all seeds.

    Attributes:
        mean: over the seeds.
        spread: standard deviation between seeds (of a sample: n - 1); None where there is one seed.
    """

    mean: float
    spread: float | None

    def percent(self) -> str:
        """Return it in percent: ``91.2`` or ``91.2 ± 0.3``."""
        return f"{self.mean:.1%}".rstrip("%") + ("" if self.spread is None else f" ± {100 * self.spread:.1f}")


@dataclass(frozen=True, slots=True)
class Line:
    """All runs that differ in nothing but the seed.

    Attributes:
        run: one of them.
        measured: their rows, but for those that failed.
        errors: what the others said.
        expected: how many there are in the whole grid.
    """

    run: Run
    measured: tuple[Row, ...]
    errors: tuple[str, ...]
    expected: int

    def figure(self, name: str) -> Figure | None:
        """Return a figure over the runs that did not fail; None if all did, or it was not measured."""
        values = [float(row[name]) for row in self.measured if name in row]
        if not values:
            return None
        return Figure(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def lines(pairs: Iterable[tuple[Run, Row | None]]) -> list[Line]:
    """Put the runs together that differ in the seed alone, in the order in which they came.

    Args:
        pairs: every run of the grid with its row; None where it has not been measured.

    Returns:
        One line for each run of which some seed has been measured.
    """
    together: dict[tuple[str, str, str, str], list[tuple[Run, Row | None]]] = {}
    for run, row in pairs:
        together.setdefault((run.model.name, run.way, run.score, run.repair), []).append((run, row))
    found = []
    for same in together.values():
        rows = [row for _, row in same if row is not None]
        if rows:
            measured = tuple(row for row in rows if "error" not in row)
            errors = tuple(str(row["error"]) for row in rows if "error" in row)
            found.append(Line(same[0][0], measured, errors, len(same)))
    return found


def cells(line: Line, dense_top1: float | None) -> list[str]:
    """Return a line of the table.

    Args:
        line: what was measured.
        dense_top1: of the original, in [0, 1]; None if it failed.
    """
    start = [line.run.way or "dense", line.run.score, "" if line.run.repair == "none" else line.run.repair]
    top1 = line.figure("top1")
    if top1 is None:
        return [*start, "failed", *[""] * (len(HEAD) - 4)]
    share = None
    if dense_top1:
        share = Figure(top1.mean / dense_top1, None if top1.spread is None else top1.spread / dense_top1)
    agreement, seconds = line.figure("agreement"), line.figure("seconds")
    memory = [float(row["memory_peak_mib"]) for row in line.measured if "memory_peak_mib" in row]
    part = f" ({len(line.measured)} of {line.expected} runs)" if len(line.measured) < line.expected else ""
    return [
        *start,
        top1.percent() + part,
        "" if share is None else share.percent(),
        "" if agreement is None else agreement.percent(),
        "" if seconds is None else f"{seconds.mean:.1f}",
        f"{max(memory):.0f}" if memory else "",
        *("" if (kept := line.figure(name)) is None else f"{kept.mean:.3f}"
          for name in ("macs_kept", "parameters_kept")),
    ]  # fmt: skip


def table(found: Sequence[Line]) -> str:
    """Return the lines of one model as a Markdown table, and under it what failed and why."""
    dense = next((line.figure("top1") for line in found if not line.run.way), None)
    rows = [HEAD, tuple("---" if name in HEAD[:3] else "--:" for name in HEAD)]
    rows += [tuple(cells(line, None if dense is None else dense.mean)) for line in found]
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
    failures = failed(found)
    return text + ("\nWhat failed:\n\n" + failures if failures else "")


def failed(found: Iterable[Line]) -> str:
    """Return one list item for each reason, with the runs that gave it."""
    where: dict[str, Counter[str]] = {}
    for line in found:
        names = ", ".join(name for name in (line.run.way or "dense", line.run.score) if name)
        repair = "" if line.run.repair == "none" else f" + {line.run.repair}"
        for error in line.errors:
            where.setdefault(error, Counter())[names + repair] += 1
    items = []
    for error, counts in where.items():
        counted = "; ".join(f"{name} ({count})" for name, count in counts.items())
        items.append(f"- `{error.replace('`', chr(39))}`: {counted}\n")
    return "".join(items)


def rows_as_json(about: Mapping[str, Any], pairs: Iterable[tuple[Run, Row | None]]) -> str:
    """Return the raw rows, one in each line, under what the page says of how they were made."""
    return as_json(
        about,
        (
            {"model": run.model.name, "pattern": run.way or "dense", "score": run.score, "repair": run.repair,
             "seed": run.seed, "options": dict(run.options), **row}
            for run, row in pairs if row is not None
        ),
    )  # fmt: skip
