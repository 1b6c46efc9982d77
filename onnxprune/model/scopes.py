"""Graphs within graphs: names and constants without regard to where they stand, and nodes told apart.

ONNX forbids that a body names a value like one of the graph around it; two bodies may use one name. Here
every value of the main graph and of all bodies of If, Loop and Scan gets a name of its own, and every
constant a place in the main graph, which all bodies see. What walks over a model then needs no scopes.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxprune.model.names import Names
from onnxprune.model.nodes import nodes_in
from onnxprune.model.places import bodies
from onnxprune.model.stored import stored_tensor

_ORIGIN = "onnxprune.origin"


def graphs_of(model: ir.Model) -> list[ir.Graph]:
    """Return the main graph and all bodies within it, the outer ones first; not those of functions."""
    return [model.graph, *inner_graphs(model)]


def inner_graphs(model: ir.Model) -> list[ir.Graph]:
    """Return all bodies of nodes of the main graph, the outer ones first."""
    inside: list[ir.Graph] = []
    for body in bodies(model):
        if isinstance(body, ir.Function):
            break  # functions come after all bodies of the main graph
        if body is not model.graph:
            inside.append(body)
    return inside


def number_nodes(model: ir.Model) -> None:
    """Write its place in the graph into the metadata of every node, where copies of the model keep it."""
    for number, node in enumerate(nodes_in(model.graph)):
        node.meta[_ORIGIN] = number


def numbered_nodes(model: ir.Model) -> dict[int, ir.Node]:
    """Return the nodes that `number_nodes` numbered, in this model or in one that it was copied from."""
    return {node.meta[_ORIGIN]: node for node in nodes_in(model.graph) if _ORIGIN in node.meta}


def number_of(node: ir.Node) -> int | None:
    """Return the number of a node, None if it was added after numbering."""
    number = node.meta.get(_ORIGIN)
    return None if number is None else int(number)


class Origins:
    """Which node of a model each node of its working copy was.

    Args:
        model: a copy of the model that the working copy was made from; its nodes are numbered anew.
    """

    def __init__(self, model: ir.Model) -> None:
        number_nodes(model)
        self._numbered = numbered_nodes(model)
        self._producers = {str(output.name): node for node in model.graph for output in node.outputs}

    def node(self, node: ir.Node) -> ir.Node:
        """Return the node of the model: by number or, if it was added later, by the name of an output."""
        number = number_of(node)
        if number is not None:
            return self._numbered[number]
        name = next(str(output.name) for output in node.outputs if output.name)
        found = self._producers[name]
        while found.op_type == "Identity":  # the preparation left these out
            found = self._producers[str(found.inputs[0].name)]  # type: ignore[union-attr]
        return found


def name_values_apart(model: ir.Model) -> None:
    """Rename values of bodies (never of the main graph) that share a name; name those that need one."""
    names = Names(model.graph)
    seen: set[str] = set()
    for graph in graphs_of(model):
        for value in dict.fromkeys(_own_values(graph)):
            if value.name and value.name not in seen:
                seen.add(value.name)
            elif value.name or value.uses() or value.is_graph_output():
                _rename(value, names.fresh(value.name or "value"))


def _own_values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _rename(value: ir.Value, name: str) -> None:
    tensor, value.const_value = value.const_value, None  # tensors are shared with the original
    value.name = name
    value.const_value = tensor


def return_copies(model: ir.Model) -> None:
    """Put an Identity behind every constant that a body returns: a body returns only what its nodes make."""
    names = Names(model.graph)
    for graph in inner_graphs(model):
        for position, value in enumerate(graph.outputs):
            if stored_tensor(value) is not None:
                graph.outputs[position] = _copied(graph, value, names)


def lift_constants(model: ir.Model) -> None:
    """Move the initializers of all bodies to the main graph; names differ, and no body returns one."""
    for graph in inner_graphs(model):
        for name, value in list(graph.initializers.items()):
            del graph.initializers[name]
            if value.is_graph_input():
                value.const_value = None  # a default that is never used: Loop and Scan set every input
            else:
                model.graph.register_initializer(value)


def _copied(graph: ir.Graph, value: ir.Value, names: Names) -> ir.Value:
    node = ir.node("Identity", [value], name=names.fresh(f"{value.name}_returned"))
    (output,) = node.outputs
    output.name, output.type, output.shape = node.name, value.type, value.shape
    graph.append(node)
    return output


def drop_identities(model: ir.Model) -> None:
    """Remove Identity nodes, but those that return an input, a value of another graph, or one twice."""
    for node in list(nodes_in(model.graph)):
        if node.op_type != "Identity" or node.domain not in ("", "ai.onnx") or node.graph is None:
            continue
        source, output = node.inputs[0], node.outputs[0]
        if source is None or (output.is_graph_output() and not _may_be_returned(source, node)):
            continue
        if source.type is None:
            source.type = output.type
        if source.shape is None:
            source.shape = output.shape
        returned = output.is_graph_output()
        output.replace_all_uses_with(source, replace_graph_outputs=True)
        if returned:
            source.name = output.name
        node.graph.remove(node, safe=True)


def _may_be_returned(source: ir.Value, identity: ir.Node) -> bool:
    """Return whether a value may be a graph output: made by a node of that graph, and no output yet."""
    producer = source.producer()
    return producer is not None and producer.graph is identity.graph and not source.is_graph_output()
