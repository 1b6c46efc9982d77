"""What stands where in a graph, by name and without weights: what a plan remembers of its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class OutlinedValue:
    """An input or output of a model.

    Attributes:
        name: of it.
        type: its type in words, with the element type.
        shape: sizes and names of symbolic axes, None where the rank is unknown.
    """

    name: str
    type: str
    shape: tuple[int | str, ...] | None


@dataclass(frozen=True, slots=True)
class OutlinedTensor:
    """A stored tensor.

    Attributes:
        dtype: its element type.
        shape: its sizes.
        contents: the numbers where they are sizes, axes or indices; None for weights, which training changes.
    """

    dtype: str
    shape: tuple[int, ...]
    contents: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class OutlinedNode:
    """A node.

    Attributes:
        name: of it; no other node of the model has it.
        operator: with its domain where that is not ONNX's own.
        inputs: names of what it reads, None where an optional input is missing.
        outputs: names of what it writes, likewise.
        attributes: what they say, in words, by name; graphs stand in ``bodies``.
        bodies: the graphs that it holds, by the name of the attribute.
    """

    name: str
    operator: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]
    attributes: Mapping[str, str] = field(default_factory=dict)
    bodies: Mapping[str, tuple[Outline, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outline:
    """A graph, or the body of a node. No two values of a model share a name, those in bodies included.

    Attributes:
        inputs: what it is given.
        outputs: what it gives.
        nodes: in an order in which they can run.
        tensors: what it stores, by name.
    """

    inputs: tuple[OutlinedValue, ...]
    outputs: tuple[OutlinedValue, ...]
    nodes: tuple[OutlinedNode, ...]
    tensors: Mapping[str, OutlinedTensor]

    def everything(self) -> Iterator[Outline]:
        """Yield the graph and all bodies within it."""
        waiting = [self]
        while waiting:
            graph = waiting.pop()
            yield graph
            waiting.extend(body for node in graph.nodes for bodies in node.bodies.values() for body in bodies)
