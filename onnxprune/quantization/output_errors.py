"""How far the outputs of a model are from those of another on the same samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.calibration.activations import feeds_by_batch
from onnxprune.data import Dataset
from onnxprune.runtime import open_session

Array = npt.NDArray[Any]

#: A signal without any error, in decibels: so far as float32 tells.
PERFECT_DB = 144.0


@dataclass(frozen=True, slots=True)
class OutputError:
    """Outputs beside those of the original.

    Attributes:
        relative: square root of the summed squared error / the summed squares, over all float outputs.
        agreement: share of positions of the first output with the same highest class; None if it has none.
    """

    relative: float
    agreement: float | None

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise, in decibels."""
        return sqnr_db(self.relative**2)


def sqnr_db(noise: float) -> float:
    """Return a share of noise power in decibels of the signal above it."""
    return min(PERFECT_DB, -10 * math.log10(noise)) if noise > 0 else PERFECT_DB


class Outputs:
    """The outputs of a model on some samples, and how far those of others are from them.

    Args:
        model: the original.
        data: the samples; their outputs are kept.
        batch: samples of one run, where the model's first axis is symbolic.
        threads: of ONNX Runtime.

    Raises:
        DataError, RuntimeFailure: the data does not fit, or the model can't be run.
    """

    def __init__(self, model: ir.Model, data: Dataset, *, batch: int, threads: int) -> None:
        self._threads = threads
        self._feeds = [feeds for _, feeds in feeds_by_batch(model, data, batch=batch)]
        session = open_session(model, threads=threads, label="the model in float")
        self._names = [
            name for name, info in session.outputs.items() if np.dtype(info.dtype).kind in "fV"
        ] or list(session.outputs)
        self._expected = [session.run(feeds, self._names) for feeds in self._feeds]

    def error_of(self, model: ir.Model) -> OutputError:
        """Return how far the outputs of a model are.

        Raises:
            RuntimeFailure: it can't be run.
        """
        session = open_session(model, threads=self._threads, label="the quantized model")
        noise = signal = 0.0
        same: list[Array] = []
        for feeds, expected in zip(self._feeds, self._expected, strict=True):
            found = session.run(feeds, self._names)
            noise += sum(_squares(found[name] - _wide(expected[name])) for name in self._names)
            signal += sum(_squares(_wide(expected[name])) for name in self._names)
            same += self._same_class(found, expected)
        if not math.isfinite(noise):
            noise = math.inf
        agreement = float(np.concatenate(same).mean()) if same else None
        return OutputError(math.sqrt(noise / signal) if signal > 0 else float(noise > 0), agreement)

    def _same_class(self, found: Mapping[str, Array], expected: Mapping[str, Array]) -> list[Array]:
        name = self._names[0]
        if expected[name].ndim < 2 or expected[name].shape[-1] < 2:
            return []
        return [(found[name].argmax(-1) == expected[name].argmax(-1)).reshape(-1)]


def _wide(array: Array) -> Array:
    return array.astype(np.float64)


def _squares(array: Array) -> float:
    return float(np.square(_wide(array)).sum())
