"""What a repair needs to know of many rows: second moments of inputs, and how they go with the residual."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.types import FloatArray

Array = npt.NDArray[Any]

#: With at most so many inputs, products are taken in float64: these are quick, and where inputs nearly depend
#: on each other float32 costs digits of the solution.
_NARROW = 1024


class CrossMoments:
    """Sums over rows of an input x, a residual r (what is missing in the output) and a target t.

    Products are added up in float64, and taken in float32 where there are many inputs.

    Args:
        groups: separate products.
        inputs: columns of x in one group.
        outputs: columns of r and t in one group.
        squares: gather second moments of x and products with r; else its means alone.

    Attributes:
        count: rows.
        second: float64 ``[groups, inputs, inputs]``, the sum of x x^T.
        cross: float64 ``[groups, inputs, outputs]``, the sum of x r^T.
        first: float64 ``[groups, inputs]``, the sum of x.
        missing: float64 ``[groups, outputs]``, the sum of r.
        energy: float64 ``[groups, outputs]``, the sum of r**2.
        total: float64 ``[groups, outputs]``, the sum of t.
        total_energy: float64 ``[groups, outputs]``, the sum of t**2.
    """

    def __init__(self, groups: int, inputs: int, outputs: int, *, squares: bool = True) -> None:
        self.count = 0
        wide = inputs if squares else 0
        self.second = np.zeros((groups, wide, wide))
        self.cross = np.zeros((groups, wide, outputs))
        self.first = np.zeros((groups, inputs))
        self.missing = np.zeros((groups, outputs))
        self.energy = np.zeros((groups, outputs))
        self.total = np.zeros((groups, outputs))
        self.total_energy = np.zeros((groups, outputs))

    @staticmethod
    def bytes_for(groups: int, inputs: int, outputs: int) -> int:
        """Return the bytes of one of these."""
        return 8 * groups * (inputs * inputs + inputs * outputs)

    def add_rows(self, x: Array | None, residual: Array, target: Array) -> None:
        """Add rows.

        Args:
            x: float32 ``[groups, rows, inputs]``; None where it does not matter.
            residual: float32 ``[groups, rows, outputs]``.
            target: the same.
        """
        self.count += residual.shape[1]
        self.missing += residual.sum(axis=1, dtype=np.float64)
        self.energy += np.einsum("grm,grm->gm", residual, residual, dtype=np.float64)
        self.total += target.sum(axis=1, dtype=np.float64)
        self.total_energy += np.einsum("grm,grm->gm", target, target, dtype=np.float64)
        if x is None:
            return
        self.first += x.sum(axis=1, dtype=np.float64)
        if not self.second.size:
            return
        dtype = np.float64 if x.shape[2] <= _NARROW else np.float32
        for group, single in enumerate(x):
            rows = single.astype(dtype, copy=False)
            self.second[group] += rows.T @ rows  # numpy sees the same array twice: half of the work
            self.cross[group] += rows.T @ residual[group]

    def add(self, other: CrossMoments) -> None:
        """Add the sums over other rows."""
        self.count += other.count
        self.second += other.second
        self.cross += other.cross
        self.first += other.first
        self.missing += other.missing
        self.energy += other.energy
        self.total += other.total
        self.total_energy += other.total_energy

    def of_outputs(self, numbers: npt.NDArray[np.intp]) -> CrossMoments:
        """Return the sums for some of the outputs; those of x alone are shared."""
        part = CrossMoments(0, 0, 0)
        part.count, part.second, part.first = self.count, self.second, self.first
        part.cross = self.cross[:, :, numbers]
        part.missing, part.energy = self.missing[:, numbers], self.energy[:, numbers]
        part.total, part.total_energy = self.total[:, numbers], self.total_energy[:, numbers]
        return part

    @property
    def spread(self) -> FloatArray:
        """Float64 ``[groups, outputs]``: energy of t around its mean, or all of it where t is constant."""
        around = self.total_energy - self.total**2 / max(1, self.count)
        return np.where(around > 1e-9 * self.total_energy, around, self.total_energy)

    def centred(self) -> tuple[FloatArray, FloatArray]:
        """Return the moments around the means: of x with itself, and of x with r."""
        mean = self.first / max(1, self.count)
        second = self.second - mean[:, :, None] * self.first[:, None, :]
        return second, self.cross - mean[:, :, None] * self.missing[:, None, :]

    def intercept(self, change: FloatArray) -> FloatArray:
        """Return the intercept that goes best with a change of the weights, float64 ``[groups, outputs]``."""
        moved = np.einsum("gn,gnm->gm", self.first, change)
        return np.asarray((self.missing - moved) / max(1, self.count))

    def errors(self, change: FloatArray | None, intercept: FloatArray) -> FloatArray:
        """Return the sum of squares of r that a change leaves.

        Args:
            change: float64 ``[groups, inputs, outputs]``, of the transposed weights; None for none.
            intercept: float64 ``[groups, outputs]``.

        Returns:
            float64 ``[groups, outputs]``.
        """
        left = self.energy - 2 * intercept * self.missing + self.count * intercept**2
        if change is not None:
            pushed = self.second @ change - 2 * self.cross
            left += np.einsum("gnm,gnm->gm", change, pushed)
            left += 2 * intercept * np.einsum("gn,gnm->gm", self.first, change)
        return np.maximum(left, 0.0)
