"""The shortest form of a quantized model: what ONNX Runtime's quantizer writes holds many long names.

Scales and zero points that are equal are stored once, what is only read inside has a short name, and notes
for people are gone. The quantized weights get back the names that they had.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import common as passes

_SUFFIX = "_quantized"
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

#: Operators that quantization adds: nobody asks for them by name.
_ADDED = ("QuantizeLinear", "DequantizeLinear")

#: Tensors up to this many elements are looked at for equal ones.
_SMALL = 4096


def compact(model: ir.Model, kept_names: frozenset[str]) -> ir.Model:
    """Shorten a quantized model in place, and return it.

    Args:
        model: as a quantizer wrote it.
        kept_names: names of weights and nodes of the original, which the quantized ones get back.
    """
    graph = model.graph
    for value in [*graph.initializers.values()]:
        name = str(value.name).removesuffix(_SUFFIX)
        if name != value.name and name in kept_names and name not in graph.initializers:
            _rename_initializer(graph, value, name)
    _drop_default_zero_points(graph)
    _share_equal(graph)
    passes.RemoveUnusedNodesPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
    _shorten(graph, kept_names)
    _drop_default_attributes(graph)
    for node in graph.all_nodes():
        if node.op_type in _ADDED:
            node.name = None
        for output in node.outputs:
            if not output.is_graph_output():
                output.type = output.shape = None
    return model


def _rename_initializer(graph: ir.Graph, value: ir.Value, name: str) -> None:
    tensor = value.const_value
    taken = next((other for other in _values(graph) if other.name == name), None)
    if taken is not None:
        taken.name = f"{name}_real"
    graph.initializers.pop(str(value.name))
    value.name = name
    if tensor is not None:
        tensor.name = name
    graph.initializers.add(value)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    return itertools.chain.from_iterable(node.outputs for node in graph)


def _drop_default_zero_points(graph: ir.Graph) -> None:
    """Leave out zero points that say what goes without saying: 0 of the weight's own type, and of biases."""
    for node in graph:
        if node.op_type != "DequantizeLinear" or len(node.inputs) < 3:
            continue
        stored, zero = node.inputs[0], node.inputs[2]
        if stored is None or zero is None or not stored.is_initializer() or zero.const_value is None:
            continue
        if not zero.const_value.numpy().any() and not _is_matrix_of_gemm(node):
            node.replace_input_with(2, None)
            node.resize_inputs(2)


def _is_matrix_of_gemm(node: ir.Node) -> bool:
    """Tell whether a Gemm multiplies with it: there ONNX Runtime 1.23 wants as many zero points as scales."""
    return any(use.node.op_type == "Gemm" and use.idx == 1 for use in node.outputs[0].uses())


def _drop_default_attributes(graph: ir.Graph) -> None:
    """Leave out attributes of convolutions that say what goes without saying."""
    for node in graph.all_nodes():
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        if node.attributes.get_int("group", 0) == 1:
            node.attributes.pop("group")
        for name, usual in (("dilations", 1), ("strides", 1), ("pads", 0)):
            numbers = node.attributes.get_ints(name, ())
            if numbers and all(number == usual for number in numbers):
                node.attributes.pop(name)


def _share_equal(graph: ir.Graph) -> None:
    """Keep one of several small constants that are equal."""
    first: dict[tuple[object, ...], ir.Value] = {}
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.size > _SMALL or value.is_graph_output() or value.is_graph_input():
            continue
        if tensor.dtype == ir.DataType.STRING:
            continue
        key = (tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes())
        kept = first.setdefault(key, value)
        if kept is not value:
            value.replace_all_uses_with(kept)
            graph.initializers.pop(str(value.name))


def _shorten(graph: ir.Graph, kept_names: frozenset[str]) -> None:
    """Give short names to all that is only read inside."""
    public = {value.name for value in (*graph.inputs, *graph.outputs)}
    inner = [value for value in _values(graph) if value.name and value.name not in public]
    constants = [
        value for value in graph.initializers.values()
        if value.name not in public and value.name not in kept_names
    ]  # fmt: skip
    taken = public | set(graph.initializers) | {value.name for value in inner}
    taken |= {value.name for body in graph.subgraphs() for value in _values(body)}
    names = (name for name in _short_names() if name not in taken)
    for value in inner:
        value.name = next(names)
    for value in constants:
        graph.initializers.pop(str(value.name))
        value.name = next(names)
        if value.const_value is not None:
            value.const_value.name = value.name
        graph.initializers.add(value)


def _short_names() -> Iterator[str]:
    for length in itertools.count(1):
        yield from map("".join, itertools.product(_LETTERS, repeat=length))
