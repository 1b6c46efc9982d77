"""A part of a graph as a model of its own, whole or without removed channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxprune.messages import quoted
from onnxprune.model.names import Names
from onnxprune.ops.channels import Channels
from onnxprune.ops.kept import Kept
from onnxprune.parts import Part
from onnxprune.rewrite.cut import cut_copies, declare_shapes, drop_unused
from onnxprune.types import BoolArray, IntArray

#: Old enough for every runtime that can run what is in a part, new enough for all of its types.
_IR_VERSION = 10


def cut_part(
    part: Part,
    channels: Channels,
    removed: BoolArray,
    *,
    types: Mapping[str, ir.DataType] | None = None,
    ir_version: int = _IR_VERSION,
) -> ir.Model:
    """Return a part of an analysed graph as a model of its own, without the removed channels.

    It computes what the part computes in the model that `onnxprune.rewrite.cut.cut` makes. Values keep their
    names. Tensors that lose nothing are shared.

    Args:
        part: of the main graph; nodes with bodies are none of it (see `Part.whole`).
        channels: the labels of the graph.
        removed: bool ``[labels.count]``, True for each label that goes.
        types: element types of its inputs by name, where the graph does not say them.
        ir_version: of the model.

    Raises:
        ValueError: the type or the shape of an input is not known, or sizes that change with the cut are
            computed in another part.
    """
    opsets = part.nodes[0].graph.opset_imports if part.nodes[0].graph is not None else {}
    values = {value: _input(value, channels, types or {}) for value in part.inputs}
    used = dict.fromkeys(
        value for node in part.nodes for value in node.inputs if value is not None and value.is_initializer()
    )
    weights = {value: _copy_of(value) for value in used}
    values.update(weights)
    copies = {node: _copied(node, values) for node in part.nodes}
    graph = ir.Graph(
        [values[value] for value in part.inputs],
        [values[value] for value in part.outputs],
        nodes=copies.values(),
        initializers=list(weights.values()),
        opset_imports=dict(opsets),
        name=part.name,
    )
    names = Names(graph)
    kept = _KeptInside(channels, removed, copies, names)
    declare_shapes(part.inputs, graph.inputs, kept)
    cut_copies(copies, used, graph, kept, names)
    drop_unused(graph)
    return ir.Model(graph, ir_version=ir_version)


class _KeptInside(Kept):
    """What is left of a part; sizes that another part computes can't be rewritten from here."""

    def set_ints(self, node: ir.Node, index: int, numbers: Sequence[int] | IntArray) -> None:
        """Give an input of the copy new integer contents."""
        if node not in self.copies:
            raise ValueError(f"sizes that it reads are computed by {quoted(node.name)}, in another part")
        super().set_ints(node, index, numbers)


def _input(value: ir.Value, channels: Channels, types: Mapping[str, ir.DataType]) -> ir.Value:
    """Return a graph input with the sizes that are the same for every input of the model, and free ones."""
    dtype = types.get(str(value.name), value.dtype)
    dims = channels.shapes.dims.get(value)
    if dtype is None or dims is None:
        raise ValueError(f"too little is known of {quoted(value.name)} to make it an input")
    sizes = [dim.size if dim.is_constant else dim.label for dim in dims]
    return ir.Value(name=value.name, shape=ir.Shape(sizes), type=ir.TensorType(dtype))


def _copy_of(value: ir.Value) -> ir.Value:
    return ir.Value(name=value.name, type=value.type, const_value=value.const_value, shape=_shape_of(value))


def _shape_of(value: ir.Value) -> ir.Shape | None:
    return None if value.shape is None else value.shape.copy()


def _copied(node: ir.Node, values: dict[ir.Value, ir.Value]) -> ir.Node:
    """Return a copy of a node that reads the copies of what it reads; note its outputs."""
    outputs = [ir.Value(name=value.name, type=value.type, shape=_shape_of(value)) for value in node.outputs]
    values.update(zip(node.outputs, outputs, strict=True))
    return ir.Node(
        node.domain,
        node.op_type,
        [None if value is None else values[value] for value in node.inputs],
        node.attributes.values(),
        overload=node.overload,
        outputs=outputs,
        version=node.version,
        name=node.name,
    )
