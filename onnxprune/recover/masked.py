"""Least squares where every output may use inputs of its own: what a mask of weights leaves.

Each output o has its normal equations ``(G + ridge * mean(diag G) * I)[S, S] d = C[S, o]`` on its support S.
Narrow layers are solved exactly, outputs with the same support at once. For wide ones, whose factorisations
would take hours, conjugate gradients run on all outputs together: one product of matrices for each step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from onnxprune.types import BoolArray, FloatArray


def solve_on_support(
    second: FloatArray, cross: FloatArray, support: BoolArray, ridges: Sequence[float]
) -> Iterator[tuple[float, FloatArray]]:
    """Yield each ridge with its solution, exactly zero outside of the support.

    Args:
        second: G, float64 ``[groups, inputs, inputs]``.
        cross: C, float64 ``[groups, inputs, outputs]``.
        support: bool ``[groups, inputs, outputs]``.
        ridges: the strongest first.
    """
    for ridge in ridges:
        change = np.zeros_like(cross)
        for group in range(len(second)):
            damped = second[group] + np.diag(_damping(second[group], ridge))
            if not _solve_exactly(damped, cross[group], support[group], change[group]):
                return  # nor would it be positive definite with a smaller ridge
        yield ridge, change


def _damping(second: FloatArray, ridge: float) -> FloatArray:
    """Return what goes onto the diagonal: for inputs that are always zero, anything positive."""
    diagonal = np.diagonal(second)
    live = diagonal > 0
    mean = float(diagonal[live].mean()) if live.any() else 1.0
    return np.where(live, ridge * mean, 1.0)


def _solve_exactly(damped: FloatArray, cross: FloatArray, support: BoolArray, change: FloatArray) -> bool:
    """Write the solution for every output; False where a matrix is not positive definite."""
    packed = np.packbits(support.T, axis=1)
    _, first, which = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    which = which.ravel()
    for number, output in enumerate(first):
        places = np.flatnonzero(support[:, output])
        if not len(places):
            continue
        columns = np.flatnonzero(which == number)
        try:
            factor = cho_factor(damped[np.ix_(places, places)], lower=True, overwrite_a=True)
        except np.linalg.LinAlgError:
            return False
        change[np.ix_(places, columns)] = cho_solve(factor, cross[np.ix_(places, columns)])
    return True
