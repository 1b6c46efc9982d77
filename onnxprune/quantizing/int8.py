"""Int8 weights: which form is faster here, which steps bring its outputs closer, what stays in float."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from onnxprune.calibration.activations import feeds_by_batch
from onnxprune.data import Dataset
from onnxprune.errors import OnnxPruneError
from onnxprune.measure.latency import benchmark_each
from onnxprune.messages import one_line
from onnxprune.quantization.bias_correction import correct_biases
from onnxprune.quantization.channel_ranges import channel_ranges, inputs_of_layers
from onnxprune.quantization.equalize import equalize, find_joints
from onnxprune.quantization.forms import Feeds, in_dynamic, in_int8, store_in, with_stored_int8
from onnxprune.quantization.layer_effects import alone_in_int8, effects
from onnxprune.quantization.layers import Layer, is_product
from onnxprune.quantization.output_errors import OutputError
from onnxprune.quantization.search import (
    INTEGER,
    STORED,
    Assigned,
    Candidate,
    Trail,
    improve,
    meet_bound,
)
from onnxprune.quantization.stored_weights import LEAST_SIZE
from onnxprune.quantizing.judge import Judge
from onnxprune.runtime import Execution
from onnxprune.types import Skipped

#: How layers compute: as is fastest here; in integers, with ranges from data; matrix products in integers,
#: with ranges found in each run; or in float, with weights stored in 8 bits.
COMPUTING = ("auto", "integer", "dynamic", "float")

#: What the report calls each of them.
_TITLES = {
    "integer": "int8, ranges from data",
    "dynamic": "int8 products, ranges found in each run",
    "float": "weights stored in int8",
}

#: Of the time in float, what integers may take to be worth their error.
WORTH_IT = 0.97

_TIMED_PAIRS = 20


@dataclass(frozen=True, slots=True)
class Settings:
    """How int8 is made; see `onnxprune.quantize`."""

    calibration: str = "minmax"
    per_channel: bool = True
    computing: str = "auto"
    equalize: str = "auto"
    correct_bias: str = "auto"
    batch: int = 32
    threads: int = 1
    seed: int = 0


@dataclass(slots=True)
class Int8:
    """Makes int8 models of one float model, and chooses among them.

    Attributes:
        layers: that may become int8.
        data: to calibrate on.
        judge: of the models.
        settings: of the user.
        trail: what was tried.
        notes: what the report must say.
        times: time of one run beside that in float, by way, where it was measured.
        way: that layers compute: one of `COMPUTING`.
    """

    layers: Sequence[Layer]
    data: Dataset
    judge: Judge
    settings: Settings
    trail: Trail
    folder: Path
    notes: list[Skipped] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)
    way: str = "float"
    feeds: list[Feeds] = field(default_factory=list)
    _ranges: dict[int, Path] = field(default_factory=dict)
    _kept: list[ir.Model] = field(default_factory=list)

    def choose(self, work: ir.Model) -> tuple[str, Assigned]:
        """Return the way that layers compute, and the model that loses least that way, within the bound."""
        # what folding alone rounds otherwise is not for the layers to make good
        self.trail.bound = max(self.trail.bound, self.judge.lost(work)[1])
        taken = feeds_by_batch(work, self.data, batch=self.settings.batch)
        self.feeds = [feeds for _, feeds in taken]
        self.way, made = self._fastest(work)
        start = Candidate(work, made, self.judge(made))
        self.trail.note(_TITLES[self.way], start.judged, True)
        for name, wish, step in (
            ("equalized", self.settings.equalize, self._equalized),
            ("biases corrected", self.settings.correct_bias, self._corrected),
        ):
            if wish == "off" or (name == "equalized" and self.way == "float" and wish == "auto"):
                continue
            start = improve(start, name, step, self.make_all, self.trail, always=wish == "on")
        place = STORED if self.way == "float" else INTEGER
        found = meet_bound(start, self.layers, place, self.make, self._effects, self.trail)
        takes = {layer.name for layer in self.layers if self._takes(layer)}
        places = {
            name: STORED if where == INTEGER and name not in takes else where
            for name, where in found.places.items()
        }
        return self.way, replace(found, places=places)

    def _takes(self, layer: Layer) -> bool:
        """Return whether ONNX Runtime computes a layer in integers, the way that was chosen."""
        if self.way == "dynamic":
            return is_product(layer)
        return self.way == "integer" and layer.op_type != "ConvTranspose"

    def make_all(self, work: ir.Model) -> ir.Model:
        """Make a model of all layers, the way that was chosen."""
        return self.make(work, (), self.layers) if self.way == "float" else self.make(work, self.layers, ())

    def make(self, work: ir.Model, integer: Sequence[Layer], stored: Sequence[Layer]) -> ir.Model:
        """Make a model of layers in integers, where they can be, and of others that are stored in 8 bits."""
        names = [layer.name for layer in integer if self._takes(layer)]
        stored = [*stored, *(layer for layer in integer if not self._takes(layer))]
        per_channel = self.settings.per_channel
        if not names:
            return with_stored_int8(work, stored, per_channel=per_channel)
        if self.way == "dynamic":
            made = in_dynamic(work, names, per_channel=per_channel)
        else:
            made = in_int8(
                work, names, self.feeds, calibration=self.settings.calibration, per_channel=per_channel,
                ranges=self._ranges_of(work),
            )  # fmt: skip
        return store_in(made, work, stored, per_channel=per_channel)

    def _ranges_of(self, work: ir.Model) -> Path:
        """Return the file of the ranges of one float model: they are found once."""
        if id(work) not in self._ranges:
            self._kept.append(work)  # so that no other model gets its id
            self._ranges[id(work)] = self.folder / f"ranges-{len(self._kept)}.json"
        return self._ranges[id(work)]

    def _fastest(self, work: ir.Model) -> tuple[str, ir.Model]:
        """Return the way that is fastest here (or was asked for), and its model."""
        if self.settings.computing != "auto":
            self.way = self.settings.computing
            return self.way, self.make_all(work)
        made: dict[str, ir.Model] = {}
        for self.way in ("integer", "dynamic"):
            if not any(self._takes(layer) for layer in self.layers):
                continue
            try:
                made[self.way] = self.make_all(work)
                self.times[self.way] = self._time(work, made[self.way])
            except OnnxPruneError as error:
                self.notes.append(Skipped(_TITLES[self.way], f"not taken: {one_line(error)}"))
        fastest = min(self.times, key=lambda way: self.times[way], default=None)
        if fastest is not None and self.times[fastest] <= WORTH_IT:
            return fastest, made[fastest]
        self.way = "float"
        if fastest is not None:
            reason = (
                "all layers compute in float, their weights stored in 8 bits: in integers a run takes "
                f"{self.times[fastest]:.2f} of the time here; computing='integer' does it anyway"
            )
            self.notes.append(Skipped("integers", reason))
        return self.way, self.make_all(work)

    def _time(self, work: ir.Model, made: ir.Model) -> float:
        """Return the time of one run beside that in float, both in turns."""
        first = {name: array[:1] if len(array) else array for name, array in self.feeds[0].items()}
        try:
            return self._ratio(work, made, first)
        except OnnxPruneError:  # the model takes no batch of one
            return self._ratio(work, made, dict(self.feeds[0]))

    def _ratio(self, work: ir.Model, made: ir.Model, feeds: Feeds) -> float:
        (found,) = benchmark_each(
            work, [made], execution=Execution(threads=self.settings.threads), pairs=_TIMED_PAIRS, feeds=feeds,
            seed=self.settings.seed,
        )  # fmt: skip
        return 1.0 if found.ratio is None else found.ratio.value

    def _equalized(self, work: ir.Model) -> ir.Model | None:
        changed = work.clone()
        joints = find_joints(changed)
        if not joints:
            return None
        wanted = {joint.value: joint.axis for joint in joints}
        known = channel_ranges(
            changed, wanted, self.data, batch=self.settings.batch, threads=self.settings.threads
        )
        return changed if equalize(joints, known) else None

    def _corrected(self, work: ir.Model) -> ir.Model | None:
        changed = work.clone()
        rounded = [layer for layer in self.layers if self._takes(layer) or layer.size >= LEAST_SIZE]
        names = {layer.name for layer in rounded}
        wanted = inputs_of_layers([node for node in changed.graph if node.name in names])
        known = channel_ranges(
            changed, wanted, self.data, batch=self.settings.batch, threads=self.settings.threads
        )
        done = correct_biases(changed, rounded, known, per_channel=self.settings.per_channel)
        return changed if done else None

    def _effects(self, start: Candidate, place: str) -> Mapping[str, OutputError]:
        def alone(layer: Layer) -> ir.Model | None:
            if place == INTEGER and self.way == "integer" and self._takes(layer):
                return alone_in_int8(start.work, start.made, layer)
            return self.make(start.work, (), [layer])

        return effects(self.layers, alone, self.judge.outputs)


def int8(
    work: ir.Model, layers: Sequence[Layer], data: Dataset, judge: Judge, settings: Settings
) -> tuple[str, Assigned, Int8]:
    """Return the way that layers compute, the model and their places, and what was found on the way."""
    with tempfile.TemporaryDirectory(prefix="onnxprune-ranges-") as folder:
        trail = Trail(judge.bound, judge)
        maker = Int8(layers, data, judge, settings, trail, Path(folder))
        way, assigned = maker.choose(work)
    return way, assigned, maker


def stored_without_data(work: ir.Model, layers: Sequence[Layer], settings: Settings) -> ir.Model:
    """Return a model that computes in float with int8 weights, as they are without any data."""
    return with_stored_int8(work, layers, per_channel=settings.per_channel)
