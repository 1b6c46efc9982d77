"""Reads and writes at computed places: GatherElements, GatherND, ScatterElements, ScatterND."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onnxprune.ops.meanings.base import Run, Static, meaning

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _from_start(indices: Tensor, size: int) -> Tensor:
    """Return indices of which those below zero count from the end."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


@meaning("GatherElements")
def gather_elements(node: Static) -> Run:
    """y[i, j, ...] = x[index[i, j, ...], j, ...] for axis 0"""
    axis = node.int("axis")
    return lambda x, indices: torch.gather(x, axis, _from_start(indices, x.shape[axis]))


@meaning("Scatter", "ScatterElements")
def scatter_elements(node: Static) -> Run:
    """Gives x, but y[index[i, j, ...], j, ...] = or += update[i, j, ...] for axis 0"""
    axis, reduction = node.int("axis"), node.text("reduction", "none")

    def run(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        places = _from_start(indices, x.shape[axis])
        if reduction == "none":
            return x.scatter(axis, places, updates)
        if reduction == "add":
            return x.scatter_add(axis, places, updates)
        return x.scatter_reduce(axis, places, updates, _REDUCTIONS[reduction])

    return run


def _rows(indices: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Return indices ``[..., axes]`` as the number of a row of all of these axes together."""
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for axis, size in enumerate(sizes):
        flat = flat * size + _from_start(indices[..., axis], size)
    return flat


@meaning("GatherND")
def gather_nd(node: Static) -> Run:
    """y[b, i] = x[b, index[b, i, 0], index[b, i, 1], ...], the first ``batch_dims`` axes in step"""
    batched = node.int("batch_dims")

    def run(x: Tensor, indices: Tensor) -> Tensor:
        depth = indices.shape[-1]
        batch, sizes, inner = (
            x.shape[:batched],
            x.shape[batched : batched + depth],
            x.shape[batched + depth :],
        )
        flat = _rows(indices, tuple(sizes))
        rows = x.reshape(math.prod(batch) * math.prod(sizes), *inner)
        if batched:
            offsets = torch.arange(math.prod(batch), device=x.device) * math.prod(sizes)
            flat = flat + offsets.reshape(*batch, *[1] * (flat.dim() - batched))
        return rows.index_select(0, flat.flatten()).reshape(*indices.shape[:-1], *inner)

    return run


@meaning("ScatterND")
def scatter_nd(node: Static) -> Run:
    """Gives x, but y[index[i, 0], index[i, 1], ...] = or += update[i]"""
    reduction = node.text("reduction", "none")

    def run(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        depth = indices.shape[-1]
        sizes = tuple(x.shape[:depth])
        flat = _rows(indices, sizes).flatten()
        inner = x.shape[depth:]
        rows = x.reshape(math.prod(sizes), *inner)
        new = updates.reshape(len(flat), *inner)
        if reduction == "none":
            y = rows.index_copy(0, flat, new)
        elif reduction == "add":
            y = rows.index_add(0, flat, new)
        else:
            places = flat.reshape(-1, *[1] * len(inner)).expand(new.shape)
            y = rows.scatter_reduce(0, places, new, _REDUCTIONS[reduction])
        return y.reshape(x.shape)

    return run
