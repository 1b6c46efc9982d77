"""Positions by order or content: TopK, NonZero, OneHot, Compress, Unique, NonMaxSuppression."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxprune.ops.meanings.base import Run, Static, meaning, numbers_of


@meaning("TopK", host=(1,))
def top_k(node: Static) -> Run:
    """Gives y and places: the k largest or smallest along an axis; of equal ones the first"""
    axis, fixed = node.int("axis", -1), node.int("k") if node.version < 10 else None
    largest = node.int("largest", 1) == 1

    def run(x: Tensor, count: Tensor | None = None) -> tuple[Tensor, Tensor]:
        k = int(count) if fixed is None and count is not None else int(fixed or 0)
        # torch.topk takes any one of equal numbers
        y, places = torch.sort(x, dim=axis, descending=largest, stable=True)
        return y.narrow(axis, 0, k), places.narrow(axis, 0, k)

    return run


@meaning("NonZero")
def non_zero(node: Static) -> Run:
    """y[axis, n] = the place of the n-th number that is not zero"""
    return lambda x: (x if x.dim() else x.reshape(1)).nonzero().mT.contiguous()


@meaning("OneHot", host=(1,))
def one_hot(node: Static) -> Run:
    """Gives one value at the index, another elsewhere, along a new axis; -1 is the last index"""
    axis = node.int("axis", -1)

    def run(indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
        size = int(depth)
        places = indices.long()
        places = torch.where(places < 0, places + size, places)
        new = axis % (indices.dim() + 1)
        shape = [1] * (indices.dim() + 1)
        shape[new] = size
        hits = places.unsqueeze(new) == torch.arange(size, device=indices.device).reshape(shape)
        return torch.where(hits, values[1], values[0])

    return run


@meaning("Compress")
def compress(node: Static) -> Run:
    """Gives the positions along an axis (of x in one row if none is given) where a condition holds"""
    axis = node.int("axis") if "axis" in node.node.attributes else None

    def run(x: Tensor, condition: Tensor) -> Tensor:
        rows = x.flatten() if axis is None else x
        return rows.index_select(axis or 0, condition.nonzero().flatten().to(x.device))

    return run


@meaning("Unique")
def unique(node: Static) -> Run:
    """Gives y, first places, inverse and counts: the different numbers, or slices along an axis"""
    axis = node.int("axis") if "axis" in node.node.attributes else None
    in_order = node.int("sorted", 1) == 1

    def run(x: Tensor) -> tuple[Tensor, ...]:
        rows = x.flatten() if axis is None else x
        along = axis or 0
        _, inverse, counts = torch.unique(rows, return_inverse=True, return_counts=True, dim=along)
        inverse = inverse.flatten()
        places = torch.arange(len(inverse), device=x.device)
        first = torch.full_like(counts, len(inverse)).scatter_reduce(0, inverse, places, "amin")
        if not in_order:
            order = torch.argsort(first)
            rank = torch.empty_like(order)
            rank[order] = torch.arange(len(order), device=x.device)
            first, counts, inverse = first[order], counts[order], rank[inverse]
        # picked from x, so that gradients pass
        return rows.index_select(along, first), first, inverse, counts

    return run


@meaning("NonMaxSuppression", host=(2, 3, 4))
def non_max_suppression(node: Static) -> Run:
    """y[n] = (sample, class, box) of boxes that no better box of the same class overlaps too far"""
    centers = node.int("center_point_box") == 1

    def run(
        boxes: Tensor,
        scores: Tensor,
        most: Tensor | None = None,
        overlap: Tensor | None = None,
        lowest: Tensor | None = None,
    ) -> Tensor:
        limit = 0 if most is None else int(most)
        found = [
            (sample, kind, box)
            for sample in range(scores.shape[0])
            for kind in range(scores.shape[1])
            for box in _suppressed(
                _edges(boxes[sample], centers),
                scores[sample, kind],
                limit,
                0.0 if overlap is None else float(overlap),
                None if lowest is None else float(lowest),
            )
        ]
        return torch.tensor(found, dtype=torch.int64, device=boxes.device).reshape(-1, 3)

    return run


def _edges(boxes: Tensor, centers: bool) -> Tensor:
    """Return ``[boxes, 4]``: lower and upper edges along both axes."""
    first, second = boxes.chunk(2, dim=1)
    if centers:
        return torch.cat([first - second / 2, first + second / 2], dim=1)
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=1)


def _suppressed(edges: Tensor, scores: Tensor, most: int, overlap: float, lowest: float | None) -> list[int]:
    order = torch.sort(scores, descending=True, stable=True).indices
    if lowest is not None:
        order = order[scores[order] > lowest]
    kept: list[int] = []
    areas = (edges[:, 2:] - edges[:, :2]).prod(dim=1)
    left = numbers_of(order)
    while left and len(kept) < most:
        best, *left = left
        kept.append(best)
        if left:
            others = edges[left]
            low, high = (
                torch.maximum(edges[best, :2], others[:, :2]),
                torch.minimum(edges[best, 2:], others[:, 2:]),
            )
            common = (high - low).clamp(min=0).prod(dim=1)
            share = common / (areas[best] + areas[left] - common)
            left = [box for box, part in zip(left, share.tolist(), strict=True) if not part > overlap]
    return kept
