"""Names for new values and nodes, which no other value of the graph has."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.model.nodes import graphs_in, nodes_in


class Names:
    """The names taken in a graph and in the subgraphs that see them.

    They are gathered when the first one is asked for: many a pass finds nothing to add.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._taken: set[str | None] = set()

    def _gather(self) -> None:
        graph = self._graph
        self._taken = {value.name for value in graph.inputs} | set(graph.initializers)
        for node in nodes_in(graph):
            self._taken.update(value.name for value in node.outputs)
            for body in graphs_in(node):
                self._taken.update(value.name for value in body.inputs)
                self._taken.update(body.initializers)

    def fresh(self, wanted: str) -> str:
        """Take ``wanted``, or that with a number behind it."""
        if not self._taken:
            self._gather()
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name


def add_constant(graph: ir.Graph, tensor: ir.TensorProtocol, name: str) -> ir.Value:
    """Register a tensor as an initializer under a name that is free."""
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value
