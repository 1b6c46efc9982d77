"""How far the outputs of a model are from those of the original."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.layerwise import Side, Tap

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
    references = list(original.run_on(taps, portions))
    return [_relative(references, list(other.run_on(taps, portions)), taps) for other in others]


def _relative(ours: list[dict[Tap, Array]], theirs: list[dict[Tap, Array]], taps: list[Tap]) -> float | None:
    figures = []
    for tap in taps:
        pairs = [(a[tap], b[tap]) for a, b in zip(ours, theirs, strict=True)]
        if not all(a.dtype.kind == "f" and a.shape == b.shape for a, b in pairs):
            continue
        difference = sum(float(np.square(b - a, dtype=np.float64).sum()) for a, b in pairs)
        energy = _energy([a for a, _ in pairs])
        if energy > 0:
            figures.append(difference / energy)
    return float(np.mean(figures)) if figures else None


def _energy(arrays: list[Array]) -> float:
    rows = [array.reshape(-1, array.shape[-1] if array.ndim else 1) for array in arrays]
    count = sum(len(array) for array in rows)
    total = sum(array.sum(axis=0, dtype=np.float64) for array in rows)
    squares = sum(np.square(array, dtype=np.float64).sum(axis=0) for array in rows)
    around = squares - np.square(total) / max(1, count)
    return float(np.where(around > 1e-9 * np.asarray(squares), around, squares).sum())
