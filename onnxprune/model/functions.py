"""Model functions written out: a model in which every call is replaced by the nodes of the function."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxprune.errors import ModelError
from onnxprune.messages import one_line
from onnxprune.model.copies import copy_of
from onnxprune.model.nodes import nodes_in
from onnxprune.model.scopes import name_values_apart
from onnxprune.model.stored import all_nodes

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def without_functions(model: ir.Model) -> ir.Model:
    """Return the model itself if it calls no functions, else a copy with the calls written out.

    Inputs, outputs and weights keep their names. A call stays where it can't be written out with the same
    meaning: the function takes a graph as an attribute, or asks for another opset in which one of its
    operators means something else.

    Args:
        model: not changed; tensors are shared.

    Raises:
        ModelError: a call does not fit its function, or functions call each other in a circle.
    """
    if not model.functions:
        return model
    copy = copy_of(model)
    kept = _graph_takers(copy) | _of_other_opsets(copy)
    for function in copy.functions.values():
        if function.identifier() not in kept:
            function.opset_imports.update(
                {
                    domain: copy.opset_imports.get(domain, old)
                    for domain, old in function.opset_imports.items()
                }
            )
        _return_own_values(function)
        for node in nodes_in(function):
            node.name = node.name or node.op_type
    _name_all_outputs(copy)
    try:
        passes.InlinePass(criteria=lambda function: function.identifier() not in kept)(copy)
        _drop_unused(copy)
    except (ValueError, ir.passes.InvariantError, ir.passes.PassError) as error:
        raise ModelError(
            f"a function can't be written out: {one_line(error)}; export the model again"
        ) from error
    name_values_apart(copy)
    return copy


def _drop_unused(model: ir.Model) -> None:
    """Remove the functions that nothing calls any more."""
    calls: set[ir.OperatorIdentifier] = set()
    while calls != (calls := {node.op_identifier() for node in all_nodes(model)} & model.functions.keys()):
        for identifier in model.functions.keys() - calls:
            del model.functions[identifier]


def _graph_takers(model: ir.Model) -> set[ir.OperatorIdentifier]:
    """Return the functions that are called with a graph."""
    return {
        node.op_identifier()
        for node in all_nodes(model)
        if node.op_identifier() in model.functions
        and any(attribute.type in _GRAPHS for attribute in node.attributes.values())
    }


def _of_other_opsets(model: ir.Model) -> set[ir.OperatorIdentifier]:
    """Return the functions with an operator that means something else in the model's opset."""
    return {
        identifier
        for identifier, function in model.functions.items()
        if any(
            not _same_operator(node, function.opset_imports, model.opset_imports)
            for node in nodes_in(function)
            if node.op_identifier() not in model.functions
        )
    }


def _same_operator(node: ir.Node, inner: Mapping[str, int], outer: Mapping[str, int]) -> bool:
    old = inner.get(node.domain)
    new = outer.get(node.domain, old)
    if old == new or old is None or new is None:
        return True
    try:
        versions = {
            onnx.defs.get_schema(node.op_type, version, node.domain).since_version for version in (old, new)
        }
    except onnx.defs.SchemaError:
        return False  # an operator of somebody else: nothing is known of its versions
    return len(versions) == 1


def _name_all_outputs(model: ir.Model) -> None:
    """Give calls as many outputs as their functions have; those that nobody reads are left without a name."""
    for node in all_nodes(model):
        function = model.functions.get(node.op_identifier())
        if function is not None:
            node.resize_outputs(max(len(node.outputs), len(function.outputs)))
            for output in node.outputs:
                output.name = output.name or None


def _return_own_values(function: ir.Function) -> None:
    """Put an Identity behind inputs that a function returns, and behind values that it returns twice."""
    seen: set[ir.Value] = set(function.inputs)
    for position, value in enumerate(function.outputs):
        if value in seen:
            node = ir.node("Identity", [value])
            node.outputs[0].name = f"{value.name}_returned"
            function.append(node)
            function.outputs[position] = node.outputs[0]
        seen.add(value)
