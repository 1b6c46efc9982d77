"""Small models that learn in a second, and data that they learn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import small_models

from onnxprune.data import Dataset
from onnxprune.model.stored import stored_values, tensor_of
from onnxprune.tuning import Tuning

SHAPES = {"residual_net": (3, 8, 8), "mlp": (16,), "attention": (6, 32)}
CLASSES = {"residual_net": 10, "mlp": 4}


def load(name: str) -> ir.Model:
    return ir.from_proto(getattr(small_models, name)())


def samples(name: str, count: int = 64, *, labels: bool = True) -> Dataset:
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {"x": random.standard_normal((count, *SHAPES[name])).astype(np.float32)}
    if labels and name in CLASSES:
        arrays["label"] = random.integers(0, CLASSES[name], count)
    return Dataset.from_arrays(arrays)


def tuning(steps: int = 12, **options: Any) -> Tuning:
    return Tuning(**{"steps": steps, "batch": 16, "learning_rate": 1e-3, **options})


def weights_of(model: ir.Model) -> dict[str, np.ndarray]:
    stored = stored_values(model)
    return {name: tensor_of(values[0]).numpy() for name, values in stored.items() if len(values) == 1}


def same_weights(a: ir.Model, b: ir.Model) -> bool:
    ours, theirs = weights_of(a), weights_of(b)
    return ours.keys() == theirs.keys() and all(
        array.tobytes() == theirs[name].tobytes() for name, array in ours.items()
    )


def zeros_are_the_masks(model: ir.Model, masks: Mapping[str, Any]) -> None:
    """Check that a model is zero where masks say so, and nowhere else in the tensors that have one."""
    weights = weights_of(model)
    for name, mask in masks.items():
        assert np.array_equal(weights[name] != 0, mask.unpack()), name
