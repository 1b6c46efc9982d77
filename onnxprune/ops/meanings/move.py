"""Numbers joined, cut out, picked, repeated and padded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from onnxprune.ops.meanings.base import NoMeaning, Run, Static, meaning, numbers_of, numbers_read


@meaning("Concat")
def concat(node: Static) -> Run:
    """One behind another along an axis."""
    axis = node.int("axis", 1)
    return lambda *inputs: torch.cat(inputs, axis)


@meaning("Split", host=(1,))
def split(node: Static) -> Run:
    """Pieces of given sizes, or equal ones (the last may be smaller)."""
    axis, count = node.int("axis"), node.int("num_outputs") or len(node.node.outputs)
    fixed = node.ints("split") if node.version < 13 else node.numbers(1)

    def run(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        pieces = fixed if fixed is not None or sizes is None else numbers_of(sizes)
        if pieces is None:
            whole = x.shape[axis]
            each = -(-whole // count)
            pieces = [max(0, min(each, whole - each * index)) for index in range(count)]
        return torch.split(x, pieces, axis)

    return run


@meaning("Slice", host=(1, 2, 3, 4))
def slices(node: Static) -> Run:
    """From start to end by steps, which may be negative."""
    if node.version < 10:
        known = tuple(node.ints(name) for name in ("starts", "ends", "axes"))
        return lambda x: _sliced(x, known[0] or [], known[1] or [], known[2], None)
    reads = [numbers_read(node, index) for index in range(1, 5)]

    def run(x: Tensor, *given: Tensor | None) -> Tensor:
        starts, ends, axes, steps = (
            read(given[index] if index < len(given) else None) for index, read in enumerate(reads)
        )
        return _sliced(x, starts or [], ends or [], axes, steps)

    return run


def _sliced(
    x: Tensor,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> Tensor:
    index: list[slice] = [slice(None)] * x.dim()
    turned = []
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (axes[place] if axes is not None else place) % x.dim()
        step = steps[place] if steps is not None else 1
        size = x.shape[axis]
        if step > 0:
            first, last, _ = slice(start, end, step).indices(size)
            index[axis] = slice(first, max(first, last), step)
            continue
        # torch has no negative steps: the same places from the other side, then turned around
        first = min(max(start + size if start < 0 else start, -1), size - 1)
        last = max(end + size if end < 0 else end, -1)
        count = max(0, -((first - last) // step))
        lowest = first + (count - 1) * step
        index[axis] = slice(lowest, first + 1, -step) if count else slice(0, 0)
        turned.append(axis)
    x = x[tuple(index)]
    return x.flip(turned) if turned else x


@meaning("Gather")
def gather(node: Static) -> Run:
    """Whole slices by number; negative numbers count from the end."""
    axis = node.int("axis")
    constant = node.constant(1)
    if constant is not None and constant.ndim == 0:
        number = int(constant)
        return lambda x, _: x.select(axis, number)
    negative = constant is None or bool((constant < 0).any())

    def run(x: Tensor, index: Tensor) -> Tensor:
        if not x.dtype.is_floating_point and index.dim() == 0 and x.device.type == "cpu":
            return x.select(axis, int(index))  # arithmetic on sizes
        if negative:
            index = torch.where(index < 0, index + x.shape[axis], index)
        if axis == 0 and x.dim() == 2:
            return F.embedding(index.to(torch.int64), x)
        picked = x.index_select(axis, index.reshape(-1))
        place = axis % x.dim()
        return picked.reshape(x.shape[:place] + index.shape + x.shape[place + 1 :])

    return run


@meaning("Pad", host=(1, 3))
def pad(node: Static) -> Run:
    """Numbers added in front and behind: constant, reflected, repeated or from the other end; or cut off."""
    mode = node.text("mode", "constant")
    if node.version < 11:
        amounts, number = node.ints("pads") or [], node.float("value")
        return lambda x: _pad(x, amounts, None, mode, number)
    read_pads, read_axes = numbers_read(node, 1), numbers_read(node, 3)
    known = node.constant(2)
    fixed = None if known is None or not known.size else known.reshape(-1)[0].item()

    def run(x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
        filled = fixed if fixed is not None else 0.0 if value is None or not value.numel() else value.item()
        return _pad(x, read_pads(pads) or [], read_axes(axes), mode, filled)

    return run


def _pad(x: Tensor, pads: Sequence[int], axes: Sequence[int] | None, mode: str, value: float) -> Tensor:
    chosen = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in axes]
    amounts = {axis: (pads[i], pads[i + len(chosen)]) for i, axis in enumerate(chosen)}
    cut = [slice(None)] * x.dim()
    for axis, (front, behind) in amounts.items():
        if front < 0 or behind < 0:
            cut[axis] = slice(max(0, -front), x.shape[axis] - max(0, -behind))
    if any(part != slice(None) for part in cut):
        x = x[tuple(cut)]
    positive = {axis: (max(0, a), max(0, b)) for axis, (a, b) in amounts.items() if a > 0 or b > 0}
    if not positive:
        return x
    if mode == "constant":
        flat = [amount for axis in reversed(range(x.dim())) for amount in positive.get(axis, (0, 0))]
        if x.dtype == torch.bool:
            return F.pad(x.to(torch.uint8), flat, value=float(value)).to(torch.bool)
        return F.pad(x, flat, value=value)
    for axis, (front, behind) in positive.items():
        size = x.shape[axis]
        places = torch.arange(-front, size + behind, device=x.device)
        if mode == "edge":
            places = places.clamp(0, size - 1)
        elif mode == "wrap":
            places = places % size
        elif mode == "reflect":
            period = max(1, 2 * (size - 1))
            places = places % period
            places = torch.where(places >= size, period - places, places)
        else:
            raise NoMeaning(f"padding in mode {mode!r}")
        x = x.index_select(axis, places)
    return x


@meaning("Tile", host=(1, 2))
def tile(node: Static) -> Run:
    """The whole, repeated along each axis."""
    if node.version < 6:
        raise NoMeaning("Tile before opset 6")
    read = numbers_read(node, 1)
    return lambda x, repeats: x.repeat(read(repeats) or [])


@meaning("Trilu", host=(1,))
@meaning("Trilu", domain="com.microsoft", host=(1,))
def trilu(node: Static) -> Run:
    """The upper or lower triangle of matrices, zeros elsewhere."""
    function = torch.triu if node.int("upper", 1) else torch.tril
    read = numbers_read(node, 1)
    return lambda x, k=None: function(x, (read(k) or [0])[0])


@meaning("ReverseSequence")
def reverse_sequence(node: Static) -> Run:
    """The first ``lengths[b]`` steps of sample b, last one first; the rest stays."""
    along, batch = node.int("time_axis"), node.int("batch_axis", 1)

    def run(x: Tensor, lengths: Tensor) -> Tensor:
        steps = torch.arange(x.shape[along], device=x.device)
        sizes = lengths.to(torch.int64).reshape(-1, 1)
        places = torch.where(steps < sizes, sizes - 1 - steps, steps.expand(len(lengths), -1))
        places = places if batch < along else places.t()
        shape = [x.shape[axis] if axis in (along, batch) else 1 for axis in range(x.dim())]
        return torch.gather(x, along, places.reshape(shape).expand(x.shape))

    return run
