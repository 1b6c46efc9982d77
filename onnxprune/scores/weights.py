"""Scores of single weights, from the weights alone: magnitude, LAMP, and random as the control.

A scorer is started once for each tensor and then given its weights in order, a piece at a time, so that
models larger than memory can be scored. Scores are not negative; higher is kept longer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxprune.registry import Registry

Array: TypeAlias = npt.NDArray[Any]

#: Scores the next piece of a tensor: float32 or float64, the shape of the piece, in an array of its own.
PieceScorer: TypeAlias = Callable[[Array], Array]

#: Starts reading a tensor from the beginning, a piece at a time.
Reader: TypeAlias = Callable[[], Iterator[Array]]


@dataclass(frozen=True, slots=True)
class WeightScorer:
    """A method that scores single weights.

    Attributes:
        start: (tensor name, seed, reads its pieces) -> the scorer of these pieces.
        power: where several weights stand or fall together, they score as mean(score**power)**(1/power).
    """

    start: Callable[[str, int, Reader], PieceScorer]
    power: float = 1.0


WEIGHT_SCORERS: Registry[WeightScorer] = Registry("weight score")


def _magnitude(piece: Array) -> Array:
    """score[i] = |w[i]|, float64 for float64 weights, else float32, which holds the smaller types exactly."""
    return np.asarray(
        np.abs(piece.astype(np.float64 if piece.dtype == np.float64 else np.float32, copy=False))
    )


def _start_magnitude(tensor: str, seed: int, read: Reader) -> PieceScorer:  # noqa: ARG001 # on none of them
    return _magnitude


def _start_lamp(tensor: str, seed: int, read: Reader) -> PieceScorer:  # noqa: ARG001 # depends on the weights
    """score[i] = |w[i]| / sqrt(sum of w[j]**2 over all j of the tensor with |w[j]| >= |w[i]|)

    The root of the score of Lee et al. 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning",
    eq. 4, which ranks alike and does not underflow. Inside a tensor it ranks as the magnitude does; between
    tensors it says how much of what would be left a weight is. Equal magnitudes score alike.
    """
    ascending = np.sort(np.concatenate([_magnitude(piece).reshape(-1) for piece in read()]))
    largest = float(ascending[-1]) or 1.0 if ascending.size else 1.0
    squares = np.square(ascending / ascending.dtype.type(largest), dtype=np.float64)
    rest = np.sqrt(np.cumsum(squares[::-1])[::-1])

    def score(piece: Array) -> Array:
        magnitudes = _magnitude(piece)
        share = magnitudes / largest
        places = np.searchsorted(ascending, magnitudes)  # the first of equal ones
        return np.asarray(np.divide(share, rest[places], out=np.zeros_like(share), where=share > 0))

    return score


def _start_random(tensor: str, seed: int, read: Reader) -> PieceScorer:  # noqa: ARG001 # not on the weights
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
    (("lamp",), WeightScorer(_start_lamp)),
    (("random",), WeightScorer(_start_random)),
):
    WEIGHT_SCORERS.register(*_names)(_scorer)
