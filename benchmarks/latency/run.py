"""Ask whether the budget of time is delivered, and what it is worth; write docs/latency.md and .json.

    python benchmarks/latency/run.py --models FOLDER --out docs
    python benchmarks/latency/run.py --models FOLDER --quick --only delivered,fashion_vit/0.6

Models that are missing are made first. Every run is a process of its own, and a line of
FOLDER/latency-rows.jsonl: a run that was done with the same settings, files and package is not done again,
unless it failed.
One run at a time, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accuracy.grid import MODELS, SEEDS
from accuracy.page import about
from against_torch_pruning import make_environment
from rows import PACKAGE, Row, Rows, as_json, digest, in_process

from latency.grid import QUESTIONS, TRAINED, Run, runs
from latency.models import make_missing, source_of
from latency.page import page

HERE = Path(__file__).resolve().parent


def files_of(run: Run, options: argparse.Namespace) -> list[Path]:
    """Return the files that a run reads, the model first."""
    if not run.trained:
        return [source_of(run.model, options.zoo)]
    data = next(model.data for model in MODELS if model.name == run.model)
    folder: Path = options.models / data
    return [
        options.models / f"{run.model}.onnx",
        folder / "eval.npz",
        *(folder / f"calibration-{seed}.npz" for seed in SEEDS),
    ]


def task_of(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a worker is given."""
    model, *data = (str(path) for path in files_of(run, options))
    task = {
        "question": run.question, "model": model, "timeout": options.timeout, "seed": run.seed,
        **run.options,
    }  # fmt: skip
    if data:
        evaluation, *calibration = data
        chosen = calibration if run.question == "torch_pruning" else calibration[run.seed]
        task |= {"network": run.model, "evaluation": evaluation, "calibration": chosen}
        task |= {"python": str(options.python), "cache": str(options.models / "part-times")}
        task["delivered"] = str(delivered(run, options))
    return task


def delivered(run: Run, options: argparse.Namespace) -> Path:
    """Return where the model that a target delivered is kept, for others to take turns with."""
    folder: Path = options.models / "delivered"
    return folder / f"{run.model}-{run.options['target']}-{run.options.get('beside', run.seed)}.onnx"


def at_what_was_delivered(run: Run, rows: Rows, options: argparse.Namespace) -> Run | None:
    """Give Torch-Pruning the time that a target took, the median over the seeds; None if none has a row."""
    if run.question != "torch_pruning":
        return run
    found = []
    for other in runs("accuracy", quick=options.quick):
        if (other.model, other.options["target"]) == (run.model, run.options["target"]):
            row = find(other, rows, options)
            if row is not None and "error" not in row and delivered(other, options).exists():
                found.append((row["latency"]["ratio"], other.seed, row["latency"]["top1"]))
    if not found:
        return None
    ratio, seed, _ = sorted(found)[len(found) // 2]
    ours = statistics.fmean(top1 for *_, top1 in found)
    return replace(run, options={**run.options, "at": round(ratio, 4), "beside": seed, "ours": ours})


def find(run: Run, rows: Rows, options: argparse.Namespace) -> Row | None:
    """Return the row of a run, None if there is none, or no model."""
    files = files_of(run, options)
    return rows.find(run, _digest(tuple(files))) if all(path.exists() for path in files) else None


@cache
def _digest(files: tuple[Path, ...]) -> str:
    """Return the digest of files, which do not change while this runs."""
    return digest(files)


def chosen(options: argparse.Namespace) -> Iterator[Run]:
    """Yield the runs that are asked for."""
    for question in QUESTIONS:
        for run in runs(question, quick=options.quick):
            if any(fnmatchcase(run.key, f"*{part}*") for part in options.only.split(",")):
                yield run


def prepare(asked: Iterable[Run], options: argparse.Namespace) -> None:
    """Make the models and the environment that are missing."""
    asked = list(asked)
    zoo = list(dict.fromkeys(run.model for run in asked if not run.trained))
    trained = [name for name in TRAINED if name in {run.model for run in asked}]
    other = any(run.question == "torch_pruning" for run in asked)
    exported = any(not source_of(name, options.zoo).exists() for name in zoo if name != "llama")
    if (other or exported) and not options.python.exists():
        make_environment(options.python.parents[1])
    make_missing(zoo, options.zoo, options.python)
    if any(not (options.models / f"{name}.onnx").exists() for name in trained):
        train = HERE.parent / "accuracy" / "train.py"
        command = [sys.executable, str(train), "--models", str(options.models), "--only", ",".join(trained)]
        subprocess.run(command, check=True)


def write(rows: Rows, options: argparse.Namespace) -> None:
    """Write the page and the raw rows."""
    pairs = []
    for question in QUESTIONS:
        for run in runs(question, quick=options.quick):
            known = at_what_was_delivered(run, rows, options)
            row = None if known is None else find(known, rows, options)
            if known is not None and row is not None:
                pairs.append((known, row))
    facts = about(metadata.version, platform.platform(), rows.source)
    if options.out is None:
        print(page(pairs, facts))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "latency.md").write_text(page(pairs, facts))
    plain = [
        {"question": run.question, "model": run.model, "seed": run.seed, "options": dict(run.options), **row}
        for run, row in pairs
    ]
    (options.out / "latency.json").write_text(as_json(facts, plain))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder of models, data and rows")
    parser.add_argument("--zoo", type=Path, help="folder of exports with random weights; MODELS/zoo")
    parser.add_argument(
        "--python", type=Path, help="of an environment with torch, torchvision and torch-pruning; else made"
    )
    parser.add_argument("--out", type=Path, help="write latency.md and latency.json here; else print")
    parser.add_argument("--only", default="", help="parts of QUESTION/MODEL/TARGET/SEED, or globs, by commas")
    parser.add_argument("--quick", action="store_true", help="a model or two of each question, few pairs")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one run")
    parser.add_argument("--force", action="store_true", help="do again what has been done")
    parser.add_argument(
        "--stale", action="store_true", help="rows of earlier states of the package count too"
    )
    parser.add_argument("--write-only", action="store_true", help="measure nothing: write what there is")
    options = parser.parse_args()
    options.zoo = options.zoo or options.models / "zoo"
    options.python = options.python or options.models / "environment" / "bin" / "python"
    return options


def main() -> None:
    options = parsed()
    options.models.mkdir(parents=True, exist_ok=True)
    rows = Rows(options.models / "latency-rows.jsonl", digest(PACKAGE.rglob("*.py")), stale=options.stale)
    asked = [] if options.write_only else list(chosen(options))
    prepare(asked, options)
    for number, run in enumerate(asked, start=1):
        known = at_what_was_delivered(run, rows, options)
        where = f"[{number} of {len(asked)}] {run.key}"
        if known is None:
            print(f"{where}: left out: ask accuracy/{run.model} first", file=sys.stderr, flush=True)
            continue
        row = find(known, rows, options)
        if row is None or "error" in row or options.force:
            row = in_process(HERE / "worker.py", task_of(known, options), options.timeout, variables={})
            rows.add(known, _digest(tuple(files_of(known, options))), row)
        print(f"{where}: {row.get('error', 'done')}", file=sys.stderr, flush=True)
        if options.out is not None:
            write(rows, options)
    if options.out is None or options.write_only:
        write(rows, options)


if __name__ == "__main__":
    main()
