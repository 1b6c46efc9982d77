"""Weights in 8 bits for layers that compute in float: ``W = q * scale``, worked out when a model is loaded.

A DequantizeLinear would say the same, but ONNX Runtime keeps that node, and runs it each time; a Cast and a
Mul of constants it replaces with their result. So such a layer takes a quarter of the disk, and the time that
it took.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.model.names import Names, add_constant
from onnxprune.model.stored import tensor_of
from onnxprune.quantization.folding import output_axis
from onnxprune.quantization.layers import Layer
from onnxprune.quantization.streamed_weights import in_int8

#: Weights with fewer elements stay as they are: the nodes would take more than they save.
LEAST_SIZE = 64


def symmetric(
    weight: npt.NDArray[np.floating], axis: int | None
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return `in_int8` of an array, as arrays."""
    quantized, scale = in_int8(ir.tensor(weight), axis)
    return np.asarray(quantized.numpy()), scale


def store_in_int8(model: ir.Model, layers: Collection[Layer], *, per_channel: bool = True) -> list[str]:
    """Store the weights of layers in 8 bits, in place; the layers go on computing in float.

    Args:
        model: in which the layers are.
        layers: those whose weights are stored so.
        per_channel: a scale for each output channel.

    Returns:
        The names of the layers whose weights are now int8.
    """
    graph = model.graph
    nodes = {str(node.name): node for node in graph}
    names = Names(graph)
    restored: dict[str, ir.Value] = {}
    done = []
    for layer in layers:
        node = nodes[layer.name]
        value = node.inputs[1]
        if value is None or layer.size < LEAST_SIZE:
            continue
        if layer.weight in restored:  # a weight that several layers share
            node.replace_input_with(1, restored[layer.weight])
        elif value.const_value is None:
            continue
        else:
            axis = output_axis(node) if per_channel else None
            restored[layer.weight] = _restored(graph, node, value, axis, names)
        done.append(layer.name)
    return done


def add_rounded(
    graph: ir.Graph, value: ir.Value, rounded: ir.TensorProtocol, names: Names, *, alone: bool
) -> ir.Value:
    """Register a weight in int8: under its own name if nothing else reads the floats, beside them if so."""
    name = str(value.name)
    if alone:
        graph.initializers.pop(name)
    return add_constant(graph, rounded, name if alone else names.fresh(f"{name}_int8"))


def _restored(graph: ir.Graph, node: ir.Node, value: ir.Value, axis: int | None, names: Names) -> ir.Value:
    """Put Cast and Mul between a weight, which becomes int8, and the node; return what they compute."""
    name = str(value.name)
    quantized, scale = in_int8(tensor_of(value), axis)
    alone = all((user, index) == (node, 1) for user, index in value.uses())
    stored = add_rounded(graph, value, quantized, names, alone=alone)
    scale_name = names.fresh(f"{name}_scale")
    factor = add_constant(graph, ir.Tensor(scale, name=scale_name), scale_name)
    cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value})
    multiply = ir.node("Mul", [cast.outputs[0], factor])
    cast.outputs[0].name, multiply.outputs[0].name = names.fresh("cast"), names.fresh("real")
    graph.insert_before(node, [cast, multiply])
    node.replace_input_with(1, multiply.outputs[0])
    return multiply.outputs[0]
