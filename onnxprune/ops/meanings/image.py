"""Places in an image: sampling by grids, regions of interest, crops, and the way back from a pooling."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.ops.meanings.base import Run, Static, meaning, numbers_of

_SAMPLING = {"linear": "bilinear", "cubic": "bicubic"}


@meaning("GridSample")
def grid_sample(node: Static) -> Run:
    """Gives x at the places of a grid, which runs from -1 to 1 along each axis"""
    mode, corners = node.text("mode", "linear"), node.int("align_corners") == 1
    mode, padding = _SAMPLING.get(mode, mode), node.text("padding_mode", "zeros")
    return lambda x, grid: functional.grid_sample(x, grid, mode, padding, corners)


@meaning("AffineGrid", host=(1,))
def affine_grid(node: Static) -> Run:
    """Gives the places of an image of the given size after an affine map"""
    corners = node.int("align_corners") == 1
    return lambda theta, size: functional.affine_grid(theta, numbers_of(size), corners)


@meaning("CenterCropPad", host=(1,))
def center_crop_pad(node: Static) -> Run:
    """Gives the middle of x, or x in the middle of zeros, along each axis"""
    given = node.ints("axes")

    def run(x: Tensor, shape: Tensor) -> Tensor:
        amounts = [0, 0] * x.dim()
        for axis, size in zip(given or range(x.dim()), numbers_of(shape), strict=True):
            more = size - x.shape[axis]
            # the odd place goes to the end, or is taken from there
            front = more // 2 if more > 0 else -(-more // 2)
            place = 2 * (x.dim() - 1 - axis % x.dim())
            amounts[place : place + 2] = front, more - front
        return functional.pad(x, amounts)

    return run


@meaning("RoiAlign")
def roi_align(node: Static) -> Run:
    """Gives means or maxima of x, interpolated at points of each bin of each region; He et al., 1703.06870"""
    height, width = node.int("output_height", 1), node.int("output_width", 1)
    ratio, scale = node.int("sampling_ratio"), node.float("spatial_scale", 1.0)
    default = "output_half_pixel" if node.version < 16 else "half_pixel"
    half = node.text("coordinate_transformation_mode", default) == "half_pixel"
    takes_maximum = node.text("mode", "avg") == "max"

    def corners(start: Tensor, length: Tensor, bins: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return places and weights ``[bins, points]`` below and above each point along an axis."""
        bin_size = length / bins
        points = ratio if ratio > 0 else max(1, math.ceil(float(bin_size)))
        steps = (torch.arange(points, device=start.device) + 0.5) / points
        at = start + (torch.arange(bins, device=start.device)[:, None] + steps) * bin_size
        seen = (at >= -1) & (at <= size)
        at = at.clamp(0, size - 1)
        low = at.detach().floor().long().clamp(max=max(size - 2, 0))
        part = at - low
        return low, (low + 1).clamp(max=size - 1), (1 - part) * seen, part * seen

    def one(image: Tensor, region: Tensor) -> Tensor:
        shift = 0.5 if half else 0.0
        left, top, right, bottom = (region.to(image.dtype) * scale - shift).unbind()
        lengths = [bottom - top, right - left]
        if not half:
            lengths = [length.clamp(min=1.0) for length in lengths]
        rows = corners(top, lengths[0], height, image.shape[1])
        columns = corners(left, lengths[1], width, image.shape[2])
        parts = []
        for y, row_weight in ((rows[0], rows[2]), (rows[1], rows[3])):
            for x, column_weight in ((columns[0], columns[2]), (columns[1], columns[3])):
                weight = row_weight[:, :, None, None] * column_weight
                parts.append(
                    image[:, y[:, :, None, None], x] * weight
                )  # [channels, bins, points, bins, points]
        if takes_maximum:
            return torch.stack(parts).amax(dim=0).amax(dim=(2, 4))
        return sum(parts[1:], parts[0]).mean(dim=(2, 4))

    def run(x: Tensor, regions: Tensor, samples: Tensor) -> Tensor:
        found = [one(x[sample], region) for region, sample in zip(regions, numbers_of(samples), strict=True)]
        return torch.stack(found) if found else x.new_zeros(0, x.shape[1], height, width)

    return run


@meaning("MaxRoiPool")
def max_roi_pool(node: Static) -> Run:
    """Gives the maximum of x in each bin of each region; Girshick, 1504.08083"""
    (height, width), scale = node.ints("pooled_shape") or (1, 1), node.float("spatial_scale", 1.0)

    def bounds(first: int, last: int, bins: int, size: int) -> list[tuple[int, int]]:
        length = max(last - first + 1, 1) / bins
        return [
            (
                min(max(math.floor(place * length) + first, 0), size),
                min(max(math.ceil((place + 1) * length) + first, 0), size),
            )
            for place in range(bins)
        ]

    def one(image: Tensor, corners: list[int]) -> Tensor:
        left, top, right, bottom = corners
        rows = bounds(top, bottom, height, image.shape[1])
        columns = bounds(left, right, width, image.shape[2])
        cells = [
            image[:, a:b, c:d].amax(dim=(1, 2)) if b > a and d > c else image.new_zeros(len(image))
            for a, b in rows
            for c, d in columns
        ]
        return torch.stack(cells, dim=1).reshape(-1, height, width)

    def run(x: Tensor, regions: Tensor) -> Tensor:
        found = []
        for sample, *corners in regions.tolist():
            found.append(one(x[int(sample)], [math.floor(corner * scale + 0.5) for corner in corners]))
        return torch.stack(found) if found else x.new_zeros(0, x.shape[1], height, width)

    return run


@meaning("MaxUnpool", host=(2,))
def max_unpool(node: Static) -> Run:
    """Gives zeros, with the maxima of a pooling where they came from"""
    kernel = node.ints("kernel_shape") or []
    strides, pads = (
        node.ints("strides", [1] * len(kernel)) or [],
        node.ints("pads", [0, 0] * len(kernel)) or [],
    )

    def run(x: Tensor, places: Tensor, shape: Tensor | None = None) -> Tensor:
        space = [
            (size - 1) * stride - pads[axis] - pads[axis + len(kernel)] + extent
            for axis, (size, stride, extent) in enumerate(zip(x.shape[2:], strides, kernel, strict=True))
        ]
        sizes = [*x.shape[:2], *space] if shape is None else numbers_of(shape)
        flat = x.new_zeros(math.prod(sizes))
        return flat.scatter(0, places.flatten(), x.flatten()).reshape(sizes)

    return run
