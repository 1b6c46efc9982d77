"""Maxima, means and norms over windows, and over all of space."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from onnxprune.ops.meanings.base import NoMeaning, Run, Static, meaning
from onnxprune.ops.meanings.windows import Windows, padded

_MAXIMA: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEANS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _windows(node: Static) -> Windows:
    windows = Windows.of(node, node.ints("kernel_shape") or ())
    if windows.rank not in _MEANS:
        raise NoMeaning(f"a pooling over {windows.rank} axes")
    return windows


@meaning("MaxPool")
def max_pool(node: Static) -> Run:
    """The largest number in each window, and where it stands in the whole input."""
    windows, with_places, columns = _windows(node), node.outputs > 1, node.int("storage_order") == 1
    function = _MAXIMA[windows.rank]

    def run(x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        begins, ends = windows.padding(x.shape[2:])
        more = windows.overhang(x.shape[2:], begins, ends)
        small = all(2 * begin <= size for begin, size in zip(begins, windows.kernel, strict=True))
        plain = begins == ends and small and not any(more)
        if plain and not with_places and x.is_floating_point():
            return function(x, windows.kernel, windows.strides, begins, windows.dilations)
        ends = [end + extra for end, extra in zip(ends, more, strict=True)]
        if not x.is_floating_point():
            lowest: float = torch.iinfo(x.dtype).min
            y = function(padded(x.double(), begins, ends, lowest), windows.kernel, windows.strides, 0,
                         windows.dilations)  # fmt: skip
            return y.to(x.dtype)
        wide = padded(x, begins, ends, -math.inf)
        if not with_places:
            return function(wide, windows.kernel, windows.strides, 0, windows.dilations)
        y, places = function(wide, windows.kernel, windows.strides, 0, windows.dilations, return_indices=True)
        return y, _places(places, x, wide.shape[2:], begins, columns)

    return run


def _places(places: Tensor, x: Tensor, wide: torch.Size, begins: list[int], columns: bool) -> Tensor:
    """Return places in the padded space of one channel as places in the whole unpadded tensor."""
    sizes, rest, at = x.shape[2:], places, []
    for size, begin in zip(reversed(wide), reversed(begins), strict=True):
        at.append(rest % size - begin)
        rest = rest // size
    at.reverse()
    whole = torch.zeros_like(places)
    axes = range(len(sizes))
    for axis in reversed(axes) if columns else axes:
        whole = whole * sizes[axis] + at[axis]
    channels = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * len(sizes))
    return whole + channels * math.prod(sizes)


@meaning("AveragePool")
def average_pool(node: Static) -> Run:
    """The mean of each window, over its places inside the input, or over those in the padding too."""
    windows, inclusive = _windows(node), bool(node.int("count_include_pad"))
    function, dilated = _MEANS[windows.rank], any(size != 1 for size in windows.dilations)
    kernel, strides = list(windows.kernel), list(windows.strides)

    def run(x: Tensor) -> Tensor:
        begins, ends = windows.padding(x.shape[2:])
        more = windows.overhang(x.shape[2:], begins, ends)
        small = all(2 * begin <= size for begin, size in zip(begins, kernel, strict=True))
        if begins == ends and small and not any(more) and not dilated:
            return function(x, kernel, strides, begins, False, inclusive)
        # a place counts if it is in the input, or (inclusive) in the padding; never in an overhang
        behind = [end + extra for end, extra in zip(ends, more, strict=True)]
        counted = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
        counted = (
            padded(padded(counted, begins, ends, 1.0), [0] * windows.rank, more)
            if inclusive
            else padded(counted, begins, behind)
        )
        total = _mean_of(padded(x, begins, behind), windows, dilated)
        return total / _mean_of(counted, windows, dilated)

    return run


def _mean_of(x: Tensor, windows: Windows, dilated: bool) -> Tensor:
    """Return the mean over whole windows without padding."""
    if not dilated:
        return _MEANS[windows.rank](x, list(windows.kernel), list(windows.strides))
    for axis, (size, stride, dilation, extent) in enumerate(
        zip(windows.kernel, windows.strides, windows.dilations, windows.extents, strict=True)
    ):
        x = x.unfold(2 + axis, extent, stride)[..., ::dilation][..., :size].mean(-1)
    return x


@meaning("LpPool")
def lp_pool(node: Static) -> Run:
    """``(sum |x|^p)^(1/p)`` over each window."""
    windows, p = _windows(node), node.int("p", 2)
    count, dilated = math.prod(windows.kernel), any(size != 1 for size in windows.dilations)

    def run(x: Tensor) -> Tensor:
        begins, ends = windows.padding(x.shape[2:])
        more = windows.overhang(x.shape[2:], begins, ends)
        ends = [end + extra for end, extra in zip(ends, more, strict=True)]
        powers = _mean_of(padded(x.abs() ** p, begins, ends), windows, dilated) * count
        return powers ** (1 / p)

    return run


@meaning("GlobalAveragePool")
def global_mean(node: Static) -> Run:
    """The mean over all axes of space, which stay with size 1."""
    return lambda x: x.mean(list(range(2, x.dim())), keepdim=True)


@meaning("GlobalMaxPool")
def global_max(node: Static) -> Run:
    """The largest number over all axes of space, which stay with size 1."""
    return lambda x: x.amax(list(range(2, x.dim())), keepdim=True)


@meaning("GlobalLpPool")
def global_lp(node: Static) -> Run:
    """The p-norm over all axes of space, which stay with size 1."""
    p = node.int("p", 2)
    return lambda x: torch.linalg.vector_norm(x, p, list(range(2, x.dim())), keepdim=True)
