"""The original and the pruned model side by side, layer by layer, over the same samples.

What both have computed so far is remembered between the layers as long as it fits into memory, so a walk
through a deep model computes every value about once, not once for each layer behind it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.calibration.activations import as_fed, inputs_of
from onnxprune.data import Dataset, fixed_batch
from onnxprune.errors import DataError
from onnxprune.model.nodes import reads_of
from onnxprune.runtime import open_session

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

#: One sample in so many is held out.
HELD_OUT_EVERY = 5


class Portion(NamedTuple):
    """Some samples that are run together.

    Attributes:
        samples: int64, their numbers in the data.
        held_out: they serve to check what the others led to.
    """

    samples: npt.NDArray[np.int64]
    held_out: bool


def portions_of(model: ir.Model, data: Dataset, batch: int, seed: int) -> tuple[Portion, ...]:
    """Divide data into batches, a fifth of which, drawn at random, is held out whatever the batch.

    A model with a fixed batch gets whole batches; what fills none is left out.

    Raises:
        DataError: the data does not fit the model, or is too little to hold any of it out.
    """
    inputs = inputs_of(model, data)
    data.check_against(inputs)
    fixed = fixed_batch(inputs)
    unit = fixed or 1
    units = len(data) // unit
    if units < 2:
        raise DataError(
            f"{data.source}: too few samples ({len(data)}) to repair with: some are held out to check the "
            f"repair, so it takes at least {2 * unit}, and a few hundred to be of use"
        )
    order = np.random.default_rng(seed).permutation(len(data))[: units * unit]
    held = max(1, round(units / HELD_OUT_EVERY)) * unit
    size = fixed or batch
    return tuple(
        Portion(np.sort(part[start : start + size]), is_held)
        for part, is_held in ((order[held:], False), (order[:held], True))
        for start in range(0, len(part), size)
    )


class Tap(NamedTuple):
    """A value that a run gives away, or its shape alone."""

    name: str
    what: Literal["Identity", "Shape"] = "Identity"


class Side:
    """One of the models, and what it has computed so far for every portion.

    Args:
        model: it in float32; it may change between runs, behind what is remembered.
        data: the samples.
        portions: of them.
        threads: of one operator.
        limit_bytes: of what is remembered.
    """

    def __init__(
        self, model: ir.Model, data: Dataset, portions: Sequence[Portion], *, threads: int, limit_bytes: int
    ) -> None:
        self.model = model
        self.data = data
        self.portions = portions
        self.threads = threads
        self.limit_bytes = limit_bytes
        self._known: list[dict[str, Array]] = [{} for _ in portions]

    def forget(self) -> None:
        """Let later runs begin at the inputs again."""
        self._known = [{} for _ in self.portions]

    def run(self, taps: Collection[Tap]) -> Iterator[dict[Tap, Array]]:
        """Yield tapped values of one portion after the other.

        Args:
            taps: what is asked for; values of the main graph.
        """
        return self._run(taps, (), range(len(self.portions)))

    def advance(self, taps: Collection[Tap], settled: Collection[str]) -> Iterator[dict[Tap, Array]]:
        """As `run`; and begin later runs at settled values, if these fit into memory.

        Args:
            taps: what is asked for.
            settled: names of values that will not change any more, and that all others are computed from.
        """
        return self._run(taps, settled, range(len(self.portions)))

    def run_on(self, taps: Collection[Tap], portions: Sequence[int]) -> Iterator[dict[Tap, Array]]:
        """As `run`, for some portions."""
        return self._run(taps, (), portions)

    def _run(
        self, taps: Collection[Tap], settled: Collection[str], portions: Sequence[int]
    ) -> Iterator[dict[Tap, Array]]:
        wanted = list(dict.fromkeys([*taps, *map(Tap, settled)]))
        known = self._known[portions[0]]
        names = {tap: f"tap_{number}" for number, tap in enumerate(wanted) if tap.name not in known}
        session = open_session(_part(self.model, names, known), threads=self.threads) if names else None
        keeps = bool(settled)
        for turn, number in enumerate(portions):
            found: dict[str, Array] = {}
            if session is not None:
                found = session.run({name: self._feed(number, name) for name in session.input_names})
            values = {
                tap: found[names[tap]] if tap in names else self._remembered(number, tap) for tap in wanted
            }
            if turn == 0 and keeps:
                size_bytes = sum(values[Tap(name)].nbytes for name in settled)
                samples = sum(len(portion.samples) for portion in self.portions)
                keeps = size_bytes * samples <= self.limit_bytes * len(self.portions[number].samples)
            if keeps:
                self._known[number] = {name: values[Tap(name)] for name in settled}
            yield {tap: values[tap] for tap in taps}

    def _feed(self, number: int, name: str) -> Array:
        known = self._known[number].get(name)
        return as_fed(self.data.arrays[name][self.portions[number].samples]) if known is None else known

    def _remembered(self, number: int, tap: Tap) -> Array:
        array = self._known[number][tap.name]
        return array if tap.what == "Identity" else np.array(array.shape)


def _part(model: ir.Model, taps: Mapping[Tap, str], known: Arrays) -> ir.Model:
    """Return what leads from known values to tapped ones, as a model.

    Nothing else is copied: on a graph of 566 small nodes, copies of it took a quarter of the time of a walk.
    """
    graph = model.graph
    values = {value.name: value for value in (*graph.inputs, *(o for node in graph for o in node.outputs))}
    needed, begun, stored = _leading(graph, [values[tap.name] for tap in taps], known)
    nodes = [node for node in graph if node in needed]
    view = ir.GraphView(
        begun, (), nodes=nodes, initializers=stored, opset_imports=dict(graph.opset_imports), name=graph.name
    )
    part = view.clone()
    copies = {value.name: value for value in (*part.inputs, *(o for node in part for o in node.outputs))}
    for value in begun:
        array = known.get(str(value.name))
        if array is not None:
            copy = copies[value.name]
            copy.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
            copy.shape = _shape(value, array)
    for tap, output in taps.items():
        node = ir.node(tap.what, [copies[tap.name]])
        node.outputs[0].name = output
        node.outputs[0].type = (
            ir.TensorType(ir.DataType.INT64) if tap.what == "Shape" else copies[tap.name].type
        )
        part.append(node)
        part.outputs.append(node.outputs[0])
    functions = [function.clone() for function in model.functions.values()]
    return ir.Model(part, ir_version=model.ir_version, functions=functions)


def _leading(
    graph: ir.Graph, wanted: Sequence[ir.Value], known: Arrays
) -> tuple[set[ir.Node], list[ir.Value], list[ir.Value]]:
    """Return the nodes that lead to some values, the values they begin at, and the stored ones they read.

    A known value is computed again where its node is needed for another of its outputs.
    """
    needed: set[ir.Node] = set()
    seen: dict[ir.Value, None] = {}
    waiting = list(wanted)
    while waiting:
        value = waiting.pop()
        producer = value.producer()
        if value in seen:
            continue
        seen[value] = None
        if producer is not None and value.name not in known and producer not in needed:
            needed.add(producer)
            waiting += reads_of(producer)
    inputs = [value for value in graph.inputs if value in seen]  # before IR 4, stored values are among them
    computed = [value for value in seen if (made := value.producer()) is not None and made not in needed]
    return needed, [*inputs, *computed], [value for value in seen if value.is_initializer()]


def _shape(value: ir.Value, array: Array) -> ir.Shape:
    """Return what is known of a shape: sizes that are declared in numbers, and agree."""
    declared = list(value.shape) if value.shape is not None else []
    if len(declared) != array.ndim:
        return ir.Shape([None] * array.ndim)
    return ir.Shape(
        [
            size if axis and isinstance(size, int) and size == array.shape[axis] else None
            for axis, size in enumerate(declared)
        ]
    )


def settled_values(graph: ir.Graph, changing: Collection[str]) -> list[str] | None:
    """Return the values to remember while some nodes still change.

    These are all that depend on none of them, and are read by a node that does, or are outputs.

    Args:
        graph: a main graph.
        changing: names of nodes.

    Returns:
        Their names; None where one of them is no tensor.
    """
    moving: set[ir.Value] = set()
    read: dict[ir.Value, None] = {}
    for node in graph:
        values = reads_of(node)
        if node.name in changing or any(value in moving for value in values):
            moving.update(node.outputs)
            read.update(dict.fromkeys(values))
    read.update(dict.fromkeys(graph.outputs))
    settled = [value for value in read if value not in moving and value.producer() is not None]
    if not all(value.type is None or isinstance(value.type, ir.TensorType) for value in settled):
        return None
    return [str(value.name) for value in settled]
