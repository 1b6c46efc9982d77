"""One run -> one HTML page that stands alone: no script, nothing loaded, readable under a strict policy."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from importlib import metadata, resources
from typing import Any

import jinja2
from markupsafe import Markup

from onnxprune.messages import visible
from onnxprune.record import AccuracyRecord, Record, StageRecord
from onnxprune.report.figures import (
    VERDICTS,
    accuracy_change,
    common_decimals,
    count_text,
    interval_text,
    measured_text,
    metric_name,
    moment_of,
    seconds_text,
    size_gain,
    time_gain,
    time_text,
    verdict_line,
)
from onnxprune.report.page import rows
from onnxprune.report.page.curves import by_sensitivity, curves_picture
from onnxprune.report.page.network import macs_picture, width_picture
from onnxprune.report.page.svg import MINUS
from onnxprune.report.page.times import times_picture
from onnxprune.report.page.trade_off import best_points, trade_off_picture
from onnxprune.report.page.whiskers import gate_picture
from onnxprune.report.reasons import gather
from onnxprune.report.table import heading, size_text
from onnxprune.types import Skipped

#: Beside the words of `VERDICTS`; a shape for each, so that colour is not all that tells.
_MARKS = {"pass": "✓", "fail": "✕", "inconclusive": "?"}

#: Segments that are all shown at once; of more, these that lost the most, and the rest behind a fold.
_MOST_SUBSETS, _WORST_SUBSETS = 24, 10

_LONGEST_TEXT = 1000
_LONGEST_LINE = 1000


def html(record: Record) -> str:
    """Return the page of a run: UTF-8 text of one file that needs no other.

    Its policy allows its own style, by the style's hash, and nothing else. Every text from the record becomes
    text: markup is escaped, and control and bidirectional characters are made visible.
    """
    style = _source("page.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, finalize=_shown
    )
    template = environment.from_string(_source("page.html"))
    page = template.render(
        style=Markup(style),  # noqa: S704 (our own file, and the policy wants it byte by byte)
        style_hash=f"sha256-{digest}",
        **_context(record),
    )
    return f"{page}\n"


def _source(name: str) -> str:
    return resources.files("onnxprune.report.page").joinpath(name).read_text(encoding="utf-8")


def _shown(value: object) -> object:
    """Return what the template writes for a value; jinja escapes it afterwards."""
    return value if isinstance(value, Markup) else visible(str(value), _LONGEST_TEXT)


def _context(record: Record) -> dict[str, Any]:
    context = {
        "record": record,
        "marks": _MARKS,
        "verdicts": VERDICTS,
        "verdict_line": verdict_line(record).capitalize(),
        "accepted": record.accepted,
        "finished": time_text(record.finished),
        "started": time_text(record.started),
        "took": _took(record),
        "drawn_by": metadata.version("onnxprune"),
        "tiles": list(_tiles(record)),
        "gates": [_gate(gate) for gate in _by_verdict(record)],
        "failed_checks": list(_failed_checks(record)),
        "models": rows.models_table(record),
        "baseline": rows.baseline_table(record),
        "baseline_finished": time_text(record.baseline.finished) if record.baseline else "",
        "stages": [_stage(stage) for stage in record.stages],
        "skipped": list(_skipped(record)),
        "checks": rows.checks_table(record.checks) if record.checks else None,
        "files": rows.files_table(record) if record.files or record.models else None,
        "environment": rows.environment_table(record.environment),
        "recipe_text": _lines(record.recipe.text),
        "absent": ", ".join(_absent(record)),
        **_network(record),
        **_measured(record),
    }  # fmt: skip
    return {**context, "sections": list(_sections(context, record))}


def _sections(context: dict[str, Any], record: Record) -> Iterator[tuple[str, str]]:
    """Yield key and title of every section that the page has."""
    yield from (
        (key, title)
        for key, title, present in (
            ("gates", "Gates", record.gates or context["failed_checks"]),
            ("models", "Stages compared", context["models"]),
            ("baseline", "Last accepted run", context["baseline"]),
            ("network", "Network", context["layers"]),
            ("accuracy", "Accuracy", context["subsets"]),
            ("time", "Time and memory", context["times_picture"] or record.latency or record.memory),
            ("trade-off", "Trade-off", context["trade_off_picture"] or context["curves_picture"]),
            ("skipped", "Left alone", context["skipped"]),
            ("stages", "Stages in detail", context["stages"]),
            ("reproduce", "Reproduce", True),
        )
        if present
    )


def _tiles(record: Record) -> Iterator[dict[str, str]]:
    """Yield the headline figures: name, gain, and what it was and is."""
    if len(record.models) < 2:
        return
    first, last = record.models[0], record.models[-1]
    for name, gain, detail in (
        ("Size", size_gain(record), f"{size_text(first.size_bytes)} → {size_text(last.size_bytes)}"),
        ("Time of one run", time_gain(record), f"ratio {interval_text(last.latency_ratio)}"),
    ):
        if gain is not None:
            yield {"name": name, "gain": gain[0], "unit": gain[1], "detail": detail}
    if first.macs:
        counts = f"{count_text(first.macs)} → {count_text(last.macs)}"
        yield {"name": "MACs", "gain": f"{last.macs / first.macs:.2f}×", "unit": "", "detail": counts}
    if first.params:
        counts = f"{count_text(first.params)} → {count_text(last.params)}"
        yield {
            "name": "Parameters",
            "gain": f"{last.params / first.params:.2f}×",
            "unit": "",
            "detail": counts,
        }
    change = accuracy_change(record)
    if change is not None and first.accuracy and last.accuracy:
        moved = last.accuracy.value - first.accuracy.value
        by = f"{moved:+.{common_decimals((first.accuracy, last.accuracy))}f}"
        by = by if float(by) else f"{moved:+.1g}"  # too little for these digits, but not nothing
        by = "" if moved == 0 else by.replace("-", MINUS)
        unit = "" if by else "no change"
        yield {"name": f"Accuracy ({metric_name(record)})", "gain": by, "unit": unit, "detail": change}


def _by_verdict(record: Record) -> list[Any]:
    order = {"fail": 0, "inconclusive": 1, "pass": 2}
    return sorted(record.gates, key=lambda gate: order[gate.verdict])


def _gate(gate: Any) -> dict[str, Any]:
    return {
        "name": gate.name,
        "verdict": gate.verdict,
        "requirement": gate.requirement,
        "detail": gate.detail,
        "measured": measured_text(gate),
        "picture": gate_picture(gate),
    }


def _failed_checks(record: Record) -> Iterator[dict[str, str]]:
    places = [*((f"stage {stage.name}", stage.checks) for stage in record.stages), ("", record.checks)]
    for stage, checks in places:
        for check in checks:
            if not check.passed:
                yield {"name": check.name, "detail": check.detail, "stage": stage}


def _network(record: Record) -> dict[str, Any]:
    layers = record.layers
    if not layers:
        return {"layers": None}
    return {
        "layers": rows.layers_table(layers),
        "width_picture": width_picture(layers),
        "macs_picture": macs_picture(layers),
        "widest": max(layer.width for layer in layers),
        "most_macs": count_text(max(layer.macs for layer in layers)),
        "untouched": sum(layer.params == layer.params_left for layer in layers),
    }


def _measured(record: Record) -> dict[str, Any]:
    accuracy, latency = record.accuracy, record.latency
    direction = accuracy.higher_is_better if accuracy else True
    return {
        "subsets": rows.subsets_table(accuracy.subsets) if accuracy and accuracy.subsets else None,
        "worst_subsets": _worst_subsets(accuracy) if accuracy else None,
        "accuracy_facts": _accuracy_facts(record),
        "times_picture": times_picture(record.models),
        "control": interval_text(latency.control_ratio) if latency else "",
        "latency_setting": rows.latency_table(latency) if latency else None,
        "memory": rows.memory_table(record),
        "trade_off_picture": trade_off_picture(record.pareto, metric_name(record), direction),
        "has_front": direction is not None
        and len(best_points(record.pareto, higher_is_better=direction)) > 1,
        "points": rows.points_table(record),
        "curves_picture": curves_picture(by_sensitivity(record.sensitivity)),
        "curves": rows.curves_table(record),
    }


def _worst_subsets(accuracy: AccuracyRecord) -> rows.Table | None:
    """Return what stands above the fold where there are many segments: those that lost the most."""
    if len(accuracy.subsets) <= _MOST_SUBSETS:
        return None
    sign = -1 if accuracy.higher_is_better is False else 1
    whole = [subset for subset in accuracy.subsets if subset.kind != "segment"]
    segments = [subset for subset in accuracy.subsets if subset.kind == "segment"]
    segments.sort(key=lambda subset: sign * (subset.change.value if subset.change else subset.final.value))
    return rows.subsets_table([*whole, *segments[:_WORST_SUBSETS]])


def _accuracy_facts(record: Record) -> str:
    accuracy = record.accuracy
    if accuracy is None:
        return ""
    facts = ""
    if accuracy.agreement is not None:
        facts += f"; the two models agree on {interval_text(accuracy.agreement)} of them"
    if accuracy.cosine is not None:
        facts += f"; the mean cosine between their outputs is {interval_text(accuracy.cosine)}"
    return facts


def _stage(stage: StageRecord) -> dict[str, Any]:
    reused = ", reused from an earlier run" if stage.reused else ""
    tables = ((heading(name), rows.section_table(section)) for name, section in stage.sections.items())
    return {
        "name": stage.name,
        "summary": stage.summary,
        "told": f"{stage.kind}, {seconds_text(stage.seconds)}{reused}",
        "options": rows.pairs_table(stage.options) if stage.options else None,
        "checks": rows.checks_table(stage.checks) if stage.checks else None,
        "sections": [(name, table) for name, table in tables if table is not None],
    }


def _skipped(record: Record) -> Iterator[dict[str, Any]]:
    """Yield what was left alone by reason, with each name and its own reason."""
    entries = list(dict.fromkeys((skip.name, skip.reason) for skip in record.skipped))
    reasons = dict(entries)
    for group in gather(Skipped(name, reason) for name, reason in entries):
        yield {"reason": group.reason, "entries": [(name, reasons[name]) for name in group.names]}


def _absent(record: Record) -> Iterator[str]:
    """Yield what was not measured or asked for: silence would look like a zero."""
    for name, present in (
        ("gates", record.gates),
        ("accuracy", record.accuracy),
        ("latency", record.latency),
        ("memory", record.memory),
        ("layers", record.layers),
        ("sensitivity", record.sensitivity),
        ("candidates", record.pareto),
        ("a baseline", record.baseline),
    ):
        if not present:
            yield name


def _took(record: Record) -> str:
    first, last = moment_of(record.started), moment_of(record.finished)
    return "–" if first is None or last is None else seconds_text((last - first).total_seconds())


def _lines(text: str) -> Markup:
    """Return a text of many lines as it is, but for markup and characters that can't be seen."""
    return Markup("\n").join(Markup.escape(visible(line, _LONGEST_LINE)) for line in text.splitlines())
