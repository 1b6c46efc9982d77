"""Trials of single groups -> a report: the most sensitive first, and a sentence about the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxprune.messages import visible
from onnxprune.types import Report

#: Groups that the sentence at the end names.
_CHEAPEST = 3

#: Below this share of the largest, a figure is what rounding leaves.
_NOISE = 1e-6

#: What a figure is said of, where the whole model's is not zero.
_ADDED = "adds at most {most:.3g} to a {metric} of {whole:.3g}"
_REACHED = "brings the {metric} to at most {most:.3g}"


def sensitivity_report(
    rows: Sequence[Mapping[str, Any]],
    kinds: Mapping[str, str],
    *,
    metric: str,
    whole: Mapping[str, float | None],
    amounts: Sequence[float],
    setting: Mapping[str, Any],
) -> Report:
    """Return the report of a survey.

    Args:
        rows: of all trials: ``group``, ``size``, ``removed``, ``removed_share``, ``increase`` (of the loss,
            or None where the trial failed) and more.
        kinds: what each group is.
        metric: name of the loss.
        whole: ``loss`` of the model as it is, and ``top1_share``, which may be None.
        amounts: that were asked for, ascending.
        setting: of the survey, plain values.
    """
    groups = summary(rows, kinds, amounts)
    model = {metric: whole["loss"], "top1_share": whole["top1_share"], **setting}
    sections: dict[str, Any] = {
        "setting": {key: value for key, value in model.items() if value is not None},
        f"{metric.replace('_', ' ')} added by removing": groups,
        "trials": list(rows),
    }
    sentence = cheapest(groups, amounts, metric, whole["loss"] or 0.0)
    if sentence:
        sections["in short"] = {"cheapest": sentence}
    return Report("sensitivity", sections)


def summary(
    rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, str], amounts: Sequence[float]
) -> list[dict[str, Any]]:
    """Return a row for each group, with the loss that each amount adds; the most sensitive first.

    Sorted by the mean over amounts; what alignment allows is the nearest to each amount. A group of which a
    trial failed comes first of all: its outputs were not even numbers.
    """
    by_group: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_group.setdefault(row["group"], []).append(row)
    largest = max((abs(row["increase"]) for row in rows if row["increase"] is not None), default=0.0)
    lines = []
    for name, its in by_group.items():
        at = [min(its, key=lambda row: abs(row["removed_share"] - amount))["increase"] for amount in amounts]
        figures = [max(0.0, figure) for figure in at if figure is not None]
        mean = sum(figures) / len(figures) if len(figures) == len(at) else float("inf")
        rounded = [0.0 if figure is not None and abs(figure) < _NOISE * largest else figure for figure in at]
        cells = {share(amount): figure for amount, figure in zip(amounts, rounded, strict=True)}
        lines.append((mean, {"group": name, "kind": kinds.get(name), "size": its[0]["size"], **cells}))
    return [line for _, line in sorted(lines, key=lambda pair: -pair[0])]


def share(amount: float) -> str:
    """Return an amount as the heading of a column."""
    return f"{100 * amount:g}%"


def cheapest(
    groups: Sequence[Mapping[str, Any]], amounts: Sequence[float], metric: str, whole: float
) -> str | None:
    """Say in a sentence which groups cost least when about half of each goes, alone."""
    middle = min(amounts, key=lambda amount: abs(amount - 0.5))
    known = [group for group in groups if group[share(middle)] is not None]
    first = sorted(known, key=lambda group: group[share(middle)])[:_CHEAPEST]
    if not first:
        return None
    names = [visible(group["group"], 60) for group in first]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    most = max(0.0, *(group[share(middle)] for group in first))
    form = _ADDED if whole > 0 else _REACHED
    said = form.format(most=most, metric=metric.replace("_", " "), whole=whole)
    verb, which = ("costs", "it") if len(names) == 1 else ("cost", "each alone")
    return f"{listed} {verb} least: removing {share(middle)} of {which} {said}"
