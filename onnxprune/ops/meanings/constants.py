"""Values that are made of nothing but sizes and attributes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from onnxprune.ops.meanings.base import NoMeaning, Run, Static, meaning
from onnxprune.ops.meanings.stored import as_torch


@meaning("Constant")
def constant(node: Static) -> Run:
    """A tensor that is an attribute."""
    (name,) = node.node.attributes
    attribute = node.node.attributes[name]
    if name == "value":
        made = as_torch(attribute.as_tensor(), node.floats)
    elif name in ("value_int", "value_ints"):
        made = torch.tensor(attribute.value, dtype=torch.int64)
    elif name in ("value_float", "value_floats"):
        made = torch.tensor(attribute.value, dtype=node.floats.get(torch.float32, torch.float32))
    else:
        raise NoMeaning(f"Constant with {name}")
    return lambda: made


@meaning("ConstantOfShape", host=(0,))
def constant_of_shape(node: Static) -> Run:
    """One number everywhere."""
    array = node.array("value")
    number = np.zeros(1, np.float32) if array is None else array
    attribute = node.node.attributes.get("value")
    filled = (
        torch.zeros(1, dtype=node.floats.get(torch.float32, torch.float32))
        if attribute is None
        else as_torch(attribute.as_tensor(), node.floats)
    )
    value, dtype = number.reshape(-1)[0].item(), filled.dtype
    fixed = node.numbers(0)
    return lambda shape: torch.full(fixed if fixed is not None else shape.tolist(), value, dtype=dtype)


@meaning("Range", host=(0, 1, 2))
def arange(node: Static) -> Run:
    """From start by steps, without the limit."""

    def run(start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
        if start.dtype.is_floating_point:
            count = max(0, int(torch.ceil((limit - start) / step)))
            return start + step * torch.arange(count, dtype=start.dtype, device=start.device)
        return torch.arange(int(start), int(limit), int(step), dtype=start.dtype)

    return run


@meaning("EyeLike")
def eye_like(node: Static) -> Run:
    """Ones along a diagonal, of the size of a matrix."""
    chosen, k = node.dtype("dtype"), node.int("k")

    def run(x: Tensor) -> Tensor:
        rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
        return (torch.arange(x.shape[1], device=x.device) - rows == k).to(chosen or x.dtype)

    return run
