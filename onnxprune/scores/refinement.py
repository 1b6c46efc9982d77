"""Least squares on a support: the best weights for zeros that are already chosen, for all outputs at once.

A sweep (`onnxprune.scores.obs`) never changes the columns before the one that it settles. What they could
still make up for is found here by conjugate gradients, one product of matrices a step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.types import BoolArray

Array = npt.NDArray[Any]

#: Steps, where a matrix is small enough for them.
MOST_STEPS = 20

#: Multiplications that all products for one matrix may take together: a few seconds of one core.
_MOST_MULTIPLICATIONS = 5e10

#: Products of matrices beside those of the steps: what it costs before and after them.
_OTHER_PRODUCTS = 2


def affordable_steps(outputs: int, inputs: int) -> int:
    """Return how many steps are worth their time; none for the largest matrices, of 4096 x 4096, say."""
    products = int(_MOST_MULTIPLICATIONS / (float(outputs) * inputs * inputs))
    return min(MOST_STEPS, max(products - _OTHER_PRODUCTS, 0))


def refine(target: Array, weights: Array, kept: BoolArray, hessian: Array, steps: int) -> tuple[Array, float]:
    """Minimise ``trace((V - W) H (V - W)^T)`` over V that is zero outside a support.

    Conjugate gradients on the normal equations of each output, preconditioned by the diagonal of H, as Meng
    et al. 2024 ("ALPS", section 3.3) do it for all outputs together.

    Args:
        target: W [outputs, inputs], as it was.
        weights: V to begin with, zero outside the support.
        kept: bool [outputs, inputs], the support.
        hessian: H [inputs, inputs], positive definite, of the type of the weights.
        steps: at most.

    Returns:
        V, and half of what was minimised. If rounding made it worse, the weights that were given.
    """
    full = (target - weights) @ hessian
    before = _half_cost(target - weights, full)
    scale = 1 / np.diagonal(hessian)
    best, residual = weights.copy(), np.where(kept, full, 0)
    direction = residual * scale
    energy = np.einsum("ij,ij->i", residual, direction)
    for _ in range(steps):
        image = direction @ hessian
        image[~kept] = 0
        length = _ratio(energy, np.einsum("ij,ij->i", direction, image))
        best += length * direction
        residual -= length * image
        scaled = residual * scale
        previous, energy = energy, np.einsum("ij,ij->i", residual, scaled)
        direction *= _ratio(energy, previous)
        direction += scaled
    after = _half_cost(target - best, (target - best) @ hessian)
    return (best, after) if after < before else (weights, before)


def _half_cost(change: Array, image: Array) -> float:
    return float(np.einsum("ij,ij->", change, image, dtype=np.float64)) / 2


def _ratio(above: Array, below: Array) -> Array:
    """Return a factor for each row; 0 where a row has arrived and nothing is left to divide."""
    tiny = np.finfo(below.dtype).tiny
    return np.divide(above, below, out=np.zeros_like(above), where=below > tiny)[:, None]
