"""Second moments of inputs -> a damped Hessian and its Cholesky factors, by LAPACK, in place where possible.

For a layer ``y = W x`` whose weights change by D, the mean squared change of y is ``trace(D E[x x^T] D^T)``;
half of its second derivative by a row of W is ``E[x x^T]``. Optimal Brain Surgeon (Hassibi & Stork 1993) and
its descendants need the inverse of that matrix, which exists for certain only when it is damped.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import scipy

from onnxprune.errors import DataError
from onnxprune.messages import quoted
from onnxprune.types import FloatArray, IntArray

#: lambda of the damping: this share of the mean diagonal is added to the diagonal.
DAMPING = 0.01

#: What a raised damping starts from if the one asked for is smaller (0, say).
_SMALLEST_RAISE = 1e-6

#: A matrix that is still not positive definite at this damping is no matrix of second moments.
_LARGEST_DAMPING = 1e4

#: Rows and columns that are mirrored at a time, so that no second matrix is held.
_TILE = 1024


class NotPositiveDefinite(UserWarning):
    """A matrix of second moments needed more damping than was asked for before it had a Cholesky factor."""


@dataclass(frozen=True, slots=True)
class Damping:
    """What was done to a matrix of second moments before it was factorised.

    Attributes:
        dead: int32 [dead inputs], ascending: those that were 0 in every row. Their weights change nothing.
        asked: lambda that was asked for.
        used: lambda that was needed; tenfold of the one before until the matrix was positive definite.
    """

    dead: IntArray
    asked: float
    used: float

    @property
    def warning(self) -> str | None:
        """Say how far the damping was raised; None if it was not."""
        if self.used == self.asked:
            return None
        return (
            f"second moments of its inputs are not positive definite with damping {self.asked:g}; "
            f"{self.used:g} was used: more or more varied samples make this exact"
        )


@dataclass(frozen=True, slots=True)
class Factor:
    """A Hessian as ``H = L L^T``.

    Attributes:
        lower: L, float64 [inputs, inputs], Fortran order, zeros above the diagonal.
        damping: dead inputs, and lambda.
    """

    lower: FloatArray
    damping: Damping

    def solve(self, right: FloatArray) -> FloatArray:
        """Return ``H^-1 right``, float64, for right [inputs, columns] or [inputs]."""
        solution, _ = scipy.linalg.lapack.dpotrs(self.lower, right, lower=1)
        return np.asarray(solution)

    def inverse(self, *, overwrite: bool = False) -> FloatArray:
        """Return H^-1, float64 [inputs, inputs], both triangles.

        Args:
            overwrite: take the memory of ``lower``, which is lost.
        """
        inverse, _ = scipy.linalg.lapack.dpotri(self.lower, lower=1, overwrite_c=overwrite)
        _mirror_lower(inverse)
        return np.asarray(inverse)


@dataclass(frozen=True, slots=True)
class InverseFactor:
    """The inverse of a Hessian as ``H^-1 = U^T U``.

    Row j of U, divided by U_jj, says how the weights after j make up for the loss of weight j once those
    before j are settled (Frantar & Alistarh 2023, "SparseGPT", section 3.3).

    Attributes:
        upper: U, float64 [inputs, inputs], zeros below the diagonal.
        damping: dead inputs, and lambda.
    """

    upper: FloatArray
    damping: Damping


def damped_hessian(
    second: FloatArray, count: float, *, damping: float = DAMPING
) -> tuple[FloatArray, IntArray]:
    """Return ``H = 2/n * second + lambda * mean(diag H) * I``, and the inputs that are dead.

    The mean runs over the inputs that are not dead. A dead input has a row and a column of zeros, so
    any number on its diagonal leaves all others as they are: it gets 1.

    Args:
        second: float64 [inputs, inputs], symmetric: the sum of x x^T over rows.
        count: n, the rows.
        damping: lambda.

    Returns:
        H, float64 [inputs, inputs], C order, a copy; and int32 [dead inputs].
    """
    hessian = np.multiply(second, 2.0 / max(count, 1), order="C")
    dead = _damp(hessian, damping)
    return hessian, dead


def factorize(
    second: FloatArray, count: float, *, damping: float = DAMPING, layer: str = "a layer"
) -> Factor:
    """Return the Cholesky factor of a damped Hessian.

    Where the matrix is not positive definite, which second moments with damping are but for rounding, the
    damping is raised tenfold until it is, and `NotPositiveDefinite` is warned of.

    Args:
        second: as of `damped_hessian`; not changed.
        count: as of `damped_hessian`.
        damping: lambda.
        layer: for the warning and errors.

    Raises:
        DataError: the moments are not finite, or nowhere near positive definite.
    """
    lower, used = _factorize(second, count, damping, layer, reverse=False)
    return Factor(lower, used)


def inverse_factor(
    second: FloatArray, count: float, *, damping: float = DAMPING, layer: str = "a layer"
) -> InverseFactor:
    """Return the upper triangular U of ``H^-1 = U^T U`` of a damped Hessian H.

    With P the matrix that reverses an order and ``P H P = L L^T``, U is ``P L^-1 P``: one Cholesky
    factorisation and one triangular inverse, half of the work of inverting H and factorising the inverse.

    Args:
        second: as of `damped_hessian`; not changed.
        count: as of `damped_hessian`.
        damping: lambda.
        layer: for the warning and errors.

    Raises:
        DataError: as of `factorize`.
    """
    lower, used = _factorize(second, count, damping, layer, reverse=True)
    inverse, _ = scipy.linalg.lapack.dtrtri(lower, lower=1, overwrite_c=1)
    return InverseFactor(np.asarray(inverse)[::-1, ::-1], used)


def _factorize(
    second: FloatArray, count: float, damping: float, layer: str, *, reverse: bool
) -> tuple[FloatArray, Damping]:
    if not np.isfinite(np.diagonal(second)).all():
        raise DataError(
            f"{quoted(layer)}: its input on this data holds NaN, infinity, or numbers too large to square"
        )
    used = damping
    while True:
        hessian, dead = damped_hessian(second[::-1, ::-1] if reverse else second, count, damping=used)
        # symmetric: its transpose is the same matrix in the order that LAPACK works on in place
        diagonal = np.diagonal(hessian).copy()
        lower, failed_at = scipy.linalg.lapack.dpotrf(hessian.T, lower=1, clean=1, overwrite_a=1)
        if failed_at == 0 and not _lost_in_rounding(lower, diagonal):
            break
        used = max(used, _SMALLEST_RAISE) * 10
        if used > _LARGEST_DAMPING:
            raise DataError(
                f"{quoted(layer)}: the second moments of its input are not positive definite even with "
                f"damping {_LARGEST_DAMPING:g}: they are damaged, measure them anew"
            )
    if reverse:
        dead = (len(second) - 1 - dead)[::-1].astype(np.int32)
    found = Damping(dead, damping, used)
    if found.warning is not None:
        warnings.warn(f"{quoted(layer)}: {found.warning}", NotPositiveDefinite, stacklevel=3)
    return np.asarray(lower), found


def _lost_in_rounding(lower: FloatArray, diagonal: FloatArray) -> bool:
    """Tell whether what is left of a diagonal entry, once others explain it, is no more than rounding."""
    noise = len(diagonal) * np.finfo(np.float64).eps
    return bool((np.square(np.diagonal(lower)) <= noise * diagonal).any())


def _damp(hessian: FloatArray, damping: float) -> IntArray:
    """Add to the diagonal, in place; return the dead inputs."""
    diagonal = np.einsum("ii->i", hessian)  # a view that can be written to
    dead = np.flatnonzero(diagonal == 0).astype(np.int32)
    live = len(diagonal) - len(dead)
    if live:
        diagonal += damping * math.fsum(diagonal) / live
    diagonal[dead] = 1.0
    return dead


def _mirror_lower(matrix: FloatArray) -> None:
    """Copy the lower triangle onto the upper one, in place, tile by tile."""
    size = len(matrix)
    for start in range(0, size, _TILE):
        end = min(start + _TILE, size)
        matrix[start:end, end:] = matrix[end:, start:end].T
        tile = matrix[start:end, start:end]
        above = np.triu_indices(end - start, 1)
        tile[above] = tile.T[above]
