"""The exact twin of a cut: the original model with zeros wherever a sum runs over a removed position.

A sum does not change when terms that are zero are left out, so the twin computes what the cut model must
compute. Zero is the zero point where an operand is quantized, and a quantizer that measures the range of its
input is given zeros too: that range holds zero in any case. The twin is made from the original by other means
than the cut: no shape changes, no size is repaired.

A statistic over channels (a mean, a deviation, a maximum) does change. Where such channels were removed all
the same, the twin takes that statistic over the kept positions alone, which is what the cut model must do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxprune.model.lazy import derived
from onnxprune.model.names import Names, add_constant
from onnxprune.model.scopes import Origins
from onnxprune.model.stored import stored_tensor
from onnxprune.ops.channels import Block, Channels, Contraction, Statistic
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
    origins = Origins(copy)
    names = Names(copy.graph)
    for number, contraction in enumerate(channels.contractions):
        kept = kept_terms(channels, contraction, removed)
        if spared is not None and contraction in spared and contraction.axis is not None:
            shape = [1] * kept.ndim
            shape[contraction.axis] = -1
            kept = kept | spared[contraction].reshape(shape)
        if kept.all():
            continue
        node = origins.node(contraction.node)
        operand = contraction.node.inputs[contraction.operand]
        dtype = (None if operand is None else operand.dtype) or ir.DataType.FLOAT
        _zero(node, contraction, kept, dtype, copy.graph, names.fresh(f"twin_{number}"))
    left = Kept(channels, removed)
    for node in {statistic.node: None for statistic in _changed(channels, removed)}:
        _restrict(origins.node(node), node, left, copy.graph, names)
    return copy


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
    if value is not None and value.shape is not None:  # tables are known by their shape
        dims = list(value.shape)
        dims[axis] = len(places)
        gather.outputs[0].shape = ir.Shape(dims)
    return gather


def kept_terms(channels: Channels, contraction: Contraction, removed: BoolArray) -> BoolArray:
    """Return which positions of the operand of a sum stay, in a shape that broadcasts against it.

    Args:
        channels: labels of all values.
        contraction: the sum.
        removed: bool ``[labels.count]``, True for each label that goes.
    """
    ref = channels.ref(contraction.node, contraction.operand)
    rank = channels.rank(ref)
    if contraction.axis is not None:
        labels = channels.alone(ref, contraction.axis)
        blocks = [] if labels is None else [Block((contraction.axis,), labels)]
    else:
        blocks = channels.blocks.get(ref, [])
    kept = np.ones([1] * rank, dtype=np.bool_)
    for block in blocks:
        shape = [1] * rank
        for axis, size in zip(block.axes, block.labels.shape, strict=False):
            shape[axis] = size
        kept = kept & ~removed[block.labels].any(axis=-1).reshape(shape)
    return kept


def _zero(
    node: ir.Node, contraction: Contraction, kept: BoolArray, dtype: ir.DataType, graph: ir.Graph, name: str
) -> None:
    """Zero the removed positions of one operand: in the weight itself, or on the way to the node."""
    value = node.inputs[contraction.operand]
    if value is None:
        raise ValueError(f"{node.name} lacks input {contraction.operand}")
    zero = None if contraction.zero_point is None else node.inputs[contraction.zero_point]
    known = None if zero is None else stored_tensor(zero)
    zeros = None if known is None else _along(known.numpy(), contraction.zero_axis, kept.ndim)
    stored = stored_tensor(value)
    if stored is not None and (zero is None or zeros is not None):
        shape = [int(size) for size in stored.shape.numpy()]
        tensor = derived(stored, partial(_masked, kept=kept, zeros=zeros), shape, stored.dtype, name)
        node.replace_input_with(contraction.operand, add_constant(graph, tensor, name))
        if value.is_initializer() and not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            (value.graph or graph).initializers.pop(str(value.name))
        return
    if zero is None and dtype.is_floating_point():
        mask = ir.Tensor(kept.astype(dtype.numpy()), dtype=dtype, name=f"{name}_mask")
        masked = ir.node("Mul", [value, add_constant(graph, mask, f"{name}_mask")], name=name)
    else:
        # Integers have no product with a mask in the runtime, and zero is what the zero point says.
        if zero is None or (known is not None and zeros is not None):
            dtype = dtype if known is None else known.dtype
            array = np.zeros((), dtype.numpy()) if zeros is None else zeros
            zero = add_constant(graph, ir.Tensor(array, dtype=dtype, name=f"{name}_zero"), f"{name}_zero")
        mask = ir.Tensor(kept, name=f"{name}_mask")
        masked = ir.node("Where", [add_constant(graph, mask, f"{name}_mask"), value, zero], name=name)
        dtype = zero.dtype or dtype
    masked.outputs[0].name = f"{name}_out"
    masked.outputs[0].dtype = dtype
    (node.graph or graph).insert_before(node, masked)
    node.replace_input_with(contraction.operand, masked.outputs[0])


def _along(zeros: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Return zero points (one, one for each position of an axis, or an array of the rank) to broadcast."""
    if zeros.size == 1:
        return zeros.reshape([1] * rank)
    if zeros.ndim > 1:
        return zeros
    return zeros.reshape([-1 if place == axis % rank else 1 for place in range(rank)])


def _masked(array: np.ndarray, kept: BoolArray, zeros: np.ndarray | None) -> np.ndarray:
    """Return a copy with zeros at the positions that are not kept."""
    axes = [axis for axis, size in enumerate(kept.shape) if size > 1]
    if zeros is not None or len(axes) != 1:
        return np.where(kept, array, array.dtype.type(0) if zeros is None else zeros.astype(array.dtype))
    before = math.prod(array.shape[: axes[0]])
    row = np.repeat(kept.ravel(), math.prod(array.shape[axes[0] + 1 :]))  # one long row: short axes are slow
    return np.where(row, array.reshape(before, -1), array.dtype.type(0)).reshape(array.shape)
