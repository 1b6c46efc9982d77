"""The forms that a prepared model can take, each by ONNX Runtime's own tools, and then as short as can be."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.model.io import load, save
from onnxprune.model.stored import stored_values
from onnxprune.quantization.compact import compact
from onnxprune.quantization.layers import with_followers
from onnxprune.runtime.quantizer import quantize_static

Feeds = Mapping[str, npt.NDArray[Any]]


def in_int8(
    work: ir.Model,
    layers: Sequence[str],
    feeds: Sequence[Feeds],
    *,
    calibration: str = "minmax",
    per_channel: bool = True,
    timeout_seconds: float | None = None,
) -> ir.Model:
    """Return a model whose layers compute in int8, and the nodes between them too.

    Args:
        work: from `onnxprune.quantization.preparing.prepared`; not changed.
        layers: names of the nodes that become int8.
        feeds: inputs to take the ranges of activations from.
        calibration: how: a key of `onnxprune.runtime.quantizer.CALIBRATIONS`.
        per_channel: a scale for each output channel of a weight, not one for all of it.
        timeout_seconds: after which the work is stopped; None for no limit.

    Raises:
        RuntimeFailure: ONNX Runtime can't quantize the model, or it takes too long.
    """
    nodes = with_followers(work, layers)

    def make(plain: Path, out: Path) -> None:
        quantize_static(
            plain, feeds, out,
            nodes=nodes, calibration=calibration, per_channel=per_channel, timeout_seconds=timeout_seconds,
        )  # fmt: skip

    return _made(work, make)


def _made(work: ir.Model, make: Callable[[Path, Path], None]) -> ir.Model:
    """Write a model, let a tool make another file of it, and return that in memory, in its shortest form."""
    names = frozenset([*stored_values(work), *(str(node.name) for node in work.graph)])
    with tempfile.TemporaryDirectory(prefix="onnxprune-quantize-") as folder:
        plain, out = Path(folder, "plain.onnx"), Path(folder, "made.onnx")
        save(work, plain)
        make(plain, out)
        return in_memory(compact(load(out), names))


def in_memory(model: ir.Model) -> ir.Model:
    """Take tensors out of files that are about to go, in place."""
    for values in stored_values(model).values():
        for value in values:
            tensor = value.const_value
            if tensor is not None and not isinstance(tensor, ir.Tensor):
                value.const_value = ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=value.name)
    return model
