"""Initial states of recurrent layers, as exporters write them: zeros, made of sizes, once for all layers.

A layer without an initial state begins with zeros as well, so such a state says nothing. Left out, it does
not keep the layer's units, nor tie the layers together that read slices of it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.model.nodes import nodes_in

_RECURRENT = ("GRU", "LSTM", "RNN")
_STATES = (5, 6)
#: Operators that only move positions of their first input.
_MOVES = ("Cast", "Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def leave_out_zero_states(graph: ir.Graph) -> None:
    """Leave out initial states of zeros.

    Args:
        graph: a graph whose constants are initializers; changed in place.
    """
    for node in nodes_in(graph):
        if node.op_type in _RECURRENT and not node.domain:
            for index in _STATES:
                state = node.inputs[index] if index < len(node.inputs) else None
                if state is not None and _is_zero(state):
                    node.replace_input_with(index, None)


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
