"""Prune a network of the digits sample in six ways to several sparsities: accuracy against sparsity.

python run.py [--out FOLDER] [--network residual] [--amounts 0.9 0.95] [--steps 600]

Writes ``NETWORK.json`` and ``NETWORK.svg`` (where matplotlib is installed) beside the models.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

import onnxprune
from onnxprune.tuning import Tuning

HERE = Path(__file__).resolve().parent
ROUNDS = 5
UNTUNED = "one-shot, not tuned"
MOVEMENT = "gradual, movement"


def ways(steps: int, early: Path) -> dict[str, tuple[Mapping[str, Any] | None, int]]:
    """Return by name the options of `onnxprune.prune_gradually` (None: not tuned), and the steps of a run.

    All that tune the trained network have the same number of steps in all; a ticket, which starts from early
    weights, has as many in each round. Movement starts from early weights too: it goes by how weights move
    while a network learns, and one that has learnt moves no more.
    """
    each = max(1, steps // ROUNDS)
    return {
        UNTUNED: (None, 0),
        "one-shot, then tuned": ({"schedule": "one-shot"}, steps),
        "gradual, magnitude": ({}, steps),
        MOVEMENT: ({"score": "movement"}, steps),
        "iterative": ({"rounds": ROUNDS, "schedule": "geometric"}, each),
        "lottery ticket": ({"rounds": ROUNDS, "rewind": early}, steps),
        "random ticket": ({"rounds": ROUNDS, "rewind": early, "score": "random"}, steps),
    }


def prune_in_all_ways(
    folder: Path, network: str, amounts: Sequence[float], steps: int
) -> list[dict[str, Any]]:
    """Return a row for the trained network, and one for each way and amount.

    Args:
        folder: with what ``train.py`` wrote; pruned models go there too.
        network: its name.
        amounts: shares of the weights that go.
        steps: of tuning.
    """
    path, early = folder / f"{network}-trained.onnx", folder / f"{network}-early.onnx"
    evaluation = onnxprune.load_data(folder / "eval.npz")
    model = onnxprune.load(path)
    dense = onnxprune.validate(path, data=evaluation, metric="top1").overall.model.value
    rows = [{"way": "trained", "amount": 0.0, "zeros": 0.0, "top1": dense, "steps": 0, "seconds": 0.0}]
    for amount in amounts:
        for way, (options, each) in ways(steps, early).items():
            started = time.perf_counter()
            wish = {"pattern": "unstructured", "amount": amount}
            if options is None:
                result = onnxprune.prune(model, **wish)
            else:
                learns = (
                    way == MOVEMENT or "rewind" in options
                )  # from labels; what is trained already distils
                result = onnxprune.prune_gradually(
                    onnxprune.load(early) if way == MOVEMENT else model,
                    data=folder / "train.npz",
                    settings=Tuning(steps=each, batch=64, learning_rate=2e-3, distil=0.0 if learns else None),
                    **wish,
                    **options,
                )
            seconds = time.perf_counter() - started
            name = way.replace(",", "").replace(" ", "-")
            pruned = folder / f"{network}-{name}-{amount:g}.onnx"
            onnxprune.save_pruned(result, pruned, against=early if way == MOVEMENT else path)
            masks = result.plan.masks.values()
            rows.append({
                "way": way,
                "amount": amount,
                "zeros": 1 - sum(mask.kept for mask in masks) / sum(mask.size for mask in masks),
                "top1": onnxprune.validate(pruned, data=evaluation, metric="top1").overall.model.value,
                "steps": each * (options or {}).get("rounds", 1),
                "seconds": seconds,
            })  # fmt: skip
            print(f"{amount:.0%} {way}: {rows[-1]['top1']:.1%}", file=sys.stderr, flush=True)
    return rows


def print_table(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Print a line for each way, and a column for each amount."""
    amounts = sorted({row["amount"] for row in rows if row["amount"]})
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("way")
    table.add_column("steps", justify="right")
    for amount in amounts:
        table.add_column(f"{amount:.0%} zeros", justify="right")
    table.add_row("trained", "", f"{rows[0]['top1']:.1%} without any", *[""] * (len(amounts) - 1))
    for way in dict.fromkeys(row["way"] for row in rows[1:]):
        mine = {row["amount"]: row for row in rows if row["way"] == way}
        steps = next(iter(mine.values()))["steps"]
        table.add_row(way, str(steps or ""), *(f"{mine[amount]['top1']:.1%}" for amount in amounts))
    Console().print(table)


def draw(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw accuracy against sparsity, a line for each way."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "onnxprune", "font.size": 8}):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.subplots()
        for way in dict.fromkeys(row["way"] for row in rows[1:]):
            points = sorted((row["amount"], row["top1"]) for row in rows if row["way"] == way)
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.3, label=way)
        axes.axhline(rows[0]["top1"], color="#999999", linestyle=":", linewidth=1, label="trained")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol="%"))
        axes.set_xlabel("weights that are zero")
        axes.set_ylabel("held-out digits that are right")
        axes.set_title(title, loc="left")
        axes.legend(frameon=False, fontsize=7)
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run the job, print one table, and write the figures and a picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gradual-output"), help="folder to write to")
    parser.add_argument("--network", choices=("residual", "vit"), default="residual")
    parser.add_argument("--amounts", type=float, nargs="+", default=[0.9, 0.95], help="shares that go")
    parser.add_argument("--steps", type=int, default=600, help="of tuning")
    parser.add_argument("--epochs", type=int, help="of training, instead of the usual number")
    options = parser.parse_args()

    if not (options.out / f"{options.network}-early.onnx").exists():
        print("training the network; this takes about a minute", file=sys.stderr, flush=True)
        command = [
            sys.executable,
            str(HERE / "train.py"),
            "--out",
            str(options.out),
            "--network",
            options.network,
        ]
        epochs = [] if options.epochs is None else ["--epochs", str(options.epochs)]
        subprocess.run([*command, *epochs], check=True)
    rows = prune_in_all_ways(options.out, options.network, options.amounts, options.steps)
    title = f"Handwritten digits, {options.network}: {options.steps} steps"
    (options.out / f"{options.network}.json").write_text(json.dumps(rows, indent=1) + "\n")
    print_table(rows, title)
    try:
        draw(rows, options.out / f"{options.network}.svg", title)
    except ImportError:
        print("no picture: pip install 'onnxprune[report]'", file=sys.stderr)


if __name__ == "__main__":
    main()
