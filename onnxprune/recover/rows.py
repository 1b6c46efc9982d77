"""What is gathered for one layer: rows of its input, and what its result lacks, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.calibration.layerwise import Portion, Side, Tap
from onnxprune.data import Dataset
from onnxprune.ops.linear import Linear
from onnxprune.recover.cross_moments import CrossMoments
from onnxprune.recover.solve import Solution, match, reconstruct, shift
from onnxprune.recover.targets import Target
from onnxprune.types import BoolArray, FloatArray

Array = npt.NDArray[Any]

#: The methods, from the cheapest to the best.
METHODS = ("bias", "statistics", "reconstruct")

#: Rows that a layer is solved on: this many, or this many for each of its inputs if that is more.
ROWS = 1 << 15
ROWS_PER_INPUT = 16

#: Values that differ by less than this share of their deviation say nothing of the slope between them.
_APART = 1e-2

#: Bytes of the rows that are unfolded at a time.
_CHUNK_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Samples:
    """The data, divided, and how it is run.

    Attributes:
        data: all of it.
        portions: what is run at a time.
        threads: of one operator.
        limit_bytes: of all that is gathered and remembered.
    """

    data: Dataset
    portions: tuple[Portion, ...]
    threads: int
    limit_bytes: int

    def side(self, model: ir.Model) -> Side:
        """Both sides together may remember as many bytes as half of the limit."""
        return Side(model, self.data, self.portions, threads=self.threads, limit_bytes=self.limit_bytes // 4)

    def count(self, held_out: bool) -> int:
        """Return how many samples are held out, or are not."""
        return sum(len(portion.samples) for portion in self.portions if portion.held_out == held_out)


@dataclass(frozen=True, slots=True)
class Task:
    """A layer that is to be repaired, and where it is compared.

    Attributes:
        number: of the layer.
        linear: the layer, in the pruned model.
        target: what it aims at.
        gains: float64 ``[groups, outputs]``, what its outputs are multiplied with on the way there.
        support: bool ``[groups, inputs, outputs]``, where its weights may differ from 0; None: everywhere.
        bend: name of the value behind the nonlinearity that the target goes through; None for none.
    """

    number: int
    linear: Linear
    target: Target
    gains: FloatArray
    support: BoolArray | None
    bend: str | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes that solving it takes: moments of both parts of the data, and as much again to solve."""
        linear = self.linear
        return 4 * CrossMoments.bytes_for(linear.groups, linear.inputs, linear.outputs)


class Rows:
    """What is gathered for one layer.

    Args:
        task: the layer.
        method: one of `METHODS`.
        seed: of the rows that are drawn.
        samples: the data.
        bent: compare behind the nonlinearity: the residual is (f(y0) - f(y)) / s, with s the steepest slope
            of f. That is the gradient of a matching loss, the integral of f(z) - f(y0) from y0 to y, which is
            convex where f rises and curved by s at the most (Auer, Herbster & Warmuth 1995, "Exponentially
            many local minima for single neurons"); so the change that is best for this residual lowers it,
            and does not care for values that f cuts off.
    """

    def __init__(self, task: Task, method: str, seed: int, samples: Samples, *, bent: bool = False) -> None:
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
        self.problem: str | None = None
        self.x_tap = Tap(str(linear.x.name))
        self.value_tap = Tap(task.target.value)
        self.shape_taps = {name: Tap(name, "Shape") for name in task.target.shaped}
        self.bend_tap = Tap(task.bend) if bent and task.bend is not None else None
        self.slope: float | None = None

    @property
    def taps(self) -> list[Tap]:
        """What is needed of the pruned model."""
        x = [] if self.method == "bias" else [self.x_tap]
        return [*x, *self.compared, *self.shape_taps.values()]

    @property
    def compared(self) -> list[Tap]:
        """What is needed of the original, too."""
        return [self.value_tap] if self.bend_tap is None else [self.value_tap, self.bend_tap]

    def add(self, number: int, wanted: Mapping[Tap, Array], values: Mapping[Tap, Array]) -> None:
        """Add one portion.

        Args:
            number: of the portion.
            wanted: what is `compared`, of the original, at the positions that are left.
            values: of the pruned model.
        """
        if self.problem is not None:
            return
        linear, target = self.task.linear, self.task.target
        given, full = values[self.value_tap], wanted[self.value_tap]
        if given.shape != full.shape:
            self.problem = f"its result is {list(given.shape)}, the original's {list(full.shape)}"
            return
        lacking = full - given
        if self.bend_tap is not None:
            bent = self._bent(lacking, full, wanted[self.bend_tap], values[self.bend_tap])
            if bent is None:
                self.problem = "its nonlinearity does not rise"
                return
            lacking = bent
        shapes = {name: tuple(int(s) for s in values[tap]) for name, tap in self.shape_taps.items()}
        residual = linear.targets(target.back(lacking, shapes))
        aim = linear.targets(target.back(full, shapes))
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

    def _bent(self, lacking: Array, full: Array, wanted: Array, given: Array) -> Array | None:
        """Return what is missing behind the nonlinearity; None if that says nothing of what is before it.

        Args:
            lacking: what is missing before it.
            full: what the original has there.
            wanted: what the original has behind it.
            given: what the pruned model has there.
        """
        if wanted.shape != given.shape or wanted.shape != full.shape:
            return None
        bent = wanted - given
        if self.slope is None:
            far = np.abs(lacking) > _APART * full.std()
            slopes = bent[far] / lacking[far]
            if not slopes.size or slopes.mean() <= 0:
                return None
            self.slope = float(np.abs(slopes).max())
        return np.asarray(bent / lacking.dtype.type(self.slope))

    def join(self, other: Rows) -> None:
        """Add the rows of another use of the same weight, which were counted from the same origin."""
        self.problem = self.problem or other.problem
        if self.problem is None:
            for held, moments in self.parts.items():
                moments.add(other.parts[held])

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


def compressed(array: Array, kept: Mapping[int, BoolArray]) -> Array:
    """Return the positions of an array that are kept, by axis."""
    for axis, mask in kept.items():
        array = np.compress(mask, array, axis=axis)
    return array
