"""What is left of every axis once a set of labels is removed: what the ``fix`` methods read and write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.model.names import Names, add_constant
from onnxprune.ops.channels import Channels, Ref
from onnxprune.ops.labels import LabelArray
from onnxprune.types import BoolArray, IntArray


class Kept:
    """Kept positions of every value. Rules read the graph that was analysed and write to its copy.

    Args:
        channels: the solved labels of the analysed graph.
        removed: bool ``[labels.count]``, True for each label that goes.
        copies: the node of the copy for each node of the analysed graph; empty if nothing is written.
        names: the names taken in the copy.

    Attributes:
        cuts: anything goes at all.
    """

    def __init__(
        self,
        channels: Channels,
        removed: BoolArray,
        copies: Mapping[ir.Node, ir.Node] | None = None,
        names: Names | None = None,
    ) -> None:
        self.channels = channels
        self._removed = removed
        self.copies = copies or {}
        self._names = names
        self._masks: dict[Ref, dict[int, BoolArray]] = {}
        self._by_labels: dict[int, list[BoolArray | None]] = {}  # None: the axis stays whole
        self.cuts = bool(removed.any())

    # --- reading --------------------------------------------------------------------------------------------

    def masks(self, ref: Ref) -> dict[int, BoolArray]:
        """Return bool ``[dim]`` for every axis that loses positions, True = kept."""
        if not self.cuts:
            return {}
        known = self._masks.get(ref)
        if known is None:
            known = {}
            for block in self.channels.blocks.get(ref, ()):
                # Most values share the label array of another one.
                key = id(block.labels)
                if key not in self._by_labels:
                    self._by_labels[key] = self._find_masks(block.labels, ref)
                for axis, mask in zip(block.axes, self._by_labels[key], strict=True):
                    if mask is not None:
                        known[axis] = mask
            self._masks[ref] = known
        return known

    def _find_masks(self, labels: LabelArray, ref: Ref) -> list[BoolArray | None]:
        """Return the mask of each axis of a block, None where all is kept."""
        gone = self._removed[labels[..., 0]]
        for column in range(1, labels.shape[-1]):
            gone = gone | self._removed[labels[..., column]]
        if not gone.any():
            return [None] * gone.ndim
        return [None if mask.all() else mask for mask in _rectangle(~gone, ref)]

    def input(self, node: ir.Node, index: int) -> dict[int, BoolArray]:
        """Return the masks of an input."""
        return self.masks(self.channels.ref(node, index))

    def count(self, ref: Ref, axis: int) -> int:
        """Return how many positions of an axis are kept."""
        shape = self.channels.shape(ref)
        mask = self.masks(ref).get(axis % len(shape))
        return shape[axis] if mask is None else int(mask.sum())

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Return the shape after the cut, at the concrete input sizes of the analysis."""
        masks = self.masks(ref)
        shape = self.channels.shape(ref)
        if not masks:
            return shape
        return tuple(int(masks[axis].sum()) if axis in masks else size for axis, size in enumerate(shape))

    def ref(self, node: ir.Node, index: int) -> Ref:
        """Return what carries the labels of an input."""
        return self.channels.ref(node, index)

    def old_ints(self, node: ir.Node, index: int) -> list[int] | None:
        """Return the contents of a small integer input before the cut, None if they are computed."""
        content = self.channels.constant(node, index)
        return None if content is None else [int(number) for number in content.ravel()]

    # --- writing --------------------------------------------------------------------------------------------

    def set_attribute(self, node: ir.Node, attribute: ir.Attr) -> None:
        """Write an attribute of the copy of ``node``."""
        self.copies[node].attributes[attribute.name] = attribute

    def drop_attribute(self, node: ir.Node, name: str) -> None:
        """Remove an attribute of the copy of ``node``, if it has it."""
        self.copies[node].attributes.pop(name, None)

    def set_ints(self, node: ir.Node, index: int, numbers: Sequence[int] | IntArray) -> None:
        """Give an input of the copy new integer contents, without touching other users of the old ones."""
        copy = self.copies[node]
        old = node.inputs[index] if index < len(node.inputs) else None
        dtype = np.int64 if old is None or old.const_value is None else old.const_value.dtype.numpy()
        value = self._constant(copy, f"sizes_{index}", np.asarray(numbers, dtype=dtype))
        if index >= len(copy.inputs):
            copy.resize_inputs(index + 1)
        copy.replace_input_with(index, value)

    def become_gather(self, node: ir.Node, axis: int, places: IntArray) -> None:
        """Make the copy of ``node`` a Gather of constant places along one axis of its first input."""
        copy = self.copies[node]
        copy.resize_inputs(1)
        copy.resize_inputs(2)
        copy.replace_input_with(1, self._constant(copy, "places", np.asarray(places, dtype=np.int64)))
        copy.op_type = "Gather"
        copy.attributes.clear()
        copy.attributes["axis"] = ir.AttrInt64("axis", axis)

    def gather_before(self, node: ir.Node, axis: int, places: IntArray) -> None:
        """Let the copy of ``node`` read its first input by way of a Gather of constant places."""
        copy = self.copies[node]
        source = copy.inputs[0]
        if copy.graph is None or source is None:
            raise ValueError(f"{node.name} is not being cut")
        constant = self._constant(copy, "places", np.asarray(places, dtype=np.int64))
        gather = ir.node("Gather", [source, constant], {"axis": axis}, name=f"{constant.name}_gather")
        gather.outputs[0].name = f"{constant.name}_picked"
        gather.outputs[0].type = source.type
        copy.graph.insert_before(copy, gather)
        copy.replace_input_with(0, gather.outputs[0])

    def _constant(self, copy: ir.Node, purpose: str, contents: np.ndarray[Any, Any]) -> ir.Value:
        if copy.graph is None or self._names is None:
            raise ValueError(f"{copy.name} is not being cut")
        name = self._names.fresh(f"{copy.outputs[0].name or copy.name}_{purpose}")
        return add_constant(copy.graph, ir.Tensor(contents, name=name), name)


def _rectangle(kept: BoolArray, ref: Ref) -> list[BoolArray]:
    """Return one mask for each axis; the kept positions must be exactly their product."""
    if kept.ndim == 1:
        return [kept]
    axes = range(kept.ndim)
    masks = [np.asarray(kept.any(axis=tuple(a for a in axes if a != axis))) for axis in axes]
    product = np.ones(kept.shape, dtype=np.bool_)
    for axis, mask in enumerate(masks):
        product &= mask.reshape([-1 if a == axis else 1 for a in axes])
    if not np.array_equal(product, kept):
        raise AssertionError(f"ragged cut of {ref}: the analysis must couple these positions")
    return masks
