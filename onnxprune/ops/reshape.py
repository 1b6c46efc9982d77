"""Reshape and Flatten: merged axes are products, split axes stay joint until one of them is needed alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from onnxprune.ops.base import OpRule, op_rule
from onnxprune.ops.channels import Block, Channels, Ref
from onnxprune.ops.kept import Kept


@op_rule("Reshape", "Flatten")
class Reshape(OpRule):
    """y = the positions of x in the same order, in another shape"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Both shapes are refined to common factors; labels follow the factors."""
        x, y = channels.ref(node, 0), node.outputs[0]
        channels.label_constant(x)
        if math.prod(channels.shape(x)) != math.prod(channels.shape(y)):
            channels.freeze_all(x, f"the target of {node.name} does not fit its input")
            return
        factors = refine(channels.shape(x), channels.shape(y))
        blocks = []
        for block in channels.blocks.get(x, ()):
            if any(axis in factors.mixed for axis in block.axes):
                channels.freeze(block.labels, f"{node.name} mixes this axis with others")
            else:
                blocks.append(block)
        merge_blocks(channels, y, blocks, factors)
        if node.op_type == "Reshape" and channels.constant(node, 1) is None and written_target(node) is None:
            channels.freeze_all(y, f"{node.name} has a computed target shape")
        for axis in _computed_axes(node, channels):
            channels.freeze_axis(y, axis, f"{node.name} has a computed target size along this axis")

    def fix(self, node: ir.Node, kept: Kept) -> None:
        """Sizes written in the target become the kept counts; 0 and -1 stay what they are."""
        masks = kept.masks(node.outputs[0])
        target = written_target(node) if node.op_type == "Reshape" else None
        if not masks or target is None:
            return
        holder, index = target
        sizes = kept.old_ints(holder, index)
        if sizes is None:
            raise AssertionError(f"{node.name}: a computed target was cut")
        for axis in masks:
            if sizes[axis] > 0:
                sizes[axis] = kept.count(node.outputs[0], axis)
        kept.set_ints(holder, index, sizes)


def written_target(node: ir.Node, index: int = 1) -> tuple[ir.Node, int] | None:
    """Return where the constant sizes of a target stand: the node's own input, or that of a Where before it.

    A target with symbolic sizes in several places is written as ``Where(is_constant, sizes, computed)``.
    """
    target = node.inputs[index]
    if target is None:
        return None
    if target.is_initializer():
        return node, index
    producer = target.producer()
    if producer is not None and producer.op_type == "Where":
        mask, sizes = producer.inputs[0], producer.inputs[1]
        if mask is not None and sizes is not None and mask.is_initializer() and sizes.is_initializer():
            return producer, 1
    return None


def _computed_axes(node: ir.Node, channels: Channels) -> list[int]:
    """Return the axes whose size is computed by other means than by reading the shape of the source."""
    target = written_target(node) if node.op_type == "Reshape" else None
    if target is None or target[0] is node:
        return []
    (holder, _), known = target, channels.constant(target[0], 0)
    read = holder.inputs[2].producer() if holder.inputs[2] is not None else None
    shape = read.inputs[0].producer() if read is not None and read.inputs and read.inputs[0] else None
    if shape is not None and shape.op_type == "Shape" and shape.inputs[0] is node.inputs[0]:
        return []
    return [] if known is None else [axis for axis, constant in enumerate(known.tolist()) if not constant]


@dataclass(frozen=True, slots=True)
class Factors:
    """Two shapes as products of the same factors, in order.

    Attributes:
        sizes: the factors.
        of_source: per source axis, its factors (indices into ``sizes``).
        of_target: per target axis, its factors.
        mixed: source axes that have no factors in common with the target.
    """

    sizes: tuple[int, ...]
    of_source: tuple[tuple[int, ...], ...]
    of_target: tuple[tuple[int, ...], ...]
    mixed: frozenset[int]


def refine(source: tuple[int, ...], target: tuple[int, ...]) -> Factors:
    """Split two shapes with equal products into common factors, most significant first.

    ``(17, 2, 192)`` and ``(17, 2, 3, 64)`` have the factors 17, 2, 3, 64. Where the borders of the axes do
    not nest, as for ``(4, 6)`` and ``(6, 4)``, the source axes are mixed and no factors are given.
    """
    sizes: list[int] = []
    of_source: list[tuple[int, ...]] = [()] * len(source)
    of_target: list[tuple[int, ...]] = [()] * len(target)
    mixed: set[int] = set()
    if 0 in source or math.prod(source) != math.prod(target):  # the latter: a branch not taken at these sizes
        return Factors((), tuple(of_source), tuple(of_target), frozenset(range(len(source))))
    i = j = 0
    while i < len(source) or j < len(target):
        first_i, first_j = i, j
        product_source = product_target = 1
        i, j = i + (i < len(source)), j + (j < len(target))
        product_source *= math.prod(source[first_i:i])
        product_target *= math.prod(target[first_j:j])
        while product_source != product_target:
            if product_source < product_target:
                product_source *= source[i]
                i += 1
            else:
                product_target *= target[j]
                j += 1
        parts = _common(source[first_i:i], target[first_j:j])
        if parts is None:
            mixed.update(range(first_i, i))
            continue
        base = len(sizes)
        sizes.extend(parts)
        for shape, first, last, factors in (
            (source, first_i, i, of_source),
            (target, first_j, j, of_target),
        ):
            _assign(shape, range(first, last), parts, base, factors)
    return Factors(tuple(sizes), tuple(of_source), tuple(of_target), frozenset(mixed))


def _common(source: tuple[int, ...], target: tuple[int, ...]) -> list[int] | None:
    borders = sorted({int(border) for shape in (source, target) for border in np.cumprod(shape)} | {1})
    if any(after % before for before, after in pairwise(borders)):
        return None
    return [after // before for before, after in pairwise(borders)]


def _assign(
    shape: tuple[int, ...], axes: range, parts: list[int], base: int, factors: list[tuple[int, ...]]
) -> None:
    place = 0
    for axis in axes:
        own: list[int] = []
        size = 1
        while size < shape[axis]:
            size *= parts[place]
            own.append(base + place)
            place += 1
        factors[axis] = tuple(own)


def merge_blocks(channels: Channels, y: Ref, blocks: list[Block], factors: Factors) -> None:
    """Give a reshaped value the labels of its source, factor by factor.

    Target axes that hold factors of one block become a joint block; a target axis that holds factors of
    several blocks carries the labels of all of them (a mixed-radix product).
    """
    owner = {part: block for block in blocks for axis in block.axes for part in factors.of_source[axis]}
    waiting = [axis for axis, parts in enumerate(factors.of_target) if any(part in owner for part in parts)]
    while waiting:
        axes, members = {waiting[0]}, []
        while True:  # close over blocks that reach into these axes, and axes that these blocks reach into
            parts = {part for axis in axes for part in factors.of_target[axis]}
            members = [b for b in blocks if any(owner.get(part) is b for part in parts)]
            grown = axes | {
                axis
                for axis in waiting
                if any(owner.get(part) is b for part in factors.of_target[axis] for b in members)
            }
            if grown == axes:
                break
            axes = grown
        _put_merged(channels, y, sorted(axes), members, factors)
        waiting = [axis for axis in waiting if axis not in axes]


def _put_merged(channels: Channels, y: Ref, axes: list[int], members: list[Block], factors: Factors) -> None:
    parts = [part for axis in axes for part in factors.of_target[axis]]
    shape = tuple(factors.sizes[part] for part in parts)
    columns = []
    for block in members:
        own = [part for axis in block.axes for part in factors.of_source[axis]]
        labels = block.labels.reshape(*(factors.sizes[part] for part in own), block.labels.shape[-1])
        here = [part for part in parts if part in own]
        if len(here) != len(own):  # a factor of size 1 never appears; anything else would lose labels
            raise AssertionError("a reshape lost a factor")
        labels = labels.transpose(*(own.index(part) for part in here), len(own))
        spread = [factors.sizes[part] if part in own else 1 for part in parts]
        labels = labels.reshape(*spread, labels.shape[-1])
        columns.append(np.broadcast_to(labels, (*shape, labels.shape[-1])))
    joined = np.concatenate(columns, axis=-1)
    target = tuple(channels.shape(y)[axis] for axis in axes)
    channels.put(y, axes, joined.reshape(*target, joined.shape[-1]))
