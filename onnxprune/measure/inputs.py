"""Random inputs for a measurement: one batch of the size asked for, in the shapes that the model declares."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxprune.errors import UsageError
from onnxprune.feeds import random_feeds
from onnxprune.messages import quoted
from onnxprune.model.inputs import graph_inputs
from onnxprune.model.io import load
from onnxprune.model.shapes import input_shapes as declared_shapes


def random_inputs(
    model: ir.Model | str | Path,
    *,
    batch: int | None,
    input_shapes: Mapping[str, tuple[int, ...]] | None,
    seed: int,
) -> dict[str, npt.NDArray[Any]]:
    """Return one random array for every input.

    Args:
        model: a path or a model; not changed.
        batch: size of the first axis of inputs where that is symbolic; 1 if None.
        input_shapes: shapes by input name; they win over ``batch``.
        seed: of the contents.

    Raises:
        UsageError: ``batch`` contradicts a static first axis, or a shape does not fit the model.
        ModelError: the file can't be read, or an input declares no rank.
    """
    opened = model if isinstance(model, ir.Model) else load(model)
    return random_feeds(opened, batch_shapes(opened, batch, input_shapes or {}), seed)


def batch_shapes(
    model: ir.Model, batch: int | None, overrides: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Return a shape for every input: its override, or the declared one with ``batch`` on the first axis."""
    shapes = declared_shapes(model, overrides)
    free = [value for value in graph_inputs(model) if value.name not in overrides and value.shape]
    symbols = set()
    for value in free:
        first = _symbol(value, 0)
        if first is not None:
            symbols.add(first)
        elif batch is not None and batch != shapes[str(value.name)][0]:
            fixed = shapes[str(value.name)][0]
            raise UsageError(f"input {quoted(value.name)} has a fixed batch of {fixed}, not {batch}")
    wanted = dict(overrides)
    for value in free:
        shape = shapes[str(value.name)]
        wanted[str(value.name)] = tuple(
            (batch or 1) if _symbol(value, axis) in symbols and (axis == 0 or _symbol(value, axis)) else size
            for axis, size in enumerate(shape)
        )
    return dict(declared_shapes(model, wanted))


def _symbol(value: ir.Value, axis: int) -> str | None:
    """Return the name of a symbolic axis, empty where it has none, and None for a fixed size."""
    size = None if value.shape is None else value.shape[axis]
    if isinstance(size, int):
        return None if size > 0 else ""  # some exporters write -1 for "any"
    return (size.value if size is not None else None) or ""
