"""Scores of single weights, from the weights alone: magnitude, and random as the control.

A scorer is started once for each tensor and then given its weights in order, a piece at a time, so that
models larger than memory can be scored. Scores are not negative; higher is kept longer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxprune.registry import Registry

Array: TypeAlias = npt.NDArray[Any]

#: Scores the next piece of a tensor: float32 or float64, the shape of the piece.
PieceScorer: TypeAlias = Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class WeightScorer:
    """A method that scores single weights.

    Attributes:
        start: (tensor name, seed) -> the scorer of that tensor's pieces.
        power: where several weights stand or fall together, they score as mean(score**power)**(1/power).
    """

    start: Callable[[str, int], PieceScorer]
    power: float = 1.0


WEIGHT_SCORERS: Registry[WeightScorer] = Registry("weight score")


def _magnitude(piece: Array) -> Array:
    """score[i] = |w[i]|, float64 for float64 weights, else float32, which holds the smaller types exactly."""
    return np.asarray(np.abs(piece.astype(np.float64 if piece.dtype == np.float64 else np.float32)))


def _start_magnitude(tensor: str, seed: int) -> PieceScorer:  # noqa: ARG001 # depends on neither
    return _magnitude


def _start_random(tensor: str, seed: int) -> PieceScorer:
    """score[i] is uniform in [0, 1), from a stream of its own for each tensor name and seed."""
    name = int.from_bytes(hashlib.sha256(tensor.encode()).digest()[:16], "little")
    bits = np.random.PCG64(np.random.SeedSequence([seed, name]))

    def score(piece: Array) -> Array:
        raw = np.asarray(bits.random_raw(piece.size), dtype=np.uint64)  # a stream that numpy never changes
        return ((raw >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)).reshape(piece.shape)

    return score


# l1 and l2 rank single weights alike; they differ where a block of weights is scored.
for _names, _scorer in (
    (("l1", "magnitude"), WeightScorer(_start_magnitude)),
    (("l2",), WeightScorer(_start_magnitude, power=2.0)),
    (("random",), WeightScorer(_start_random)),
):
    WEIGHT_SCORERS.register(*_names)(_scorer)
