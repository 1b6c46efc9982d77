"""What the outputs of a graph need: readers inside subgraphs count, and what nobody needs goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from onnxprune.model.nodes import graphs_in, nodes_in


def inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """Yield the nodes of all subgraphs of a node, however deep."""
    for graph in graphs_in(node):
        yield from nodes_in(graph)


def owners(graph: ir.Graph) -> Mapping[ir.Node, ir.Node]:
    """Return for every node inside a subgraph the node of ``graph`` that holds it."""
    return {inner: node for node in graph for inner in inner_nodes(node)}


def drop_unneeded(graph: ir.Graph) -> None:
    """Remove the nodes and initializers that no output of the graph needs; inputs stay."""
    for node in reversed(list(graph)):
        if any(output.uses() or output.is_graph_output() for output in node.outputs):
            continue
        for inner in inner_nodes(node):  # what a subgraph captures has a reader until it is taken away
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)
        graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            graph.initializers.pop(name)
