"""Least squares where every output may use inputs of its own: what a mask of weights leaves.

Each output o has normal equations of its own, ``H[S, S] d = C[S, o]`` on its support S. Where that is cheaper
they are solved exactly, outputs with the same support at once. In wide layers every output would take a
factorisation that is as large as that of the whole layer; there conjugate gradients run on many outputs
together, with one product of matrices for each step, preconditioned by the inverse of the whole H.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy

from onnxprune.cholesky import Factor
from onnxprune.types import BoolArray, FloatArray

#: Conjugate gradients stop when the norm of what is left, as the preconditioner sees it, is this share of
#: what it was, for every output. What is missed of the best reduction goes with its square: below 1e-3 of it.
TOLERANCE = 3e-2

#: Steps after which they stop all the same.
_MOST_STEPS = 100

#: Steps that they take as a rule, and how much faster a product of large matrices is than factorisations.
_USUAL_STEPS, _SPEEDUP = 40, 2.0

#: Outputs that are solved together by conjugate gradients.
_TOGETHER = 1024


def exact_is_cheaper(support: BoolArray) -> bool:
    """Return whether factorising for every support takes less time than conjugate gradients.

    Args:
        support: bool ``[inputs, outputs]``.
    """
    first, _ = _distinct(support)
    factorising = (support[:, first].sum(axis=0, dtype=np.float64) ** 3).sum() / 3
    return bool(factorising * _SPEEDUP <= _USUAL_STEPS * 4 * support.size * len(support))


def solve_exactly(hessian: FloatArray, right: FloatArray, support: BoolArray) -> FloatArray:
    """Solve for every output on its support, with one factorisation for each support.

    Args:
        hessian: H, float64 ``[inputs, inputs]``.
        right: C, float64 ``[inputs, outputs]``.
        support: bool ``[inputs, outputs]``.

    Returns:
        float64 ``[inputs, outputs]``, 0 outside of the support.

    Raises:
        numpy.linalg.LinAlgError: H is not positive definite.
    """
    change = np.zeros_like(right)
    first, which = _distinct(support)
    for number, output in enumerate(first):
        places = np.flatnonzero(support[:, output])
        if len(places):
            columns = np.flatnonzero(which == number)
            factor = scipy.linalg.cho_factor(hessian[np.ix_(places, places)], lower=True, overwrite_a=True)
            change[np.ix_(places, columns)] = scipy.linalg.cho_solve(factor, right[np.ix_(places, columns)])
    return change


def solve_by_gradients(
    hessian: FloatArray, factor: Factor, right: FloatArray, support: BoolArray, tolerance: float = TOLERANCE
) -> FloatArray:
    """Solve for every output on its support by preconditioned conjugate gradients, in float32.

    The preconditioner is H^-1 with the rows and columns of the support; Hestenes & Stiefel 1952, with a step
    length of its own for each output.

    Args:
        hessian: H, float64 ``[inputs, inputs]``.
        factor: of H.
        right: C, float64 ``[inputs, outputs]``.
        support: bool ``[inputs, outputs]``.
        tolerance: see `TOLERANCE`.

    Returns:
        As `solve_exactly`.
    """
    matrix, inverse = hessian.astype(np.float32), factor.inverse().astype(np.float32)
    change = np.empty_like(right)
    for start in range(0, right.shape[1], _TOGETHER):
        some = slice(start, start + _TOGETHER)
        inside = support[:, some].astype(np.float32)
        change[:, some] = _gradients(matrix, inverse, right[:, some].astype(np.float32), inside, tolerance)
    return change


Single = npt.NDArray[np.float32]


def _gradients(matrix: Single, inverse: Single, right: Single, inside: Single, tolerance: float) -> Single:
    solution = np.zeros_like(right)
    left = right * inside
    step = preconditioned = inside * (inverse @ left)
    size = _dots(left, preconditioned)
    enough = tolerance**2 * size
    for _ in range(_MOST_STEPS):
        pushed = inside * (matrix @ step)
        length = _ratio(size, _dots(step, pushed))
        solution += length * step
        left -= length * pushed
        preconditioned = inside * (inverse @ left)
        next_size = _dots(left, preconditioned)
        if (next_size <= enough).all():
            break
        step = preconditioned + _ratio(next_size, size) * step
        size = next_size
    return solution


def _dots(a: Single, b: Single) -> Single:
    return np.asarray(np.einsum("ij,ij->j", a, b))


def _ratio(above: Single, below: Single) -> Single:
    """Return above / below, 0 where nothing is left to do."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _distinct(support: BoolArray) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the first output of each distinct support, and for each output the number of its support."""
    packed = np.packbits(support.T, axis=1)
    _, first, which = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    return first, which.ravel()
