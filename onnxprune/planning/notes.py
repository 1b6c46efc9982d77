"""What is said beside a plan: what was asked for in vain, what was not measured, and who made it."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

import onnx_ir as ir

from onnxprune.calibration.activations import left_out
from onnxprune.calibration.noise import notes_on_noise
from onnxprune.data import Dataset
from onnxprune.types import Skipped


def unmatched(recipe: Mapping[str, Any], names: set[str]) -> list[Skipped]:
    """Say which of the globs to protect match nothing: they may be misspelt."""
    return [
        Skipped(glob, "it was to be protected, but no group or weight has a name like this")
        for glob in recipe.get("protect", ())
        if not fnmatch.filter(names, glob)
    ]


def unused_samples(model: ir.Model, data: Dataset | None) -> list[Skipped]:
    """Say which samples nothing was measured on, and whether all of them are noise."""
    count = 0 if data is None else left_out(model, data)
    if data is None or count == 0:
        return notes_on_noise(data)
    return [
        *notes_on_noise(data),
        Skipped(data.source, f"the last {count} of {len(data)} samples fill no batch of the model"),
    ]


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide what a plan does."""
    return dict(_installed())


@cache
def _installed() -> tuple[tuple[str, str], ...]:
    names = ("onnxprune", "numpy", "onnx", "onnx-ir", "onnxruntime")
    return tuple((name, metadata.version(name)) for name in names)
