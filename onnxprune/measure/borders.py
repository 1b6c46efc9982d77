"""Borders for a part of a convolutional network, so that it runs alone as it runs within the whole.

On CPU, ONNX Runtime keeps images in blocks of channels (NCHWc) from one convolution to the next, and fuses a
sum or an activation into the convolution before it. A part that is cut out begins and ends with plain images
instead: it would reorder at both ends, and fuse otherwise. So a small convolution is put at each end. The
one in front makes a blocked image out of a single channel, which takes no reordering; the one behind asks for
a blocked image, and takes one pixel of it. What is reordered between the two is reordered within the whole,
too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.model.names import Names, add_constant

#: Operators that compute in blocks of channels themselves.
_BLOCKED = frozenset(
    {"Conv", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "Upsample", "Resize"}
)

#: Operators that work on images laid out either way.
_EITHER = frozenset({
    "Add", "BatchNormalization", "Clip", "Concat", "Dropout", "Elu", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "Mul", "Relu", "Sigmoid", "Sum", "Tanh",
})  # fmt: skip

#: Convolutions and poolings work in blocks only on a multiple of this many channels; other images are plain
#: wherever they are read.
_ALIGNMENT = 4

_STANDARD = ("", "ai.onnx")
_RANK = 4


def images(graph: ir.Graph, shapes: Mapping[ir.Value, tuple[int, ...]]) -> frozenset[ir.Value]:
    """Return the values that convolutions and poolings hand on to each other, by way of elementwise nodes.

    Inputs and outputs of the graph are plain images, and none of them.

    Args:
        graph: the main graph.
        shapes: of its values, where they are known.
    """
    neighbours: dict[ir.Value, set[ir.Value]] = defaultdict(set)
    found: set[ir.Value] = set()
    outside = {*graph.inputs, *graph.outputs}
    for node in graph:
        if node.domain not in _STANDARD or node.op_type not in _BLOCKED | _EITHER:
            continue
        touched = [*node.inputs, *node.outputs]
        if node.op_type in _BLOCKED:
            touched = [*node.inputs[:1], *node.outputs[:1]]
        values = [
            value
            for value in touched
            if value is not None
            and not value.is_initializer()
            and value not in outside
            and len(shapes.get(value, ())) == _RANK
        ]
        if node.op_type in _BLOCKED:
            found.update(values)
        else:
            for value in values:
                neighbours[value].update(values)
    pending = list(found)
    while pending:
        fresh = neighbours[pending.pop()] - found
        found |= fresh
        pending += fresh
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class Borders:
    """Nodes that were put at the ends of a part.

    Attributes:
        added: names of them all.
        inputs: names of the inputs of which one channel is left.
        ends: of those among them whose outputs are given away, and reordered on the way.
    """

    added: frozenset[str]
    inputs: frozenset[str]
    ends: frozenset[str]


def add_borders(model: ir.Model, blocked: Collection[str], shapes: Mapping[str, tuple[int, ...]]) -> Borders:
    """Put convolutions at those ends of a part that are images in blocks; return what was added.

    Args:
        model: the part, which is changed. Of an input that gets a border, one channel is left.
        blocked: names of inputs and outputs that are images.
        shapes: concrete shapes of these.
    """
    names = Names(model.graph)
    fronts, inputs, ends = [], [], []
    for value in [value for value in model.graph.inputs if value.name in blocked]:
        if value.dtype == ir.DataType.FLOAT and _is_aligned(shapes[str(value.name)]):
            front, reader = _before(value, shapes[str(value.name)], model.graph, names)
            fronts.append(front)
            inputs.append(str(value.name))
            ends.append(reader)
    for position, value in enumerate(model.graph.outputs):
        if value.name in blocked and not value.is_graph_input() and _is_aligned(shapes[str(value.name)]):
            ends.append(_behind(position, value, shapes[str(value.name)], model.graph, names))
    return Borders(frozenset([*fronts, *ends]), frozenset(inputs), frozenset(ends))


def _is_aligned(shape: tuple[int, ...]) -> bool:
    return shape[1] % _ALIGNMENT == 0


def _before(value: ir.Value, shape: tuple[int, ...], graph: ir.Graph, names: Names) -> tuple[str, str]:
    uses = list(value.uses())
    conv = _node("Conv", [value, _weight(graph, names, shape[1])], {}, names)
    image = conv.outputs[0]
    for node, index in uses:
        node.replace_input_with(index, image)
    # a second reader, lest a sum or an activation of the part be fused into the border
    reader = _pixel(image, shape, graph, names)
    value.shape = ir.Shape([shape[0], 1, *shape[2:]])
    graph.insert_before(graph[0], [conv, reader])
    graph.outputs.append(reader.outputs[0])
    return str(conv.name), str(reader.name)


def _behind(position: int, value: ir.Value, shape: tuple[int, ...], graph: ir.Graph, names: Names) -> str:
    pixel = _pixel(value, shape, graph, names)
    graph.append(pixel)
    graph.outputs[position] = pixel.outputs[0]
    return str(pixel.name)


def _pixel(value: ir.Value, shape: tuple[int, ...], graph: ir.Graph, names: Names) -> ir.Node:
    """Return a depthwise convolution that takes the first pixel of an image."""
    attributes: dict[str, int | list[int]] = {"group": shape[1], "strides": list(shape[2:])}
    return _node("Conv", [value, _weight(graph, names, shape[1])], attributes, names)


def _node(
    op_type: str, inputs: list[ir.Value], attributes: dict[str, int | list[int]], names: Names
) -> ir.Node:
    node = ir.node(op_type, inputs, attributes, name=names.fresh("border"))
    node.outputs[0].name = names.fresh(f"{node.name}_image")
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return node


def _weight(graph: ir.Graph, names: Names, channels: int) -> ir.Value:
    name = names.fresh("border_weight")
    return add_constant(graph, ir.Tensor(np.full((channels, 1, 1, 1), 0.5, np.float32), name=name), name)
