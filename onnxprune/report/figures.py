"""How figures of a run are written: the same digits, units and words in every form of its report."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

from onnxprune.messages import visible
from onnxprune.record import CheckRecord, GateRecord, Interval, ModelRecord, Record
from onnxprune.report.table import cell, decimals_for, estimate, size_text

#: Verdicts as people read them; each begins with another word, so that colour is never all that tells.
VERDICTS = {"pass": "Passed", "fail": "Failed", "inconclusive": "Inconclusive"}

_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))

#: Gates whose figures are bytes.
_IN_BYTES = ("size", "zstd_size")


def count_text(count: float) -> str:
    """Return a count with three digits and a decimal prefix: 41,211,904 is ``41.2 M``."""
    for scale, prefix in _SCALES:
        if abs(count) >= 0.9995 * scale:
            return f"{count / scale:.{_decimals(count / scale)}f} {prefix}"
    return f"{count:g}"


def _decimals(number: float) -> int:
    """Return how many decimals make three digits; what rounds up to 10 or 100 has one less."""
    return 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0


def ratio_text(after: float, before: float) -> str:
    """Return a ratio as ``0.50×``; nothing where there was nothing before."""
    return f"{after / before:.2f}×" if before else ""


def interval_text(interval: Interval | None, decimals: int | None = None) -> str:
    """Return an estimate with its interval, or a dash where nothing was measured."""
    return "–" if interval is None else estimate(interval.value, interval.low, interval.high, decimals)


def common_decimals(intervals: Iterable[Interval | None]) -> int | None:
    """Return the decimals for a column of estimates: those that the narrowest interval needs."""
    widths = [interval.high - interval.low for interval in intervals if interval is not None]
    return max(map(decimals_for, widths), default=None)


def figure_text(name: str, value: Any) -> str:
    """Return a figure of any kind; the end of its name says its unit."""
    if value is None:
        return "–"
    if isinstance(value, Interval):
        return interval_text(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(figure_text(name, entry) for entry in value) or "nothing"
    return cell(name, value)


def measured_text(gate: GateRecord) -> str:
    """Return what a gate found."""
    if gate.measured is None:
        return "not measured"
    if gate.name in _IN_BYTES and isinstance(gate.measured, float):
        return size_text(round(gate.measured))
    return figure_text(gate.name, gate.measured)


def milliseconds(time_ms: float | None) -> str:
    """Return a time with three digits."""
    return "–" if time_ms is None else f"{time_ms:#.3g}".rstrip(".")


def seconds_text(seconds: float) -> str:
    """Return a duration: ``0.4 s``, ``41 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def moment_of(text: str) -> datetime.datetime | None:
    """Return a time of a record in UTC; None for a text that is no time."""
    try:
        moment = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    if moment.tzinfo is None:
        return moment.replace(tzinfo=datetime.timezone.utc)
    return moment.astimezone(datetime.timezone.utc)


def time_text(text: str) -> str:
    """Return a time as people read it; what is no time as it is."""
    moment = moment_of(text)
    return visible(text) if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def verdict_line(record: Record) -> str:
    """Return how many gates and checks hold, in one sentence without names."""
    parts = []
    for what, verdicts in (
        ("gates", [gate.verdict for gate in record.gates]),
        ("checks", ["pass" if check.passed else "fail" for check in all_checks(record)]),
    ):
        if verdicts:
            told = [f"{verdicts.count('pass')} of {len(verdicts)} {what} hold"]
            told += [f"{verdicts.count('inconclusive')} can't be decided"] * ("inconclusive" in verdicts)
            parts.append(", ".join(told))
    return "; ".join(parts) or "no gates were set, and nothing was checked"


def all_checks(record: Record) -> list[CheckRecord]:
    """Return the checks of all stages and of the result, in their order."""
    return [*(check for stage in record.stages for check in stage.checks), *record.checks]


def gain_line(record: Record) -> str:
    """Return what the run made of the model, in one sentence; empty where it is not known."""
    if len(record.models) < 2:
        return ""
    gains = [gain for gain in (size_gain(record), time_gain(record)) if gain is not None]
    parts = [f"{figure.replace('×', ' times')} {word}".strip() for figure, word in gains]
    change = accuracy_change(record)
    if change is not None:
        parts.append(f"{metric_name(record)} {change}")
    return "; ".join(parts)


def size_gain(record: Record) -> tuple[str, str] | None:
    """Return how the size changed, as a figure and a word; None where it is not known."""
    first, last = record.models[0].size_bytes, record.models[-1].size_bytes
    if not first or not last:
        return None
    return (f"{first / last:.1f}×", "smaller") if last <= first else (f"{last / first:.1f}×", "larger")


def time_gain(record: Record) -> tuple[str, str] | None:
    """Return how the time changed, as a figure and words; a difference only where its interval says so."""
    ratio = record.models[-1].latency_ratio
    if ratio is None or ratio.value <= 0:
        return None
    if ratio.low <= 1 <= ratio.high:
        return "", "no difference in time"
    return (f"{1 / ratio.value:.2f}×", "as fast") if ratio.value < 1 else (f"{ratio.value:.2f}×", "the time")


def accuracy_change(record: Record) -> str | None:
    """Return how the metric moved: ``0.9871 → 0.9834``; None where it was not measured twice."""
    first, last = record.models[0].accuracy, record.models[-1].accuracy
    if first is None or last is None:
        return None
    digits = common_decimals((first, last))
    return f"{first.value:.{digits}f} → {last.value:.{digits}f}"


def metric_name(record: Record) -> str:
    """Return the name of the metric."""
    return visible(record.accuracy.metric, 40) if record.accuracy else "accuracy"


def model_row(model: ModelRecord, original: ModelRecord) -> dict[str, tuple[str, str]]:
    """Return the figures of a model, each with its ratio to the original, by heading."""

    def with_ratio(text: str, after: float, before: float) -> tuple[str, str]:
        return text, "" if model is original else ratio_text(after, before)

    return {
        "parameters": with_ratio(count_text(model.params), model.params, original.params),
        "MACs": with_ratio(count_text(model.macs), model.macs, original.macs),
        "size": with_ratio(size_text(model.size_bytes), model.size_bytes, original.size_bytes),
        "as zstd": with_ratio(size_text(model.zstd_bytes), model.zstd_bytes, original.zstd_bytes),
        "zeros": (f"{model.sparsity:.1%}", ""),
    }


def plain_pairs(pairs: Mapping[str, Any]) -> dict[str, str]:
    """Return names and values as text, nested ones on one line."""
    return {visible(name): figure_text(name, value) for name, value in pairs.items()}
