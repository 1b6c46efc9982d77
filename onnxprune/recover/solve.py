"""The closed form: the change of a layer's weights and intercept that brings its result closest to a target.

``min over D, c of ||r - x D - 1 c||^2 + ridge * mean(diag G) * ||D||^2``, with r the residual, G the second
moments of x around its mean; so ``D = (G + ridge * mean(diag G) * I)^-1 C``. It is the change that is kept
small, not the weights: where nothing is missing nothing changes. The ridge is the one that does best on rows
that were held out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.cholesky import NotPositiveDefinite, damped_hessian, factorize
from onnxprune.recover.cross_moments import CrossMoments
from onnxprune.recover.masked import exact_is_cheaper, solve_by_gradients, solve_exactly
from onnxprune.types import BoolArray, FloatArray

#: Ridges that are tried, the strongest first.
RIDGES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)

#: With a mask, the ridge is chosen on so many outputs: each one takes a factorisation of its own.
_OUTPUTS_FOR_RIDGE = 64

#: A result with less than this share of the target's deviation is constant, and can't be stretched.
_CONSTANT = 1e-3

#: A residual with less than this share of the target's energy is rounding.
ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Solution:
    """A change of one layer, and what it does on the rows that were held out.

    Attributes:
        change: float64 ``[groups, inputs, outputs]``, of the transposed weights; None for none.
        intercept: float64 ``[groups, outputs]``.
        ridge: that was chosen; None where nothing was solved.
        before: energy of the residual, relative to that of the target.
        after: the same with the change.
    """

    change: FloatArray | None
    intercept: FloatArray
    ridge: float | None
    before: float
    after: float

    @property
    def helps(self) -> bool:
        """True if the residual became smaller."""
        return self.after < self.before


def reconstruct(
    fit: CrossMoments,
    held: CrossMoments,
    weight: FloatArray,
    support: BoolArray | None = None,
    ridges: Sequence[float] = RIDGES,
) -> Solution:
    """Solve for weights and intercept.

    Args:
        fit: rows that are solved for.
        held: rows that the ridge is chosen on.
        weight: float64 ``[groups, outputs]``: how an error of each output counts.
        support: bool ``[groups, inputs, outputs]``, where the weights may change; None for everywhere.
        ridges: that may be chosen, the strongest first. Trials begin in the middle.
    """
    before = relative_error(held, None, np.zeros_like(weight), weight)
    best = Solution(None, np.zeros_like(weight), None, before, before)
    if before <= ROUNDING:
        return best
    if support is not None and weight.shape[1] > _OUTPUTS_FOR_RIDGE and len(ridges) > 1:
        chosen = reconstruct(*_few_outputs(fit, held, weight, support), ridges).ridge
        ridges = () if chosen is None else (chosen,)
    problem = _Problem(fit, support)
    errors: dict[int, float] = {}

    def error(place: int) -> float:
        nonlocal best
        if place not in errors:
            change = problem.solve(ridges[place])
            errors[place] = np.inf
            if change is not None:
                intercept = fit.intercept(change)
                errors[place] = relative_error(held, change, intercept, weight)
            if change is not None and errors[place] < best.after:
                best = Solution(change, intercept, ridges[place], before, errors[place])
        return errors[place]

    _descend(error, len(ridges))
    return best


def _descend(error: Callable[[int], float], count: int) -> None:
    """Walk from the middle of some places to a neighbour with a smaller error, until there is none."""
    place = count // 2
    while place > 0 and not np.isfinite(error(place)):
        place -= 1
    while count:
        beside = [other for other in (place - 1, place + 1) if 0 <= other < count]
        better = min(beside, key=error, default=place)
        if error(better) >= error(place):
            return
        place = better


def shift(fit: CrossMoments, held: CrossMoments, weight: FloatArray) -> Solution:
    """Solve for the intercept alone: the mean of what is missing."""
    before = relative_error(held, None, np.zeros_like(weight), weight)
    intercept = fit.missing / max(1, fit.count)
    after = relative_error(held, None, intercept, weight)
    return Solution(None, intercept, None, before, after)


def match(fit: CrossMoments, held: CrossMoments, weight: FloatArray, matrix: FloatArray) -> Solution:
    """Solve for a factor and an intercept that give each output the mean and the deviation of its target.

    Behind a convolution this does what new statistics of the BatchNormalization that follows would do, or
    followed before an exporter folded it. The error is the distance of means and deviations.

    Args:
        fit: rows that are solved for, with the layer's result in the place of the residual.
        held: the same of rows that it is checked on.
        weight: as for `reconstruct`.
        matrix: float64 ``[groups, outputs, inputs]``, the weights.
    """
    given, wanted = _deviations(fit)
    factor = np.divide(wanted, given, out=np.ones_like(given), where=given > _CONSTANT * wanted)
    change = (factor[:, :, None] - 1) * matrix
    # the intercept that the layer has is not multiplied, only what it adds to
    moved = np.einsum("gmn,gn->gm", change, fit.first)
    intercept = (fit.total - fit.missing - moved) / max(1, fit.count)
    whole = float((weight**2 * held.spread).sum()) / max(1, held.count)
    errors = []
    for scale, push, offset in (
        (np.ones_like(factor), np.zeros_like(change), 0.0),
        (factor, change, intercept),
    ):
        given, wanted = _deviations(held)
        means = (held.total - held.missing - np.einsum("gmn,gn->gm", push, held.first)) / max(1, held.count)
        off = (means - offset) ** 2 + (wanted - scale * given) ** 2
        errors.append(float((weight**2 * off).sum()) / max(whole, np.finfo(np.float64).tiny))
    return Solution(change.swapaxes(1, 2), intercept, None, errors[0], errors[1])


def _deviations(rows: CrossMoments) -> tuple[FloatArray, FloatArray]:
    """Return the standard deviations of what is given and of the target, float64 ``[groups, outputs]``."""
    count = max(1, rows.count)
    given = rows.energy / count - (rows.missing / count) ** 2
    wanted = rows.total_energy / count - (rows.total / count) ** 2
    return np.sqrt(np.maximum(given, 0)), np.sqrt(np.maximum(wanted, 0))


def relative_error(
    rows: CrossMoments, change: FloatArray | None, intercept: FloatArray, weight: FloatArray
) -> float:
    """Return what a change leaves of the residual, relative to the energy of the target."""
    squared = weight**2
    whole = float((squared * rows.spread).sum())
    left = float((squared * rows.errors(change, intercept)).sum())
    return left / whole if whole > 0 else 0.0 if left == 0 else np.inf


class _Problem:
    """The moments of a layer around their means, ready to be solved with any ridge."""

    def __init__(self, fit: CrossMoments, support: BoolArray | None) -> None:
        self.count = fit.count
        self.support = support
        self.second, cross = fit.centred()
        self.right = cross * (2.0 / max(1, fit.count))  # factors are of 2/n times the moments

    def solve(self, ridge: float) -> FloatArray | None:
        """Return the change; None if the ridge is too small for a factorisation."""
        change = np.empty_like(self.right)
        with warnings.catch_warnings():
            warnings.simplefilter("error", NotPositiveDefinite)
            try:
                for group, moments in enumerate(self.second):
                    inside = None if self.support is None else self.support[group]
                    change[group] = _solve(moments, self.count, ridge, self.right[group], inside)
            except (NotPositiveDefinite, np.linalg.LinAlgError):
                return None
        return change


def _solve(
    second: FloatArray, count: int, ridge: float, right: FloatArray, support: BoolArray | None
) -> FloatArray:
    """Solve one group, float64 ``[inputs, outputs]``."""
    if support is None:
        return factorize(second, count, damping=ridge).solve(right)
    hessian, _ = damped_hessian(second, count, damping=ridge)
    if exact_is_cheaper(support):
        return solve_exactly(hessian, right, support)
    return solve_by_gradients(hessian, factorize(second, count, damping=ridge), right, support)


def _few_outputs(
    fit: CrossMoments, held: CrossMoments, weight: FloatArray, support: BoolArray
) -> tuple[CrossMoments, CrossMoments, FloatArray, BoolArray]:
    """Return the problem for a sample of the outputs, evenly spread."""
    some = np.unique(np.linspace(0, weight.shape[1] - 1, _OUTPUTS_FOR_RIDGE).astype(np.intp))
    return fit.of_outputs(some), held.of_outputs(some), weight[:, some], support[:, :, some]
