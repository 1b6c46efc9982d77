"""Masks that pruning left on a module, written into the weights: w * mask becomes w.

``torch.nn.utils.prune`` keeps ``weight_orig`` and ``weight_mask`` and multiplies before each forward pass;
``torch.nn.utils.parametrize`` computes a weight whenever it is read. Exported as they are, both would store
the weight twice, and the stored one would not be the pruned one.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import nn
from torch.nn.utils import parametrize, prune

#: Buffers and parameters that torch.nn.utils.prune adds for a tensor called NAME.
MASK_SUFFIX = "_mask"
ORIGINAL_SUFFIX = "_orig"


def copy_for_inference(module: nn.Module) -> nn.Module:
    """Return a copy on the CPU, in evaluation mode, without gradients; ``module`` is not changed."""
    # prune and weight_norm leave computed tensors behind, which deepcopy refuses: hand it copies of these
    memo: dict[int, object] = {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    return copy.deepcopy(module, memo).cpu().eval().requires_grad_(False)


def bake_masks(module: nn.Module) -> tuple[str, ...]:
    """Make pruning masks and parametrizations permanent, in place.

    Args:
        module: the importer's own copy.

    Returns:
        One line for each weight that was computed and is now stored: its name and share of zeros.
    """
    baked = []
    for path, part in module.named_modules():
        for name, kind in (*_bake_pruned(part), *_bake_parametrized(part)):
            weight = cast(torch.Tensor, getattr(part, name)).detach()
            zeros = (weight == 0).float().mean().item() if weight.numel() else 0.0
            baked.append(f"{path}.{name}".lstrip(".") + f" ({kind}): {zeros:.1%} zeros")
    return tuple(baked)


def _bake_pruned(part: nn.Module) -> list[tuple[str, str]]:
    names = [
        name.removesuffix(MASK_SUFFIX)
        for name, _ in part.named_buffers(recurse=False)
        if name.endswith(MASK_SUFFIX) and hasattr(part, name.removesuffix(MASK_SUFFIX) + ORIGINAL_SUFFIX)
    ]
    for name in names:
        prune.remove(part, name)  # type: ignore[no-untyped-call]
    return [(name, "pruned") for name in names]


def _bake_parametrized(part: nn.Module) -> list[tuple[str, str]]:
    if not parametrize.is_parametrized(part):
        return []
    # a parametrized module has a class made for it, shared with its deep copies; removing a parametrization
    # takes the property off that class, which would break the module we copied: work on a class of our own
    made = type(part)
    part.__class__ = type(made.__name__, made.__bases__, dict(vars(made)))
    names = list(cast(nn.ModuleDict, part.parametrizations))
    for name in names:
        parametrize.remove_parametrizations(part, name, leave_parametrized=True)
    return [(name, "parametrized") for name in names]
