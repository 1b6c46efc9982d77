"""Sums, means, extremes and norms along axes, and running sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from onnxprune.ops.meanings.base import Run, Static, meaning, numbers_of

Axes: TypeAlias = list[int]


def _product(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


def _mean(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.mean(x, axes, keepdim=keep)
    return torch.mean(x.double(), axes, keepdim=keep).to(x.dtype)


def _norm(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    wide = x if x.is_floating_point() else x.double()
    norm: Tensor = torch.linalg.vector_norm(wide, 2, axes, keepdim=keep)
    return norm.to(x.dtype)


def _total(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    return torch.sum(x, axes, keepdim=keep, dtype=x.dtype)


def _extreme(x: Tensor, axes: Axes, keep: bool, largest: bool) -> Tensor:
    """Return the extreme number; of none at all the last one that could come."""
    if 0 in x.shape:
        if x.is_floating_point():
            last = -torch.inf if largest else torch.inf
        elif x.dtype == torch.bool:
            last = not largest
        else:
            last = torch.iinfo(x.dtype).min if largest else torch.iinfo(x.dtype).max
        shape = list(x.shape)
        for axis in axes:
            shape[axis] = max(1, shape[axis])
        x = x.new_full(shape, last)
    return (torch.amax if largest else torch.amin)(x, axes, keepdim=keep)


_REDUCTIONS: dict[str, Callable[[Tensor, Axes, bool], Tensor]] = {
    "ReduceL1": lambda x, axes, keep: _total(x.abs(), axes, keep),
    "ReduceL2": _norm,
    "ReduceLogSum": lambda x, axes, keep: torch.log(_total(x, axes, keep)),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: _extreme(x, axes, keep, True),
    "ReduceMean": _mean,
    "ReduceMin": lambda x, axes, keep: _extreme(x, axes, keep, False),
    "ReduceProd": _product,
    "ReduceSum": _total,
    "ReduceSumSquare": lambda x, axes, keep: _total(x * x, axes, keep),
}


@meaning(*_REDUCTIONS, host=(1,))
def reduction(node: Static) -> Run:
    """Along the axes that an attribute or (from opset 18, 13 for sums) an input names; all where none is."""
    function = _REDUCTIONS[node.node.op_type]
    keep = bool(node.int("keepdims", 1))
    as_input = node.version >= (13 if node.node.op_type == "ReduceSum" else 18)
    fixed = node.numbers(1) if as_input else node.ints("axes")
    nothing = as_input and bool(node.int("noop_with_empty_axes"))

    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = fixed if fixed is not None or axes is None else numbers_of(axes)
        if not chosen:
            if nothing:
                return function(x.unsqueeze(0), [0], False)  # of single numbers
            chosen = list(range(x.dim()))
        return function(x, chosen, keep) if x.dim() else function(x.unsqueeze(0), [0], False)

    return run


@meaning("ArgMax", "ArgMin")
def extreme_place(node: Static) -> Run:
    """Where the largest or smallest number stands, the first or the last of several."""
    axis, keep, last = node.int("axis"), bool(node.int("keepdims", 1)), bool(node.int("select_last_index"))
    largest = node.node.op_type == "ArgMax"

    def run(x: Tensor) -> Tensor:
        best = torch.amax(x, axis, keepdim=True) if largest else torch.amin(x, axis, keepdim=True)
        size = x.shape[axis]
        where = (x == best).to(torch.int32)
        if last:
            return size - 1 - torch.argmax(where.flip(axis), axis, keepdim=keep)
        return torch.argmax(where, axis, keepdim=keep)

    return run


@meaning("CumSum", "CumProd", host=(1,))
def running(node: Static) -> Run:
    """``x[0] + ... + x[i]``, or their product; ``reverse``: from the end; ``exclusive``: without x[i]."""
    exclusive, reverse, known = bool(node.int("exclusive")), bool(node.int("reverse")), node.numbers(1)
    sums = node.node.op_type == "CumSum"
    accumulate, neutral = (torch.cumsum, torch.zeros_like) if sums else (torch.cumprod, torch.ones_like)

    def run(x: Tensor, axis: Tensor) -> Tensor:
        along = known[0] if known is not None else int(axis)
        turned = x.flip(along) if reverse else x
        total = accumulate(turned, along, dtype=x.dtype)
        if exclusive:
            first = neutral(total.narrow(along, 0, min(1, total.shape[along])))
            total = torch.cat((first, total.narrow(along, 0, max(0, total.shape[along] - 1))), along)
        return total.flip(along) if reverse else total

    return run
