"""One run -> a short summary in Markdown, fit for the comment of a pull request."""

from __future__ import annotations

from collections.abc import Iterable

from onnxprune.record import Record
from onnxprune.report.figures import (
    all_checks,
    common_decimals,
    figure_text,
    gain_line,
    interval_text,
    measured_text,
    metric_name,
    milliseconds,
    model_row,
    verdict_line,
)
from onnxprune.report.markdown_text import code, folded, prose, table
from onnxprune.report.reasons import gather
from onnxprune.types import Skipped

#: Characters that GitHub accepts in a comment are 65,536; this leaves room for what a workflow adds.
MOST_CHARACTERS = 60_000

_MOST_ROWS = 60
_MOST_NAMES = 6

_MARKS = {"pass": "✅ pass", "fail": "❌ **fail**", "inconclusive": "⚠️ **inconclusive**"}
_HEADS = {"pass": "✅ Passed", "fail": "❌ Failed", "inconclusive": "⚠️ Inconclusive"}


def markdown(record: Record) -> str:
    """Return a summary of a run: verdict, gates, what each stage gave, and what was left alone.

    Names from models, recipes and data stay names: nothing in them is read as markup, a link, a mention or a
    command of a build server. It has at most `MOST_CHARACTERS` characters; what had no room is said.
    """
    blocks = [*_head(record), *_gates(record), *_failed_checks(record), *_stages(record)]
    blocks += [*_baseline(record), *_skipped(record), *_reproduce(record)]
    return _within(blocks, MOST_CHARACTERS)


def _within(blocks: Iterable[str], most: int) -> str:
    """Join blocks as long as they fit, each as a whole: a table that is cut would take markup with it."""
    note = "*More does not fit into a comment: see the HTML or JSON report.*"
    text = ""
    for block in blocks:
        if len(text) + len(block) + len(note) + 4 > most:
            return f"{text}{note}\n"
        text += f"{block}\n\n"
    return f"{text.rstrip()}\n"


def _head(record: Record) -> list[str]:
    gain = gain_line(record)
    facts = [verdict_line(record), *([prose(gain)] if gain else [])]
    where = "is at" if record.accepted else "was not accepted, and kept aside at"
    facts.append(f"the model {where} {code(record.output)}")
    return [
        f"### {_HEADS[record.verdict]}: {code(record.title)}",
        "\n".join(f"- {fact[0].upper()}{fact[1:]}." for fact in facts),
    ]


def _gates(record: Record) -> list[str]:
    if not record.gates:
        return []
    order = {"fail": 0, "inconclusive": 1, "pass": 2}
    gates = sorted(record.gates, key=lambda gate: order[gate.verdict])
    rows = [
        [_MARKS[gate.verdict], code(gate.name), prose(gate.requirement), prose(measured_text(gate))]
        for gate in gates
    ]
    parts = [_table(["verdict", "gate", "asked", "found"], rows)]
    told = [gate for gate in gates if gate.verdict != "pass"][:_MOST_ROWS]
    if told:
        parts.append("\n".join(f"- {code(gate.name)}: {prose(gate.detail)}" for gate in told))
    return parts


def _failed_checks(record: Record) -> list[str]:
    failed = [check for check in all_checks(record) if not check.passed]
    if not failed:
        return []
    listed = [f"- ❌ {code(check.name)}: {prose(check.detail)}" for check in failed[:_MOST_ROWS]]
    return ["**Checks that failed**", "\n".join([*listed, *_rest(failed)])]


def _rest(entries: Iterable[object]) -> list[str]:
    more = len(list(entries)) - _MOST_ROWS
    return [f"- … and {more} more"] if more > 0 else []


def _table(headings: list[str], rows: list[list[str]], numeric: int = 0) -> str:
    rest = [f"*… and {len(rows) - _MOST_ROWS} more rows*"] if len(rows) > _MOST_ROWS else []
    return "\n\n".join([table(headings, rows[:_MOST_ROWS], numeric), *rest])


def _stages(record: Record) -> list[str]:
    """What each stage gave: one row for each model."""
    if not record.models:
        return []
    original = record.models[0]
    with_accuracy = any(model.accuracy for model in record.models)
    with_time = any(model.latency_ms is not None or model.latency_ratio for model in record.models)
    rows, headings = [], ["after"]
    digits = common_decimals(model.accuracy for model in record.models)
    for model in record.models:
        figures = {name: " ".join(filter(None, pair)) for name, pair in model_row(model, original).items()}
        if with_accuracy:
            figures[prose(metric_name(record))] = interval_text(model.accuracy, digits)
        if with_time:
            figures["ms"] = milliseconds(model.latency_ms)
            figures["time ratio"] = "1" if model is original else interval_text(model.latency_ratio)
        headings = ["after", *figures]
        rows.append([code(model.name), *figures.values()])
    return ["**What each stage gave**", _table(headings, rows, numeric=1)]


def _baseline(record: Record) -> list[str]:
    if record.baseline is None:
        return []
    keys = list(dict.fromkeys(key for row in record.baseline.rows for key in row))
    if not keys:
        return []
    rows = [
        [
            code(str(value)) if column == 0 else prose(_with_unit(row, keys[0], value))
            for column, value in enumerate(row.get(key) for key in keys)
        ]
        for row in record.baseline.rows
    ]
    title = f"**Beside the last accepted run** ({code(record.baseline.path)})"
    return [title, _table([prose(key) for key in keys], rows, numeric=1)]


def _with_unit(row: dict[str, object], first: str, value: object) -> str:
    return figure_text(str(row.get(first, "")), value)


def _skipped(record: Record) -> list[str]:
    if not record.skipped:
        return []
    together = gather(Skipped(entry.name, entry.reason) for entry in record.skipped)
    lines = []
    for group in together:
        names = ", ".join(code(name, 80) for name in group.names[:_MOST_NAMES])
        more = len(group.names) - _MOST_NAMES
        rest = f" and {more} more" if more > 0 else ""
        lines.append(f"- {prose(group.reason)}: {names}{rest}")
    listed = "\n".join([*lines[:_MOST_ROWS], *_rest(lines)])
    return [folded(f"{len(record.skipped)} left alone, and why", listed)]


def _reproduce(record: Record) -> list[str]:
    lines = [f"- {code(command, 1000)}" for command in record.commands[:_MOST_ROWS]]
    lines += _rest(record.commands)
    if record.models:
        lines.append(f"- sha256 of the model: {code(record.models[-1].sha256)}")
    lines.append(f"- onnxprune {code(record.version)}")
    return [folded("How to reproduce", "\n".join(lines))]
