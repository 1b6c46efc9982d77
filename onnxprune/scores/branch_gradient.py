"""Importance of residual branches from gradients: a mask at 1 scales what a branch adds to its sum.

A branch f of y = x + f(x) goes when its mask m becomes 0: dL/dm is the sum of f * dL/df over all positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxprune.calibration.activations import USUAL, Running
from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.model.float32 import in_float32
from onnxprune.model.names import Names
from onnxprune.scores.gradient import check_slope
from onnxprune.scores.masked import Mask, multiply
from onnxprune.types import Branch, FloatArray

if TYPE_CHECKING:
    from onnxprune.executor.gradients import Targets


def branch_change(
    model: ir.Model, branches: Sequence[Branch], data: Dataset | None, seed: int, running: Running = USUAL
) -> FloatArray:
    """Score = mean over samples of |dL/dm|, as `onnxprune.scores.gradient.activation_change`, for a branch"""
    return _at_masks(model, branches, data, seed, running, "labels or predicted", np.abs)


def branch_fisher(
    model: ir.Model, branches: Sequence[Branch], data: Dataset | None, seed: int, running: Running = USUAL
) -> FloatArray:
    """Score = mean over samples of (dL/dm)**2 / 2, as `onnxprune.scores.gradient.fisher`, for a branch"""
    return _at_masks(model, branches, data, seed, running, "labels or drawn", lambda change: change**2 / 2)


def _at_masks(
    model: ir.Model,
    branches: Sequence[Branch],
    data: Dataset | None,
    seed: int,
    running: Running,
    targets: Targets,
    measure: Callable[[FloatArray], FloatArray],
) -> FloatArray:
    """Return the mean over samples of a measure of dL/dm, float64 [branch]; samples run one at a time.

    Raises:
        UsageError: there is no data.
        DataError, ModelError, MissingExtra: see `onnxprune.executor.gradients.Differentiable`.
    """
    if data is None:
        raise UsageError("gradients of layers are measured on data: give --data calib.npz")
    from onnxprune.executor.gradients import Differentiable, Wish

    copy = in_float32(model).clone()
    nodes, names = {node.name: node for node in copy.graph}, Names(copy.graph)
    masks: dict[str, tuple[int, ...]] = {}
    for number, branch in enumerate(branches):
        mask = Mask(names.fresh(f"branch_mask_{number}"), (1,), np.zeros((1, 1), np.int32))
        multiply(copy.graph, nodes[branch.node], branch.operand, mask, names)
        masks[mask.name] = mask.shape
    runs = Differentiable(copy, data, running, masks=masks, fed=model)
    total, samples = np.zeros(len(branches)), 0
    for gradients in runs.mask_gradients((), Wish(targets, by_sample=True, seed=seed)):
        changes = np.stack([gradients[name] for name in masks])  # [branch, samples, 1]
        total += measure(changes).sum(axis=(1, 2))
        samples += changes.shape[1]
    check_slope([total], data)
    return total / max(samples, 1)
