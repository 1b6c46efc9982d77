"""Initial states of recurrent layers, as exporters write them: made of sizes, once for all layers.

A state of zeros is what a layer begins with anyway, so it is left out. Another state that is repeated for
every sample of a batch is repeated for each layer apart, so that layers which read slices of one long table
of states do not lose their units together.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.model.names import Names

_RECURRENT = ("GRU", "LSTM", "RNN")
_STATES = (5, 6)
#: Operators that only move positions of their first input.
_MOVES = ("Cast", "Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def own_states(graph: ir.Graph) -> None:
    """Leave out initial states of zeros, and give each layer its own copy of the way to its other ones.

    Args:
        graph: a graph whose constants are initializers; changed in place.
    """
    names = Names(graph)
    for node in list(graph):
        if node.op_type not in _RECURRENT or node.domain:
            continue
        for index in _STATES:
            state = node.inputs[index] if index < len(node.inputs) else None
            if state is None:
                continue
            if _is_zero(state):
                node.replace_input_with(index, None)
            elif any(len(step.outputs[0].uses()) > 1 for step in _way_from_constant(state)):
                node.replace_input_with(index, _copy_of_way(graph, node, state, names))


def _is_zero(value: ir.Value) -> bool:
    """Return whether a value holds zeros by the way it is made; stored tables may be trained to others."""
    node = value.producer()
    if node is None:
        tensor = value.const_value if value.is_initializer() and not value.is_graph_input() else None
        return tensor is not None and tensor.size == 1 and not tensor.numpy().any()
    if node.domain:
        return False
    if node.op_type == "ConstantOfShape":
        filling = node.attributes.get("value")
        return filling is None or not np.asarray(filling.as_tensor().numpy()).any()
    first = node.inputs[0] if node.inputs else None
    if node.op_type in _MOVES and first is not None:
        return _is_zero(first)
    return node.op_type == "Concat" and all(part is not None and _is_zero(part) for part in node.inputs)


def _way_from_constant(value: ir.Value) -> list[ir.Node]:
    """Return the moves that a value has behind it, last one first, if they begin at a constant."""
    way = []
    while (node := value.producer()) is not None:
        first = node.inputs[0] if node.inputs else None
        way.append(node)
        if node.op_type == "ConstantOfShape" and not node.domain:
            return way
        if node.op_type not in _MOVES or node.domain or first is None:
            return []
        value = first
    return way if value.is_initializer() else []


def _copy_of_way(graph: ir.Graph, reader: ir.Node, value: ir.Value, names: Names) -> ir.Value:
    """Insert copies of the moves behind a value before ``reader``; sizes and bounds are shared."""
    last: ir.Value | None = None
    for node in reversed(_way_from_constant(value)):
        inputs = [last, *node.inputs[1:]] if last is not None else list(node.inputs)
        copy = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=1)
        output = copy.outputs[0]
        output.name = copy.name = names.fresh(f"{node.outputs[0].name}_own")
        output.type, output.shape = node.outputs[0].type, node.outputs[0].shape
        graph.insert_before(reader, copy)
        last = output
    return value if last is None else last
