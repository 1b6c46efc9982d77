"""Kernels as ONNX Runtime timed them -> layers: which can shrink with channels, which can't, and why.

A kernel may compute several nodes of the model. The node with most multiply-accumulates gives it its name,
and what a cut leaves of those multiply-accumulates is about the least that it leaves of the time. A kernel
without any is taken to cost in proportion to what it reads and writes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import onnx_ir as ir

from onnxprune.advice.machine import Machine
from onnxprune.analyze import Analysis
from onnxprune.cost import macs_by_node, nothing_cut
from onnxprune.ops.channels import Use
from onnxprune.ops.kept import Kept
from onnxprune.types import FloatArray

#: What limits a kernel: arithmetic, moving data, or being called at all.
Limit = Literal["compute", "memory", "overhead"]

SHRINKS = "layers that channels shrink"
STAYS = "layers that stay as they are"
OVERHEAD = "runtime overhead"
FOLDED = "what folding constants removes"
LAYOUT = "layout changes of the runtime"
NORMALISATION = "normalisation and softmax"
POOLING = "pooling and reduction"
MOVEMENT = "moving data"
ELEMENTWISE = "elementwise and other"

#: Families of operators without multiply-accumulates, by name; the first that matches.
_FAMILIES = (
    (re.compile(r"Norm|Softmax|^LRN"), NORMALISATION),
    (re.compile(r"Pool|^Reduce|^ArgM|^TopK|^CumSum"), POOLING),
    (
        re.compile(
            r"^(Transpose|Reshape|Flatten|Squeeze|Unsqueeze|Concat|Split|Slice|Gather|Scatter|Pad|Tile|Expand"
            r"|DepthToSpace|SpaceToDepth|Identity|Cast|Resize|Upsample|Shape|Memcpy)"
        ),
        MOVEMENT,
    ),
)

#: A kernel is overhead if it takes no longer than so many empty ones ...
_CALLS = 3.0
#: ... or if it is as short as this and reaches no more than this share of what the machine can do.
_SHORT_MICROSECONDS = 5.0
_POOR = 0.25


class KernelTime(Protocol):
    """What is read of `onnxprune.runtime.kernels.Kernel`."""

    @property
    def name(self) -> str:
        """ONNX Runtime's name of it."""

    @property
    def op_type(self) -> str:
        """Its operator."""

    @property
    def covers(self) -> tuple[str, ...]:
        """Names of the model's nodes that it computes."""

    @property
    def microseconds(self) -> FloatArray:
        """Of each run, float64 [runs]."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One kernel, or all of one kind that belong to no node of the model.

    Attributes:
        name: of the node that it mainly computes.
        op_type: ONNX Runtime's name of the operator, which may be a fused one.
        part: one of the classes above.
        microseconds: lower quartile over the runs.
        macs: multiply-accumulates at the measured sizes.
        moved_bytes: of weights and activations that it reads and writes.
        nodes: names of the model's nodes that it computes.
        limit: what limits it; None where the machine was not measured.
        reached: share of what the machine was measured to do of that; None as above, and for overhead.
        why: why channels don't shrink it, where it has multiply-accumulates and they don't.
    """

    name: str
    op_type: str
    part: str
    microseconds: float
    macs: int
    moved_bytes: int
    nodes: tuple[str, ...]
    limit: Limit | None = None
    reached: float | None = None
    why: str | None = None


class Work:
    """Multiply-accumulates and bytes of the nodes of a model, whole and after a cut.

    Args:
        analysis: of the model.
        feeds: shapes of the inputs of one run that was timed; the analysis may have looked at another batch.
    """

    def __init__(self, analysis: Analysis, feeds: Mapping[str, tuple[int, ...]]) -> None:
        self._channels = analysis.channels
        self._graph = analysis.model.graph
        self._outputs = set(self._graph.outputs)
        batches = analysis.channels.shapes.batches.items()
        self._scale = next((feeds[name][0] / size for name, size in batches if name in feeds), 1.0)
        self._nodes = {str(node.name): node for node in self._graph}
        self._whole = nothing_cut(analysis.channels)
        self._usual = _usual_type(analysis.model.graph)
        self._macs = self._count(self._whole)
        self._last: tuple[Kept, dict[str, int]] | None = None

    def macs(self, names: Iterable[str], kept: Kept | None = None) -> int:
        """Return the multiply-accumulates of some nodes."""
        macs = self._table(kept or self._whole)
        return round(self._scale * sum(macs.get(name, 0) for name in names))

    def heaviest(self, names: Sequence[str]) -> str:
        """Return the node with most multiply-accumulates, the last one if none has any."""
        macs = self._table(self._whole)
        return max(reversed(names), key=lambda name: macs.get(name, 0))

    def moved_bytes(self, names: Iterable[str], kept: Kept | None = None) -> int:
        """Return the bytes that go in and out of some nodes, but for what passes between them alone."""
        kept = kept or self._whole
        inside = [self._nodes[name] for name in names if name in self._nodes]
        made = {output for node in inside for output in node.outputs}
        weights = activations = 0
        seen: set[ir.Value] = set()
        for use in (Use(n, i) for n in inside for i, v in enumerate(n.inputs) if v is not None):
            if use.value in made or use.value in seen:
                continue
            seen.add(use.value)
            if use.value.is_initializer():
                weights += self._bytes(use.value, self._shape_of_weight(use, kept))
            else:
                activations += self._bytes(use.value, self._shape(use.value, kept))
        for value in made:
            if value in self._outputs or any(reader not in inside for reader, _ in value.uses()):
                activations += self._bytes(value, self._shape(value, kept))
        return weights + round(self._scale * activations)

    def _table(self, kept: Kept) -> dict[str, int]:
        """Return multiply-accumulates by node: those of the whole model, and of one cut, are remembered."""
        if kept is self._whole:
            return self._macs
        if self._last is None or self._last[0] is not kept:
            self._last = (kept, self._count(kept))
        return self._last[1]

    def _count(self, kept: Kept) -> dict[str, int]:
        counted = macs_by_node(self._graph, self._channels, kept)
        return {str(node.name): macs for node, macs in counted}

    def _shape(self, value: ir.Value, kept: Kept) -> tuple[int, ...] | None:
        return kept.shape(value) if value in self._channels.shapes.dims else None

    def _shape_of_weight(self, use: Use, kept: Kept) -> tuple[int, ...] | None:
        tensor = use.value.const_value
        masks = kept.masks(use)
        return kept.shape(use) if masks else None if tensor is None else tuple(tensor.shape.numpy())

    def _bytes(self, value: ir.Value, shape: tuple[int, ...] | None) -> int:
        if shape is None or value.dtype == ir.DataType.STRING:
            return 0
        return math.ceil(math.prod(shape) * (value.dtype or self._usual).itemsize)


def _usual_type(graph: ir.Graph) -> ir.DataType:
    """Return the type of most weights, which values have that declare none."""
    types = [value.dtype for value in graph.initializers.values() if value.dtype is not None]
    floats = Counter(dtype for dtype in types if dtype.is_floating_point())
    return floats.most_common(1)[0][0] if floats else ir.DataType.FLOAT


def layers_of(
    kernels: Sequence[KernelTime], analysis: Analysis, work: Work, smallest: Kept, machine: Machine | None
) -> tuple[Layer, ...]:
    """Return what was timed as layers, in the order in which they run.

    Args:
        kernels: from `onnxprune.runtime.kernels.time_kernels`, of ``analysis.model``.
        analysis: of the model.
        work: of its nodes.
        smallest: what is left once as much goes as may.
        machine: what it was measured to do.
    """
    if not kernels:
        return ()
    reasons = _reasons(analysis)
    return tuple(
        _layer(kernel, undisturbed(kernel.microseconds), work, smallest, machine, reasons)
        for kernel in kernels
    )


def undisturbed(times: Sequence[float] | FloatArray) -> float:
    """Return the lower quartile: what a run takes that nobody else on the machine disturbs."""
    return float(np.quantile(np.asarray(times, dtype=np.float64), 0.25))


def _layer(
    kernel: KernelTime,
    microseconds: float,
    work: Work,
    smallest: Kept,
    machine: Machine | None,
    reasons: Mapping[str, str],
) -> Layer:
    if not kernel.covers:
        limit: Limit | None = None if machine is None else "memory"
        return Layer(kernel.name, kernel.op_type, LAYOUT, microseconds, 0, 0, (), limit)
    name = work.heaviest(kernel.covers)
    macs, moved = work.macs(kernel.covers), work.moved_bytes(kernel.covers)
    part, why = _family(kernel.op_type), None
    if macs:
        shrinks = work.macs(kernel.covers, smallest) < macs
        part = SHRINKS if shrinks else STAYS
        why = None if shrinks else reasons.get(name, _NO_WEIGHT)
    limit, reached = _limit(microseconds, macs, moved, machine)
    return Layer(
        name, kernel.op_type, part, microseconds, macs, moved, kernel.covers, limit, reached, why
    )  # fmt: skip


_NO_WEIGHT = "it multiplies what is computed, and none of its sizes is a number of channels that may change"


def _family(op_type: str) -> str:
    return next((family for pattern, family in _FAMILIES if pattern.search(op_type)), ELEMENTWISE)


def _limit(
    microseconds: float, macs: int, moved_bytes: int, machine: Machine | None
) -> tuple[Limit | None, float | None]:
    """Return what limits a kernel: the longer of the times that the machine needs for its work at best."""
    if machine is None:
        return None, None
    computing = macs / machine.gmacs_per_second / 1e3
    moving = moved_bytes / machine.gbytes_per_second / 1e3
    reached = max(computing, moving) / max(microseconds, 1e-9)
    short = microseconds <= _SHORT_MICROSECONDS and reached <= _POOR
    if short or microseconds <= _CALLS * machine.call_microseconds:
        return "overhead", None
    return "compute" if computing >= moving else "memory", reached


def _reasons(analysis: Analysis) -> dict[str, str]:
    """Return why the channels of a node's weights stay, by its name."""
    found: dict[str, str] = {}
    for group in analysis.groups:
        if group.frozen is not None:
            for member in group.members:
                found.setdefault(member.consumer, group.frozen)
    return found


def left_of(
    layers: Sequence[Layer], work: Work, kept: Kept | None, gone: Set[str] = frozenset()
) -> Iterator[float]:
    """Yield the share of each layer's time that a cut leaves, at best.

    That is the share of what it computes, or else of what it moves; all of it where its time is overhead.
    """
    for layer in layers:
        if layer.nodes and all(name in gone for name in layer.nodes):
            yield 0.0
        elif kept is None or layer.limit == "overhead":
            yield 1.0
        elif layer.macs:
            yield work.macs(layer.nodes, kept) / layer.macs
        elif layer.moved_bytes:
            yield work.moved_bytes(layer.nodes, kept) / layer.moved_bytes
        else:
            yield 1.0


def amdahl(layers: Sequence[Layer], left: Iterable[float], wall_microseconds: float) -> float:
    """Return the share of the time that is left by Amdahl's law.

    G. M. Amdahl (1967): sum over layers of time * share of the work that is left, and all of what is no
    layer's, over the whole. It takes every kernel to be as efficient on less work as on all of it. Small ones
    are less so, and what is measured mostly lies above; where less work fits the caches it can lie below.

    Args:
        layers: with the time of each.
        left: share of the work of each that is left.
        wall_microseconds: of one run.
    """
    total = sum(layer.microseconds for layer in layers)
    kept = sum(layer.microseconds * min(share, 1.0) for layer, share in zip(layers, left, strict=True))
    wall = max(wall_microseconds, total)
    return (kept + wall - total) / max(wall, 1e-9)
