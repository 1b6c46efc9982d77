"""Times of the parts of a model at any channel counts, measured once for each and kept on disk."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.analyze import Analysis
from onnxprune.errors import RuntimeFailure
from onnxprune.feeds import random_feeds
from onnxprune.machine import graphics, processor
from onnxprune.measure.borders import Borders, add_borders, images
from onnxprune.measure.part_times import PartTime, observe_values, runs_on_cpu, time_part
from onnxprune.messages import one_line
from onnxprune.ops.channels import Use
from onnxprune.ops.kept import Kept
from onnxprune.parts import Part
from onnxprune.result_cache import ResultCache
from onnxprune.rewrite.part import cut_part
from onnxprune.rewrite.signature import Signer
from onnxprune.runtime import VERSION, Execution
from onnxprune.types import BoolArray, IntArray

#: Counts how often the way of timing has changed: figures of another way are not compared with these.
_METHOD = 1

#: Random numbers that are drawn for an input; a larger one repeats them.
_DRAWN = 1 << 16

#: What an entry of the cache holds.
FIELDS = ("milliseconds",)


class PartTimer:
    """Times the parts of an analysed model.

    Where only numbers of channels are given, the channels that go are spread evenly over their group.

    Args:
        analysis: of the model.
        parts: of ``analysis.model.graph``.
        execution: where and how it will run.
        cache: of `FIELDS`, shared with other models and processes; None keeps figures in memory alone.
        feeds: one array for each input of the model, of the sizes of the analysis; random ones if None.
        seed: of random contents.

    Raises:
        RuntimeFailure: the model as a whole can't be opened or run.

    Attributes:
        measured: how many times were measured, rather than found.
        seconds: how long that took.
    """

    def __init__(
        self,
        analysis: Analysis,
        parts: Sequence[Part],
        execution: Execution,
        cache: ResultCache | None,
        *,
        feeds: Mapping[str, npt.NDArray[Any]] | None = None,
        seed: int = 0,
    ) -> None:
        self.measured = 0
        self.seconds = 0.0
        self._analysis = analysis
        self._execution = execution
        self._cache = cache
        self._seed = seed
        self._setting = _setting(execution)
        self._groups = {group.name: group for group in analysis.groups if group.frozen is None}
        borders = dict.fromkeys(
            str(value.name) for part in parts for value in (*part.inputs, *part.outputs) if part.whole is None
        )
        if feeds is None:
            feeds = random_feeds(analysis.model, analysis.shapes.input_shapes, seed)
        self._types, self._contents = observe_values(analysis.model, borders, feeds)
        self._images = self._find_images()
        owner = self._owners()
        self._groups_of = {part: self._find_groups(part, owner) for part in parts}
        self._signers: dict[Part, Signer] = {}
        self._signatures: dict[tuple[Part, tuple[int, ...]], str] = {}
        self._times: dict[str, float] = {}
        self._failures: dict[str, str] = {}

    # --- parts ----------------------------------------------------------------------------------------------

    def groups_of(self, part: Part) -> tuple[str, ...]:
        """Return the names of the groups that may lose channels and change a part's sizes."""
        return self._groups_of[part]

    def obstacle(self, part: Part) -> str | None:
        """Return why a part can't be timed as it is, None if it can be, which it then has been."""
        try:
            self.time_ms(part, {})
        except RuntimeFailure as failure:
            return str(failure)
        return None

    def describe(self, part: Part, kept: Mapping[str, int]) -> str:
        """Return a short line: the operator that leads a part, its weight, and its sizes before and after.

        Args:
            part: of the model.
            kept: channels that stay by group name; others stay whole.
        """
        removed = self._removed(part, kept)
        left = Kept(self._analysis.channels, removed)
        lead = next((node for node in part.nodes if node.name == part.name), part.nodes[0])
        for index, value in enumerate(lead.inputs):
            if value is not None and value.is_initializer() and value.const_value is not None:
                use = Use(lead, index)
                if self._analysis.shapes.shape(value) is not None:
                    before, after = self._analysis.channels.shape(use), left.shape(use)
                    return f"{lead.op_type} {one_line(value.name, 60)} {_sizes(before, after)}"
        (value, *_) = lead.outputs
        shape = self._analysis.shapes.shape(value)
        sizes = "" if shape is None else f" {_sizes(shape, left.shape(value))}"
        return f"{lead.op_type} {one_line(lead.name, 60)}{sizes}"

    # --- times ----------------------------------------------------------------------------------------------

    def signature(self, part: Part, kept: Mapping[str, int]) -> str:
        """Return what is equal for parts, of other models too, that differ in the contents of weights alone.

        Args:
            part: of the model.
            kept: channels that stay by group name; others stay whole.
        """
        groups = self._groups_of[part]
        key = (part, tuple(kept.get(name, self._groups[name].size) for name in groups))
        if key not in self._signatures:
            if part not in self._signers:
                self._signers[part] = Signer(
                    part,
                    self._analysis.channels,
                    types=self._types,
                    contents=self._contents,
                    marked=self._bordered(part),
                )
            self._signatures[key] = self._signers[part].sign(self._removed(part, kept))
        return self._signatures[key]

    def time_ms(self, part: Part, kept: Mapping[str, int]) -> float:
        """Return what a part takes within the model, in milliseconds; measured once for each signature.

        It is never below half a microsecond for a kernel; see `onnxprune.measure.part_times` for its noise.

        Args:
            part: of the model.
            kept: channels that stay by group name; others stay whole.

        Raises:
            RuntimeFailure: the part can't be cut out, opened or run; one line says why.
            OutputError: the figure can't be written to the cache.
        """
        if part.whole is not None:
            raise RuntimeFailure(part.whole)
        signature = self.signature(part, kept)
        if signature in self._failures:
            raise RuntimeFailure(self._failures[signature])
        if signature not in self._times:
            found = self._look_up(signature)
            self._times[signature] = self._measure(part, kept, signature) if found is None else found
        return self._times[signature]

    def knows(self, part: Part, kept: Mapping[str, int]) -> bool:
        """Tell whether `time_ms` would not have to measure."""
        signature = self.signature(part, kept)
        if signature not in self._times and (found := self._look_up(signature)) is not None:
            self._times[signature] = found
        return signature in self._times or signature in self._failures

    def time_alone(self, part: Part, kept: Mapping[str, int]) -> PartTime:
        """Measure what a part takes; nothing is remembered.

        Raises:
            RuntimeFailure: as `time_ms`.
        """
        try:
            model, borders, feeds = self._cut_out(part, kept)
            return time_part(model, feeds, self._execution, borders)
        except (RuntimeFailure, ValueError) as failure:  # ValueError: it can't be cut out
            raise RuntimeFailure(f"{part.name} can't be timed alone: {one_line(failure)}") from None

    def put(self, part: Part, kept: Mapping[str, int], timed: PartTime) -> None:
        """Remember what another machine like this one measured.

        Raises:
            OutputError: the figure can't be written to the cache.
        """
        signature = self.signature(part, kept)
        self.measured += 1
        self._times[signature] = timed.milliseconds
        self._store(part, kept, signature, timed)

    def again(self, part: Part, kept: Mapping[str, int]) -> float:
        """Measure once more what `time_ms` returned, and return the better figure, from now on for both.

        Bursts of one moment share what else the machine did at that moment; those of two moments don't.

        Args:
            part: of the model.
            kept: channels that stay by group name; others stay whole.

        Raises:
            RuntimeFailure, OutputError: as `time_ms`.
        """
        best = self.time_ms(part, kept)
        signature = self.signature(part, kept)
        self._times[signature] = min(best, self._measure(part, kept, signature, best))
        return self._times[signature]

    def _look_up(self, signature: str) -> float | None:
        found = None if self._cache is None else self._cache.find(self._key(signature))
        figure = None if found is None else found["milliseconds"]
        return figure if isinstance(figure, float) and figure > 0 else None

    def _measure(
        self, part: Part, kept: Mapping[str, int], signature: str, before: float = math.inf
    ) -> float:
        """Time a part; store the figure, unless its bursts disagree or there was a better one ``before``."""
        start = time.perf_counter()
        try:
            timed = self.time_alone(part, kept)
        except RuntimeFailure as failure:
            self._failures[signature] = str(failure)
            raise
        self.measured += 1
        self.seconds += time.perf_counter() - start
        if timed.milliseconds < before:
            self._store(part, kept, signature, timed)
        return timed.milliseconds

    def _store(self, part: Part, kept: Mapping[str, int], signature: str, timed: PartTime) -> None:
        if self._cache is not None and timed.agreed:
            about = {
                "part": self.describe(part, kept),
                "spread": round(timed.spread, 4),
                "bursts": timed.bursts,
                "execution": self._execution.key,
                "onnxruntime": VERSION,
            }
            self._cache.store(self._key(signature), {"milliseconds": timed.milliseconds}, about)

    def _key(self, signature: str) -> str:
        return hashlib.sha256(f"{self._setting}\n{signature}".encode()).hexdigest()

    # --- cutting --------------------------------------------------------------------------------------------

    def _cut_out(
        self, part: Part, kept: Mapping[str, int]
    ) -> tuple[ir.Model, Borders, dict[str, npt.NDArray[Any]]]:
        """Return a part as a model with borders, these, and what to feed it."""
        channels = self._analysis.channels
        removed = self._removed(part, kept)
        model = cut_part(part, channels, removed, types=self._types)
        left = Kept(channels, removed)
        shapes = {str(value.name): left.shape(value) for value in (*part.inputs, *part.outputs)}
        borders = add_borders(model, self._bordered(part), shapes)
        shapes.update({name: (shapes[name][0], 1, *shapes[name][2:]) for name in borders.inputs})
        feeds = {str(value.name): self._feed(value, shapes[str(value.name)], left) for value in part.inputs}
        return model, borders, feeds

    def _feed(self, value: ir.Value, shape: tuple[int, ...], left: Kept) -> npt.NDArray[Any]:
        """Return an array for an input of a part: what it is in the model, or random floats."""
        name = str(value.name)
        dtype = self._types[name]
        if name in self._contents and not dtype.is_floating_point():
            array = self._contents[name]
            for axis, mask in left.masks(value).items():
                array = np.compress(mask, array, axis=axis)
            return array
        generator = np.random.default_rng(self._seed)
        drawn = generator.standard_normal(min(math.prod(shape), _DRAWN), np.float32)
        return np.resize(drawn, shape).astype(dtype.numpy())

    def _removed(self, part: Part, kept: Mapping[str, int]) -> BoolArray:
        """Return bool ``[labels.count]``, True for each label that goes from the groups of a part."""
        removed = {}
        for name in self._groups_of[part]:
            size = self._groups[name].size
            gone = size - kept.get(name, size)
            if gone:
                removed[name] = ((np.arange(gone) + 0.5) * (size / gone)).astype(np.int32)
        return self._analysis.removed_labels(removed)

    def _find_groups(self, part: Part, owner: IntArray) -> tuple[str, ...]:
        """Return the groups whose labels are anywhere in a part, in the order of the model."""
        blocks = self._analysis.channels.blocks
        found: set[int] = set()
        refs: list[ir.Value | Use] = [*part.inputs]
        for node in part.nodes:
            refs += node.outputs
            refs += [Use(node, index) for index, value in enumerate(node.inputs) if value is not None]
        seen = set()
        for ref in refs:
            for block in blocks.get(ref, ()):
                if id(block.labels) not in seen:
                    seen.add(id(block.labels))
                    found.update(np.unique(owner[block.labels]).tolist())
        return tuple(name for number, name in enumerate(self._groups) if number in found)

    def _owners(self) -> IntArray:
        """Return the number of the group of each label, -1 for none."""
        owner = np.full(self._analysis.channels.labels.count, -1, dtype=np.int32)
        for number, name in enumerate(self._groups):
            owner[self._analysis.units[name]] = number
        return owner

    def _bordered(self, part: Part) -> frozenset[str]:
        """Return the names of those ends of a part that are images in blocks of channels."""
        if not runs_on_cpu(self._execution):
            return frozenset()
        return frozenset(
            str(value.name)
            for value in (*part.inputs, *part.outputs)
            if value in self._images and self._types.get(str(value.name)) == ir.DataType.FLOAT
        )

    def _find_images(self) -> frozenset[ir.Value]:
        shapes = self._analysis.shapes
        known = {value: shapes.shape(value) or () for value in shapes.dims}
        return images(self._analysis.model.graph, known)


def _setting(execution: Execution) -> str:
    """Return all but the part itself that decides about its time."""
    device = "" if runs_on_cpu(execution) else graphics()
    return "\n".join([f"method {_METHOD}", processor(), device, f"onnxruntime {VERSION}", execution.key])


def _sizes(before: tuple[int, ...], after: tuple[int, ...]) -> str:
    """Return ``64x3x7x7``, or ``64x3x7x7 -> 48x3x7x7``."""
    texts = ["x".join(map(str, sizes)) for sizes in (before, after)]
    return texts[0] if before == after else " -> ".join(texts)
