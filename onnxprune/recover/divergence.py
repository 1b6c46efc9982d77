"""How far the outputs of a model are from those of the original."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.calibration.layerwise import Side, Tap

Array = npt.NDArray[Any]


def divergence(original: Side, *others: Side) -> list[float | None]:
    """Return for each model the energy of the difference of its outputs, relative to the original's.

    The energy of an output is taken around its mean over all places but those of the last axis; that of
    several outputs is averaged. The samples are those held out. Outputs that are not floats, or of differing
    shapes, or always zero, are left out.

    Args:
        original: what is compared with.
        others: the models that are compared.

    Returns:
        None for a model without outputs that can be compared.
    """
    portions = [number for number, portion in enumerate(original.portions) if portion.held_out]
    taps = [Tap(str(value.name)) for value in original.model.graph.outputs]
    sums = [{tap: _Sums() for tap in taps} for _ in others]
    runs = [side.run_on(taps, portions) for side in (original, *others)]
    for ours, *theirs in zip(*runs, strict=True):
        for by_tap, outputs in zip(sums, theirs, strict=True):
            for tap, gathered in by_tap.items():
                gathered.add(ours[tap], outputs[tap])
    return [_mean([gathered.relative for gathered in by_tap.values()]) for by_tap in sums]


class _Sums:
    """Sums over portions for one output of one model."""

    def __init__(self) -> None:
        self.comparable = True
        self.difference = 0.0
        self.count = 0
        self.total: Any = 0.0
        self.squares: Any = 0.0

    def add(self, ours: Array, theirs: Array) -> None:
        """Add the output of the original, and of the model, for one portion."""
        if ours.dtype.kind != "f" or ours.shape != theirs.shape:
            self.comparable = False
            return
        self.difference += float(np.square(theirs - ours, dtype=np.float64).sum())
        rows = ours.reshape(-1, ours.shape[-1] if ours.ndim else 1)
        self.count += len(rows)
        self.total = self.total + rows.sum(axis=0, dtype=np.float64)
        self.squares = self.squares + np.square(rows, dtype=np.float64).sum(axis=0)

    @property
    def relative(self) -> float | None:
        """Energy of the difference, relative to that of the output around its mean."""
        if not self.comparable or not self.count:
            return None
        around = self.squares - np.square(self.total) / self.count
        energy = float(np.where(around > 1e-9 * self.squares, around, self.squares).sum())
        return self.difference / energy if energy > 0 else None


def _mean(figures: list[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return float(np.mean(known)) if known else None
