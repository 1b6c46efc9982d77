"""Convolutions of one, two and three axes of space."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from onnxprune.ops.meanings.base import NoMeaning, Run, Static, meaning
from onnxprune.ops.meanings.windows import Windows, padded

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d,
}  # fmt: skip


@meaning("Conv")
def conv(node: Static) -> Run:
    """Cross-correlation; the window is that of the weight."""
    return convolution(node)


def convolution(node: Static) -> Run:
    """Return what convolves ``(x, weight, bias)`` as the attributes of a node say."""
    groups = node.int("group", 1)
    cache: dict[tuple[int, ...], Windows] = {}

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        kernel = tuple(weight.shape[2:])
        windows = cache.get(kernel)
        if windows is None:
            windows = cache[kernel] = Windows.of(node, kernel)
        begins, ends = windows.padding(x.shape[2:])
        if begins != ends:
            x, begins = padded(x, begins, ends), [0] * windows.rank
        function = _chosen(_CONVOLUTIONS, windows.rank)
        return function(x, weight, bias, windows.strides, begins, windows.dilations, groups)

    return run


def _chosen(functions: dict[int, Callable[..., Tensor]], rank: int) -> Callable[..., Tensor]:
    if rank not in functions:
        raise NoMeaning(f"a convolution over {rank} axes")
    return functions[rank]


@meaning("ConvTranspose")
def conv_transpose(node: Static) -> Run:
    """The gradient of a convolution by its input.

    The full result has ``(size - 1) stride + extent`` places along an axis; ``pads`` cuts it at both ends,
    and ``output_padding`` adds places behind.
    """
    groups = node.int("group", 1)
    cache: dict[tuple[int, ...], Windows] = {}
    wanted, more = node.ints("output_shape"), node.ints("output_padding")

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        kernel = tuple(weight.shape[2:])
        windows = cache.get(kernel)
        if windows is None:
            windows = cache[kernel] = Windows.of(node, kernel)
        begins, ends = _cut(windows, x.shape[2:], wanted, more)
        function = _chosen(_TRANSPOSED, windows.rank)
        adding = more or [0] * windows.rank
        symmetric = begins == [end + 0 for end in ends] and min(begins) >= 0
        small = all(a < max(s, d) for a, s, d in zip(adding, windows.strides, windows.dilations, strict=True))
        if symmetric and small:
            return function(x, weight, bias, windows.strides, begins, adding, groups, windows.dilations)
        full = function(x, weight, None, windows.strides, 0, 0, groups, windows.dilations)
        behind = [a - end for a, end in zip(adding, ends, strict=True)]
        full = padded(full, [-begin for begin in begins], behind)  # negative padding cuts
        return full if bias is None else full + bias.reshape(-1, *[1] * windows.rank)

    return run


def _cut(
    windows: Windows, sizes: Sequence[int], wanted: Sequence[int] | None, more: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    """Return how many places of the full result go at the beginning and at the end."""
    if wanted is None and not windows.auto.startswith("SAME"):
        return windows.padding(sizes)
    adding = more or [0] * windows.rank
    begins, ends = [], []
    for axis, size in enumerate(sizes):
        stride = windows.strides[axis]
        target = wanted[axis - len(sizes)] if wanted is not None else size * stride
        total = stride * (size - 1) + adding[axis] + windows.extents[axis] - target
        # rounding towards 0 would let the two halves of a negative total differ from the standard's
        half = total // 2
        upper = windows.auto == "SAME_UPPER"
        begins.append(half if upper else total - half)
        ends.append(total - half if upper else half)
    return begins, ends


@meaning("Col2Im", host=(1, 2))
def col2im(node: Static) -> Run:
    """Sums of windows, put back where they were taken from; two axes of space."""

    def run(x: Tensor, image: Tensor, block: Tensor) -> Tensor:
        size, kernel = tuple(image.tolist()), tuple(block.tolist())
        windows = Windows.of(node, kernel)
        if windows.rank != 2 or windows.pads[:2] != windows.pads[2:]:
            raise NoMeaning("Col2Im other than over two axes with the same padding on both sides")
        return F.fold(x, size, kernel, windows.dilations, windows.pads[:2], windows.strides)

    return run


@meaning("DeformConv", folds=False)
def deform_conv(node: Static) -> Run:
    """A convolution over places that are moved by fractions; two axes of space (Dai et al. 2017)."""
    groups, offset_groups = node.int("group", 1), node.int("offset_group", 1)

    def run(
        x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        kernel = tuple(weight.shape[2:])
        if len(kernel) != 2:
            raise NoMeaning("DeformConv over other than two axes")
        sampled = _sampled(x, offset, mask, Windows.of(node, kernel), offset_groups)
        batch, height, width = offset.shape[0], offset.shape[2], offset.shape[3]
        columns = sampled.reshape(batch, groups, -1, height * width)
        matrix = weight.reshape(groups, weight.shape[0] // groups, -1)
        out = torch.einsum("bgkp,gok->bgop", columns, matrix).reshape(batch, -1, height, width)
        return out if bias is None else out + bias.reshape(-1, 1, 1)

    return run


def _sampled(x: Tensor, offset: Tensor, mask: Tensor | None, windows: Windows, groups: int) -> Tensor:
    """Return ``[batch, channels, taps, height, width]``: x at the moved places, zero outside."""
    batch, channels, rows, columns = x.shape
    height, width = offset.shape[2:]
    taps = windows.kernel[0] * windows.kernel[1]
    moved = offset.reshape(batch, groups, taps, 2, height, width)
    places = []
    for axis, size in ((0, height), (1, width)):
        first = (
            torch.arange(size, device=x.device, dtype=x.dtype) * windows.strides[axis] - windows.pads[axis]
        )
        tap = torch.arange(windows.kernel[axis], device=x.device, dtype=x.dtype) * windows.dilations[axis]
        tap = tap.repeat_interleave(windows.kernel[1]) if axis == 0 else tap.repeat(windows.kernel[0])
        grid = first.reshape(-1, 1) if axis == 0 else first
        places.append(moved[:, :, :, axis] + tap.reshape(-1, 1, 1) + grid)
    y = (2 * places[0] + 1) / rows - 1
    z = (2 * places[1] + 1) / columns - 1
    grid = torch.stack((z, y), dim=-1).reshape(batch * groups, taps * height, width, 2)
    parts = x.reshape(batch * groups, channels // groups, rows, columns)
    found = F.grid_sample(parts, grid, padding_mode="zeros", align_corners=False)
    found = found.reshape(batch, groups, channels // groups, taps, height, width)
    if mask is not None:
        found = found * mask.reshape(batch, groups, 1, taps, height, width)
    return found.reshape(batch, channels, taps, height, width)
