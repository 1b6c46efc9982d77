"""Int8 weights: which form is faster here, which steps bring its outputs closer, what stays in float."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from onnxprune.calibration.activations import feeds_by_batch
from onnxprune.data import Dataset
from onnxprune.errors import OnnxPruneError, RuntimeFailure
from onnxprune.measure.latency import benchmark_each
from onnxprune.messages import one_line
from onnxprune.quantization.bias_correction import correct_biases
from onnxprune.quantization.channel_ranges import channel_ranges, inputs_of_layers
from onnxprune.quantization.equalize import equalize, find_joints
from onnxprune.quantization.forms import Feeds, in_int8, store_in, with_stored_int8
from onnxprune.quantization.layer_effects import alone_in_int8, effects
from onnxprune.quantization.layers import Layer
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
from onnxprune.quantizing_judge import Judge
from onnxprune.runtime import Execution
from onnxprune.types import Skipped

#: How layers compute: as is faster here, in integers, or in float with weights stored in 8 bits.
COMPUTING = ("auto", "integer", "float")

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
        times: time of one run beside that in float, by form, where it was measured.
    """

    layers: Sequence[Layer]
    data: Dataset
    judge: Judge
    settings: Settings
    trail: Trail
    folder: Path
    notes: list[Skipped] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)
    feeds: list[Feeds] = field(default_factory=list)
    _ranges: dict[int, Path] = field(default_factory=dict)
    _kept: list[ir.Model] = field(default_factory=list)

    def choose(self, work: ir.Model) -> tuple[str, Assigned]:
        """Return `INTEGER` or `STORED`, and the model of that kind that loses least, within the bound."""
        # what folding alone rounds otherwise is not for the layers to make good
        self.trail.bound = max(self.trail.bound, self.judge.lost(work)[1])
        taken = feeds_by_batch(work, self.data, batch=self.settings.batch)
        self.feeds = [feeds for _, feeds in taken]
        place, made = self._fastest(work)
        start = Candidate(work, made, self.judge(made))
        how = "int8, ranges from data" if place == INTEGER else "weights stored in int8"
        self.trail.note(how, start.judged, True)
        for name, wish, step in (
            ("equalized", self.settings.equalize, self._equalized),
            ("biases corrected", self.settings.correct_bias, lambda work: self._corrected(work, place)),
        ):
            if wish == "off" or (name == "equalized" and place == STORED and wish == "auto"):
                continue
            start = improve(
                start, name, step, lambda float_model: self.make_all(float_model, place), self.trail,
                always=wish == "on",
            )  # fmt: skip
        return place, meet_bound(start, self.layers, place, self.make, self._effects, self.trail)

    def make_all(self, work: ir.Model, place: str) -> ir.Model:
        """Make a model of all layers in one place."""
        return self.make(work, self.layers, ()) if place == INTEGER else self.make(work, (), self.layers)

    def make(self, work: ir.Model, integer: Sequence[Layer], stored: Sequence[Layer]) -> ir.Model:
        """Make a model of layers in integers, and of others that are stored in 8 bits."""
        if not integer:
            return with_stored_int8(work, stored, per_channel=self.settings.per_channel)
        made = in_int8(
            work,
            [layer.name for layer in integer],
            self.feeds,
            calibration=self.settings.calibration,
            per_channel=self.settings.per_channel,
            ranges=self._ranges_of(work),
        )
        return store_in(made, work, stored, per_channel=self.settings.per_channel)

    def _ranges_of(self, work: ir.Model) -> Path:
        """Return the file of the ranges of one float model: they are found once."""
        if id(work) not in self._ranges:
            self._kept.append(work)  # so that no other model gets its id
            self._ranges[id(work)] = self.folder / f"ranges-{len(self._kept)}.json"
        return self._ranges[id(work)]

    def _fastest(self, work: ir.Model) -> tuple[str, ir.Model]:
        """Return the place that is faster here, and its model."""
        if self.settings.computing == "float":
            return STORED, self.make_all(work, STORED)
        try:
            integer = self.make_all(work, INTEGER)
            if self.settings.computing == "integer":
                return INTEGER, integer
            ratio = self._time(work, integer)
        except RuntimeFailure as error:
            if self.settings.computing == "integer":
                raise
            self.notes.append(Skipped("integers", f"all layers compute in float: {one_line(error)}"))
            return STORED, self.make_all(work, STORED)
        self.times["int8"] = ratio
        if ratio <= WORTH_IT:
            return INTEGER, integer
        reason = (
            f"all layers compute in float, their weights stored in 8 bits: in integers a run takes "
            f"{ratio:.2f} of the time here; computing='integer' does it anyway"
        )
        self.notes.append(Skipped("integers", reason))
        return STORED, self.make_all(work, STORED)

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

    def _corrected(self, work: ir.Model, place: str) -> ir.Model | None:
        changed = work.clone()
        rounded = [layer for layer in self.layers if place == INTEGER or layer.size >= LEAST_SIZE]
        names = {layer.name for layer in rounded}
        wanted = inputs_of_layers([node for node in changed.graph if node.name in names])
        known = channel_ranges(
            changed, wanted, self.data, batch=self.settings.batch, threads=self.settings.threads
        )
        done = correct_biases(changed, rounded, known, per_channel=self.settings.per_channel)
        return changed if done else None

    def _effects(self, start: Candidate, place: str) -> Mapping[str, OutputError]:
        def alone(layer: Layer) -> ir.Model | None:
            if place == INTEGER:
                return alone_in_int8(start.work, start.made, layer)
            return self.make(start.work, (), [layer])

        return effects(self.layers, alone, self.judge.outputs)


def int8(
    work: ir.Model, layers: Sequence[Layer], data: Dataset, judge: Judge, settings: Settings
) -> tuple[str, Assigned, Int8]:
    """Return where layers compute, the model and their places, and what was found on the way."""
    with tempfile.TemporaryDirectory(prefix="onnxprune-ranges-") as folder:
        trail = Trail(judge.bound, judge)
        maker = Int8(layers, data, judge, settings, trail, Path(folder))
        place, assigned = maker.choose(work)
    return place, assigned, maker


def stored_without_data(work: ir.Model, layers: Sequence[Layer], settings: Settings) -> ir.Model:
    """Return a model that computes in float with int8 weights, as they are without any data."""
    return with_stored_int8(work, layers, per_channel=settings.per_channel)
