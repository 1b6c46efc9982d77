"""Channel removal: tensors are compressed along their axes, then operators repair the sizes they hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxprune.model.collector import collector_paused
from onnxprune.model.copies import copy_of
from onnxprune.model.lazy import derived
from onnxprune.model.names import Names, add_constant
from onnxprune.model.nodes import nodes_in
from onnxprune.model.scopes import graphs_of, inner_graphs
from onnxprune.ops.channels import Channels, Use
from onnxprune.ops.kept import Kept
from onnxprune.ops.registry import rule_for
from onnxprune.types import BoolArray


def cut(model: ir.Model, channels: Channels, removed: BoolArray) -> ir.Model:
    """Return a copy of an analysed model without the removed channels.

    Args:
        model: the working copy that was analysed; not changed. Tensors that lose nothing are shared.
        channels: its labels.
        removed: bool ``[labels.count]``, True for each label that goes.
    """
    with collector_paused():
        copy = copy_of(model)
    copies = dict(zip(nodes_in(model.graph), nodes_in(copy.graph), strict=True))
    names = Names(copy.graph)
    kept = Kept(channels, removed, copies, names)
    for body, after_body in zip(inner_graphs(model), inner_graphs(copy), strict=True):
        declare_shapes(body.inputs, after_body.inputs, kept)
    cut_copies(copies, model.graph.initializers.values(), copy.graph, kept, names)
    for graph in graphs_of(copy):
        drop_unused(graph)
    return copy


def cut_copies(
    copies: Mapping[ir.Node, ir.Node],
    weights: Iterable[ir.Value],
    graph: ir.Graph,
    kept: Kept,
    names: Names,
) -> None:
    """Cut the copies of some nodes of an analysed graph: their weights, declared shapes, and sizes they hold.

    Args:
        copies: the copy of each node, in the order of the graph.
        weights: initializers of the analysed graph that these nodes read.
        graph: holds the copies, and an initializer of the same name for each of the weights.
        kept: what is left; it writes to the copies.
        names: those taken in ``graph``.
    """
    for node, after in copies.items():
        declare_shapes(node.outputs, after.outputs, kept)
    for value in weights:
        _cut_initializer(value, kept, copies, graph, names)
    for node in copies:
        fix_sizes(node, kept)


def fix_sizes(node: ir.Node, kept: Kept) -> None:
    """Let the rule of an operator repair the sizes it holds, where an input or output lost positions."""
    rule = rule_for(node)
    if rule is not None and _is_touched(node, kept):
        rule.fix(node, kept)


def _is_touched(node: ir.Node, kept: Kept) -> bool:
    """Return whether an input or output of a node lost positions."""
    return any(kept.masks(output) for output in node.outputs) or any(
        kept.input(node, index) for index, value in enumerate(node.inputs) if value is not None
    )


def drop_unused(graph: ir.Graph) -> None:
    """Remove constants that held the sizes of before."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            graph.initializers.pop(name)


def declare_shapes(values: Sequence[ir.Value], copies: Sequence[ir.Value], kept: Kept) -> None:
    """Write the new sizes into the declared shapes; a symbolic size that was cut has no name any more."""
    for before, after in zip(values, copies, strict=True):
        masks = kept.masks(before)
        if masks and after.shape is not None:
            after.shape = ir.Shape(
                [
                    dim if axis not in masks else int(masks[axis].sum()) if isinstance(dim, int) else None
                    for axis, dim in enumerate(after.shape)
                ]
            )


def _cut_initializer(
    value: ir.Value, kept: Kept, copies: Mapping[ir.Node, ir.Node], graph: ir.Graph, names: Names
) -> None:
    """Compress a weight. Users of a tied weight that lose different positions each get their own."""
    tensor = value.const_value
    versions: dict[tuple[object, ...], tuple[dict[int, BoolArray], list[Use]]] = {}
    for node, index in value.uses():
        if node not in copies:
            continue  # it belongs to another part of the graph
        use = Use(node, index)
        masks = kept.masks(use)
        key = tuple((axis, mask.tobytes()) for axis, mask in sorted(masks.items()))
        versions.setdefault(key, (masks, []))[1].append(use)
    if tensor is None or not any(masks for masks, _ in versions.values()):
        return
    old = graph.initializers[str(value.name)]
    for masks, uses in versions.values():
        if not masks:
            continue
        shape = [
            int(masks[axis].sum()) if axis in masks else int(size)
            for axis, size in enumerate(tensor.shape.numpy())
        ]
        made = partial(compress, masks=masks)
        if len(versions) == 1 and not old.is_graph_output():
            old.const_value = derived(tensor, made, shape, tensor.dtype, old.name)
            old.shape = ir.Shape(shape)
            continue
        name = names.fresh(str(value.name))
        new = add_constant(graph, derived(tensor, made, shape, tensor.dtype, name), name)
        new.metadata_props.update(value.metadata_props)
        for use in uses:
            copies[use.node].replace_input_with(use.index, new)
    if not old.uses() and not old.is_graph_output() and not old.is_graph_input():
        graph.initializers.pop(str(value.name))


def compress(array: np.ndarray, masks: dict[int, BoolArray]) -> np.ndarray:
    """Return an array without the positions that are False in the mask of an axis."""
    for axis, mask in sorted(masks.items(), key=lambda item: item[1].mean()):  # the largest cut first
        array = np.take(array, np.flatnonzero(mask), axis=axis)
    return np.ascontiguousarray(array)
