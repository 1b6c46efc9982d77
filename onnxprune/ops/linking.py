"""Every node says which positions are the same; one that nothing is known of keeps all that it touches."""

from __future__ import annotations

import logging

import onnx_ir as ir

from onnxprune.messages import one_line
from onnxprune.model.body_shapes import has_bodies
from onnxprune.model.shapes import Shapes
from onnxprune.ops.base import OpRule, rule_for
from onnxprune.ops.channels import Channels
from onnxprune.types import Skipped

_LOG = logging.getLogger(__name__)


def link_graph(graph: ir.Graph, channels: Channels) -> None:
    """Link all nodes of the main graph, or of a body whose inputs have their labels.

    Operators that had to be frozen are noted in ``channels.unknown``.
    """
    for node in graph:
        rule = rule_for(node)
        if rule is None:
            reason: str | None = f"nothing is known of {_kind(node)}"
        else:
            reason = _unknown_reason(node, channels.shapes) if rule.needs_shapes else None
        if rule is not None and reason is None:
            reason = _link(rule, node, channels)
        if reason is not None:
            channels.unknown.append(Skipped(str(node.name), reason))
            _freeze_node(node, channels, f"{node.name}: {reason}")
        if not has_bodies(node):  # what a body captures is no input
            channels.note_constant(node)


def _link(rule: OpRule, node: ir.Node, channels: Channels) -> str | None:
    """Let a rule link a node; return why it can't.

    Rules are written for nodes that make sense. What a node without sense (an index outside its table, an
    axis that is not there) does to one is no reason to stop: all that it touches stays whole.
    """
    try:
        rule.link(node, channels)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        _LOG.debug("%s (%s) is not linked", node.name, node.op_type, exc_info=error)
        for value in node.outputs:
            channels.freeze_all(value, f"{node.name}: its inputs or attributes make no sense")
        return f"its inputs or attributes make no sense ({one_line(error, 80)})"
    return None


def _kind(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _unknown_reason(node: ir.Node, shapes: Shapes) -> str | None:
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.name and value not in shapes.dims:
            return f"the shape of {value.name} is not known ({shapes.unknown.get(value, 'never computed')})"
    return None


def _freeze_node(node: ir.Node, channels: Channels, reason: str) -> None:
    """Freeze all that an opaque node touches, values that its subgraphs capture too."""
    for index in range(len(node.inputs)):
        if channels.has(node, index):
            channels.freeze_all(channels.ref(node, index), reason)
    for attribute in node.attributes.values():
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            one = attribute.type == ir.AttributeType.GRAPH
            graphs = [attribute.as_graph()] if one else attribute.as_graphs()
            for inner in (n for graph in graphs for n in graph.all_nodes()):
                for value in inner.inputs:
                    if value is not None and not value.is_initializer():
                        channels.freeze_all(value, reason)
