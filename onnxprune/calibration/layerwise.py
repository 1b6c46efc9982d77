"""The original and the pruned model side by side, layer by layer, over the same samples.

What both have computed so far is remembered between the layers as long as it fits into memory, so a walk
through a deep model computes every value about once, not once for each layer behind it. Of a large model,
which takes long to run and much memory if more than a layer of it is open, the rest is remembered on disk.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.calibration import stretches
from onnxprune.calibration.activations import as_fed, inputs_of
from onnxprune.calibration.part import Tap, part_of
from onnxprune.calibration.stretches import stored_bytes
from onnxprune.data import Dataset, fixed_batch
from onnxprune.errors import DataError
from onnxprune.model.nodes import reads_of
from onnxprune.runtime import open_session
from onnxprune.spill import Spill, Spilled

__all__ = ["Portion", "Side", "Tap", "portions_of", "settled_values"]

Array = npt.NDArray[Any]

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


class Side:
    """One of the models, and what it has computed so far for every portion.

    Args:
        model: it in float32; it may change between runs, behind what is remembered.
        data: the samples.
        portions: of them.
        threads: of one operator.
        limit_bytes: of what is remembered in memory.
    """

    def __init__(
        self, model: ir.Model, data: Dataset, portions: Sequence[Portion], *, threads: int, limit_bytes: int
    ) -> None:
        self.model = model
        self.data = data
        self.portions = portions
        self.threads = threads
        self.limit_bytes = limit_bytes
        self._spills = stored_bytes(model) > stretches.WHOLE_BYTES
        self._spill = Spill(limit_bytes if self._spills else 1 << 62)
        self._known: list[dict[str, Spilled]] = [{} for _ in portions]

    def forget(self) -> None:
        """Let later runs begin at the inputs again."""
        for number in range(len(self._known)):
            self._remember(number, {})

    def _remember(self, number: int, values: Mapping[str, Array]) -> None:
        before = self._known[number]
        for name in before.keys() - values.keys():
            before[name].drop()
        self._known[number] = {
            name: before[name] if name in before else self._spill.put(array) for name, array in values.items()
        }

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
        types = {name: np.empty(each.shape, each.dtype) for name, each in known.items()}
        session = open_session(part_of(self.model, names, types), threads=self.threads) if names else None
        keeps = bool(settled)
        for turn, number in enumerate(portions):
            found: dict[str, Array] = {}
            if session is not None:
                found = session.run({name: self._feed(number, name) for name in session.input_names})
            values = {
                tap: found[names[tap]] if tap in names else self._remembered(number, tap) for tap in wanted
            }
            if turn == 0 and keeps and not self._spills:
                size_bytes = sum(values[Tap(name)].nbytes for name in settled)
                samples = sum(len(portion.samples) for portion in self.portions)
                keeps = size_bytes * samples <= self.limit_bytes * len(self.portions[number].samples)
            if keeps:
                self._remember(number, {name: values[Tap(name)] for name in settled})
            yield {tap: values[tap] for tap in taps}

    def _feed(self, number: int, name: str) -> Array:
        known = self._known[number].get(name)
        if known is not None:
            return known.array()
        return as_fed(self.data.arrays[name][self.portions[number].samples])

    def _remembered(self, number: int, tap: Tap) -> Array:
        known = self._known[number][tap.name]
        return known.array() if tap.what == "Identity" else np.array(known.shape)


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
