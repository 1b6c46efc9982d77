"""A graph in stretches that are run one after the other, so that only one of them is open at a time.

A model of a billion parameters takes several times its size in a runtime. Cut where few values pass, between
the layers of a network, each stretch takes what one layer takes, and what passes waits in memory or on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.calibration.part import leading
from onnxprune.model.body_shapes import has_bodies
from onnxprune.model.nodes import reads_of
from onnxprune.types import IntArray

#: Models up to this size are not cut: the runtime takes little for them.
WHOLE_BYTES = 1 << 26

#: Nodes that give something else each time: they are never run twice.
_DRAWING = ("Random", "Multinomial", "Bernoulli", "Dropout")

#: What makes values that are no tensors, where their types are not written down.
_NO_TENSORS = ("Sequence", "Optional", "SplitToSequence", "If", "Loop", "Scan", "ZipMap")

#: Cuts are looked for where at least this share of what fits is in front of them.
_LEAST_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some nodes of a graph.

    Attributes:
        bundles: numbers of the bundles that are complete once it has been run.
        made: names of the values that it computes and that can be kept; those of stored tensors alone are
            left out.
        passed: names of values that it computes and that later stretches, or later bundles, need.
        last: names of values, passed by earlier ones, that nobody needs after it.
    """

    bundles: tuple[int, ...]
    made: tuple[str, ...]
    passed: tuple[str, ...]
    last: tuple[str, ...]


def stored_bytes(model: ir.Model) -> int:
    """Return the bytes of the initializers of the main graph, in float32 where they are floats."""
    return sum(_size(value) for value in model.graph.initializers.values())


def cut_into_stretches(
    graph: ir.Graph,
    bundles: Sequence[Sequence[str]],
    *,
    weight_bytes: int,
    held_bytes: Sequence[int] = (),
    held_limit_bytes: int = 0,
) -> list[Stretch]:
    """Cut what leads to some values of a graph into stretches.

    A stretch reads stored tensors of at most so many bytes, if no single node needs more, and completes
    bundles that hold at most so many bytes. Where that leaves a choice, it ends where the fewest values pass.

    Args:
        graph: a main graph, in topological order.
        bundles: names of values that are wanted together.
        weight_bytes: of one stretch, in float32.
        held_bytes: of each bundle, what the caller keeps while its stretch is run.
        held_limit_bytes: of these in one stretch.
    """
    values = {value.name: value for value in (*graph.inputs, *(o for node in graph for o in node.outputs))}
    wanted = [[values[name] for name in bundle] for bundle in bundles]
    needed, _, _ = leading(graph, [value for bundle in wanted for value in bundle], ())
    line = _Line(graph, needed, wanted)
    held = np.zeros(max(len(line.steps), 1), np.int64)
    np.add.at(held, line.complete, held_bytes if len(held_bytes) else np.zeros(len(bundles), np.int64))
    ends = list(_ends(line, held, weight_bytes, held_limit_bytes))
    return _stretches(line, ends)


class _Line:
    """The nodes that have to be run in their order, and what passes between them.

    Nodes that depend on stored tensors alone belong to whoever reads them.

    Attributes:
        steps: the nodes.
        made: of each value, the number of its node.
        read: of each value, the number of the last node that reads it, or completes a bundle with it.
        complete: int64 [bundles], the number of the node that completes each.
        weights: of each node, the stored tensors that it reads, by way of nodes that only depend on such.
    """

    def __init__(self, graph: ir.Graph, needed: set[ir.Node], wanted: Sequence[Sequence[ir.Value]]) -> None:
        self.steps: list[ir.Node] = []
        self.made: dict[ir.Value, int] = {}
        self.read: dict[ir.Value, int] = {}
        self.weights: list[set[ir.Value]] = []
        of_free: dict[ir.Value, set[ir.Value]] = {}  # values that depend on stored ones alone, and these
        for node in graph:
            if node not in needed:
                continue
            reads = reads_of(node)
            stored = {value for value in reads if value.is_initializer() and not value.is_graph_input()}
            if _can_repeat(node) and all(value in stored or value in of_free for value in reads):
                mine = stored.union(*(of_free[value] for value in reads if value in of_free))
                of_free.update(dict.fromkeys(node.outputs, mine))
                continue
            number = len(self.steps)
            self.steps.append(node)
            self.weights.append(stored.union(*(of_free[value] for value in reads if value in of_free)))
            self.made.update(dict.fromkeys(node.outputs, number))
            self.read.update({value: number for value in reads if value in self.made})
        self.complete: IntArray = np.array(
            [max((self.made.get(value, 0) for value in bundle), default=0) for bundle in wanted], np.int64
        )
        for bundle, number in zip(wanted, self.complete.tolist(), strict=True):
            for value in bundle:
                if value in self.made:
                    self.read[value] = max(self.read.get(value, 0), number)

    def passing(self) -> npt.NDArray[np.int64]:
        """Return how many values pass behind each node; very many where one of them is no tensor."""
        change = np.zeros(len(self.steps) + 1, np.int64)
        for value, last in self.read.items():
            first, count = self.made[value], 1 if is_tensor(value) else 1 << 32
            change[first] += count
            change[last] -= count
        return np.cumsum(change)[:-1]


def _ends(
    line: _Line, held: npt.NDArray[np.int64], weight_bytes: int, held_limit_bytes: int
) -> Iterator[int]:
    """Yield the number of the last node of each stretch."""
    passing, count, start = line.passing(), len(line.steps), 0
    while start < count:
        seen: set[ir.Value] = set()
        weight = holds = 0
        weights: list[int] = []
        for number in range(start, count):
            fresh = line.weights[number] - seen
            seen |= fresh
            mine = sum(_size(value) for value in fresh)
            weight += mine
            holds += int(held[number])
            too_heavy = mine and weight > weight_bytes
            too_much = held[number] and held_limit_bytes and holds > held_limit_bytes
            if weights and (too_heavy or too_much):
                break
            weights.append(weight)
        end = start + len(weights) - 1
        if end < count - 1:
            before = np.array(weights)
            choices = np.flatnonzero(before >= _LEAST_SHARE * before[-1])[::-1]  # the last one of equals
            end = start + int(choices[np.argmin(passing[start + choices])])
            while passing[end] >= 1 << 32 and end < count - 1:  # what is no tensor can't wait
                end += 1
        yield end
        start = end + 1


def _stretches(line: _Line, ends: Sequence[int]) -> list[Stretch]:
    bounds = np.array(ends, np.int64)
    home = np.searchsorted(bounds, line.complete) if len(bounds) else np.zeros(len(line.complete), np.int64)
    made: dict[int, list[str]] = {}
    passed: dict[int, list[str]] = {}
    last: dict[int, list[str]] = {}
    for value, number in line.made.items():
        if value.name and is_tensor(value):
            made.setdefault(int(np.searchsorted(bounds, number)), []).append(value.name)
    for value, read in line.read.items():
        first, until = (int(np.searchsorted(bounds, number)) for number in (line.made[value], read))
        if until > first:
            passed.setdefault(first, []).append(str(value.name))
            last.setdefault(until, []).append(str(value.name))
    return [
        Stretch(
            tuple(np.flatnonzero(home == number).tolist()),
            tuple(made.get(number, ())),
            tuple(passed.get(number, ())),
            tuple(last.get(number, ())),
        )
        for number in range(max(len(bounds), 1))
    ]


def _can_repeat(node: ir.Node) -> bool:
    return not has_bodies(node) and not node.op_type.startswith(_DRAWING)


def is_tensor(value: ir.Value) -> bool:
    """Tell whether a value can wait: tensors of numbers can."""
    if value.type is not None:
        return isinstance(value.type, ir.TensorType) and value.dtype != ir.DataType.STRING
    node = value.producer()
    return node is not None and not node.op_type.startswith(_NO_TENSORS)


def _size(value: ir.Value) -> int:
    tensor = value.const_value
    if tensor is None:
        return 0
    return tensor.size * 4 if tensor.dtype.is_floating_point() else tensor.nbytes
