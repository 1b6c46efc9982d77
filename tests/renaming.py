"""Models under other names: what a second export, or another exporter, may give for the same graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.model.copies import copy_of
from onnxprune.model.places import bodies


def renamed(model: ir.Model, seed: int = 0, *, interface: bool = False, shuffle: bool = True) -> ir.Model:
    """Return a copy in which every node, value and stored tensor has another name and place.

    Args:
        model: not changed.
        seed: of the names and the order.
        interface: rename the inputs and outputs of the model, too.
        shuffle: list stored tensors and nodes that don't wait for each other in another order.
    """
    random = np.random.default_rng(seed)
    copy = copy_of(model)
    border = {*copy.graph.inputs, *copy.graph.outputs}
    numbers = iter(random.permutation(1_000_000).tolist())
    for body in bodies(copy):
        values = [*body.inputs, *(value for node in body for value in node.outputs)]
        initializers = [] if isinstance(body, ir.Function) else list(body.initializers.values())
        for value in dict.fromkeys((*values, *initializers)):
            if value.name and (interface or value not in border):
                value.name = f"val_{next(numbers)}"
        for node in body:
            node.name = f"n{next(numbers)}"
        if shuffle and not isinstance(body, ir.Function):
            _shuffle(body, initializers, random)
    return copy


def _shuffle(graph: ir.Graph, initializers: list[ir.Value], random: np.random.Generator) -> None:
    graph.initializers.clear()
    for place in random.permutation(len(initializers)).tolist():
        graph.initializers[str(initializers[place].name)] = initializers[place]
    nodes = list(graph)
    waits = {node: set(_needed(node)) & set(nodes) for node in nodes}
    readers: dict[ir.Node, list[ir.Node]] = {node: [] for node in nodes}
    for node, needed in waits.items():
        for other in needed:
            readers[other].append(node)
    ready = [node for node in nodes if not waits[node]]
    order = []
    while ready:
        node = ready.pop(int(random.integers(len(ready))))
        order.append(node)
        for reader in readers[node]:
            waits[reader].discard(node)
            if not waits[reader]:
                ready.append(reader)
    assert len(order) == len(nodes)
    graph.remove(nodes)
    graph.extend(order)


def _needed(node: ir.Node) -> list[ir.Node]:
    """The nodes that a node waits for: those that its bodies read from, too."""
    from onnxprune.model.nodes import reads_of

    return [producer for value in reads_of(node) if (producer := value.producer()) is not None]
