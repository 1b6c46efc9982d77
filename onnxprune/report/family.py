"""What was measured of a family of models -> a report, and sentences for who can't see its picture.

A model is on the front where no other one is at least as good in all that was measured, and better in some
of it: time, size as zstd would store it, and accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.report.table import cell, size_text
from onnxprune.types import Check, Report, Skipped

#: What the first row, which all others are compared with, is called.
ORIGINAL = "original"

#: What is better the less there is of it, in a row.
_COSTS = ("latency_ratio", "zstd_bytes")


@dataclass(frozen=True, slots=True)
class Judged:
    """What accuracy means in a report.

    Attributes:
        metric: its name, which is the key of its figures.
        higher_is_better: its direction; None where only the user knows.
        source: the samples.
    """

    metric: str
    higher_is_better: bool | None
    source: str


def family_report(
    rows: Sequence[Mapping[str, Any]],
    *,
    judged: Judged | None,
    missed: Sequence[Mapping[str, Any]] = (),
    setting: Mapping[str, Any],
    checks: Sequence[Check] = (),
    skipped: Sequence[Skipped] = (),
    seconds: Mapping[str, float],
) -> Report:
    """Return the report of a family.

    Args:
        rows: the original first, then each member: ``model``, ``target``, ``reached_ratio`` (of what targets
            are of), ``params``, ``macs``, ``size_bytes``, ``zstd_bytes``, ``latency_ratio`` (an estimate as a
            mapping), ``verdict``, and where accuracy was measured, ``accuracy`` and ``change`` (estimates as
            mappings). What a model can't have is None. Nothing where no target was met.
        judged: how it was measured; None where it was not.
        missed: of each target that could not be met: ``target``, ``reached`` (a share, or None), ``reason``,
            and ``reasons``, what stands in the way: lines of a name, a colon and why.
        setting: of the measurement, plain values.
        checks: what was checked, member by member.
        skipped: what was left alone in all of them, with reasons.
        seconds: by stage.
    """
    sections: dict[str, Any] = {"family": _table(rows, judged), "cost": _costs(rows)}
    if judged is not None and judged.higher_is_better is not None:
        sections["not on the front"] = [
            {"model": rows[number]["model"], "because_of": rows[other]["model"]}
            for number, other in front(rows, higher_is_better=judged.higher_is_better).items()
        ]
    if missed:
        keys = ("target", "reached", "reason")
        sections["missed"] = [{key: entry[key] for key in keys} for entry in missed]
    for entry in missed:
        lines = (line.partition(": ") for line in entry["reasons"])
        obstacles = [{"what": name, "reason": reason} for name, _, reason in lines]
        sections |= {f"in the way of {entry['target']}": obstacles} if obstacles else {}
    accuracy = {} if judged is None else {"metric": judged.metric, "measured_on": judged.source}
    sections["setting"] = {**setting, **accuracy}
    return Report("family", sections, tuple(checks), tuple(skipped), dict(seconds))


def _table(rows: Sequence[Mapping[str, Any]], judged: Judged | None) -> list[dict[str, Any]]:
    """Return what each model is worth."""
    table = [
        {key: row[key] for key in ("model", "target", "reached_ratio", "latency_ratio", "verdict")}
        for row in rows
    ]
    if judged is not None:
        for entry, row in zip(table, rows, strict=True):
            entry |= {judged.metric: row["accuracy"], f"{judged.metric}_change": row["change"]}
    return table


def _costs(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what each model costs, also as a share of the first."""
    return [
        {
            "model": row["model"],
            "macs": row["macs"],
            "MACs_ratio": row["macs"] / max(rows[0]["macs"], 1),
            "parameters": row["params"],
            "parameters_ratio": row["params"] / max(rows[0]["params"], 1),
            "size_bytes": row["size_bytes"],
            "zstd_bytes": row["zstd_bytes"],
            "zstd_ratio": row["zstd_bytes"] / rows[0]["zstd_bytes"],
        }
        for row in rows
    ]


def front(rows: Sequence[Mapping[str, Any]], *, higher_is_better: bool) -> dict[int, int]:
    """Return which rows are not on the front, each with the best of those that leave it behind.

    Args:
        rows: see `family_report`; with accuracy.
        higher_is_better: its direction.
    """
    sign = -1 if higher_is_better else 1
    points = [(sign * _value(row["accuracy"]), *(_value(row[key]) for key in _COSTS)) for row in rows]
    behind: dict[int, int] = {}
    for number, point in enumerate(points):
        better = [
            (other, place)
            for place, other in enumerate(points)
            if other != point and all(a <= b for a, b in zip(other, point, strict=True))
        ]
        if better:
            behind[number] = min(better)[1]
    return behind


def _value(figure: Any) -> Any:
    return figure["value"] if isinstance(figure, Mapping) else figure


def describe_family(report: Report) -> str:
    """Return what the picture of a family shows, in a sentence for each model.

    Args:
        report: by `family_report`.
    """
    behind = {row["model"]: row["because_of"] for row in report.sections.get("not on the front", ())}
    metric = report.sections["setting"].get("metric")
    costs = {row["model"]: row for row in report.sections["cost"]}
    sentences = []
    for row in report.sections["family"]:
        parts = [
            f"{cell('latency_ratio', row['latency_ratio'])} of the time",
            f"{size_text(costs[row['model']]['zstd_bytes'])} as zstd",
        ]
        if metric is not None:
            parts.append(f"{metric} {cell(metric, row[metric])}")
        last = f"; {behind[row['model']]} leaves it behind" if row["model"] in behind else ""
        sentences.append(f"{row['model']}: {', '.join(parts)}{last}.")
    sentences += [f"Target {row['target']} was missed." for row in report.sections.get("missed", ())]
    return " ".join(sentences)
