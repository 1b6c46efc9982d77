"""Tensors -> curves: weights of one tensor alone are set to zero, at several amounts; and what follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune.allocate.menus import make_menu, meet_amount
from onnxprune.data import Dataset
from onnxprune.planning.curves import Measured, Setting, Source, run_trials
from onnxprune.planning.workbench import Masker
from onnxprune.sensitivity.trials import Trial
from onnxprune.types import Curve, Mask

#: From the share of weights to remove from every tensor to masks; what can't lose so much is absent.
MasksAt: TypeAlias = Callable[[float], Mapping[str, Mask]]

#: Shares of a tensor that an allocation chooses from.
_STEP = 0.02


def measure_masks(
    model: ir.Model,
    masks_at: MasksAt,
    amounts: Sequence[float],
    data: Dataset,
    setting: Setting,
    *,
    path: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> Measured:
    """Set weights of one tensor at a time to zero, and measure what that costs.

    Args:
        model: not changed.
        masks_at: which weights stay.
        amounts: shares of each tensor.
        data: samples, with labels or without.
        setting: how trials are run.
        path: the model's file, if it is known.
        progress: called after every trial with the share that is done, in (0, 1].

    Raises:
        UsageError, DataError, RuntimeFailure, OutputError: as `run_trials`.
    """
    found: dict[str, dict[int, Mask]] = {}
    for amount in sorted(set(amounts), reverse=True):  # the largest names all tensors, in their order
        for name, mask in masks_at(amount).items():
            found.setdefault(name, {}).setdefault(mask.size - mask.kept, mask)
    trials = [
        Trial(name, mask.size, removed, mask=mask)
        for name, masks in found.items()
        for removed, mask in sorted(masks.items())
        if removed
    ]
    return run_trials(Source(model, Masker(model), None, path), trials, data, setting, progress)


def share_out(curves: Mapping[str, Curve], amount: float) -> dict[str, float]:
    """Return the share of each tensor to remove such that ``amount`` of all weights goes, at the least loss.

    Args:
        curves: by tensor. What lies beyond the last amount that was measured is not used, so that of a very
            large amount less may go.
        amount: share of all weights of these tensors.
    """
    menus = [
        make_menu(curve, [round(share * curve.size) for share in np.arange(_STEP, 1, _STEP)])
        for curve in curves.values()
    ]
    counts = meet_amount(menus, amount * sum(curve.size for curve in curves.values()))
    return {name: count / curves[name].size for name, count in counts.items()}
