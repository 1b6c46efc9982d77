"""What the channels of inner values are like on data: their means, and their largest magnitudes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.calibration.activations import each_batch
from onnxprune.data import Dataset

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ChannelRange:
    """One value on data.

    Attributes:
        mean: float64 [channels].
        largest: float64 [channels], of the magnitude.
    """

    mean: FloatArray
    largest: FloatArray


def channel_ranges(
    model: ir.Model,
    values: Mapping[str, int],
    data: Dataset,
    *,
    batch: int,
    threads: int,
) -> dict[str, ChannelRange]:
    """Return mean and largest magnitude of every channel of some values.

    Args:
        model: not changed.
        values: the axis that the channels go along, by name of the value.
        data: samples to run on.
        batch: samples of one run, where the model's first axis is symbolic.
        threads: of ONNX Runtime.

    Raises:
        DataError, LimitMissed, RuntimeFailure: see `each_batch`.
    """
    names = list(values)
    sums: dict[str, FloatArray] = {}
    largest: dict[str, FloatArray] = {}
    counts: dict[str, int] = {}
    for tapped in each_batch(model, [[name] for name in names], data, batch=batch, threads=threads):
        name = names[tapped.bundle]
        array = np.moveaxis(tapped.values[0], values[name], 0)
        flat = array.reshape(array.shape[0], -1)
        total = flat.sum(axis=1, dtype=np.float64)
        peak = np.abs(flat).max(axis=1, initial=0).astype(np.float64)
        sums[name] = total + sums.get(name, 0)
        largest[name] = np.maximum(peak, largest.get(name, 0))
        counts[name] = counts.get(name, 0) + flat.shape[1]
    return {name: ChannelRange(sums[name] / max(counts[name], 1), largest[name]) for name in sums}


def input_axis(layer: ir.Node) -> int:
    """Return the axis of a layer's input that it sums over, counted from the end where the rank may vary."""
    return 1 if layer.op_type in ("Conv", "ConvTranspose") else -1


def inputs_of_layers(nodes: Sequence[ir.Node]) -> dict[str, int]:
    """Return the axis of the channels of each value that a layer reads, by its name."""
    return {
        str(node.inputs[0].name): input_axis(node)
        for node in nodes
        if node.inputs[0] is not None
        and not (node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0)
    }
