"""Copies of a model that give inner values away, and what a run of it takes in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxprune.calibration.part import Tap
from onnxprune.calibration.relay import relay
from onnxprune.calibration.stretches import Stretch, is_tensor
from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.messages import quoted
from onnxprune.model.names import Names
from onnxprune.runtime import Session, open_session

#: Of what passes between stretches while sizes are taken, on one or two samples.
_SPILL_BYTES = 1 << 26


def open_taps(
    model: ir.Model, names: Sequence[str], threads: int, op_type: str = "Identity"
) -> tuple[Session, dict[str, str]]:
    """Open a copy whose only outputs are those of a new node for each value; return these by value too.

    The copy keeps what it needs for that alone. Large arrays go back to the system after each run: a limit on
    memory is worth nothing where ONNX Runtime keeps what it had once.

    Raises:
        UsageError: a name is not in the graph.
        RuntimeFailure: ONNX Runtime refused the copy.
    """
    copy = model.clone()
    values = main_values(copy.graph)
    fresh = Names(copy.graph)
    outputs: dict[str, str] = {}
    copy.graph.outputs.clear()
    # the last ones first: ONNX Runtime begins with the ends of a graph that were added last
    for name in dict.fromkeys(reversed(names)):
        if name not in values:
            raise UsageError(f"the graph has no value {quoted(name)}")
        node = ir.node(op_type, [values[name]])
        node.outputs[0].name = outputs[name] = fresh.fresh(f"tap_{len(outputs)}")
        node.outputs[0].type = ir.TensorType(ir.DataType.INT64) if op_type == "Shape" else values[name].type
        copy.graph.append(node)
        copy.graph.outputs.append(node.outputs[0])
    passes.RemoveUnusedNodesPass()(copy)
    return open_session(copy, threads=threads, arena=False), outputs


def main_values(graph: ir.Graph) -> Mapping[str, ir.Value]:
    """Return what can be tapped, by name: inputs, and all that nodes of the main graph compute."""
    computed = [*graph.inputs, *(output for node in graph for output in node.outputs)]
    return {value.name: value for value in computed if value.name}


class Footprint:
    """Bytes of the values of a model in a run of any number of samples, from runs of one and of two.

    Args:
        model: in float32.
        names: values whose sizes are asked for; the others count as far as they are known to be tensors.
        feeds: from a number of samples to the inputs of a run.
        most: the most samples of a run; the only number that the model takes, where ``fixed``.
        fixed: whether it takes no other.
        threads: of one operator.
        cut: the stretches that the model is run in.

    Raises:
        UsageError: a name is not in the graph.
        RuntimeFailure: ONNX Runtime can't run the model.
    """

    def __init__(
        self,
        model: ir.Model,
        names: Sequence[str],
        feeds: Callable[[int], Mapping[str, npt.NDArray[Any]]],
        most: int,
        fixed: bool,
        threads: int,
        cut: Sequence[Stretch] = (),
    ) -> None:
        self._graph = model.graph
        values = main_values(model.graph)
        for name in names:
            if name not in values:
                raise UsageError(f"the graph has no value {quoted(name)}")
        needed = set(names)
        # in order of the graph, or early values would be kept until late ones are there (see `open_taps`)
        wanted = [name for name, value in values.items() if name in needed or is_tensor(value)]
        self._counts = (most,) if fixed or most == 1 else (1, 2)
        if len(cut) > 1:
            sizes = _sizes_in_stretches(model, needed, cut, [feeds(count) for count in self._counts], threads)
        else:
            sizes = _sizes(model, wanted, needed, [feeds(count) for count in self._counts], threads)
        self._bytes: dict[str, list[int]] = sizes

    def of(self, names: Sequence[str], count: int) -> int:
        """Return the bytes of some values together in a run of ``count`` samples."""
        return sum(self._one(name, count) for name in set(names))

    def alive(self, count: int) -> int:
        """Return the most bytes that values take at once, each from its node until its last reader.

        ONNX Runtime may take the nodes in another order; weights are not counted.
        """
        place = {node: number for number, node in enumerate(self._graph)}
        freed: dict[int, int] = {}
        now = peak = 0
        for node, number in place.items():
            for value in node.outputs:
                if value.name not in self._bytes:
                    continue
                size = self._one(str(value.name), count)
                readers = [place.get(reader, len(place)) for reader, _ in value.uses()]
                last = len(place) if value.is_graph_output() else max(readers, default=number)
                now += size
                freed[last] = freed.get(last, 0) + size
            peak = max(peak, now)
            now -= freed.get(number, 0)
        return peak

    def _one(self, name: str, count: int) -> int:
        sizes = self._bytes[name]
        if len(sizes) == 1:
            return sizes[0]
        return max(0, sizes[0] + (count - 1) * (sizes[1] - sizes[0]))


def _sizes(
    model: ir.Model,
    names: Sequence[str],
    needed: set[str],
    feeds: Sequence[Mapping[str, npt.NDArray[Any]]],
    threads: int,
) -> dict[str, list[int]]:
    """Return the bytes of values in each of some runs."""
    session, outputs = open_taps(model, names, threads, "Shape")
    itemsizes = _itemsizes(model, names, needed, threads)
    runs = [session.run(given) for given in feeds]
    return {
        name: [math.prod(run[outputs[name]].tolist()) * itemsizes[name] for run in runs] for name in names
    }


def _sizes_in_stretches(
    model: ir.Model,
    needed: set[str],
    cut: Sequence[Stretch],
    feeds: Sequence[Mapping[str, npt.NDArray[Any]]],
    threads: int,
) -> dict[str, list[int]]:
    """As `_sizes`, for all that stretches compute; types that the graph leaves open count as float32."""
    values = main_values(model.graph)
    inputs = {str(value.name) for value in model.graph.inputs}
    sizes = {name: [given[name].nbytes for given in feeds] for name in inputs & feeds[0].keys()}
    stored = sorted(needed.difference(inputs, *(stretch.made for stretch in cut)))
    shares = [[[Tap(name, "Shape") for name in (*stretch.made, *stored)]] for stretch in cut[:1]]
    shares += [[[Tap(name, "Shape") for name in stretch.made]] for stretch in cut[1:]]
    for turn in relay(
        model,
        cut,
        shares,
        feeds.__getitem__,
        len(feeds),
        spill_bytes=_SPILL_BYTES,
        threads=threads,
        form="hollow",
    ):
        if isinstance(turn.found, RuntimeFailure):
            raise turn.found
        for tap, shape in turn.found.items():
            dtype = values[tap.name].dtype
            itemsize = 4 if dtype is None else np.dtype(dtype.numpy()).itemsize
            sizes.setdefault(tap.name, []).append(math.prod(shape.tolist()) * itemsize)
    return sizes


def _itemsizes(model: ir.Model, names: Sequence[str], needed: set[str], threads: int) -> dict[str, int]:
    """Return the bytes of one element of each value.

    Types that the graph leaves open are those of ONNX Runtime where they are needed, else of float32.
    """
    values = main_values(model.graph)
    types = {name: None if (dtype := values[name].dtype) is None else dtype.numpy() for name in names}
    unknown = [name for name, dtype in types.items() if dtype is None and name in needed]
    if unknown:
        session, outputs = open_taps(model, unknown, threads)
        types.update({name: session.outputs[outputs[name]].dtype for name in unknown})
    return {name: np.dtype(dtype or np.float32).itemsize for name, dtype in types.items()}
