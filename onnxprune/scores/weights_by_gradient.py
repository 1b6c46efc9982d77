"""Scores of single weights that are measured all at once: from gradients, or from earlier weights.

Figures of all tensors are there before the first weight is chosen, one float32 array for each; then they are
ranked like any score from weights, by every pattern and scope.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.calibration.activations import USUAL, Running
from onnxprune.data import Dataset
from onnxprune.registry import Registry
from onnxprune.scores.gradient import check_slope, mean_squares
from onnxprune.scores.weights import PieceScorer, Reader, WeightScorer

if TYPE_CHECKING:
    from onnxprune.executor.gradients import Differentiable, Targets

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class WeightSubject:
    """What single weights are scored by.

    Attributes:
        model: not changed.
        tensors: names of the weights, as they are stored.
        data: samples that fit the model.
        running: batches and threads of runs.
        seed: of targets that are drawn.
        progress: called with the share that is done, in (0, 1].
    """

    model: ir.Model
    tensors: Collection[str]
    data: Dataset
    running: Running = USUAL
    seed: int = 0
    progress: Callable[[float], None] | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """Scores of single weights.

    Attributes:
        tensors: float32 in the stored shape, by name; higher is kept longer.
        power: weights that stand or fall together score as mean(score**power)**(1/power).
        missing: why a tensor has none, by name.
    """

    tensors: Mapping[str, Array]
    power: float = 1.0
    missing: Mapping[str, str] = field(default_factory=dict)

    def scorer(self) -> WeightScorer:
        """Return what ranks weights by these figures.

        Ranking takes scores that are not negative: if some are, the least of all becomes zero.
        """
        least = min((float(figures.min()) for figures in self.tensors.values() if figures.size), default=0.0)
        shift = np.float32(min(least, 0.0))

        def start(tensor: str, seed: int, read: Reader) -> PieceScorer:  # noqa: ARG001 # measured already
            flat, place = self.tensors[tensor].reshape(-1), 0

            def score(piece: Array) -> Array:
                nonlocal place
                mine = flat[place : place + piece.size] - shift
                place += piece.size
                return np.asarray(mine.reshape(piece.shape))

            return score

        return WeightScorer(start, self.power)


GRADIENT_WEIGHT_SCORERS: Registry[Callable[[WeightSubject], Figures]] = Registry("score")


@GRADIENT_WEIGHT_SCORERS.register("taylor")
def taylor(subject: WeightSubject) -> Figures:
    """score[i] = mean over batches of |w[i] * dL/dw[i]|

    The root of Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", eq. 8, before the
    mean: the first-order change of the loss. L is the mean loss of a batch.
    """
    return _sensitivities(subject, None)


@GRADIENT_WEIGHT_SCORERS.register("snip")
def connection_sensitivity(subject: WeightSubject) -> Figures:
    """score[i] = |w[i] * dL/dw[i]| on the first batch, as a share of the sum over all weights

    Lee et al. 2019, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", section 4.1, at the
    weights that are given in place of those before training.
    """
    found = _sensitivities(subject, 1)
    whole = sum(float(figures.sum(dtype=np.float64)) for figures in found.tensors.values()) or 1.0
    shares = {name: figures / np.float32(whole) for name, figures in found.tensors.items()}
    return Figures(shares, found.power, found.missing)


@GRADIENT_WEIGHT_SCORERS.register("fisher")
def fisher(subject: WeightSubject) -> Figures:
    """score[i] = |w[i]| * sqrt(mean over samples of (dL/dw[i])**2 / 2)

    The root of Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", section
    2.1, for single weights: the second-order change of the loss by the empirical Fisher information. Roots
    rank alike and do not underflow; blocks compete by their mean square.
    """
    return _curvatures(subject, "labels or drawn")


@GRADIENT_WEIGHT_SCORERS.register("obd")
def optimal_brain_damage(subject: WeightSubject) -> Figures:
    """score[i] = |w[i]| * sqrt(mean over samples of (dL/dw[i])**2 / 2), targets from the model's distribution

    The root of LeCun et al. 1989, "Optimal Brain Damage", section 2, with the Fisher information of the
    model's own distribution for the diagonal of the Hessian: as `fisher`, but for what it is judged by.
    """
    return _curvatures(subject, "drawn")


def _sensitivities(subject: WeightSubject, batches: int | None) -> Figures:
    """Return the mean over batches of |w * dL/dw|."""
    model = _differentiable(subject)
    from onnxprune.executor.gradients import Wish

    sums: dict[str, Array] = {}

    def visit(name: str, weights: Array, gradient: Array) -> None:
        change = np.abs(weights * gradient)  # of the sum of the losses of a batch
        if name in sums:
            sums[name] += change
        else:
            sums[name] = change

    wish = Wish(batches=batches, seed=subject.seed)
    samples = sum(model.weight_gradients(visit, wish, subject.progress))
    for total in sums.values():
        total /= max(samples, 1)
    check_slope(sums.values(), subject.data)
    return Figures(sums, missing=_missing(subject, model, sums))


def _curvatures(subject: WeightSubject, targets: Targets) -> Figures:
    """Return |w| * sqrt(mean over samples of (dL/dw)**2 / 2)."""
    model = _differentiable(subject)
    found = mean_squares(model, targets, subject.seed, subject.progress)
    figures = {}
    for name, (weights, squares) in found.items():
        figures[name] = np.sqrt(squares, out=squares)
        figures[name] *= np.abs(weights) * np.float32(0.5**0.5)
    check_slope(figures.values(), subject.data)
    return Figures(figures, power=2.0, missing=_missing(subject, model, figures))


def _differentiable(subject: WeightSubject) -> Differentiable:
    from onnxprune.executor.gradients import Differentiable

    return Differentiable(subject.model, subject.data, subject.running, weights=subject.tensors)


def _missing(subject: WeightSubject, model: Differentiable, found: Collection[str]) -> dict[str, str]:
    """Say why tensors have no figures."""
    unread = "no output that the loss looks at depends on it"
    reasons = {
        name: unread if name in model.weights else model.without_gradient.get(name, "it does not train")
        for name in subject.tensors
        if name not in found
    }
    return {name: f"it has no gradient: {reason}" for name, reason in reasons.items()}
