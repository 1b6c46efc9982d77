"""Arithmetic behind a layer that its weight and bias can do, and activations in fewer nodes.

A node less is a range less to find, a rounding less, and bytes less. ONNX Runtime does the first part itself
when it loads a model in float, but not between integers. Weights keep their names and their zeros: an output
channel of a kernel is multiplied with one number.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.model.names import Names, add_constant
from onnxprune.model.stored import put_numbers, stored_tensor, tensor_of

FloatArray = npt.NDArray[np.float64]

#: Factor and summand of each channel.
_Affine = tuple[FloatArray, FloatArray]

_FOLDS_INTO = ("Conv", "ConvTranspose", "Gemm")


def output_axis(layer: ir.Node) -> int:
    """Return the axis of a layer's weight that its outputs go along."""
    if layer.op_type == "Conv":
        return 0
    if layer.op_type == "Gemm":
        return 0 if layer.attributes.get_int("transB", 0) != 0 else 1
    return 1 if layer.op_type == "ConvTranspose" else -1


def set_bias(graph: ir.Graph, layer: ir.Node, bias: npt.NDArray[np.generic], names: Names) -> None:
    """Give a Conv, ConvTranspose or Gemm a bias of its own."""
    old = layer.inputs[2] if len(layer.inputs) > 2 else None
    name = names.fresh(f"{layer.name}.bias" if old is None else str(old.name))
    value = add_constant(graph, ir.Tensor(bias, name=name), name)
    if len(layer.inputs) < 3:
        layer.resize_inputs(3)
    layer.replace_input_with(2, value)


def fold_affine(model: ir.Model) -> int:
    """Make what multiplies and adds constants to the channels of a layer part of the layer; return how many.

    ``f * (W x + b) + s = (f W) x + (f b + s)``, for BatchNormalization, Mul, Div, Add and Sub.
    """
    names = Names(model.graph)
    return sum(_fold_behind(model.graph, node, names) for node in list(model.graph))


def _fold_behind(graph: ir.Graph, node: ir.Node, names: Names) -> bool:
    if node.op_type not in _AFFINE or node.domain not in ("", "ai.onnx"):
        return False
    computed = [value for value in node.inputs if value is not None and stored_tensor(value) is None]
    layer = computed[0].producer() if len(computed) == 1 else None
    if layer is None or not _can_take(layer, computed[0]):
        return False
    weight, bias = layer.inputs[1], layer.inputs[2] if len(layer.inputs) > 2 else None
    if weight is None:
        return False
    kernel = tensor_of(weight).numpy()
    axis = output_axis(layer)
    affine = _AFFINE[node.op_type](node, kernel.shape[axis], kernel.ndim)
    if affine is None:
        return False
    factor, summand = affine
    old = np.zeros_like(summand) if bias is None else tensor_of(bias).numpy().astype(np.float64).reshape(-1)
    if old.size not in (1, factor.size):
        return False
    along = [1] * kernel.ndim
    along[axis] = -1
    if (factor != 1).any():
        put_numbers(weight, (kernel * factor.reshape(along)).astype(kernel.dtype))
    set_bias(graph, layer, (old * factor + summand).astype(kernel.dtype), names)
    _take_over(graph, node, computed[0])
    return True


def _can_take(layer: ir.Node, result: ir.Value) -> bool:
    if layer.op_type not in _FOLDS_INTO or layer.domain not in ("", "ai.onnx"):
        return False
    if len(result.uses()) != 1 or result.is_graph_output():
        return False
    if layer.op_type == "ConvTranspose" and layer.attributes.get_int("group", 1) != 1:
        return False
    if layer.attributes.get_float("beta", 1.0) != 1.0 or layer.attributes.get_float("alpha", 1.0) != 1.0:
        return False
    weight, bias = layer.inputs[1], layer.inputs[2] if len(layer.inputs) > 2 else None
    if weight is None or not weight.is_initializer() or len(weight.uses()) != 1:
        return False
    if weight.is_graph_input() or tensor_of(weight).dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return False
    return bias is None or stored_tensor(bias) is not None


def _take_over(graph: ir.Graph, node: ir.Node, result: ir.Value) -> None:
    """Let the result of a layer stand for that of the node behind it, under the name of the latter."""
    output = node.outputs[0]
    name = output.name
    result.shape, result.type = output.shape, output.type
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    output.name = None
    result.name = name


def _batch_norm(node: ir.Node, channels: int, _: int) -> _Affine | None:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta"""
    tensors = [None if value is None else stored_tensor(value) for value in node.inputs[1:5]]
    known = [tensor.numpy().astype(np.float64) for tensor in tensors if tensor is not None]
    if len(known) != 4 or len(node.outputs) > 1 or node.attributes.get_int("training_mode", 0) == 1:
        return None
    if any(array.shape != (channels,) for array in known):
        return None
    gamma, beta, mean, variance = known
    factor = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return factor, beta - mean * factor


def _by_channel(node: ir.Node, channels: int, rank: int) -> FloatArray | None:
    """Return the constant operand of a node, one number for each channel, if it has no more than these."""
    tensors = [None if value is None else stored_tensor(value) for value in node.inputs]
    constant = next((tensor for tensor in tensors if tensor is not None), None)
    if constant is None:
        return None
    array = constant.numpy().astype(np.float64)
    channel_axis = rank - 2 if rank > 2 else 0  # counted from the end: spatial axes follow the channels
    if array.ndim > rank or array.size not in (1, channels):
        return None
    if array.size == 1:
        return np.full(channels, array.reshape(()))
    place = array.ndim - 1 - channel_axis
    return array.reshape(-1) if place >= 0 and array.shape[place] == channels else None


def _sum(node: ir.Node, channels: int, rank: int) -> _Affine | None:
    constant = _by_channel(node, channels, rank)
    return None if constant is None else (np.ones(channels), constant)


def _difference(node: ir.Node, channels: int, rank: int) -> _Affine | None:
    constant = _by_channel(node, channels, rank)
    if constant is None:
        return None
    first = node.inputs[0]
    if first is not None and stored_tensor(first) is not None:
        return -np.ones(channels), constant
    return np.ones(channels), -constant


def _product(node: ir.Node, channels: int, rank: int) -> _Affine | None:
    constant = _by_channel(node, channels, rank)
    return None if constant is None else (constant, np.zeros(channels))


def _quotient(node: ir.Node, channels: int, rank: int) -> _Affine | None:
    constant = _by_channel(node, channels, rank)
    first = node.inputs[0]
    if constant is None or (first is not None and stored_tensor(first) is not None) or not constant.all():
        return None
    return 1 / constant, np.zeros(channels)


_AFFINE: dict[str, Callable[[ir.Node, int, int], _Affine | None]] = {
    "BatchNormalization": _batch_norm,
    "Add": _sum,
    "Sub": _difference,
    "Mul": _product,
    "Div": _quotient,
}


def shorten_hard_swish(model: ir.Model) -> int:
    """Write ``x * clip(x + 3, 0, 6) / 6`` as ``x * HardSigmoid(x)``, two nodes for four; return how many."""
    return sum(_shorten(model.graph, node) for node in list(model.graph) if node.op_type == "Div")


def _shorten(graph: ir.Graph, division: ir.Node) -> bool:
    product = _behind(division, 0, "Mul")
    if product is None or _number(division, 1) != 6:
        return False
    for place in (0, 1):
        clip = _behind(product, place, "Clip")
        added = None if clip is None else _behind(clip, 0, "Add")
        x = product.inputs[1 - place]
        if clip is None or added is None or (_number(clip, 1), _number(clip, 2)) != (0, 6):
            continue
        three = [_number(added, index) for index in (0, 1) if added.inputs[index] is not x]
        if x is None or len(three) != 1 or three[0] != 3:
            continue
        gate = ir.node("HardSigmoid", [x], {"alpha": 1 / 6, "beta": 0.5})
        gate.name, gate.outputs[0].name = clip.name, clip.outputs[0].name
        clip.outputs[0].name = None
        graph.insert_before(product, gate)
        product.replace_input_with(place, gate.outputs[0])
        _take_over(graph, division, product.outputs[0])
        graph.remove(clip, safe=True)
        graph.remove(added, safe=True)
        return True
    return False


def _behind(node: ir.Node, place: int, op_type: str) -> ir.Node | None:
    """Return the node of that type that an operand comes from, if nothing else reads it."""
    value = node.inputs[place]
    producer = None if value is None else value.producer()
    if value is None or producer is None or producer.op_type != op_type:
        return None
    return producer if len(value.uses()) == 1 and not value.is_graph_output() else None


def _number(node: ir.Node, place: int) -> float | None:
    value = node.inputs[place] if place < len(node.inputs) else None
    tensor = None if value is None else stored_tensor(value)
    return None if tensor is None or tensor.size != 1 else float(tensor.numpy().reshape(()))
