"""Time of each stage of channel pruning on ResNet-50, beside plain reading and writing of the file.

    python benchmarks/prune_speed.py [MODEL.onnx] [--rounds 7]

Prints the median of each stage over the rounds, in one process. "in-process" is everything between a model
that was read and a model that is ready to be written: analysis, scores, plan with digests, cut, and proof.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import onnx
from models import resnet50

import onnxprune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or Path(folder) / "resnet50.onnx"
        if options.model is None:
            onnx.save(resnet50(), path)
        stages: dict[str, list[float]] = {}
        for number in range(options.rounds + 1):  # the first round warms up
            seconds = one_round(path, Path(folder) / "small.onnx")
            if number:
                for stage, value in seconds.items():
                    stages.setdefault(stage, []).append(value)
    width = max(map(len, stages))
    for stage, values in stages.items():
        print(f"{stage:{width}}  {statistics.median(values) * 1e3:8.1f} ms  (best {min(values) * 1e3:.1f})")


def one_round(path: Path, output: Path) -> dict[str, float]:
    started = time.perf_counter()
    model = onnxprune.load(path)
    read = time.perf_counter() - started
    started = time.perf_counter()
    result = onnxprune.prune(model, pattern="channels", amount=0.5, score="l2")
    pruned = time.perf_counter() - started
    started = time.perf_counter()
    onnxprune.save(result.model, output)
    written = time.perf_counter() - started
    return {"read": read, **result.report.seconds, "in-process": pruned, "write": written}


if __name__ == "__main__":
    main()
