"""What pruning and int8 bring alone and together: sizes, accuracy, and times in one interleaved run.

python benchmarks/prune_and_int8.py MODEL.onnx CALIBRATION.npz EVALUATION.npz [--tune EPOCHS] [--zeros 2:4]

Prints a Markdown table. Every model is made by ``onnxprune.compress``, as a recipe would.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import onnxprune
from onnxprune.data import load_data
from onnxprune.gates.gathering import gather_evidence
from onnxprune.gates.settings import GateSettings
from onnxprune.record import Interval, ModelRecord

CUT = {"kind": "prune", "target_macs": 0.5, "recover": "reconstruct"}
INT8 = {"kind": "quantize", "form": "int8"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "calibration", "evaluation"):
        parser.add_argument(name, type=Path)
    parser.add_argument(
        "--tune", type=float, metavar="EPOCHS", help="tune what was cut, by the original's outputs"
    )
    parser.add_argument("--zeros", metavar="PATTERN", help="zeros after the cut, chosen by obs: 2:4, say")
    parser.add_argument("--computing", default="auto", help="of int8")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--work", type=Path, help="folder to work in, kept")
    options = parser.parse_args()
    if options.work is not None:
        options.work.mkdir(exist_ok=True)
        print(table(options, options.work))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(table(options, Path(folder)))


def table(options: argparse.Namespace, folder: Path) -> str:
    """Make all models, measure them in one run, and return the table."""
    int8 = {**INT8, "computing": options.computing}
    tune = {"kind": "finetune", "epochs": options.tune, "batch": 16, "learning_rate": 5e-4}
    zeros = {
        "kind": "prune",
        "pattern": options.zeros,
        "score": "obs",
        "recover": "reconstruct",
        "name": "zeros",
    }
    cut = [CUT, *([tune] if options.tune else []), *([zeros] if options.zeros else [])]
    chains = {"int8 alone": [int8], "pruned alone": cut, "pruned, then int8": [*cut, int8]}
    paths = {"original": options.model}
    for name, stages in chains.items():
        paths[name] = made(options, folder, name.replace(" ", "-").replace(",", ""), stages)
    evidence = gather_evidence(
        paths, evaluation=load_data(options.evaluation), settings=GateSettings(), pairs=options.pairs
    )
    head = [
        "| | bytes | smaller | zeros | top-1 | time of the original's |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *(row(model, evidence.models[0]) for model in evidence.models)])


def made(options: argparse.Namespace, folder: Path, name: str, stages: list[dict[str, Any]]) -> Path:
    """Run a recipe without gates, and return its model."""
    result = onnxprune.compress(
        {
            "model": {"path": str(options.model.resolve())},
            "data": {"calibration": str(options.calibration.resolve())},
            "run": {"folder": str(folder / f"{name}.run"), "pairs": 20},
            "stages": stages,
            "output": {"model": str(folder / f"{name}.onnx"), "json": str(folder / f"{name}.json")},
        }
    )
    return result.model


def row(model: ModelRecord, original: ModelRecord) -> str:
    """Return one line of the table."""
    smaller = f"{original.size_bytes / model.size_bytes:.2f}"
    top1 = shown(model.accuracy, 4)
    time = "1" if model.latency_ratio is None else shown(model.latency_ratio, 3)
    return f"| {model.name} | {model.size_bytes:,} | {smaller} | {model.sparsity:.1%} | {top1} | {time} |"


def shown(figure: Interval | None, digits: int) -> str:
    """Return an estimate with its interval."""
    return (
        ""
        if figure is None
        else f"{figure.value:.{digits}f} ({figure.low:.{digits}f} to {figure.high:.{digits}f})"
    )


if __name__ == "__main__":
    main()
