"""The same numbers under other axes, and shapes as numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onnxprune.ops.meanings.base import Run, Static, meaning, numbers_of, numbers_read


@meaning("Reshape", host=(1,))
def reshape(node: Static) -> Run:
    """0 stands for the size of the input (unless ``allowzero``), -1 for what is left."""
    literal = bool(node.int("allowzero"))
    fixed = node.ints("shape") if node.version < 5 else node.numbers(1)
    if fixed is not None and (literal or 0 not in fixed):
        target = tuple(fixed)
        return lambda x, _=None: x.reshape(target)

    def run(x: Tensor, shape: Tensor | None = None) -> Tensor:
        sizes = fixed if fixed is not None else shape.tolist()  # type: ignore[union-attr]
        if not literal and 0 in sizes:
            sizes = [size or x.shape[axis] for axis, size in enumerate(sizes)]
        return x.reshape(sizes)

    return run


@meaning("Flatten")
def flatten(node: Static) -> Run:
    """Two axes: those before ``axis``, and the rest."""
    axis = node.int("axis", 1)

    def run(x: Tensor) -> Tensor:
        split = axis + x.dim() if axis < 0 else axis
        rows = math.prod(x.shape[:split])
        return x.reshape(rows, math.prod(x.shape[split:]))

    return run


@meaning("Squeeze", host=(1,))
def squeeze(node: Static) -> Run:
    """Without axes of size 1: the named ones, or all."""
    fixed = node.ints("axes") if node.version < 13 else node.numbers(1)
    given = node.version >= 13 and node.has(1)

    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = numbers_of(axes) if given and fixed is None and axes is not None else fixed
        return torch.squeeze(x) if chosen is None else torch.squeeze(x, tuple(chosen))

    return run


@meaning("Unsqueeze", host=(1,))
def unsqueeze(node: Static) -> Run:
    """New axes of size 1, at places of the output."""
    fixed = node.ints("axes") if node.version < 13 else node.numbers(1)
    if fixed is not None and len(fixed) == 1:
        (axis,) = fixed
        return lambda x, _=None: x.unsqueeze(axis)

    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = fixed if fixed is not None else numbers_of(axes)  # type: ignore[arg-type]
        rank = x.dim() + len(chosen)
        for axis in sorted(axis % rank for axis in chosen):
            x = x.unsqueeze(axis)
        return x

    return run


@meaning("Expand", host=(1,))
def expand(node: Static) -> Run:
    """Repeated along axes of size 1, by the rules of broadcasting."""
    read = numbers_read(node, 1)

    def run(x: Tensor, shape: Tensor) -> Tensor:
        sizes = read(shape) or []
        missing = len(sizes) - x.dim()
        whole = sizes if missing >= 0 else [*[1] * -missing, *sizes]
        offset = max(missing, 0)
        target = [
            x.shape[axis - offset] if size == 1 and axis >= offset else size
            for axis, size in enumerate(whole)
        ]
        return x.expand(target)

    return run


@meaning("Shape")
def shape(node: Static) -> Run:
    """Sizes, from ``start`` to ``end``."""
    start = node.int("start", 0)
    end = node.int("end") if "end" in node.node.attributes else None

    def run(x: Tensor) -> Tensor:
        rank = x.dim()
        first = max(0, min(rank, start + rank if start < 0 else start))
        last = rank if end is None else max(0, min(rank, end + rank if end < 0 else end))
        return torch.tensor(x.shape[first:last], dtype=torch.int64)

    return run


@meaning("Size")
def size_of(node: Static) -> Run:
    """Number of elements."""
    return lambda x: torch.tensor(x.numel(), dtype=torch.int64)


@meaning("Transpose")
def transpose(node: Static) -> Run:
    """Axes in another order, reversed by default."""
    order = node.ints("perm")

    def run(x: Tensor) -> Tensor:
        return x.permute(order if order is not None else list(range(x.dim()))[::-1])

    return run


@meaning("DepthToSpace")
def depth_to_space(node: Static) -> Run:
    """Blocks of channels become squares of space."""
    block, rows_first = node.int("blocksize"), node.text("mode", "DCR") == "DCR"

    def run(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        depth = channels // block**2
        if rows_first:
            parts = x.reshape(batch, block, block, depth, height, width).permute(0, 3, 4, 1, 5, 2)
        else:
            parts = x.reshape(batch, depth, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
        return parts.reshape(batch, depth, height * block, width * block)

    return run


@meaning("SpaceToDepth")
def space_to_depth(node: Static) -> Run:
    """Squares of space become blocks of channels."""
    block = node.int("blocksize")
    order = (0, 3, 5, 1, 2, 4) if node.text("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)

    def run(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        parts = x.reshape(batch, channels, height // block, block, width // block, block)
        parts = parts.permute(order)
        return parts.reshape(batch, channels * block**2, height // block, width // block)

    return run


@meaning("Identity")
def identity(node: Static) -> Run:
    """The value itself, whatever it is."""
    return lambda x: x
