"""A graph in parts: each contraction with what follows it until the next one.

What a part takes depends on the sizes of its own values alone, so that a part can be cut out and timed at
channel counts that the model as a whole has never had.

Parts are numbered as they begin along the graph. A node that multiplies and sums begins a part; any other
joins the latest part that it reads from. So every value goes from a part to itself or to a later one, and
running the parts one after the other computes what the graph computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.cost import macs_by_node, nothing_cut
from onnxprune.messages import quoted
from onnxprune.model.body_shapes import has_bodies
from onnxprune.model.nodes import reads_of
from onnxprune.ops.channels import Channels


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some nodes of a graph, in its order, that can be run by themselves. Equal only to itself.

    Attributes:
        name: of the node that it began with; no other part has it.
        nodes: nodes of the main graph.
        inputs: what they read of other parts and of the inputs of the graph, in the order of reading.
        outputs: what other parts read of them, and outputs of the graph.
        whole: why it can't be cut out and run by itself, or None.
    """

    name: str
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    whole: str | None = None


def split_into_parts(graph: ir.Graph, channels: Channels) -> tuple[Part, ...]:
    """Return the parts of an analysed graph; every node of it, not those of bodies, is in exactly one.

    Args:
        graph: the main graph of the working copy that was analysed.
        channels: its labels; the sizes in them tell what multiplies and sums.

    Returns:
        Parts in an order in which each reads of the ones before it alone.
    """
    reads = {node: reads_of(node) for node in graph}
    numbers = _numbers(reads, channels)
    readers: dict[ir.Value, set[int]] = {}
    members: dict[int, list[ir.Node]] = {}
    for node, values in reads.items():
        members.setdefault(numbers[node], []).append(node)
        for value in values:
            readers.setdefault(value, set()).add(numbers[node])
    parts: list[Part] = []
    taken: set[str] = set()
    for _, nodes in sorted(members.items()):
        name = _unique(str(_lead(nodes, channels).name or "part"), taken)
        inputs = _inputs(nodes, reads)
        outputs = _outputs(nodes, numbers[nodes[0]], readers)
        parts.append(Part(name, tuple(nodes), inputs, outputs, _obstacle(nodes, inputs, channels)))
    return tuple(parts)


def _numbers(reads: Mapping[ir.Node, Sequence[ir.Value]], channels: Channels) -> dict[ir.Node, int]:
    """Return the part of each node, in the order of the graph."""
    graph = next(iter(reads)).graph if reads else None
    macs = {} if graph is None else dict(macs_by_node(graph, channels, nothing_cut(channels)))
    numbers: dict[ir.Node, int] = {}
    closed: set[int] = set()  # parts that nothing may join
    movable = []
    last = 0
    for node, values in reads.items():
        before = _numbers_before(values, numbers)
        numbers[node] = max(before, default=0)
        if has_bodies(node):
            numbers[node] = last = last + 1
            closed.add(last)
        elif macs.get(node, 0) or numbers[node] in closed or _gathers_parts(node, before):
            numbers[node] = last = last + 1
        elif not before or node.op_type in _EXPANDING or _is_size(node, channels):
            movable.append(node)
    _move_to_readers(movable, reads, numbers)
    return numbers


def _move_to_readers(
    movable: Sequence[ir.Node],
    reads: Mapping[ir.Node, Sequence[ir.Value]],
    numbers: dict[ir.Node, int],
) -> None:
    """Let nodes join the first part that reads them, the last nodes first."""
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node, values in reads.items():
        for value in values:
            readers.setdefault(value, []).append(node)
    for node in reversed(movable):
        later = [numbers[user] for output in node.outputs for user in readers.get(output, ())]
        if later and not any(output.is_graph_output() for output in node.outputs):
            numbers[node] = max(numbers[node], min(later))


#: What unpacks numbers: a runtime fuses it with what reads them, so it belongs there.
_EXPANDING = frozenset({"DequantizeLinear"})

#: Pure movement of several inputs.
_GATHERING = frozenset({"Concat", "ConcatFromSequence", "SequenceConstruct"})


def _gathers_parts(node: ir.Node, before: set[int]) -> bool:
    """Return whether a node only puts what several parts made side by side: it depends on the cuts of all."""
    return node.op_type in _GATHERING and len(before) > 1


def _is_size(node: ir.Node, channels: Channels) -> bool:
    """Return whether a node computes sizes of tensors: it belongs to whoever needs these."""
    return all(output in channels.shapes.contents for output in node.outputs)


def _numbers_before(values: Sequence[ir.Value], numbers: Mapping[ir.Node, int]) -> set[int]:
    """Return the parts that values come from; 0 stands for inputs of the graph too."""
    found = set()
    for value in values:
        producer = value.producer()
        if producer is not None:
            found.add(numbers[producer])
        elif not value.is_initializer():
            found.add(0)
    return found


def _lead(nodes: Sequence[ir.Node], channels: Channels) -> ir.Node:
    """Return the node that a part is named after: what follows the others were only moved to it."""
    return next(
        (node for node in nodes if node.op_type not in _EXPANDING and not _is_size(node, channels)), nodes[0]
    )


def _unique(name: str, taken: set[str]) -> str:
    unique, number = name, 1
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    taken.add(unique)
    return unique


def _inputs(nodes: Sequence[ir.Node], reads: Mapping[ir.Node, Sequence[ir.Value]]) -> tuple[ir.Value, ...]:
    own = {output for node in nodes for output in node.outputs}
    read = dict.fromkeys(value for node in nodes for value in reads[node])
    return tuple(value for value in read if value not in own and not value.is_initializer())


def _outputs(
    nodes: Sequence[ir.Node], number: int, readers: Mapping[ir.Value, set[int]]
) -> tuple[ir.Value, ...]:
    made = [output for node in nodes for output in node.outputs if output.name]
    needed = [value for value in made if value.is_graph_output() or readers.get(value, {number}) != {number}]
    return tuple(needed or [value for value in made if value not in readers])  # dead nodes are run too


def _obstacle(nodes: Sequence[ir.Node], inputs: Sequence[ir.Value], channels: Channels) -> str | None:
    """Return why a part can't be run by itself, None if nothing is known against it."""
    for node in nodes:
        if has_bodies(node):
            return f"{node.op_type} {quoted(node.name)} has a graph of its own inside"
    for value in inputs:
        if channels.shapes.shape(value) is None:
            return f"the shape of {quoted(value.name)}, which it reads, is not known"
    return None
