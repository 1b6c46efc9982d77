"""Importance of residual branches: block influence from data; weights alone, and random as the control."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.calibration.activations import USUAL, Running, each_batch
from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.model.streaming import read_pieces
from onnxprune.registry import Registry
from onnxprune.scores import branch_gradient
from onnxprune.types import Branch, FloatArray

#: model, branches, data, seed, how it is run -> float64 [branch]; higher = keep
BranchScorer = Callable[[ir.Model, Sequence[Branch], "Dataset | None", int, Running], FloatArray]

BRANCH_SCORERS: Registry[BranchScorer] = Registry("score of layers")


@BRANCH_SCORERS.register("influence")
def influence(
    model: ir.Model, branches: Sequence[Branch], data: Dataset | None, _seed: int, running: Running = USUAL
) -> FloatArray:
    """Score = 1 - E[cos(y - f, y)] for y = x + f(x): how far the branch turns what it is added to.

    The cosine is taken along the feature axis, the mean over samples and all other axes. This is the block
    influence of "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect" (Men et al.,
    2024), for single branches as in "What Matters in Transformers? Not All Attention is Needed" (He et al.,
    2024).

    Raises:
        UsageError: there is no data.
        DataError, LimitMissed, RuntimeFailure: see `each_batch`.
    """
    if data is None:
        raise UsageError(
            "the influence of layers is measured on data: give --data calib.npz, or --score l2 for weights"
        )
    sums, counts = np.zeros(len(branches)), np.zeros(len(branches))
    bundles = [(branch.value, branch.total) for branch in branches]
    runs = each_batch(
        model, bundles, data, batch=running.batch, limit_bytes=running.limit_bytes, threads=running.threads
    )
    for tapped in runs:
        value, total = tapped.values
        cosines = _cosines(total - value, total, branches[tapped.bundle].axis)
        sums[tapped.bundle] += cosines.sum()
        counts[tapped.bundle] += cosines.size
    return 1 - sums / np.maximum(counts, 1)


def _cosines(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating], axis: int) -> FloatArray:
    """Return the cosine of the angles between vectors along an axis; 0 beside a vector of zeros, 1 of two."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=axis) * np.linalg.norm(b, axis=axis)
    both_zero = (np.abs(a).max(axis=axis, initial=0) == 0) & (np.abs(b).max(axis=axis, initial=0) == 0)
    products = (a * b).sum(axis=axis)
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return np.asarray(np.where(both_zero, 1.0, cosines))


@BRANCH_SCORERS.register("l2")
def weight_size(
    model: ir.Model, branches: Sequence[Branch], _data: Dataset | None, _seed: int, _running: Running = USUAL
) -> FloatArray:
    """Score = sqrt(mean of w**2) over the float weights of the branch: crude, but needs no data"""
    tensors = model.graph.initializers
    scores = np.zeros(len(branches))
    for number, branch in enumerate(branches):
        energy = count = 0.0
        for name in branch.weights:
            tensor = tensors[name].const_value
            if tensor is not None and tensor.dtype.is_floating_point():
                pieces = (piece.astype(np.float64) for piece in read_pieces(tensor))
                energy += sum(float(piece @ piece) for piece in pieces)
                count += tensor.size
        scores[number] = np.sqrt(energy / max(count, 1))
    return scores


@BRANCH_SCORERS.register("random")
def uniform_noise(
    _model: ir.Model, branches: Sequence[Branch], _data: Dataset | None, seed: int, _running: Running = USUAL
) -> FloatArray:
    """Score is drawn uniformly from [0, 1): what a method has to beat"""
    return np.random.default_rng(seed).random(len(branches))


BRANCH_SCORERS.register("taylor_activation")(branch_gradient.branch_change)
BRANCH_SCORERS.register("fisher")(branch_gradient.branch_fisher)
