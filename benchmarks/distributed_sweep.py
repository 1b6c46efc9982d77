"""One sweep of sensitivity by one process, by two of this machine, and by two workers of a Dask cluster.

    python benchmarks/distributed_sweep.py                     # a minute or two for each
    python benchmarks/distributed_sweep.py --samples 4         # shorter

Each way is timed from the call to the table; the cluster's workers are there already, the model travels to
them within that time. All tables must be equal. The goal is 0.65 of the time of one process, on two free
cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from models import resnet50

import onnxprune
from onnxprune.data import Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from real_cluster import real_cluster

GOAL = 0.65


def sweep(model: Path, data: Dataset, amounts: list[float], **workers: object) -> tuple[str, float]:
    """Return the table, as text, and the seconds that it took."""
    started = time.perf_counter()
    found = onnxprune.measure_sensitivity(model, data=data, amounts=amounts, **workers)
    return json.dumps(found.report.sections["trials"]), time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--amounts", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}: timed on a quiet machine only")
    with tempfile.TemporaryDirectory(prefix="onnxprune-sweep-") as name:
        folder = Path(name)
        model = folder / "resnet50.onnx"
        onnx.save(resnet50(), model)
        x = np.random.default_rng(0).standard_normal((options.samples, 3, 224, 224))
        data = Dataset.from_arrays({str(onnxprune.load(model).graph.inputs[0].name): x.astype(np.float32)})
        alone, one = sweep(model, data, options.amounts)
        print(f"one process        {one:7.1f} s   {len(json.loads(alone))} trials")
        times = {}
        two, times["two processes"] = sweep(model, data, options.amounts, jobs=options.workers)
        with real_cluster(folder, options.workers) as cluster:
            there, times["two Dask workers"] = sweep(model, data, options.amounts, scheduler=cluster.address)
        if not alone == two == there:
            print("the tables differ")
            return 1
        for way, seconds in times.items():
            ratio = seconds / one
            print(f"{way:<18} {seconds:7.1f} s   {ratio:.2f} of the time (goal: {GOAL})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
