"""The labels of every value of a graph, and the few verbs in which op rules speak of them.

The axes of a value fall into *blocks*: one axis with labels ``[dim, k]``, or several axes that were split
from one and not separated yet, with joint labels ``[d1, ..., dm, k]``. An axis in no block is *untracked*:
batch, space, time and whatever else is never cut. A constant has labels for each of its uses, so that weights
which happen to be shared do not tie layers together; they appear when a rule first asks for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune.model.dims import Dim
from onnxprune.model.shapes import Shapes
from onnxprune.ops.labels import LabelArray, Labels, looked_up
from onnxprune.types import Skipped


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a value, a constant where labels are concerned: input ``index`` of ``node``."""

    node: ir.Node
    index: int

    @property
    def value(self) -> ir.Value:
        """The value that is used."""
        value = self.node.inputs[self.index]
        if value is None:
            raise ValueError(f"input {self.index} of {self.node.name} is absent")
        return value


#: What has labels: a computed value, or one use of a constant.
Ref: TypeAlias = "ir.Value | Use"


@dataclass(frozen=True, slots=True)
class Block:
    """Labels over some axes of a value, int32 ``[dims of axes..., k]``; axes ascend."""

    axes: tuple[int, ...]
    labels: LabelArray


@dataclass(frozen=True, slots=True)
class Contraction:
    """A sum over labelled positions of an operand: a zero there equals a cut.

    Attributes:
        node: what sums.
        operand: which input it sums over.
        axis: along which axis; None for the range of the whole operand, which zeros do not widen either.
        zero_point: the input of the node that holds what stands for zero; None where that is 0.
        zero_axis: the axis of the operand that a vector of zero points goes along.
    """

    node: ir.Node
    operand: int
    axis: int | None
    zero_point: int | None = None
    zero_axis: int = -1

    @property
    def one_axis(self) -> int:
        """The axis of a sum; a range has none."""
        if self.axis is None:
            raise ValueError(f"{self.node.name} takes a range over all axes")
        return self.axis


@dataclass(frozen=True, slots=True)
class Statistic:
    """A node whose result over some channels changes with their number, or with zeros in them.

    Attributes:
        node: the node.
        labels: the channels it looks at together.
        reason: what it does with them, for people.
    """

    node: ir.Node
    labels: LabelArray
    reason: str


class Channels:
    """Labels of all values, filled by the op rules in topological order."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self.labels = Labels()
        self.blocks: dict[Ref, list[Block]] = {}
        self.contractions: list[Contraction] = []
        self.tags: dict[str, list[LabelArray]] = {}
        self.statistics: list[Statistic] = []
        self.unknown: list[Skipped] = []  # nodes that were frozen because too little is known of them
        self._computed_constants: set[ir.Value] = set()

    # --- looking --------------------------------------------------------------------------------------------

    def ref(self, node: ir.Node, index: int) -> Ref:
        """Return what carries the labels of an input: the value, or this use if it is a constant."""
        value = node.inputs[index]
        if value is None:
            raise ValueError(f"input {index} of {node.name} is absent")
        return Use(node, index) if value.is_initializer() else value

    def has(self, node: ir.Node, index: int) -> bool:
        """Return whether an optional input is there."""
        return index < len(node.inputs) and node.inputs[index] is not None

    def shape(self, ref: Ref | ir.Value) -> tuple[int, ...]:
        """Return the concrete shape. Rules run only where all shapes are known."""
        return tuple([dim.size for dim in self._dims(ref)])

    def rank(self, ref: Ref) -> int:
        """Return the number of axes."""
        return len(self._dims(ref))

    def _dims(self, ref: Ref) -> tuple[Dim, ...]:
        value = ref.value if isinstance(ref, Use) else ref
        dims = self.shapes.dims.get(value)
        if dims is None:
            raise ValueError(f"the shape of {value.name} is not known")
        return dims

    def constant(self, node: ir.Node, index: int) -> np.ndarray[Any, Any] | None:
        """Return the contents of a small input that is the same for every input of the model, else None."""
        return self.shapes.constant(node.inputs[index]) if self.has(node, index) else None

    def note_constant(self, node: ir.Node) -> None:
        """Remember the outputs of a node that reads constants alone; called in topological order."""
        given = [value for value in node.inputs if value is not None]
        if given and all(value.is_initializer() or value in self._computed_constants for value in given):
            self._computed_constants.update(node.outputs)

    def is_constant(self, ref: Ref) -> bool:
        """Return whether a value is a constant, or computed from constants alone."""
        return isinstance(ref, Use) or ref in self._computed_constants

    def block_at(self, ref: Ref, axis: int) -> Block | None:
        """Return the block that holds an axis, None if the axis is untracked."""
        return next((block for block in self.blocks.get(ref, ()) if axis in block.axes), None)

    # --- single axes ----------------------------------------------------------------------------------------

    def alone(self, ref: Ref, axis: int) -> LabelArray | None:
        """Return the labels ``[dim, k]`` of one axis by itself, None if it is untracked.

        A joint block is separated for it. A constant gets new labels if nobody asked before.
        """
        axis %= self.rank(ref)
        block = self.block_at(ref, axis)
        if block is None:
            if not isinstance(ref, Use) or not _is_weight(ref.value) or self.shape(ref)[axis] < 2:
                return None
            labels = self.labels.fresh(self.shape(ref)[axis])
            self.put(ref, (axis,), labels)
            return labels
        if block.axes == (axis,):
            return block.labels
        own, rest = self.labels.separate(block.labels, (block.axes.index(axis),))
        self.blocks[ref].remove(block)
        self.put(ref, (axis,), own)
        self.put(ref, tuple(a for a in block.axes if a != axis), rest)
        return own

    def label_constant(self, ref: Ref, axes: Iterable[int] | None = None) -> None:
        """Give some axes of a constant (all by default) labels; where it goes, a cut then reaches it.

        For rules that only move or map positions: a statistic over an axis must not come before its labels.
        """
        if isinstance(ref, Use):
            for axis in range(self.rank(ref)) if axes is None else axes:
                self.alone(ref, axis)

    def separate_all(self, ref: Ref) -> None:
        """Give every labelled axis of a value a block of its own."""
        for block in list(self.blocks.get(ref, ())):
            for axis in block.axes[:-1]:
                self.alone(ref, axis)

    def put(self, ref: Ref, axes: Sequence[int], labels: LabelArray | None) -> None:
        """Record the labels of axes that have none; None and all-zero labels mean untracked."""
        if labels is None or not axes or not labels.any():
            return
        if len(axes) == 1 and len(labels) > 1:
            self.blocks.setdefault(ref, []).append(Block(tuple(axes), labels))
            return
        order = sorted(range(len(axes)), key=lambda i: axes[i])
        labels = labels.transpose(*order, labels.ndim - 1)
        axes = [axes[i] for i in order]
        # An axis of one position has nothing to choose from: its labels are those of the axes beside it.
        wide = [i for i, size in enumerate(labels.shape[:-1]) if size > 1]
        if not wide:
            self.freeze(labels, "a single position is left along an axis")
            return
        narrow = tuple(i for i in range(len(axes)) if i not in wide)
        self.blocks.setdefault(ref, []).append(
            Block(tuple(axes[i] for i in wide), np.squeeze(labels, narrow) if narrow else labels)
        )

    def meet(self, ref: Ref, axis: int, labels: LabelArray | None, reason: str) -> None:
        """Say that positions along an axis are the channels ``labels`` (``[dim, k]``, None: untracked).

        A constant without labels takes them over; otherwise the two are equated. Labels that meet an
        untracked axis are frozen, with the reason.

        Raises:
            ValueError: there are more positions than labels, or fewer: no runtime takes such a node.
        """
        axis %= self.rank(ref)
        positions = self.shape(ref)[axis]
        if labels is not None and positions not in (1, len(labels)):
            raise ValueError(f"{positions} numbers meet {len(labels)} channels")
        if isinstance(ref, Use) and self.block_at(ref, axis) is None and self.shape(ref)[axis] > 1:
            self.put(ref, (axis,), labels)
            return
        mine = self.alone(ref, axis)
        if mine is None or labels is None:
            for present in (mine, labels):
                if present is not None:
                    self.freeze(present, reason)
            return
        self.labels.equate(mine, labels, reason)

    # --- facts ----------------------------------------------------------------------------------------------

    def freeze(self, labels: LabelArray, reason: str) -> None:
        """Say that these channels must stay."""
        self.labels.freeze(labels, reason)

    def freeze_axis(self, ref: Ref, axis: int, reason: str) -> None:
        """Say that no position along an axis may go (the axis alone: joint axes are separated)."""
        axis %= self.rank(ref)
        if self.block_at(ref, axis) is not None:
            labels = self.alone(ref, axis)
            if labels is not None:
                self.freeze(labels, reason)

    def freeze_all(self, ref: Ref, reason: str) -> None:
        """Say that a value keeps its whole shape."""
        for block in self.blocks.get(ref, ()):
            self.freeze(block.labels, reason)

    def sums_over(
        self, node: ir.Node, operand: int, axis: int, *, zero_point: int | None = None, zero_axis: int = -1
    ) -> None:
        """Record that a node sums over an axis of one of its inputs, whose labels are known by now.

        Args:
            node: what sums.
            operand: which input.
            axis: of that input.
            zero_point: the input that holds what stands for zero in a quantized operand.
            zero_axis: the axis of the operand that a vector of zero points goes along.
        """
        axis %= self.rank(self.ref(node, operand))
        if self.block_at(self.ref(node, operand), axis) is not None:
            zero_point = zero_point if zero_point is not None and self.has(node, zero_point) else None
            self.contractions.append(Contraction(node, operand, axis, zero_point, zero_axis))

    def ranges_over(self, node: ir.Node, operand: int) -> None:
        """Record that a node takes the least and the greatest element of an input, and of zero.

        What is removed leaves the range as zeros there would: a cut equals a zero along every axis.
        """
        if self.blocks.get(self.ref(node, operand)):
            self.contractions.append(Contraction(node, operand, None))

    def averages_over(self, node: ir.Node, labels: LabelArray, reason: str) -> None:
        """Record that a node takes a statistic over these channels: a cut would change it."""
        self.statistics.append(Statistic(node, labels, reason))

    def tag(self, name: str, labels: LabelArray | None) -> None:
        """Remember what kind of thing these channels are (heads, head_dim)."""
        if labels is not None:
            self.tags.setdefault(name, []).append(labels)

    def tagged(self, name: str) -> LabelArray:
        """Return the labels that were tagged so, resolved, int32 [labels]."""
        self.labels.flush()
        found = [self.labels.resolve(labels).ravel() for labels in self.tags.get(name, ())]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int32)

    def finish(self) -> None:
        """Solve everything, and store plain labels in all blocks. Labels are fixed from here on."""
        self.labels.flush()
        table = self.labels.table()
        resolved: dict[int, LabelArray] = {}
        equal: dict[tuple[tuple[int, ...], bytes], LabelArray] = {}  # values of one width share one array
        originals = []  # keeps the arrays alive, so that no id is used twice
        for ref, blocks in self.blocks.items():
            for block in blocks:
                if id(block.labels) not in resolved:
                    originals.append(block.labels)
                    labels = np.ascontiguousarray(looked_up(table, block.labels))
                    resolved[id(block.labels)] = equal.setdefault((labels.shape, labels.tobytes()), labels)
            self.blocks[ref] = [Block(block.axes, resolved[id(block.labels)]) for block in blocks]

    # --- moving ---------------------------------------------------------------------------------------------

    def copy(self, source: Ref, target: Ref, axis_map: dict[int, int] | None = None) -> None:
        """Give a value the labels of another, with axes renumbered (source axis -> target axis).

        Axes that are not in the map lose their labels: they must have been frozen or reduced before.
        """
        for block in self.blocks.get(source, ()):
            if axis_map is None:
                self.put(target, block.axes, block.labels)
                continue
            kept = [i for i, axis in enumerate(block.axes) if axis in axis_map]
            if len(kept) == len(block.axes):
                self.put(target, [axis_map[axis] for axis in block.axes], block.labels)

    def index(self, source: Ref, target: Ref, axis: int, positions: np.ndarray[Any, Any]) -> None:
        """Give a value the labels of another, picked along one axis.

        The axis is replaced by those of ``positions``: a scalar drops it.
        """
        axis %= self.rank(source)
        more = positions.ndim - 1
        self.label_constant(source)
        for block in self.blocks.get(source, ()):
            labels, axes = block.labels, [a if a <= axis else a + more for a in block.axes]
            if axis in block.axes:
                place = block.axes.index(axis)
                labels = np.take(labels, positions, axis=place)
                axes[place : place + 1] = range(axis, axis + positions.ndim)
                if not axes:
                    self.freeze(labels, "one position of the axis is picked by its number")
            self.put(target, axes, labels)


def _is_weight(value: ir.Value) -> bool:
    """Numbers that are multiplied or added have channels; indices, sizes and flags have not."""
    dtype = value.dtype or (value.const_value.dtype if value.const_value is not None else None)
    return dtype is not None and (dtype.is_floating_point() or dtype in _QUANTIZED)


_QUANTIZED = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4})
