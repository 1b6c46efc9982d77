"""The main job on any model with data: prune in several ways, prove, verify, and compare with the original.

python compare.py MODEL.onnx --data eval.npz --out FOLDER [--calibration calib.npz] [--target-macs 0.5]

With calibration data, which needs no labels, the pruned models are repaired too. The samples call
``compare`` and ``finish``; copy what you need.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import zstandard
from rich import box
from rich.console import Console
from rich.table import Table

import onnxprune
from onnxprune.errors import OnnxPruneError


@dataclass(frozen=True)
class Row:
    """One model, original or pruned.

    Attributes:
        model: name of the original.
        pruned: how, or "no".
        params: elements of all weights.
        macs: multiply-accumulates for one sample.
        file_bytes: size of the file.
        zstd_bytes: size of the file as zstd stores it: what zeros are worth.
        latency_ms: median, one sample, one thread.
        latency_ratio: median of the paired ratios to the original; below 1 is faster.
        latency_verdict: what the ratio says, given its interval and the noise of the control.
        metric: over all samples.
        metric_near_boundary: over the tenth of the samples where the original is least sure.
        checks_passed: the proof, and what was verified on the saved file.
    """

    model: str
    pruned: str
    params: int
    macs: int
    file_bytes: int
    zstd_bytes: int
    latency_ms: float
    latency_ratio: float
    latency_verdict: str
    metric: float
    metric_near_boundary: float | None
    checks_passed: int


def compare(
    path: Path, data_path: Path, folder: Path, ways: Mapping[str, Mapping[str, Any]], metric: str = "top1"
) -> list[Row]:
    """Prune a model in several ways; return a row for the original and one for each result.

    Args:
        path: the original; not changed.
        data_path: evaluation data with labels.
        folder: where pruned models and their plans go.
        ways: by a name for the table, the options of ``onnxprune.prune``.
        metric: of ``onnxprune.validate``.
    """
    model = onnxprune.load(path)
    data = onnxprune.load_data(data_path)
    sample = {name: array[:1] for name, array in data.arrays.items()}
    shapes = {name: array.shape for name, array in sample.items()}
    rows: list[Row] = []
    for way, options in ways.items():
        # prune proves the result against its exact twin; save_pruned verifies the file before it appears
        result = onnxprune.prune(model, input_shapes=shapes, **options)
        stem = _stem(path, options)
        small = folder / f"{stem}.onnx"
        report = onnxprune.save_pruned(result, small, against=path, plan_folder=folder / f"{stem}.plan")
        latency = onnxprune.benchmark(path, small, feeds=sample)
        accuracy = onnxprune.validate(small, path, data=data, metric=metric)
        assert latency.b is not None
        assert latency.ratio is not None
        before, after = result.plan.predicted
        if not rows:
            speed = (latency.a.median_ms, 1.0, "-")
            score = (accuracy.overall.reference, accuracy.near_boundary and accuracy.near_boundary.reference)
            rows.append(_row(path.stem, "no", before, path, speed, score, checks_passed=0))
        speed = (latency.b.median_ms, latency.ratio.value, str(latency.verdict))
        score = (accuracy.overall.model, accuracy.near_boundary and accuracy.near_boundary.model)
        passed = sum(check.passed for check in report.checks)
        rows.append(_row(path.stem, way, after, small, speed, score, checks_passed=passed))
    return rows


def _stem(path: Path, options: Mapping[str, Any]) -> str:
    """Name the files of one way: digits-2of4-obs, say."""
    words = [path.stem, options.get("pattern", "channels").replace(":", "of")]
    words += [options[name] for name in ("score", "recover") if name in options]
    return "-".join(words)


def _row(
    model: str,
    pruned: str,
    cost: Any,
    file: Path,
    speed: tuple[float, float, str],
    score: Any,
    checks_passed: int,
) -> Row:
    content = file.read_bytes()
    overall, near_boundary = score
    return Row(
        model=model,
        pruned=pruned,
        params=cost.params,
        macs=cost.macs,
        file_bytes=len(content),
        zstd_bytes=len(zstandard.compress(content)),
        latency_ms=speed[0],
        latency_ratio=speed[1],
        latency_verdict=speed[2],
        metric=overall.value,
        metric_near_boundary=near_boundary and near_boundary.value,
        checks_passed=checks_passed,
    )


def print_table(rows: Sequence[Row], title: str) -> None:
    """Print all rows as one table."""
    caption = "zstd: size as compressed; ms, latency: one sample, one thread; hardest: the least sure 10%"
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("model", "pruned"):
        table.add_column(heading, no_wrap=True)
    for heading in ("params", "MACs", "KiB", "zstd", "ms", "latency", "top-1", "hardest", "checks"):
        table.add_column(heading, justify="right", no_wrap=True)
    for index, row in enumerate(rows):
        is_new = index == 0 or rows[index - 1].model != row.model
        if is_new and index:
            table.add_section()
        table.add_row(
            row.model if is_new else "",
            row.pruned,
            f"{row.params / 1e3:,.0f} k",
            f"{row.macs / 1e6:.2f} M",
            f"{row.file_bytes / 1024:,.0f}",
            f"{row.zstd_bytes / 1024:,.0f}",
            f"{row.latency_ms:.3f}",
            f"{row.latency_ratio:.2f} {row.latency_verdict}" if row.checks_passed else "-",
            f"{row.metric:.1%}",
            "-" if row.metric_near_boundary is None else f"{row.metric_near_boundary:.1%}",
            f"{row.checks_passed} passed" if row.checks_passed else "-",
        )
    console = Console()
    # into a file or a pipe, lines as long as they need to be
    Console(width=console.width if console.is_terminal else 128).print(table)


def ways_at(target_macs: float, calibration: Path | None) -> dict[str, dict[str, Any]]:
    """Return the usual ways: channels and 2:4, and with calibration data both again, repaired.

    Args:
        target_macs: share of the multiply-accumulates that stays.
        calibration: samples without labels.
    """
    channels = f"{target_macs:.0%} MACs"
    ways: dict[str, dict[str, Any]] = {channels: {"target_macs": target_macs}, "2:4": {"pattern": "2:4"}}
    if calibration is None:
        return ways
    return {
        channels: ways[channels],
        f"{channels}, repaired": {
            "target_macs": target_macs, "data": calibration, "recover": "reconstruct", "score": "l2",
        },
        "2:4": ways["2:4"],
        "2:4, obs": {"pattern": "2:4", "data": calibration, "score": "obs"},
    }  # fmt: skip


def finish(rows: Sequence[Row], title: str, json_path: Path | None) -> None:
    """Print the table, or write the rows for another program that prints its own."""
    if json_path is None:
        print_table(rows, title)
    else:
        json_path.write_text(json.dumps([asdict(row) for row in rows], indent=2))


def main() -> None:
    """Run the job on a model of your own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "--data", type=Path, required=True, help="evaluation data: .npz with inputs and label"
    )
    parser.add_argument(
        "--calibration", type=Path, help="a few hundred samples to repair with: .npz with inputs"
    )
    parser.add_argument("--out", type=Path, default=Path("compare-output"), help="folder to write to")
    parser.add_argument("--target-macs", type=float, default=0.5, help="share of the MACs that stays")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    ways = ways_at(options.target_macs, options.calibration)
    print_table(compare(options.model, options.data, options.out, ways), options.model.name)


if __name__ == "__main__":
    try:
        main()
    except OnnxPruneError as error:
        raise SystemExit(f"error: {error}") from None
