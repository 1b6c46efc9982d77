"""Parts of a record as tables of text, for the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from onnxprune.messages import visible
from onnxprune.record import (
    CheckRecord,
    Environment,
    Interval,
    LatencyRecord,
    LayerRecord,
    Record,
    SubsetRecord,
    Verdict,
)
from onnxprune.report.figures import (
    VERDICTS,
    common_decimals,
    count_text,
    figure_text,
    interval_text,
    metric_name,
    milliseconds,
    model_row,
    ratio_text,
)
from onnxprune.report.page.curves import MARKED, by_sensitivity
from onnxprune.report.page.network import row_bar
from onnxprune.report.page.svg import MINUS
from onnxprune.report.page.whiskers import axis, scale_of, subset_whiskers, whisker
from onnxprune.report.table import heading, size_text

#: Characters of one value: some say all that an operating system knows of a processor.
_LONGEST_VALUE = 200

_NO_PICTURE = Markup()


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in one place: a picture, a figure, and a smaller one; each may be missing."""

    text: str = ""
    small: str = ""
    picture: Markup = _NO_PICTURE
    numeric: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """Cells, and a class of the page's style."""

    cells: tuple[Cell, ...]
    class_: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Headings, which say which columns hold figures, and rows."""

    headings: tuple[Cell, ...]
    rows: tuple[Row, ...]


def _table(headings: Sequence[str | Cell], rows: Sequence[Sequence[str | Cell]], numeric: int = 99) -> Table:
    """Make a table of texts; columns from ``numeric`` on hold figures."""
    heads = tuple(
        Cell(entry, numeric=column >= numeric) if isinstance(entry, str) else entry
        for column, entry in enumerate(headings)
    )
    return Table(heads, tuple(_row(row) for row in rows))


def _row(cells: Sequence[str | Cell], class_: str = "") -> Row:
    return Row(tuple(Cell(cell) if isinstance(cell, str) else cell for cell in cells), class_)


def pairs_table(pairs: Mapping[str, Any]) -> Table:
    """Return names and values."""
    rows = [
        [heading(str(name)), visible(figure_text(str(name), value), _LONGEST_VALUE)]
        for name, value in pairs.items()
    ]
    return _table(["name", "value"], rows)


def latency_table(latency: LatencyRecord) -> Table:
    """Return how times were measured; the processor stands with the rest of the hardware."""
    return pairs_table({name: value for name, value in latency.setting.items() if name != "processor"})


def section_table(section: Any) -> Table | None:
    """Return a section of a stage's report; None for an empty one."""
    if not section:
        return None
    if isinstance(section, Mapping):
        return pairs_table(section)
    if not isinstance(section, (list, tuple)):
        return pairs_table({"value": section})
    rows = [row if isinstance(row, Mapping) else {"value": row} for row in section]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    numeric = {key for key in keys if all(_is_number(row.get(key)) for row in rows)}
    heads = tuple(Cell(heading(str(key)), numeric=key in numeric) for key in keys)
    return Table(heads, tuple(_row([figure_text(str(key), row.get(key)) for key in keys]) for row in rows))


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (int, float, Interval))


def models_table(record: Record) -> Table | None:
    """Return what each stage gave: a row for each model."""
    if not record.models:
        return None
    original = record.models[0]
    accuracy = scale_of((model.accuracy for model in record.models), 110)
    time = scale_of((model.latency_ratio for model in record.models[1:]), 110)
    digits = common_decimals(model.accuracy for model in record.models)
    rows: list[list[str | Cell]] = []
    for model in record.models:
        row = {name: Cell(*pair) for name, pair in model_row(model, original).items()}
        if accuracy:
            row[metric_name(record)] = _estimate(model.accuracy, digits, whisker(model.accuracy, accuracy))
        if time:
            ratio = _estimate(model.latency_ratio, None, whisker(model.latency_ratio, time))
            row["time ratio"] = Cell("1") if model is original else ratio
        if any(each.latency_ms is not None for each in record.models):
            p95 = f"p95 {milliseconds(model.latency_p95_ms)}" if model.latency_p95_ms is not None else ""
            row["ms, median"] = Cell(milliseconds(model.latency_ms), p95)
        rows.append([model.name, *row.values()])
    return _table(["after", *row], rows, numeric=1)


def _estimate(interval: Interval | None, decimals: int | None, picture: Markup = _NO_PICTURE) -> Cell:
    figure, _, ends = interval_text(interval, decimals).replace("-", MINUS).partition(" (")
    return Cell(figure, ends.rstrip(")"), picture)


def layers_table(layers: Sequence[LayerRecord]) -> Table:
    """Return every layer with what has become of it."""
    widest = max((layer.width for layer in layers), default=1) or 1
    heads = [
        Cell(name, numeric=column in (1, 3, 4, 5, 6))
        for column, name in enumerate(
            ("layer", "no.", "channels", "parameters", "MACs", "zeros", "bits", "why it was left alone")
        )
    ]
    rows: list[list[str | Cell]] = []
    for number, layer in enumerate(layers, 1):
        stays = layer.width_left > 0
        rows.append(
            [
                Cell(layer.name, layer.op_type),
                str(number),
                Cell(_change(layer.width, layer.width_left), picture=row_bar(layer, widest)),
                Cell(count_text(layer.params_left), _share(layer.params_left, layer.params)),
                Cell(count_text(layer.macs_left), _share(layer.macs_left, layer.macs)),
                f"{layer.sparsity:.1%}" if stays else "",
                str(layer.bits) if stays else "",
                layer.reason or "",
            ]
        )
    return _table(heads, rows)


def _change(before: int, after: int) -> str:
    if before == after:
        return f"{before:,}"
    return f"{before:,} → {after:,}" if after else f"{before:,} → gone"


def _share(after: int, before: int) -> str:
    return "" if after in (0, before) else ratio_text(after, before)


def subsets_table(subsets: Sequence[SubsetRecord]) -> Table:
    """Return the metric by subset, with pictures of both intervals on one axis."""
    scale = scale_of(interval for subset in subsets for interval in (subset.original, subset.final))
    heads: list[str | Cell] = ["samples", Cell("how many", numeric=True)]
    heads += [Cell(picture=axis(scale)) if scale else "", Cell("original", numeric=True)]
    heads += [Cell("final", numeric=True), Cell("change", numeric=True)]
    digits = common_decimals(subset.final for subset in subsets)
    rows = [
        [
            Cell(subset.name, "segment" if subset.kind == "segment" else ""),
            Cell(f"{subset.final.count:,}"),
            Cell(picture=subset_whiskers(subset, scale)) if scale else Cell(),
            _estimate(subset.original, digits),
            _estimate(subset.final, digits),
            _estimate(subset.change, digits),
        ]
        for subset in subsets
    ]
    return _table(heads, rows)


def memory_table(record: Record) -> Table:
    """Return the memory of each model in MiB."""
    rows: list[list[str | Cell]] = []
    for entry in record.memory:
        figures = (entry.load_peak_mib, entry.steady_mib, entry.run_peak_mib)
        texts = ["–" if figure is None else f"{figure:.1f}" for figure in figures]
        rows.append([Cell(entry.name, entry.reason or ""), *texts])
    return _table(["MiB", "loading, peak", "loaded", "running, peak"], rows, numeric=1)


def points_table(record: Record) -> Table:
    """Return the candidates, numbered as in their picture."""
    what = record.pareto[0].cost_of if record.pareto else "time"
    rows = []
    for number, point in enumerate(record.pareto, 1):
        chosen = "chosen" if point.chosen else ""
        name = Cell(f"{number}. {point.name}", chosen)
        rows.append(_row([name, f"{point.cost:.3g}", f"{point.accuracy:.4g}"], chosen))
    heads = [Cell("candidate"), Cell(f"{what} ratio", numeric=True), Cell(metric_name(record), numeric=True)]
    return Table(tuple(heads), tuple(rows))


def curves_table(record: Record) -> Table:
    """Return the losses of all curves, the most sensitive layer first; columns are shares removed."""
    curves = by_sensitivity(record.sensitivity)
    amounts = sorted({amount for curve in curves for amount in curve.amount})
    rows = []
    for number, curve in enumerate(curves, 1):
        losses = dict(zip(curve.amount, curve.loss, strict=False))
        name = f"{number}. {curve.name}" if number <= MARKED else curve.name
        rows.append([name, *(f"{losses[a]:.3g}" if a in losses else "–" for a in amounts)])
    return _table(["layer", *(f"{amount:.0%}" for amount in amounts)], rows, numeric=1)


def checks_table(checks: Sequence[CheckRecord]) -> Table:
    """Return checks with what decided them."""
    rows = []
    for check in checks:
        verdict: Verdict = "pass" if check.passed else "fail"
        rows.append(_row([check.name, VERDICTS[verdict], check.detail], "" if check.passed else "fail"))
    return Table((Cell("check"), Cell("result"), Cell("what decided it")), tuple(rows))


def baseline_table(record: Record) -> Table | None:
    """Return the changes since the last accepted run; the name of a figure says its unit."""
    found = record.baseline.rows if record.baseline else ()
    keys = list(dict.fromkeys(key for row in found for key in row))
    if not keys:
        return None
    rows = [
        [
            str(row.get(key, "–")) if column == 0 else figure_text(str(row.get(keys[0], "")), row.get(key))
            for column, key in enumerate(keys)
        ]
        for row in found
    ]
    return _table([heading(key) for key in keys], rows, numeric=1)


def files_table(record: Record) -> Table:
    """Return all that was read and written, and all models, with their digests."""
    rows = [[file.path, file.role, size_text(file.size_bytes), file.sha256] for file in record.files]
    known = {file.sha256 for file in record.files}
    for number, model in enumerate(record.models):
        if model.sha256 not in known:
            name = f"the model after {model.name}" if number else "the original"
            rows.append([name, "model", size_text(model.size_bytes), model.sha256])
    return _table(["file", "role", "size", "sha256"], rows)


def environment_table(environment: Environment) -> Table:
    """Return hardware, system and versions."""
    pairs = {
        heading(name).removesuffix(" bytes"): figure_text(name, value)
        for name, value in environment.hardware.items()
    }
    rows = [["system", environment.system], *([name, value] for name, value in pairs.items())]
    rows += [[name, version] for name, version in environment.packages.items()]
    return _table(["what", "which"], rows)
