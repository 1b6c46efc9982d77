"""A copy of a model that computes in float32 what the model computes in another floating-point type.

Sums in 16 bits depend so much on their order that a wrong index could hide in the rounding, and ONNX Runtime
lacks many bfloat16 and float64 kernels on CPU. Weights keep their values (float64 ones are rounded), so two
models that were made from each other can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.model.lazy import derived
from onnxprune.model.scopes import graphs_of
from onnxprune.model.stored import all_nodes
from onnxprune.model.streaming import MadeTensor, read_pieces

OTHER_FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "softmax_precision", "stash_type")


def in_float32(model: ir.Model, *, when_read: bool = False) -> ir.Model:
    """Return the model itself if it holds no other floats than float32, else a copy in float32.

    Args:
        model: not changed.
        when_read: initializers are converted when they are read, at each reading, and never kept in memory.
    """
    if not any((v.const_value.dtype if v.const_value else v.dtype) in OTHER_FLOATS for v in _values(model)):
        return model
    copy = model.clone()
    for value in (value for graph in graphs_of(copy) for value in graph.initializers.values()):
        tensor = value.const_value
        if tensor is not None and tensor.dtype in OTHER_FLOATS:
            value.const_value = _made(tensor) if when_read else _converted(tensor)
    nodes = list(all_nodes(copy))
    for node in nodes:
        _convert_attributes(node)
    for value in (*_values(copy), *(output for node in nodes for output in node.outputs)):
        if value.dtype in OTHER_FLOATS:
            value.type = ir.TensorType(ir.DataType.FLOAT)  # types are shared with the original: never changed
    return copy


def _values(model: ir.Model) -> list[ir.Value]:
    return [value for graph in graphs_of(model) for value in (*graph.inputs, *graph.initializers.values())]


def _converted(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    shape = [int(size) for size in tensor.shape.numpy()]
    return derived(tensor, lambda array: array.astype("float32"), shape, ir.DataType.FLOAT, tensor.name)


def _made(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    def make() -> Iterator[npt.NDArray[np.float32]]:
        return (piece.astype(np.float32) for piece in read_pieces(tensor))

    return MadeTensor(make, tensor, dtype=ir.DataType.FLOAT)


def _convert_attributes(node: ir.Node) -> None:
    for name in _TYPE_ATTRIBUTES:
        attribute = node.attributes.get(name)
        is_type = attribute is not None and attribute.type == ir.AttributeType.INT
        if attribute is not None and is_type and attribute.as_int() in OTHER_FLOATS:
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
    constant = node.attributes.get("value")
    if constant is not None and constant.type == ir.AttributeType.TENSOR:
        tensor = constant.as_tensor()
        if tensor.dtype in OTHER_FLOATS:
            node.attributes["value"] = ir.AttrTensor("value", _converted(tensor))
