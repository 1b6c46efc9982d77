"""Prune every model of the benchmark in every way, and write what it costs to docs/accuracy.md and .json.

    python benchmarks/accuracy/run.py --models FOLDER --out docs
    python benchmarks/accuracy/run.py --models FOLDER --quick --only digits_vit,fashion_resnet/2:4

Models that are missing are trained first, by train.py. Every run is a process of its own, and a line of
FOLDER/rows.jsonl: a run that was done with the same settings, files and package is not done again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accuracy.grid import MODELS, Model, Run, runs
from accuracy.page import about, page
from accuracy.table import Row, lines, rows_as_json, table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGE = ROOT / "onnxprune"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Rows:
    """What has been measured: a file with one JSON line for each run, the last one counts.

    Args:
        path: the file; made when the first row is added.
        source: digest of the package as it is now.
        stale: rows of earlier states of the package count too, where there is none of this one.
    """

    def __init__(self, path: Path, source: str, *, stale: bool = False) -> None:
        self.source = source
        self._path = path
        self._stale = stale
        self._found: dict[str, dict[str, Row]] = {}
        text = path.read_text() if path.exists() else ""
        if text and not text.endswith("\n"):  # interrupted in the middle of a line: what comes goes below it
            path.write_text(text + "\n")
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            self._remember(entry)

    def find(self, run: Run, files: str) -> Row | None:
        """Return the row of a run on files of this digest, None if there is none that counts."""
        by_source = self._found.get(self._name(run, files), {})
        if self.source in by_source:
            return by_source[self.source]
        return list(by_source.values())[-1] if by_source and self._stale else None

    def add(self, run: Run, files: str, row: Row) -> None:
        """Write a row, at once."""
        entry = {"run": self._name(run, files), "source": self.source, "row": dict(row)}
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        self._remember(entry)

    def _remember(self, entry: Mapping[str, Any]) -> None:
        by_source = self._found.setdefault(entry["run"], {})
        by_source.pop(entry["source"], None)  # so that the latest stands last
        by_source[entry["source"]] = {**entry["row"], "source": entry["source"]}

    @staticmethod
    def _name(run: Run, files: str) -> str:
        return json.dumps([run.key, dict(run.options), files], sort_keys=True)


def digest(paths: Iterable[Path]) -> str:
    """Return the start of the SHA-256 of files, by name and content."""
    whole = hashlib.sha256()
    for path in sorted(paths):
        whole.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()[:16]


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
    command = [sys.executable, str(HERE / "worker.py"), json.dumps(task)]
    path = os.pathsep.join((str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])))  # this very package
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": path}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {timeout_s:.0f} s"}
    return outcome(done.returncode, done.stdout, done.stderr)


def outcome(status: int, output: str, errors: str) -> Row:
    """Return the row that a process wrote last, or how it ended without one."""
    last = (output.splitlines() or [""])[-1]
    if status == 0 and last.startswith("{"):
        row: Row = json.loads(last)
        return row
    if status < 0:
        return {"error": f"the process died of signal {-status}"}
    said = (errors.strip().splitlines() or ["nothing said"])[-1]
    return {"error": f"the process ended with status {status}: {said}"}


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
