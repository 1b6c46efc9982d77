"""Repair of a pruned model, layer by layer in order of the graph, from unlabelled samples.

Each layer is solved on what the pruned network, repaired up to there, really gives it; so the errors of the
layers before it are corrected rather than passed on. What does not help on samples that were held out is not
done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.activations import BATCH, LIMIT_BYTES
from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.layerwise import Portion, Side, Tap, portions_of, settled_values
from onnxprune.model.float32 import in_float32
from onnxprune.ops.linear import Linear, find_linear
from onnxprune.ops.weights import other_readers
from onnxprune.recover.cross_moments import CrossMoments
from onnxprune.recover.divergence import divergence
from onnxprune.recover.solve import ROUNDING, Solution, match, reconstruct, shift
from onnxprune.recover.targets import Target, find_targets, gains, values_ahead
from onnxprune.recover.write import Writer
from onnxprune.types import BoolArray, FloatArray, Mask

Array = npt.NDArray[Any]
#: The methods, from the cheapest to the best.
METHODS = ("bias", "statistics", "reconstruct")
Kept = Callable[[str], Mapping[int, BoolArray]]

#: Rows that a layer is solved on: this many, or this many for each of its inputs if that is more.
ROWS = 1 << 15
ROWS_PER_INPUT = 16

#: Bytes of the rows that are unfolded at a time.
_CHUNK_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class RepairedLayer:
    """What became of one layer.

    Attributes:
        name: of its node.
        tensor: of its weight.
        before: energy of what its result lacks on the samples held out, relative to that of the target;
            None where it was not measured.
        after: the same with the repair.
        ridge: that was chosen, None where none was needed.
        outcome: "repaired", or why the layer was left as it was.
    """

    name: str
    tensor: str
    before: float | None
    after: float | None
    ridge: float | None
    outcome: str

    @property
    def repaired(self) -> bool:
        """True if the layer was changed."""
        return self.outcome == _DONE


@dataclass(frozen=True, slots=True)
class Repaired:
    """A repaired model.

    Attributes:
        model: a copy of the pruned one, repaired; unchanged if the repair did not help.
        layers: what became of each layer, in the order of their repair.
        before: divergence of the outputs from the original's on the samples held out; None where the outputs
            can't be compared.
        after: the same for ``model``.
        held_out: how many samples that were.
        outcome: "repaired", or why the whole was left as it was.
    """

    model: ir.Model
    layers: tuple[RepairedLayer, ...]
    before: float | None
    after: float | None
    held_out: int
    outcome: str


_DONE = "repaired"


def repair(
    original: ir.Model,
    pruned: ir.Model,
    kept: Kept,
    data: Dataset,
    *,
    method: str = "reconstruct",
    masks: Mapping[str, Mask] | None = None,
    batch: int = BATCH,
    limit_bytes: int = LIMIT_BYTES,
    threads: int = 1,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Repaired:
    """Bring what a pruned model computes back towards what the original does.

    Args:
        original: a prepared working copy; not changed.
        pruned: made from it, with the same names of nodes and values; not changed.
        kept: says for the name of a value of the original which positions of its axes the pruned model has
            (True), for the axes that lost some.
        data: unlabelled samples; a fifth of them is held out to check the repair.
        method: ``bias`` (the mean of what each result lacks), ``statistics`` (mean and deviation of each
            result), or ``reconstruct`` (weights and intercepts by least squares).
        masks: by name of the stored tensor: where weights may differ from zero.
        batch: samples of one run, where the model's first axis is symbolic.
        limit_bytes: of all that is gathered and remembered at a time.
        threads: of one operator; 0 for one per core.
        seed: of which samples are held out and which rows are drawn.
        progress: called with the share that is done, in (0, 1].

    Raises:
        UsageError: an unknown method.
        DataError: the data does not fit the model, or is too little.
        RuntimeFailure: ONNX Runtime can't run a model.
    """
    if method not in METHODS:
        raise UsageError(f"unknown method of repair {method!r}; known: {', '.join(METHODS)}")
    portions = portions_of(original, data, batch, seed)
    result = pruned.clone()
    result.meta.update(pruned.meta)
    samples = _Samples(data, portions, threads, limit_bytes)
    walk = _Walk(in_float32(original), Writer(result), kept, samples, masks or {}, method, seed)
    layers = walk.run(progress)
    return _judge(walk, in_float32(pruned), pruned, layers)


@dataclass(frozen=True, slots=True)
class _Samples:
    data: Dataset
    portions: tuple[Portion, ...]
    threads: int
    limit_bytes: int

    def side(self, model: ir.Model) -> Side:
        """Both sides together may remember as many bytes as half of the limit."""
        return Side(model, self.data, self.portions, threads=self.threads, limit_bytes=self.limit_bytes // 4)

    def count(self, held_out: bool) -> int:
        return sum(len(portion.samples) for portion in self.portions if portion.held_out == held_out)


@dataclass(frozen=True, slots=True)
class _Task:
    """A layer that is to be repaired, and where it is compared."""

    number: int
    linear: Linear
    target: Target
    gains: FloatArray
    support: BoolArray | None

    @property
    def size_bytes(self) -> int:
        """What solving it takes: moments of both parts of the data, and a factor."""
        linear = self.linear
        return 3 * CrossMoments.bytes_for(linear.groups, linear.inputs, linear.outputs)


class _Walk:
    """One walk through both models."""

    def __init__(
        self,
        original: ir.Model,
        writer: Writer,
        kept: Kept,
        samples: _Samples,
        masks: Mapping[str, Mask],
        method: str,
        seed: int,
    ) -> None:
        self.writer = writer
        self.kept = kept
        self.samples = samples
        self.masks = masks
        self.method = method
        self.seed = seed
        self.original = samples.side(original)
        self.pruned = samples.side(writer.working)
        self.layers: list[RepairedLayer] = []

    def run(self, progress: Callable[[float], None] | None) -> tuple[RepairedLayer, ...]:
        tasks = self._tasks()
        levels = sorted({task.target.level for task in tasks})
        for turn, level in enumerate(levels, start=1):
            wave = [task for task in tasks if task.target.level == level]
            changing = {str(t.linear.node.name) for t in tasks if t.target.level >= level}
            self._repair_wave(wave, changing)
            if progress is not None:
                progress(turn / (len(levels) + 1))
        if progress is not None:
            progress(1.0)
        return tuple(self.layers)

    # --- what there is to do --------------------------------------------------------------------------------

    def _tasks(self) -> list[_Task]:
        linears, skipped = find_linear(self.writer.working)
        self.layers += [RepairedLayer(s.name, s.name, None, None, None, s.reason) for s in skipped]
        usable = []
        for linear in linears:
            reason = self._reason_to_leave(linear, linears)
            if reason is None:
                usable.append(linear)
            else:
                self._leave(linear, reason)
        self.writer.know(linears)
        shapes = self._shapes(values_ahead(usable))
        known = {str(o.name) for node in self.original.model.graph for o in node.outputs}
        graph, sums = self.writer.working.graph, self.method != "statistics"
        targets = find_targets(graph, usable, shapes, known, sums=sums)
        tasks = []
        for number, (linear, target) in enumerate(zip(usable, targets, strict=True)):
            factors = None if target is None else gains(linear, target, shapes)
            if target is None or factors is None:
                self._leave(linear, "the original has no value to compare its result with")
                continue
            self.writer.know_shape(linear, shapes[str(linear.node.outputs[0].name)])
            tasks.append(_Task(number, linear, target, factors, self._support(linear)))
        return tasks

    def _reason_to_leave(self, linear: Linear, linears: Sequence[Linear]) -> str | None:
        if linear.tail is not None:
            return linear.tail
        stored = linear.found.stored
        if sum(other.found.stored is stored for other in linears) > 1:
            return "its weight is shared with other layers"
        readers = other_readers(stored, [linear.found])
        return f"its weight is read by {readers[0]} too" if readers else None

    def _support(self, linear: Linear) -> BoolArray | None:
        mask = self.masks.get(linear.found.use.tensor)
        return None if mask is None else np.asarray(linear.matrix(mask.unpack())).swapaxes(1, 2)

    def _shapes(self, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of values for two samples, or one batch of a fixed size."""
        first = self.samples.portions[0].samples
        fixed = len(first) > 2 and len({len(p.samples) for p in self.samples.portions}) == 1
        few = Portion(first if fixed else first[:2], False)
        side = Side(
            self.writer.working, self.samples.data, [few], threads=self.samples.threads, limit_bytes=0
        )
        taps = {name: Tap(name, "Shape") for name in dict.fromkeys(names)}
        (found,) = side.run(list(taps.values())) if taps else ({},)
        return {name: tuple(int(size) for size in found[tap]) for name, tap in taps.items()}

    def _leave(
        self, linear: Linear, reason: str, before: float | None = None, after: float | None = None
    ) -> None:
        use = linear.found.use
        self.layers.append(RepairedLayer(use.consumer, use.tensor, before, after, None, reason))

    # --- one wave -------------------------------------------------------------------------------------------

    def _repair_wave(self, wave: Sequence[_Task], changing: set[str]) -> None:
        limit = self.samples.limit_bytes // 2
        waiting = []
        for task in wave:
            if task.size_bytes > limit and self.method == "reconstruct":
                needed = f"{2 * task.size_bytes} bytes, more than the limit of {self.samples.limit_bytes}"
                self._leave(task.linear, f"its moments take {needed}")
            else:
                waiting.append(task)
        settled = changing
        while waiting:
            share = [waiting.pop(0)]
            while waiting and sum(task.size_bytes for task in (*share, waiting[0])) <= limit:
                share.append(waiting.pop(0))
            gathered = self._gather(share, settled)
            settled = set()  # the rest of the wave starts there
            for task, rows in zip(share, gathered, strict=True):
                self._finish(task, rows)

    def _gather(self, share: Sequence[_Task], changing: set[str]) -> list[_Rows]:
        rows = [_Rows(task, self.method, self.seed, self.samples) for task in share]
        original_taps = list(dict.fromkeys(Tap(task.target.value) for task in share))
        taps = dict.fromkeys(tap for gathered in rows for tap in gathered.taps)
        sides = []
        for side, wanted in ((self.original, original_taps), (self.pruned, list(taps))):
            settled = settled_values(side.model.graph, changing) if changing else None
            sides.append(side.advance(wanted, settled) if settled else side.run(wanted))
        for number, (ours, theirs) in enumerate(zip(*sides, strict=True)):
            for task, gathered in zip(share, rows, strict=True):
                value = ours[Tap(task.target.value)]
                gathered.add(number, _compressed(value, self.kept(task.target.value)), theirs)
        return rows

    def _finish(self, task: _Task, rows: _Rows) -> None:
        if rows.problem is not None:
            self._leave(task.linear, rows.problem)
            return
        solution = rows.solve()
        if not solution.helps:
            reason = (
                "nothing is missing"
                if solution.before <= ROUNDING
                else "no repair of it helps on the samples held out"
            )
            self._leave(task.linear, reason, solution.before, solution.before)
            return
        self.writer.write(task.linear, solution.change, rows.intercept(solution), task.support)
        use = task.linear.found.use
        self.layers.append(
            RepairedLayer(use.consumer, use.tensor, solution.before, solution.after, solution.ridge, _DONE)
        )


class _Rows:
    """What is gathered for one layer."""

    def __init__(self, task: _Task, method: str, seed: int, samples: _Samples) -> None:
        self.task = task
        self.method = method
        self.seed = seed
        self.samples = samples
        linear = task.linear
        squares = method == "reconstruct"
        self.parts = {
            held: CrossMoments(linear.groups, linear.inputs, linear.outputs, squares=squares)
            for held in (False, True)
        }
        self.origin: Array | None = None
        self.share = 1.0
        self.problem: str | None = None
        self.x_tap = Tap(str(linear.x.name))
        self.value_tap = Tap(task.target.value)
        self.shape_taps = {name: Tap(name, "Shape") for name in task.target.shaped}

    @property
    def taps(self) -> list[Tap]:
        """What is needed of the pruned model."""
        x = [] if self.method == "bias" else [self.x_tap]
        return [*x, self.value_tap, *self.shape_taps.values()]

    def add(self, number: int, wanted: Array, values: Mapping[Tap, Array]) -> None:
        """Add one portion.

        Args:
            number: of the portion.
            wanted: the original's value, at the positions that are left.
            values: of the pruned model.
        """
        if self.problem is not None:
            return
        linear, target = self.task.linear, self.task.target
        given = values[self.value_tap]
        if given.shape != wanted.shape:
            self.problem = f"its result is {list(given.shape)}, the original's {list(wanted.shape)}"
            return
        shapes = {name: tuple(int(s) for s in values[tap]) for name, tap in self.shape_taps.items()}
        residual = linear.targets(target.back(wanted - given, shapes))
        aim = linear.targets(target.back(wanted, shapes))
        if not (np.isfinite(residual).all() and np.isfinite(aim).all()):
            self.problem = "values of it are not finite on this data"
            return
        portion = self.samples.portions[number]
        moments = self.parts[portion.held_out]
        if self.method == "bias":
            moments.add_rows(None, residual, aim)
            return
        if self.method == "statistics":
            residual = aim - residual
        windows = linear.windows(values[self.x_tap])
        rows = self._drawn(number, windows.count)
        step = max(64, _CHUNK_BYTES // (4 * linear.groups * linear.inputs))
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            x = windows.rows(some)
            if self.origin is None:
                self.origin = x.mean(axis=1, dtype=np.float64, keepdims=True).astype(np.float32)
            x -= self.origin  # so that float32 is enough for products with a large mean
            moments.add_rows(x, residual[:, some], aim[:, some])

    def _drawn(self, number: int, count: int) -> npt.NDArray[np.intp]:
        """Return which rows of a portion are used, ascending."""
        inputs = self.task.linear.inputs
        portion = self.samples.portions[number]
        expected = count / len(portion.samples) * self.samples.count(held_out=False)
        share = max(ROWS, ROWS_PER_INPUT * inputs) / max(1.0, expected)
        if share >= 1:
            return np.arange(count)
        generator = np.random.default_rng([self.seed, self.task.number, number])
        wanted = max(1, math.ceil(share * count))
        return np.sort(generator.choice(count, wanted, replace=False))

    def solve(self) -> Solution:
        """Return the change that is best on the rows held out."""
        fit, held = self.parts[False], self.parts[True]
        if self.method == "reconstruct":
            return reconstruct(fit, held, self.task.gains, self.task.support)
        if self.method == "bias":
            return shift(fit, held, self.task.gains)
        linear = self.task.linear
        matrix = linear.matrix(linear.found.tensor.numpy()).astype(np.float64)
        return match(fit, held, self.task.gains, matrix)

    def intercept(self, solution: Solution) -> FloatArray:
        """Return the intercept for inputs that are counted from zero."""
        if solution.change is None or self.origin is None:
            return solution.intercept
        moved = np.einsum("gn,gnm->gm", self.origin[:, 0].astype(np.float64), solution.change)
        return np.asarray(solution.intercept - moved)


def _compressed(array: Array, kept: Mapping[int, BoolArray]) -> Array:
    for axis, mask in kept.items():
        array = np.compress(mask, array, axis=axis)
    return array


def _judge(walk: _Walk, before: ir.Model, pruned: ir.Model, layers: tuple[RepairedLayer, ...]) -> Repaired:
    """Compare the outputs of the whole, and keep the repair only if they became better."""
    samples, original = walk.samples, walk.original.model
    held = samples.count(held_out=True)
    model, outcome = walk.writer.result, _DONE
    if not any(layer.repaired for layer in layers):
        outcome = "no layer needed a repair, or could be repaired"
    sides = [samples.side(side) for side in (original, before, walk.writer.working)]
    far, near = divergence(*sides)
    if far is not None and near is not None and near > far:
        model, near = _copy(pruned), far
        outcome = f"left as it was: repaired, its outputs are further from the original's ({near:.3g})"
        layers = tuple(
            replace(layer, outcome="undone with the rest") if layer.repaired else layer for layer in layers
        )
    return Repaired(model, layers, far, near, held, outcome)


def _copy(model: ir.Model) -> ir.Model:
    copy = model.clone()
    copy.meta.update(model.meta)
    return copy
