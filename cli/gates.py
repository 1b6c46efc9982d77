"""``--gate`` of commands that measure: limits that end the command with status 3 where they are missed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from onnxprune_cli.output import Output

if TYPE_CHECKING:
    from onnxprune.gates.settings import GateSettings
    from onnxprune.record import GateRecord
    from onnxprune.types import Report

GATE_MISSED = 3

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def gate(such_as: str) -> Decorator:
    """``--gate``, which becomes texts; `onnxprune.gates.asked.gates_of` reads them."""
    return click.option(
        "--gate", "gates", multiple=True, metavar="KEY=VALUE",
        help=f"End with status 3 unless this holds, such as {such_as}; repeatable. See docs/gates.md.",
    )  # fmt: skip


def show_judged(out: Output, report: Report, settings: GateSettings, records: Sequence[GateRecord]) -> None:
    """Print a report with its gates, and end the command where they do not let the model through."""
    from onnxprune.gates.judge import accepts

    rows = [
        {"gate": record.name, "verdict": record.verdict, "asked": record.requirement, "found": record.detail}
        for record in records
    ]
    out.show(dataclasses.replace(report, sections={**report.sections, "gates": rows}))
    if not accepts(settings, records):
        out.fail(why_missed(records), status=GATE_MISSED)


def why_missed(records: Sequence[GateRecord]) -> str:
    """Return one line that names the gates that failed, or else those that are inconclusive."""
    failed = [record for record in records if record.verdict == "fail"]
    missed = failed or [record for record in records if record.verdict == "inconclusive"]
    named = "; ".join(f"{record.name}: {record.requirement}; {record.detail}" for record in missed)
    return f"{'failed' if failed else 'inconclusive'} {named}"
