"""Scales moved from one layer to the next, so that all channels between them need about the same steps.

A channel i between a layer and those that read it may be divided by any ``s_i > 0`` where it is made and
multiplied where it is read, as far as the nodes between keep factors (Relu, pooling, moves). With
``s_i = max|x_i|^a / max|W_i|^(1 - a)``, a = 1/2, neither the value nor the weight that reads it gets the
outliers (Xiao et al. 2023, "SmoothQuant", equation 4). Behind a convolution this is cross-layer equalisation
(Nagel et al. 2019) with measured ranges; behind a LayerNormalization its scale and bias take the factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.model.stored import put_numbers, stored_tensor, tensor_of
from onnxprune.quantization.channel_ranges import ChannelRange
from onnxprune.quantization.folding import output_axis

FloatArray = npt.NDArray[np.float64]

#: How much of the difference between channels goes to the weights.
MIGRATION = 0.5

#: Factors stay within this, either way: what is nearly dead on the samples may live on others.
_MOST = 64.0

#: Nodes that hand on a positive factor of each channel, along whatever axis it is.
_KEEPING_FACTORS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Dropout")

_MAKERS = ("Conv", "Gemm", "LayerNormalization")


@dataclass(frozen=True, slots=True)
class Joint:
    """A value between the node that makes its channels and the layers that read them.

    Attributes:
        maker: a Conv, Gemm or LayerNormalization with stored weights that nothing else reads.
        value: the name of what the readers read.
        axis: of its channels.
        readers: layers, each with a weight that nothing else reads.
    """

    maker: ir.Node
    value: str
    axis: int
    readers: tuple[ir.Node, ...]


def find_joints(model: ir.Model) -> list[Joint]:
    """Return all places where factors can move, in graph order."""
    found = (_joint(node) for node in model.graph)
    return [joint for joint in found if joint is not None]


def equalize(
    joints: Sequence[Joint], ranges: Mapping[str, ChannelRange], migration: float = MIGRATION
) -> int:
    """Move factors at every joint whose ranges are known, in place; return at how many."""
    return sum(_move(joint, ranges.get(joint.value), migration) for joint in joints)


def _joint(maker: ir.Node) -> Joint | None:
    if maker.op_type not in _MAKERS or maker.domain not in ("", "ai.onnx") or not _owns(maker):
        return None
    value = maker.outputs[0]
    while True:
        if value.is_graph_output():
            return None
        users = list(value.uses())
        if len(users) == 1 and users[0][0].op_type in _KEEPING_FACTORS and len(users[0][0].outputs) == 1:
            value = users[0][0].outputs[0]
            continue
        break
    image = maker.op_type == "Conv"
    readers = []
    for user, index in users:
        fits = user.op_type == "Conv" if image else user.op_type in ("Gemm", "MatMul")
        if not fits or index != 0 or user.domain not in ("", "ai.onnx") or not _reads_plainly(user):
            return None
        readers.append(user)
    return Joint(maker, str(value.name), 1 if image else -1, tuple(readers)) if readers else None


def _owns(maker: ir.Node) -> bool:
    """Return whether all that a node multiplies and adds is stored in float32, for it alone."""
    if maker.op_type == "LayerNormalization" and maker.attributes.get_int("axis", -1) != -1:
        return False
    if maker.op_type == "Gemm" and not _plain_gemm(maker):
        return False
    first = 1
    parts = [value for value in maker.inputs[first:] if value is not None]
    return bool(parts) and all(_own_float(value) for value in parts)


def _own_float(value: ir.Value) -> bool:
    tensor = stored_tensor(value)
    return (
        tensor is not None and tensor.dtype == ir.DataType.FLOAT and len(value.uses()) == 1
        and value.is_initializer() and not value.is_graph_output() and not value.is_graph_input()
    )  # fmt: skip


def _reads_plainly(reader: ir.Node) -> bool:
    weight = reader.inputs[1]
    if weight is None or not _own_float(weight):
        return False
    if reader.op_type == "MatMul":
        return len(tensor_of(weight).shape) == 2
    return reader.op_type == "Conv" or _plain_gemm(reader)


def _plain_gemm(node: ir.Node) -> bool:
    attributes = node.attributes
    return (
        attributes.get_int("transA", 0) == 0
        and attributes.get_float("alpha", 1.0) == 1.0
        and attributes.get_float("beta", 1.0) == 1.0
    )


def _move(joint: Joint, known: ChannelRange | None, migration: float) -> bool:
    if known is None:
        return False
    reads = [_largest_by_input(reader) for reader in joint.readers]
    channels = known.largest.size
    made = tensor_of(joint.maker.inputs[1]).numpy()  # type: ignore[arg-type] # _owns saw to that
    axis = 0 if joint.maker.op_type == "LayerNormalization" else output_axis(joint.maker)
    if any(array.size != channels for array in reads) or made.shape[axis] != channels:
        return False
    weights = np.max(reads, axis=0)
    alive = (known.largest > 0) & (weights > 0)
    if not alive.any():
        return False
    factors = np.ones(channels)
    factors[alive] = known.largest[alive] ** migration / weights[alive] ** (1 - migration)
    factors[alive] /= np.exp(np.log(factors[alive]).mean())  # all of them together change nothing
    factors = np.clip(factors, 1 / _MOST, _MOST)
    _scale(joint.maker, 1 / factors)
    for reader in joint.readers:
        weight = tensor_of(reader.inputs[1]).numpy()  # type: ignore[arg-type] # as above
        scaled = weight * _spread(reader, factors)
        put_numbers(reader.inputs[1], scaled.astype(weight.dtype))  # type: ignore[arg-type]
    return True


def _scale(maker: ir.Node, factors: FloatArray) -> None:
    """Multiply every output channel of a node."""
    for index, value in enumerate(maker.inputs[1:], start=1):
        if value is None:
            continue
        array = tensor_of(value).numpy()
        along = [1] * array.ndim
        along[output_axis(maker) if index == 1 and maker.op_type != "LayerNormalization" else -1] = -1
        put_numbers(value, (array * factors.reshape(along)).astype(array.dtype))


def _largest_by_input(reader: ir.Node) -> FloatArray:
    """Return the largest weight that reads each input channel, float64 [channels]."""
    weight = np.abs(tensor_of(reader.inputs[1]).numpy())  # type: ignore[arg-type]
    if reader.op_type == "Conv":
        groups = reader.attributes.get_int("group", 1)
        split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return np.asarray(split.max(axis=(1, 3)).reshape(-1), np.float64)
    summed = 1 if reader.op_type == "Gemm" and reader.attributes.get_int("transB", 0) != 0 else 0
    return np.asarray(weight.max(axis=1 - summed), np.float64)


def _spread(reader: ir.Node, factors: FloatArray) -> FloatArray:
    """Return factors of the input channels so that they broadcast against a reader's weight."""
    if reader.op_type != "Conv":
        transposed = reader.op_type == "Gemm" and reader.attributes.get_int("transB", 0) != 0
        return factors[None, :] if transposed else factors[:, None]
    shape = tensor_of(reader.inputs[1]).shape.numpy()  # type: ignore[arg-type]
    groups = reader.attributes.get_int("group", 1)
    by_output = np.repeat(factors.reshape(groups, -1), shape[0] // groups, axis=0)
    return by_output.reshape(*by_output.shape, *(1 for _ in shape[2:]))
