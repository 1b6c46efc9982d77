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

from onnxprune.calibration.activations import BATCH, LIMIT_BYTES, inputs_of
from onnxprune.calibration.layerwise import Portion, Side, Tap, portions_of, settled_values
from onnxprune.data import Dataset, fixed_batch
from onnxprune.errors import UsageError
from onnxprune.model.copies import copy_of
from onnxprune.model.float32 import in_float32
from onnxprune.ops.linear import Linear, find_linear
from onnxprune.ops.weights import other_readers
from onnxprune.recover.bends import find_bends
from onnxprune.recover.divergence import divergence
from onnxprune.recover.rows import METHODS, Rows, Samples, Task, compressed
from onnxprune.recover.solve import ROUNDING, Solution
from onnxprune.recover.targets import find_targets, gains, values_ahead
from onnxprune.recover.write import Writer
from onnxprune.types import BoolArray, Mask

Array = npt.NDArray[Any]
Kept = Callable[[str], Mapping[int, BoolArray]]


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
        outcome: "repaired", "repaired again, behind its nonlinearity" (in terms of what is missing there), or
            why the layer was left as it was.
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
        return self.outcome in (_DONE, _BENT)


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
_BENT = "repaired again, behind its nonlinearity"

#: Samples that shapes are looked at with.
_FEW = 2


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
        limit_bytes: of all that is gathered and remembered at a time; what is gathered for one layer of 4,096
            inputs and outputs takes 1.1 GB.
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
    samples = Samples(data, portions_of(original, data, batch, seed), threads, limit_bytes)
    walk = _Walk(in_float32(original), Writer(copy_of(pruned)), kept, samples, masks or {}, method, seed)
    layers = walk.run(progress)
    return _judge(walk, in_float32(pruned), pruned, layers)


class _Walk:
    """One walk through both models."""

    def __init__(
        self,
        original: ir.Model,
        writer: Writer,
        kept: Kept,
        samples: Samples,
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
        self.missing: set[int] = set()  # numbers of the layers that had something to repair

    def _take_smaller_batches(self, tasks: Sequence[Task], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Divide the data anew where the values of one layer would take too much of the memory."""
        original, data = self.original.model, self.samples.data
        fixed = fixed_batch(inputs_of(original, data))
        few = fixed or _FEW
        # of both models (before and behind a nonlinearity), what is missing, what is wanted, and rows of them
        numbers = [
            math.prod(shapes[str(t.linear.x.name)]) + 8 * math.prod(shapes[t.target.value]) for t in tasks
        ]
        fits = self.samples.limit_bytes // 8 * few // max(4 * max(numbers, default=1), 1)
        if fixed is None and fits < max(len(portion.samples) for portion in self.samples.portions):
            portions = portions_of(original, data, max(1, fits), self.seed)
            self.samples = replace(self.samples, portions=portions)
            self.original = self.samples.side(original)
            self.pruned = self.samples.side(self.writer.working)

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

    def _tasks(self) -> list[Task]:
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
            tasks.append(Task(number, linear, target, factors, self._support(linear)))
        bends = find_bends(graph, [task.target.value for task in tasks], known)
        tasks = [replace(task, bend=bend) for task, bend in zip(tasks, bends, strict=True)]
        tasks = self._without_chains(tasks)
        self._take_smaller_batches(tasks, shapes)
        return tasks

    def _without_chains(self, tasks: Sequence[Task]) -> list[Task]:
        """Leave alone the layers that share a weight and depend on each other."""
        left = []
        for task in tasks:
            uses = [other for other in tasks if other.linear.found.stored is task.linear.found.stored]
            same = {(t.target.level, t.linear.groups, t.linear.outputs, t.linear.inputs) for t in uses}
            if len(same) == 1:
                left.append(task)
            else:
                self._leave(task.linear, "its weight is shared with layers that depend on it")
        return left

    def _reason_to_leave(self, linear: Linear, linears: Sequence[Linear]) -> str | None:
        if linear.tail is not None:
            return linear.tail
        stored = linear.found.stored
        uses = [other.found for other in linears if other.found.stored is stored and other.tail is None]
        readers = other_readers(stored, uses)
        return f"its weight is read by {readers[0]} too" if readers else None

    def _support(self, linear: Linear) -> BoolArray | None:
        mask = self.masks.get(linear.found.use.tensor)
        return None if mask is None else np.asarray(linear.matrix(mask.unpack())).swapaxes(1, 2)

    def _shapes(self, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of values for a few samples, or one batch of a fixed size."""
        fixed = fixed_batch(inputs_of(self.original.model, self.samples.data))
        few = Portion(np.arange(fixed or _FEW), False)
        working, data, threads = self.writer.working, self.samples.data, self.samples.threads
        side = Side(working, data, [few], threads=threads, limit_bytes=0)
        taps = {name: Tap(name, "Shape") for name in dict.fromkeys(names)}
        (found,) = side.run(list(taps.values())) if taps else ({},)
        return {name: tuple(int(size) for size in found[tap]) for name, tap in taps.items()}

    def _leave(
        self, linear: Linear, reason: str, before: float | None = None, after: float | None = None
    ) -> None:
        use = linear.found.use
        self.layers.append(RepairedLayer(use.consumer, use.tensor, before, after, None, reason))

    # --- one wave -------------------------------------------------------------------------------------------

    def _repair_wave(self, wave: Sequence[Task], changing: set[str]) -> None:
        limit = self.samples.limit_bytes
        waiting = []
        for uses in sorted(_by_weight(wave), key=self._bytes_of):
            if self._bytes_of(uses) > limit:
                needed = f"{self._bytes_of(uses)} bytes, more than the limit of {limit}; raise it"
                for task in uses:
                    self._leave(task.linear, f"its moments take {needed}")
            else:
                waiting.append(uses)
        settled = changing
        while waiting:
            share = [waiting.pop(0)]
            while waiting and sum(map(self._bytes_of, (*share, waiting[0]))) <= limit // 2:
                share.append(waiting.pop(0))
            if self._bytes_of(share[0]) > limit // 2:  # alone, and in place of what is remembered
                self.original.forget()
                self.pruned.forget()
                settled = set()
            gathered = iter(self._gather([task for uses in share for task in uses], settled))
            settled = set()  # the rest of the wave starts there
            for uses in share:
                self._finish(uses, [next(gathered) for _ in uses])
            self._repair_bent(share)

    def _repair_bent(self, share: Sequence[Sequence[Task]]) -> None:
        """Repair layers once more for what is left of the error behind their nonlinearities."""
        if self.method != "reconstruct":
            return
        bent = [uses for uses in share if all(t.bend is not None and t.number in self.missing for t in uses)]
        if bent:
            gathered = iter(self._gather([task for uses in bent for task in uses], set(), bent=True))
            for uses in bent:
                self._finish(uses, [next(gathered) for _ in uses], bent=True)

    def _bytes_of(self, uses: Sequence[Task]) -> int:
        return sum(task.size_bytes for task in uses) if self.method == "reconstruct" else 0

    def _gather(self, share: Sequence[Task], changing: set[str], *, bent: bool = False) -> list[Rows]:
        rows = [Rows(task, self.method, self.seed, self.samples, bent=bent) for task in share]
        first = {
            id(task.linear.found.stored): one for task, one in reversed(list(zip(share, rows, strict=True)))
        }
        original_taps = list(dict.fromkeys(tap for gathered in rows for tap in gathered.compared))
        taps = dict.fromkeys(tap for gathered in rows for tap in gathered.taps)
        sides = []
        for side, wanted in ((self.original, original_taps), (self.pruned, list(taps))):
            settled = settled_values(side.model.graph, changing) if changing else None
            sides.append(side.advance(wanted, settled) if settled else side.run(wanted))
        for number, (ours, theirs) in enumerate(zip(*sides, strict=True)):
            left = {tap: compressed(ours[tap], self.kept(tap.name)) for tap in original_taps}
            for task, gathered in zip(share, rows, strict=True):
                gathered.origin = first[id(task.linear.found.stored)].origin
                gathered.add(number, left, theirs)
        return rows

    def _finish(self, uses: Sequence[Task], gathered: Sequence[Rows], *, bent: bool = False) -> None:
        """Solve for a weight and write it; several uses of it are one problem with all of their rows."""
        rows = gathered[0]
        for other in gathered[1:]:
            rows.join(other)
        solution = None if rows.problem else rows.solve()
        if bent and (solution is None or not solution.helps):
            return  # it stays as the first repair left it
        for place, task in enumerate(uses):
            self._write(task, rows, solution, again=place > 0, outcome=_BENT if bent else _DONE)

    def _write(self, task: Task, rows: Rows, solution: Solution | None, *, again: bool, outcome: str) -> None:
        if solution is None:
            self._leave(task.linear, str(rows.problem))
            return
        if solution.before > ROUNDING:
            self.missing.add(task.number)
        if not solution.helps:
            reason = (
                "nothing is missing"
                if solution.before <= ROUNDING
                else "no repair of it helps on the samples held out"
            )
            self._leave(task.linear, reason, solution.before, solution.before)
            return
        change = None if again else solution.change  # the weight is written once
        self.writer.write(task.linear, change, rows.intercept(solution), task.support)
        use = task.linear.found.use
        self.layers.append(
            RepairedLayer(use.consumer, use.tensor, solution.before, solution.after, solution.ridge, outcome)
        )


def _by_weight(wave: Sequence[Task]) -> list[list[Task]]:
    """Return the layers that share a weight together."""
    found: dict[int, list[Task]] = {}
    for task in wave:
        found.setdefault(id(task.linear.found.stored), []).append(task)
    return list(found.values())


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
        model, near = copy_of(pruned), far
        outcome = f"left as it was: repaired, its outputs are further from the original's ({near:.3g})"
        layers = tuple(
            replace(layer, outcome="undone with the rest") if layer.repaired else layer for layer in layers
        )
    return Repaired(model, layers, far, near, held, outcome)
