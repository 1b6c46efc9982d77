"""Prune every model of the benchmark in every way, and write what it costs to docs/accuracy.md and .json.

    python benchmarks/accuracy/run.py --models FOLDER --out docs
    python benchmarks/accuracy/run.py --models FOLDER --quick --only digits_vit,fashion_resnet/2:4

Models that are missing are trained first, by train.py. Every run is a process of its own, and a line of
FOLDER/rows.jsonl: a run that was done with the same settings, files and package is not done again.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import PACKAGE, Rows, digest, in_process

from accuracy.grid import MODELS, Model, Run, runs
from accuracy.page import about, page
from accuracy.table import Row, lines, rows_as_json, table

HERE = Path(__file__).resolve().parent


def files_of(models: Path, model: Model) -> list[Path]:
    """Return the files that the runs of a model read."""
    return [models / f"{model.name}.onnx", *(models / model.data).glob("*.npz")]


def measure(run: Run, models: Path, timeout_s: float) -> Row:
    """Do one run in a process of its own; whatever happens to it, there is a row."""
    data = models / run.model.data
    task = {
        "model": str(models / f"{run.model.name}.onnx"),
        "evaluation": str(data / "eval.npz"),
        "calibration": str(data / f"calibration-{run.seed}.npz"),
        "dense_predictions": str(dense_predictions(models, run.model)),
        "options": dict(run.options),
        "calibrated": run.calibrated,
        "seed": run.seed,
    }
    return in_process(HERE / "worker.py", task, timeout_s)


def dense_predictions(models: Path, model: Model) -> Path:
    return models / f"{model.name}.dense.npy"


def run_model(model: Model, chosen: list[Run], rows: Rows, options: argparse.Namespace) -> None:
    """Do all runs of a model that have no row yet."""
    models: Path = options.models
    files = digest(files_of(models, model))
    dense, *others = chosen
    open_runs = [run for run in others if options.force or rows.find(run, files) is None]
    if rows.find(dense, files) is None or not dense_predictions(models, model).exists():
        rows.add(dense, files, measure(dense, models, options.timeout))
    shown(dense, rows.find(dense, files), "dense")
    with ThreadPoolExecutor(options.jobs) as pool:
        results = pool.map(lambda run: measure(run, models, options.timeout), open_runs)
        for number, (run, row) in enumerate(zip(open_runs, results, strict=True), 1):
            rows.add(run, files, row)
            shown(run, row, f"{number} of {len(open_runs)}")


def shown(run: Run, row: Row | None, where: str) -> None:
    row = row or {}
    said = row.get("error") or f"top-1 {row['top1']:.1%}, {row.get('seconds', 0):.1f} s"
    print(f"[{where}] {run.key}: {said}", file=sys.stderr, flush=True)


def wanted(run: Run, only: str) -> bool:
    """Tell whether ``--only`` names a run; the dense model is always wanted."""
    return not run.way or any(fnmatchcase(run.key, f"*{part}*") for part in only.split(","))


def train_missing(models: Iterable[Model], options: argparse.Namespace) -> None:
    """Have train.py make those models that are not there yet."""
    missing = [model.name for model in models if not (options.models / f"{model.name}.onnx").exists()]
    if not missing:
        return
    print(f"not in {options.models} yet: {', '.join(missing)}", file=sys.stderr)
    command = [sys.executable, str(HERE / "train.py"), "--models", str(options.models)]
    command += ["--only", ",".join(missing)]
    if options.fashion_mnist is not None:
        command += ["--fashion-mnist", str(options.fashion_mnist)]
    subprocess.run(command, check=True)


def measured(models: Path, rows: Rows) -> Iterator[tuple[Model, list[tuple[Run, Row | None]]]]:
    """Yield each model that is there with all runs of the whole grid and their rows."""
    for model in MODELS:
        if (models / f"{model.name}.onnx").exists():
            files = digest(files_of(models, model))
            yield model, [(run, rows.find(run, files)) for run in runs(model)]


def write(models: Path, rows: Rows, out: Path) -> None:
    """Write the page and the raw rows."""
    found = list(measured(models, rows))
    records = {model.name: json.loads((models / f"{model.name}.json").read_text()) for model, _ in found}
    facts = about(metadata.version, platform.platform(), rows.source)
    out.mkdir(parents=True, exist_ok=True)
    (out / "accuracy.md").write_text(page(found, records, facts))
    pairs = [pair for _, of_model in found for pair in of_model]
    (out / "accuracy.json").write_text(rows_as_json({**facts, "models": records}, pairs))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--models", type=Path, required=True, help="folder of models and data, as train.py writes"
    )
    parser.add_argument("--fashion-mnist", type=Path, help="folder of its four IDX files, for train.py")
    parser.add_argument(
        "--out", type=Path, help="write accuracy.md and accuracy.json here; else print tables"
    )
    parser.add_argument(
        "--only", default="", help="parts of MODEL/PATTERN/SCORE/REPAIR/SEED, or globs, by commas"
    )
    parser.add_argument("--quick", action="store_true", help="a few patterns, one seed")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; more than one blurs the seconds")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one run")
    parser.add_argument("--force", action="store_true", help="do again what has been done")
    parser.add_argument(
        "--stale", action="store_true", help="rows of earlier states of the package count too"
    )
    return parser.parse_args()


def main() -> None:
    options = parsed()
    options.models.mkdir(parents=True, exist_ok=True)
    chosen = {
        model: [run for run in runs(model, quick=options.quick) if wanted(run, options.only)]
        for model in MODELS
    }
    touched = [model for model, of_model in chosen.items() if len(of_model) > 1]  # not just the dense one
    train_missing(touched, options)
    source = digest(PACKAGE.rglob("*.py"))
    rows = Rows(options.models / "rows.jsonl", source, stale=options.stale)
    for model in touched:
        if (options.models / f"{model.name}.onnx").exists():
            run_model(model, chosen[model], rows, options)
            if options.out is not None:
                write(options.models, rows, options.out)
    if options.out is None:
        for model, pairs in measured(options.models, rows):
            print(f"\n## {model.name}\n\n{table(lines(pairs))}")


if __name__ == "__main__":
    main()
