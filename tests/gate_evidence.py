"""Evidence for tests of gates: two models in one, whose answers to every sample are chosen."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onnxprune.data import Dataset
from onnxprune.gates.evidence import Evidence
from onnxprune.gates.figures import evidence_of_accuracy
from onnxprune.gates.settings import GateSettings, check_data
from onnxprune.measure.accuracy import run_on_data

CLASSES = 4


@functools.cache
def half(first: bool) -> onnx.ModelProto:
    """A model that returns the first or the last half of its input as scores."""
    eye, zero = np.eye(CLASSES, dtype=np.float32), np.zeros((CLASSES, CLASSES), dtype=np.float32)
    weight = np.concatenate([eye, zero] if first else [zero, eye])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2 * CLASSES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def answers(
    original: Sequence[bool], final: Sequence[bool], segments: Sequence[str] | None = None
) -> Dataset:
    """Data on which the two halves are right as asked for; the label is always class 0."""
    hits = np.asarray([original, final])
    scores = np.zeros((2, len(original), CLASSES), dtype=np.float32)
    scores[..., 0] = np.where(hits, 1, 0)
    scores[..., 1] = np.where(hits, 0, 1)
    arrays: dict[str, Any] = {
        "x": np.concatenate(list(scores), axis=-1),
        "label": np.zeros(len(original), dtype=np.int64),
    }
    if segments is not None:
        arrays["segment"] = np.asarray(segments)
    return Dataset.from_arrays(arrays, "answers.npz")


def changed(count: int, lost: int = 0, gained: int = 0, wrong: int = 0) -> Dataset:
    """Data of ``count`` samples: some become wrong, some right, some stay wrong, the rest stays right."""
    original = np.ones(count, dtype=bool)
    final = original.copy()
    final[:lost] = False
    original[lost : lost + gained] = False
    original[lost + gained : lost + gained + wrong] = final[lost + gained : lost + gained + wrong] = False
    return answers(original, final)


def evidence_on(data: Dataset, settings: GateSettings, metric: str = "top1", **more: Any) -> Evidence:
    """Evidence of accuracy alone."""
    first, last = (ir.from_proto(half(which)) for which in (True, False))
    judged = run_on_data(last, first, data=data, metric=metric, batch=1000)
    found = evidence_of_accuracy(
        judged, judged.result(), settings, check_data(settings, data, metric), seed=0
    )
    return found.model_copy(update=more)


def save_halves(folder: Path) -> tuple[Path, Path]:
    """Write both models."""
    paths = folder / "original.onnx", folder / "final.onnx"
    for path, first in zip(paths, (True, False), strict=True):
        onnx.save(half(first), path)
    return paths
