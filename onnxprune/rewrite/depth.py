"""Residual branches removed whole, and the exact twin of that: the original with zeros in place of each f."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.errors import PlanError
from onnxprune.model.copies import copy_of
from onnxprune.model.names import Names, add_constant
from onnxprune.model.needed import drop_unneeded
from onnxprune.model.scopes import Origins
from onnxprune.types import Branch

#: The first opset with Where, which keeps what is not finite out of a sum; a product with 0 does not.
_WHERE_OPSET = 9


def remove_branches(model: ir.Model, branches: Sequence[Branch]) -> ir.Model:
    """Return a copy of a model in which y = x + f(x) is y = x for each of the branches.

    What only they needed is gone: nodes, weights, and whatever fed them alone. Outputs keep names and shapes.

    Args:
        model: the prepared copy in which the branches were found; not changed. Tensors are shared.
        branches: from `find_branches`.
    """
    copy = copy_of(model)
    cut = _operands(copy.graph, branches)
    for node in list(copy.graph):
        if str(node.name) in cut:
            _leave_out(node, cut)
    drop_unneeded(copy.graph)
    return copy


def _operands(graph: ir.Graph, branches: Sequence[Branch]) -> dict[str, set[int]]:
    """Return which operands go, by the name of the node."""
    known = {str(node.name) for node in graph}
    cut: dict[str, set[int]] = {}
    for branch in branches:
        if branch.node not in known:
            raise PlanError(
                f"branch {branch.name} ends in {branch.node}, which is not in this model; prune anew"
            )
        cut.setdefault(branch.node, set()).add(branch.operand)
    return cut


def _leave_out(node: ir.Node, cut: dict[str, set[int]]) -> None:
    """Take operands from a sum. One that is left takes its place; a sum of nothing is left out in turn."""
    (output,) = node.outputs
    left = [value for index, value in enumerate(node.inputs) if index not in cut[str(node.name)]]
    if not left:
        for user, index in output.uses():
            cut.setdefault(str(user.name), set()).add(index)
    elif len(left) == 1 and not output.is_graph_output() and left[0] is not None:
        output.replace_all_uses_with(left[0])
    else:
        node.op_type = "Identity" if len(left) == 1 else node.op_type  # an output of the model keeps its name
        for index in range(len(node.inputs)):
            node.replace_input_with(index, left[index] if index < len(left) else None)
        node.resize_inputs(len(left))


def make_depth_twin(original: ir.Model, work: ir.Model, branches: Sequence[Branch]) -> ir.Model:
    """Return the exact twin of `remove_branches`: every branch is computed, and zeros are added in its place.

    Args:
        original: the model as it was before it was prepared, so that the twin does not depend on that either;
            not changed. Calls of functions must be written out.
        work: the prepared copy in which the branches were found.
        branches: those that are removed.
    """
    copy = original.clone()
    origins = Origins(copy)
    sums = {str(node.name): node for node in work.graph}
    tensors = work.graph.initializers
    names = Names(copy.graph)
    for number, branch in enumerate(branches):
        node = origins.node(sums[branch.node])
        weights = (tensors[name].dtype for name in branch.weights)
        fallback = next((dtype for dtype in weights if dtype is not None and dtype.is_floating_point()), None)
        _zero(node, branch.operand, fallback or ir.DataType.FLOAT, copy.graph, names.fresh(f"twin_{number}"))
    return copy


def _zero(node: ir.Node, operand: int, dtype: ir.DataType, graph: ir.Graph, name: str) -> None:
    """Put zeros of the same shape in the place of an operand."""
    value = node.inputs[operand]
    if value is None:
        raise ValueError(f"{node.name} lacks input {operand}")
    dtype = value.dtype or dtype
    zero = add_constant(
        graph, ir.tensor(np.zeros((), dtype.numpy()), dtype=dtype, name=f"{name}_0"), f"{name}_0"
    )
    if graph.opset_imports.get("", _WHERE_OPSET) >= _WHERE_OPSET:
        never = add_constant(graph, ir.tensor(np.array(False), name=f"{name}_if"), f"{name}_if")
        zeros = ir.node("Where", [never, value, zero], name=name)
    else:
        zeros = ir.node("Mul", [value, zero], name=name)
    zeros.outputs[0].name = f"{name}_out"
    zeros.outputs[0].dtype = dtype
    (node.graph or graph).insert_before(node, zeros)
    node.replace_input_with(operand, zeros.outputs[0])
