"""The mean error that rounding the weights of a layer causes, taken out of its bias.

``E[W' x] - E[W x] = (W' - W) E[x]``: what a rounded weight adds to each output on average is known from the
mean of its input (Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias
Correction", section 4.2; here E[x] is measured). Padding is taken for input like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.model.names import Names
from onnxprune.model.stored import stored_tensor, tensor_of
from onnxprune.quantization.channel_ranges import ChannelRange
from onnxprune.quantization.folding import output_axis, set_bias
from onnxprune.quantization.layers import Layer
from onnxprune.quantization.stored_weights import symmetric

FloatArray = npt.NDArray[np.float64]


def correct_biases(
    model: ir.Model, layers: Sequence[Layer], ranges: Mapping[str, ChannelRange], *, per_channel: bool
) -> list[str]:
    """Change the biases of layers in place, before their weights are rounded; return the layers' names.

    Args:
        model: in float, whose layers' weights are going to be rounded.
        layers: those that are.
        ranges: of the values that they read.
        per_channel: each output channel gets a scale of its own.
    """
    nodes = {str(node.name): node for node in model.graph}
    names = Names(model.graph)
    done = []
    for layer in layers:
        node = nodes[layer.name]
        source = node.inputs[0]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        known = None if source is None else ranges.get(str(source.name))
        if known is None or node.op_type not in ("Conv", "Gemm") or node.inputs[1] is None:
            continue
        if bias is not None and stored_tensor(bias) is None:
            continue
        weight = tensor_of(node.inputs[1]).numpy()
        error = _mean_error(node, weight, known.mean, per_channel=per_channel)
        if error is None:
            continue
        old = np.zeros(error.size) if bias is None else tensor_of(bias).numpy().reshape(-1)
        set_bias(model.graph, node, (old - error).astype(weight.dtype), names)
        done.append(layer.name)
    return done


def _mean_error(
    node: ir.Node, weight: npt.NDArray[np.floating], mean: FloatArray, *, per_channel: bool
) -> FloatArray | None:
    """Return ``(W' - W) E[x]``, float64 [outputs]; None where the shapes don't meet."""
    axis = output_axis(node)
    rounded, scale = symmetric(weight, axis if per_channel else None)
    error = rounded.astype(np.float64) * scale - weight
    if node.op_type == "Gemm":
        error = error if axis == 0 else error.T
        return error @ mean if error.shape[1] == mean.size else None
    groups = node.attributes.get_int("group", 1)
    outputs, per_group = error.shape[:2]
    if per_group * groups != mean.size or outputs % groups:
        return None
    summed = error.reshape(groups, outputs // groups, per_group, -1).sum(axis=-1)
    return np.asarray(np.einsum("gof,gf->go", summed, mean.reshape(groups, per_group)).reshape(-1))
