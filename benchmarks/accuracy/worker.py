"""One run, in a process of its own: so that its peak memory is its own, and a crash is a row.

``run.py`` starts it with the run as JSON; the last line of its output is the row as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import onnxprune
from onnxprune.data import Dataset
from onnxprune.measure.outputs import finite, outputs_of
from onnxprune.pipeline import PruneResult
from onnxprune.runtime import open_session

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import reason

BATCH = 64


def predictions(path: Path, data: Dataset) -> npt.NDArray[np.int64]:
    """Return the class that a model gives each sample, int64 [samples]."""
    session = open_session(path)
    output = session.output_names[0]
    parts = [
        finite(results[0], output, path.name, part.start).argmax(axis=-1)
        for part, results in outputs_of([session], data, BATCH)
    ]
    return np.concatenate(parts).astype(np.int64)


def share_equal(predicted: npt.NDArray[np.int64], wanted: npt.NDArray[Any] | None) -> float:
    """Return the share of samples that two arrays of classes [samples] agree on."""
    if wanted is None or predicted.shape != wanted.shape:
        shape = None if wanted is None else wanted.shape
        raise ValueError(f"predictions have the shape {predicted.shape}, what they are compared with {shape}")
    return float((predicted == wanted).mean())


def peak_mib() -> float:
    """Return the largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_dense(task: Mapping[str, Any]) -> dict[str, Any]:
    """Judge the original, and keep its predictions for all others to be compared with."""
    data = onnxprune.load_data(task["evaluation"])
    predicted = predictions(Path(task["model"]), data)
    np.save(task["dense_predictions"], predicted)
    return {"top1": share_equal(predicted, data.labels), "samples": len(data)}


def measure_pruned(task: Mapping[str, Any]) -> dict[str, Any]:
    """Prune, repair, write, verify; then judge the file."""
    model = onnxprune.load(task["model"])
    calibration = onnxprune.load_data(task["calibration"])
    shapes = {name: (1, *array.shape[1:]) for name, array in calibration.arrays.items()}
    options = dict(task["options"])
    if task["calibrated"]:
        options["data"] = calibration
    before, started = peak_mib(), time.perf_counter()
    result = onnxprune.prune(model, input_shapes=shapes, seed=task["seed"], **options)
    row = {
        "seconds": round(time.perf_counter() - started, 2),
        "memory_before_mib": round(before, 1),
        "memory_peak_mib": round(peak_mib(), 1),
        **kept(result),
    }
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.onnx"
        onnxprune.save_pruned(result, small, against=task["model"])
        data = onnxprune.load_data(task["evaluation"])
        predicted = predictions(small, data)
    dense = np.load(task["dense_predictions"])
    return {
        **row,
        "top1": share_equal(predicted, data.labels),
        "agreement": share_equal(predicted, dense),
        "samples": len(data),
    }


def kept(result: PruneResult) -> dict[str, float]:
    """Return the shares of MACs and parameters that stay; a zero is no parameter, but still a MAC."""
    cost = {entry["what"]: entry for entry in result.report.sections["cost"]}
    zeros = sum(mask.size - mask.kept for mask in result.plan.masks.values())
    parameters = cost["parameters"]
    return {
        "macs_kept": cost["MACs"]["ratio"],
        "parameters_kept": (parameters["after"] - zeros) / max(parameters["before"], 1),
    }


def main() -> None:
    task = json.loads(sys.argv[1])
    try:
        row = measure_pruned(task) if task["options"] else measure_dense(task)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is what this row has to say
        row = {"error": reason(error, [task[name] for name in ("model", "evaluation", "calibration")])}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
