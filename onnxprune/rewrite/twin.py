"""The exact twin of a cut: the original model with zeros wherever a sum runs over a removed position.

A sum does not change when terms that are zero are left out, so the twin computes what the cut model must
compute. It is made from the original by other means than the cut: no shape changes, no size is repaired.

A statistic over channels (a mean, a deviation, a maximum) does change. Where such channels were removed all
the same, the twin takes that statistic over the kept positions alone, which is what the cut model must do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.model.names import Names, add_constant
from onnxprune.model.scopes import number_nodes, number_of, numbered_nodes
from onnxprune.ops.channels import Channels, Contraction, Statistic
from onnxprune.ops.kept import Kept
from onnxprune.types import BoolArray


def make_twin(
    model: ir.Model,
    channels: Channels,
    removed: BoolArray,
    spared: Mapping[Contraction, BoolArray] | None = None,
) -> ir.Model:
    """Return the exact twin of a cut.

    Args:
        model: the model as it was before it was prepared for analysis, so that the twin is independent of
            the preparation too; not changed. Calls of functions must be written out.
        channels: the labels of its working copy, and the sums that run over them.
        removed: bool ``[labels.count]``, True for each label that goes.
        spared: bool ``[dim]`` by sum: removed positions that are not zeroed, because the cut claims to lose
            nothing there: their terms are zero already, or constants that it folds into what stays.
    """
    copy = model.clone()
    number_nodes(copy)
    numbered = numbered_nodes(copy)
    producers = {str(output.name): node for node in copy.graph for output in node.outputs}
    names = Names(copy.graph)
    for number, contraction in enumerate(channels.contractions):
        gone = _gone(channels, contraction, removed)
        if gone is not None and spared is not None and contraction in spared:
            gone = gone & ~spared[contraction]
        if gone is None or not gone.any():
            continue
        node = _same_node(contraction.node, numbered, producers)
        operand = contraction.node.inputs[contraction.operand]
        shape = [1] * channels.rank(channels.ref(contraction.node, contraction.operand))
        shape[contraction.axis] = len(gone)
        dtype = (None if operand is None else operand.dtype) or ir.DataType.FLOAT
        _zero(node, contraction, ~gone.reshape(shape), dtype, copy.graph, names.fresh(f"twin_{number}"))
    kept = Kept(channels, removed)
    for node in {statistic.node: None for statistic in _changed(channels, removed)}:
        _restrict(_same_node(node, numbered, producers), node, kept, copy.graph, names)
    return copy


def _same_node(node: ir.Node, numbered: Mapping[int, ir.Node], producers: Mapping[str, ir.Node]) -> ir.Node:
    """Return the node of the original for one of its working copy: by number, or by the name of an output."""
    number = number_of(node)
    if number is not None:
        return numbered[number]
    name = next(str(output.name) for output in node.outputs if output.name)
    found = producers[name]
    while found.op_type == "Identity":  # the preparation left these out
        found = producers[str(found.inputs[0].name)]  # type: ignore[union-attr]
    return found


def _changed(channels: Channels, removed: BoolArray) -> list[Statistic]:
    """Return the statistics that are taken over removed channels."""
    return [
        statistic
        for statistic in channels.statistics
        if removed[channels.labels.resolve(statistic.labels)].any()
    ]


def _restrict(node: ir.Node, analysed: ir.Node, kept: Kept, graph: ir.Graph, names: Names) -> None:
    """Let a node see the kept positions only; its outputs get their old sizes back.

    What then stands at removed positions is the value of a kept one: whoever reads it must ignore it.
    """
    owner = node.graph or graph
    for index, value in enumerate(node.inputs):
        for axis, mask in (kept.input(analysed, index) if value is not None else {}).items():
            picked = _picked(node.inputs[index], axis, np.flatnonzero(mask), graph, names)
            owner.insert_before(node, picked)
            node.replace_input_with(index, picked.outputs[0])
    for before, output in zip(analysed.outputs, node.outputs, strict=True):
        uses, last, value = list(output.uses()), node, output
        for axis, mask in kept.masks(before).items():
            places = np.where(mask, np.cumsum(mask) - 1, 0)
            picked = _picked(value, axis, places, graph, names)
            owner.insert_after(last, picked)
            last, value = picked, picked.outputs[0]
        for user, index in uses:
            user.replace_input_with(index, value)
        if (
            output.is_graph_output() and value is not output
        ):  # a body returns it: no output of the model is cut
            owner.outputs[list(owner.outputs).index(output)] = value


def _picked(value: ir.Value | None, axis: int, places: np.ndarray, graph: ir.Graph, names: Names) -> ir.Node:
    """Return a Gather of positions along an axis, not inserted yet."""
    name = names.fresh("twin_places")
    positions = add_constant(graph, ir.tensor(places.astype(np.int64), name=name), name)
    gather = ir.node("Gather", [value, positions], {"axis": axis}, name=names.fresh("twin_pick"))
    gather.outputs[0].name = gather.name
    gather.outputs[0].type = None if value is None else value.type
    return gather


def _gone(channels: Channels, contraction: Contraction, removed: BoolArray) -> BoolArray | None:
    ref = channels.ref(contraction.node, contraction.operand)
    labels = channels.alone(ref, contraction.axis)
    return None if labels is None else np.asarray(removed[labels].any(axis=-1))


def _zero(
    node: ir.Node, contraction: Contraction, kept: BoolArray, dtype: ir.DataType, graph: ir.Graph, name: str
) -> None:
    """Zero the removed positions of one operand: in the weight itself, or by a product with a mask."""
    value = node.inputs[contraction.operand]
    if value is None:
        raise ValueError(f"{node.name} lacks input {contraction.operand}")
    if value.is_initializer() and value.const_value is not None:
        array = _masked(value.const_value.numpy(), kept, contraction.axis)
        tensor = ir.Tensor(array, dtype=value.const_value.dtype, name=name)
        node.replace_input_with(contraction.operand, add_constant(graph, tensor, name))
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            (value.graph or graph).initializers.pop(str(value.name))
        return
    mask = ir.Tensor(kept.astype(dtype.numpy()), dtype=dtype, name=f"{name}_mask")
    product = ir.node("Mul", [value, add_constant(graph, mask, f"{name}_mask")], name=name)
    product.outputs[0].name = f"{name}_out"
    product.outputs[0].dtype = dtype
    (node.graph or graph).insert_before(node, product)
    node.replace_input_with(contraction.operand, product.outputs[0])


def _masked(array: np.ndarray, kept: BoolArray, axis: int) -> np.ndarray:
    """Return a copy with zeros at the positions of an axis that are not kept."""
    before = math.prod(array.shape[:axis])
    row = np.repeat(kept.ravel(), math.prod(array.shape[axis + 1 :]))  # one long row: short axes are slow
    return np.where(row, array.reshape(before, -1), array.dtype.type(0)).reshape(array.shape)
