"""Operators that only move positions: transposing, joining, splitting, picking, repeating, padding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.model.shape_values import slice_bounds
from onnxprune.ops.base import OpRule, op_rule
from onnxprune.ops.channels import Channels, Ref, Use
from onnxprune.ops.elementwise import link_broadcast
from onnxprune.ops.kept import Kept
from onnxprune.ops.labels import LabelArray
from onnxprune.ops.reshape import written_target


@op_rule("Transpose")
class Transpose(OpRule):
    """y[p[0], p[1], ...] = x[0, 1, ...]"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Axes are renumbered."""
        x = channels.ref(node, 0)
        rank = channels.rank(x)
        perm = list(node.attributes.get_ints("perm", ())) or list(reversed(range(rank)))
        channels.label_constant(x)
        channels.copy(x, node.outputs[0], {source: target for target, source in enumerate(perm)})


@op_rule("Squeeze", "Unsqueeze")
class Squeeze(OpRule):
    """y = x without, or with more, axes of size 1"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """The axes of other sizes keep their order."""
        x, y = channels.ref(node, 0), node.outputs[0]
        channels.label_constant(x)
        wide_x = [axis for axis, size in enumerate(channels.shape(x)) if size != 1]
        wide_y = [axis for axis, size in enumerate(channels.shape(y)) if size != 1]
        channels.copy(x, y, dict(zip(wide_x, wide_y, strict=True)))


@op_rule("Concat")
class Concat(OpRule):
    """y = inputs one after another along ``axis``"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Along the axis labels are joined; along the others the inputs share them."""
        link_joined(node, channels, range(len(node.inputs)))


def link_joined(node: ir.Node, channels: Channels, inputs: Iterable[int]) -> None:
    """Link a node that puts some of its inputs one after another along ``axis``."""
    y = node.outputs[0]
    rank = channels.rank(y)
    joined = node.attributes.get_int("axis", 0) % rank
    refs = [channels.ref(node, index) for index in inputs if channels.has(node, index)]
    for ref in refs:
        channels.separate_all(ref)
    parts = [channels.alone(ref, joined) for ref in refs]
    channels.put(y, (joined,), _join(parts, [channels.shape(ref)[joined] for ref in refs]))
    reason = f"an input of {node.name} has no channels along an axis that it shares"
    for axis in range(rank):
        if axis == joined or channels.shape(y)[axis] < 2:
            continue
        if all(isinstance(ref, Use) for ref in refs):
            channels.label_constant(refs[0], [axis])
        tracked = [ref for ref in refs if channels.block_at(ref, axis) is not None]
        if not tracked:
            continue
        labels = channels.alone(tracked[0], axis)
        for ref in refs:
            if ref is not tracked[0]:
                channels.meet(ref, axis, labels, reason)
        channels.put(y, (axis,), labels)


def _join(parts: list[LabelArray | None], sizes: list[int]) -> LabelArray | None:
    """Join labels ``[dim, k]`` along the first axis; untracked parts get no labels."""
    width = max((part.shape[1] for part in parts if part is not None), default=0)
    if width == 0:
        return None
    rows = [np.zeros((size, width), np.int32) for size in sizes]
    for row, part in zip(rows, parts, strict=True):
        if part is not None:
            row[:, : part.shape[1]] = part
    return np.concatenate(rows)


@op_rule("Split")
class Split(OpRule):
    """outputs = consecutive parts of x along ``axis``"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Each output has the labels of its part."""
        x = channels.ref(node, 0)
        axis = node.attributes.get_int("axis", 0) % channels.rank(x)
        sizes = [channels.shape(output)[axis] for output in node.outputs]
        parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
        used = [part for part, output in zip(parts, node.outputs, strict=True) if output.uses()]
        channels.label_constant(x)
        _freeze_unread(node, channels, x, axis, np.concatenate([*used, parts[0][:0]]))
        for output, part in zip(node.outputs, parts, strict=True):
            channels.index(x, output, axis, part)

    def fix(self, node: ir.Node, kept: Kept) -> None:
        """The sizes of the parts, written out where they were equal and implicit."""
        axis = node.attributes.get_int("axis", 0)
        if axis % len(kept.shape(kept.ref(node, 0))) not in kept.input(node, 0):
            return
        sizes = [kept.count(output, axis) for output in node.outputs]
        kept.drop_attribute(node, "num_outputs")
        if "split" in node.attributes or kept.channels.shapes.opset < 13:
            kept.set_attribute(node, ir.AttrInt64s("split", sizes))
        else:
            kept.set_ints(node, 1, sizes)


@op_rule("Slice")
class Slice(OpRule):
    """y = x[start:end:step] along some axes"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Along a sliced axis the positions are picked; computed bounds freeze it."""
        x, y = channels.ref(node, 0), node.outputs[0]
        picked = _sliced(node, channels)
        if picked is None:
            _link_computed(node, channels)
            return
        channels.label_constant(x)
        for axis, places in picked.items():
            _freeze_unread(node, channels, x, axis, places)
        if any(len(places) == 0 for places in picked.values()):
            channels.separate_all(x)  # the other axes of an empty part still shrink
        for block in channels.blocks.get(x, ()):
            labels = block.labels
            for place, axis in enumerate(block.axes):
                if axis in picked:
                    labels = np.take(labels, picked[axis], axis=place)
            channels.put(y, block.axes, labels)

    def fix(self, node: ir.Node, kept: Kept) -> None:
        """New bounds for every axis that lost positions; a Gather where even spacing was lost."""
        masks = kept.input(node, 0)
        picked = _sliced(node, kept.channels)
        if picked is None or not set(picked).intersection(masks):
            return
        places = {axis: _new_places(picked[axis], mask) for axis, mask in masks.items() if axis in picked}
        uneven = [axis for axis, numbers in places.items() if len(np.unique(np.diff(numbers))) > 1]
        sliced = [axis for axis in sorted(picked) if axis not in uneven]
        if not sliced:
            kept.become_gather(node, uneven[0], places[uneven.pop(0)])
        for axis in uneven:
            kept.gather_before(node, axis, places[axis])
        if sliced:
            bounds = [
                _evenly(places[axis]) if axis in places else _bounds(node, kept.channels, axis)
                for axis in sliced
            ]
            _write_bounds(node, kept, sliced, bounds)


def _link_computed(node: ir.Node, channels: Channels) -> None:
    """Freeze the axes that are sliced at computed bounds; the others pass."""
    x, y = channels.ref(node, 0), node.outputs[0]
    reason = f"{node.name} slices at computed bounds"
    listed = channels.constant(node, 3)
    if listed is None:
        channels.freeze_all(x, reason)
        return
    rank = channels.rank(x)
    sliced = {int(axis) % rank for axis in listed.ravel()}
    others = [axis for axis in range(rank) if axis not in sliced]
    channels.label_constant(x, others)
    for axis in sliced:
        channels.freeze_axis(x, axis, reason)
    channels.copy(x, y, {axis: axis for axis in others})


def _write_bounds(node: ir.Node, kept: Kept, axes: list[int], bounds: list[tuple[int, int, int]]) -> None:
    starts, ends, steps = (list(numbers) for numbers in zip(*bounds, strict=True))
    if len(node.inputs) > 1:
        for index, numbers in enumerate((starts, ends, axes, steps), start=1):
            kept.set_ints(node, index, numbers)
    else:
        for name, numbers in (("starts", starts), ("ends", ends), ("axes", axes)):
            kept.set_attribute(node, ir.AttrInt64s(name, numbers))


_THROUGH_FIRST = -(2**62)


def _arguments(node: ir.Node, channels: Channels) -> list[np.ndarray[Any, Any]] | None:
    arguments = []
    for index in range(1, len(node.inputs)):
        if node.inputs[index] is None:
            break
        content = channels.constant(node, index)
        if content is None:
            return None
        arguments.append(content)
    return arguments


def _sliced(node: ir.Node, channels: Channels) -> dict[int, np.ndarray[Any, Any]] | None:
    """Return the picked positions by axis, None if the bounds are computed."""
    arguments = _arguments(node, channels)
    if arguments is None:
        return None
    shape = channels.shape(channels.ref(node, 0))
    bounds = slice_bounds(node, len(shape), arguments)
    return {axis: np.arange(shape[axis])[slice(*triple)] for axis, triple in bounds.items()}


def _bounds(node: ir.Node, channels: Channels, axis: int) -> tuple[int, int, int]:
    arguments = _arguments(node, channels) or []
    rank = channels.rank(channels.ref(node, 0))
    start, end, step = slice_bounds(node, rank, arguments)[axis]
    if end is None:
        end = _THROUGH_FIRST
    return start or 0, end, step


def _freeze_unread(
    node: ir.Node, channels: Channels, x: Ref, axis: int, picked: np.ndarray[Any, Any]
) -> None:
    """Keep the positions of a constant that are not picked: nothing reads them, so they are no channels."""
    labels = channels.alone(x, axis) if channels.is_constant(x) else None
    if labels is not None:
        unread = np.delete(np.arange(len(labels)), picked.ravel())
        channels.freeze(labels[unread], f"{node.name} picks others")


def _new_places(picked: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return where the kept ones of ``picked`` stand among the kept positions of the axis."""
    places: np.ndarray[Any, Any] = (np.cumsum(mask) - 1)[picked[mask[picked]]]
    return places


def _evenly(places: np.ndarray[Any, Any]) -> tuple[int, int, int]:
    """Return the bounds that pick evenly spaced places, forwards or backwards."""
    if len(places) == 0:
        return 0, 0, 1
    step = int(places[1] - places[0]) if len(places) > 1 else 1
    end = int(places[-1]) + (1 if step > 0 else -1)
    return int(places[0]), end if end >= 0 else _THROUGH_FIRST, step


@op_rule("Gather")
class Gather(OpRule):
    """y = x with one axis replaced by positions picked from it"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Constant positions pick labels; computed ones need the axis as it is."""
        x, y = channels.ref(node, 0), node.outputs[0]
        rank = channels.rank(x)
        axis = node.attributes.get_int("axis", 0) % rank
        indices = channels.constant(node, 1)
        if indices is not None and (indices.ndim < 2 or channels.block_at(x, axis) is not None):
            channels.label_constant(x)
            _freeze_unread(node, channels, x, axis, indices)
            channels.index(x, y, axis, indices)
            return
        reason = f"{node.name} picks along this axis by computed positions"
        channels.freeze_axis(x, axis, reason)
        channels.freeze_all(channels.ref(node, 1), f"{node.name} reads positions from it")
        more = len(channels.shape(y)) - rank
        others = [a for a in range(rank) if a != axis]
        channels.label_constant(x, others)
        channels.copy(x, y, {a: a if a < axis else a + more for a in others})

    def fix(self, node: ir.Node, kept: Kept) -> None:
        """The kept ones of the picked positions, renumbered."""
        axis = node.attributes.get_int("axis", 0) % len(kept.shape(kept.ref(node, 0)))
        mask = kept.input(node, 0).get(axis)
        if mask is None:
            return
        indices = kept.channels.constant(node, 1)
        if indices is None:
            raise AssertionError(f"{node.name}: an axis with computed positions was cut")
        after = kept.masks(node.outputs[0])
        for place in range(indices.ndim):
            if axis + place in after:
                indices = np.compress(after[axis + place], indices, axis=place)
        kept.set_ints(node, 1, (np.cumsum(mask) - 1)[indices % len(mask)])


@op_rule("GatherElements", "GatherND", "Scatter", "ScatterElements", "ScatterND")
class Indexed(OpRule):
    """y = elements picked or replaced by index tuples"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Axes beside the indexed ones pass where something is picked; scattering freezes everything."""
        reason = f"{node.name} ({node.op_type}) picks positions by their number"
        x, y = channels.ref(node, 0), node.outputs[0]
        if node.op_type == "GatherElements":
            _link_elements(node, channels, reason)
            return
        channels.freeze_all(channels.ref(node, 1), reason)
        if node.op_type == "GatherND":
            indices = channels.shape(channels.ref(node, 1))
            indexed = node.attributes.get_int("batch_dims", 0) + indices[-1]
            for axis in range(indexed):
                channels.freeze_axis(x, axis, reason)
            more = channels.rank(y) - channels.rank(x)
            behind = range(indexed, channels.rank(x))
            channels.label_constant(x, behind)
            channels.copy(x, y, {axis: axis + more for axis in behind})
            return
        for index in range(len(node.inputs)):
            if channels.has(node, index):
                channels.freeze_all(channels.ref(node, index), reason)


def _link_elements(node: ir.Node, channels: Channels, reason: str) -> None:
    """GatherElements: beside its axis, positions of the indices are those of the data."""
    x, indices, y = channels.ref(node, 0), channels.ref(node, 1), node.outputs[0]
    rank = channels.rank(x)
    picked = node.attributes.get_int("axis", 0) % rank
    for ref in (x, indices):
        channels.separate_all(ref)
    for axis in range(rank):
        if axis == picked or channels.shape(x)[axis] != channels.shape(indices)[axis]:
            channels.freeze_axis(x, axis, reason)
            channels.freeze_axis(indices, axis, reason)
            continue
        labels = None if channels.block_at(x, axis) is None else channels.alone(x, axis)
        if labels is not None or not isinstance(indices, Use):
            channels.meet(indices, axis, labels, reason)
        channels.put(y, (axis,), labels)


@op_rule("Expand", "Tile")
class Repeat(OpRule):
    """y = x repeated along some axes"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Axes that keep their size keep their labels; repeats of a single position are new channels.

        So the query heads that share a key are channels beside the key heads.
        """
        x, y = channels.ref(node, 0), node.outputs[0]
        if node.op_type == "Expand":
            link_broadcast(channels, [x], y, "")
            if written_target(node) is None:
                channels.freeze_all(y, f"{node.name} has a computed target shape")
                return
            for axis in _repeated_axes(node, channels):
                channels.put(y, (axis,), channels.labels.fresh(channels.shape(y)[axis]))
            return
        channels.label_constant(x)
        channels.separate_all(x)
        for axis, (before, after) in enumerate(zip(channels.shape(x), channels.shape(y), strict=True)):
            labels = None if channels.block_at(x, axis) is None else channels.alone(x, axis)
            if labels is not None and before and after % before == 0:
                channels.put(y, (axis,), np.tile(labels, (after // before, 1)))

    def fix(self, node: ir.Node, kept: Kept) -> None:
        """An Expand target asks for the kept repeats, and for size 1 along any other cut axis."""
        if node.op_type != "Expand" or not kept.masks(node.outputs[0]):
            return
        target = written_target(node)
        sizes = None if target is None else kept.old_ints(*target)
        if target is None or sizes is None:
            raise AssertionError(f"{node.name}: a computed target was cut")
        repeated = _repeated_axes(node, kept.channels)
        shift = len(sizes) - len(kept.shape(node.outputs[0]))
        for axis in kept.masks(node.outputs[0]):
            if axis + shift >= 0:
                sizes[axis + shift] = kept.count(node.outputs[0], axis) if axis in repeated else 1
        kept.set_ints(*target, sizes)


def _repeated_axes(node: ir.Node, channels: Channels) -> list[int]:
    """Return the axes of an Expand's output that repeat one position, as often for every input."""
    x, y = channels.ref(node, 0), node.outputs[0]
    shift = channels.rank(y) - channels.rank(x)
    return [
        axis
        for axis, dim in enumerate(channels.shapes.dims[y])
        if dim.is_constant and dim.size > 1 and (axis < shift or channels.shape(x)[axis - shift] == 1)
    ]


@op_rule("Pad")
class Pad(OpRule):
    """y = x with positions added at both ends of some axes"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """An axis that is padded or cropped is kept whole; the others pass."""
        x, y = channels.ref(node, 0), node.outputs[0]
        rank = channels.rank(x)
        padded = _padded_axes(node, channels, rank)
        if padded is None:
            channels.freeze_all(x, f"{node.name} pads by computed counts")
            return
        for axis in padded:
            channels.freeze_axis(x, axis, f"{node.name} pads this axis")
        others = [axis for axis in range(rank) if axis not in padded]
        channels.label_constant(x, others)
        channels.copy(x, y, {axis: axis for axis in others})


def _padded_axes(node: ir.Node, channels: Channels, rank: int) -> set[int] | None:
    """Return the axes where anything is added or taken away, None if that is computed.

    Sizes alone do not tell: one position less in front and one more behind move all the others.
    """
    if channels.has(node, 1):
        content = channels.constant(node, 1)
        listed = channels.constant(node, 3)
        if content is None or (listed is None and channels.has(node, 3)):
            return None
        counts = content.ravel()
        axes = list(range(rank)) if listed is None else [int(axis) % rank for axis in listed.ravel()]
    else:
        counts = np.array(node.attributes.get_ints("pads", node.attributes.get_ints("paddings", ())))
        axes = list(range(rank))
    moved = (counts.reshape(2, -1) != 0).sum(axis=0).tolist()
    return {axis for axis, some in zip(axes, moved, strict=True) if some}
