"""Resize and Upsample: interpolation along each axis on its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.ops.meanings.base import NoMeaning, Run, Static, meaning, numbers_of

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True, slots=True)
class _Form:
    """What the attributes of a node say.

    Attributes:
        mode: "nearest", "linear" or "cubic".
        coordinates: how a place of the output becomes one of the input.
        nearest: how that is rounded.
        cubic: coefficient a of the cubic kernel; Keys 1981.
        antialias: whether the kernel widens where the output is smaller.
        exclude: whether weights outside the input are spread over those inside.
        outside: the result where tf_crop_and_resize reads outside the input.
    """

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    antialias: bool
    exclude: bool
    outside: float


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis that changes: sizes, the scale (output by input), and the part that is read."""

    axis: int
    before: int
    after: int
    scale: float
    begin: float = 0.0
    end: float = 1.0


@meaning("Upsample", host=(1,))
def upsample(node: Static) -> Run:
    """Gives x made larger by one factor for each axis, as Resize did it before opset 11"""
    form = _Form(node.text("mode", "nearest"), "asymmetric", "simple", -0.75, False, False, 0.0)
    fixed = node.node.attributes.get_floats("scales", None)

    def run(x: Tensor, scales: Tensor | None = None) -> Tensor:
        factors = list(fixed or ()) if scales is None else scales.tolist()
        return _resized(x, form, _scaled(x, range(x.dim()), factors))

    return run


@meaning("Resize", host=(1, 2, 3))
def resize(node: Static) -> Run:
    """Gives x at other places, interpolated between its own"""
    old = node.version < 11
    form = _Form(
        node.text("mode", "nearest"),
        "asymmetric" if old else node.text("coordinate_transformation_mode", "half_pixel"),
        "simple" if old else node.text("nearest_mode", "round_prefer_floor"),
        node.float("cubic_coeff_a", -0.75),
        node.int("antialias") == 1,
        node.int("exclude_outside") == 1,
        node.float("extrapolation_value", 0.0),
    )
    policy, given_axes = node.text("keep_aspect_ratio_policy", "stretch"), node.ints("axes")

    def run(x: Tensor, *inputs: Tensor | None) -> Tensor:
        region, scales, sizes = (None, inputs[0], None) if old else (*inputs, None, None)[:3]
        axes = [axis % x.dim() for axis in given_axes or range(x.dim())]
        if sizes is not None and sizes.numel():
            targets = numbers_of(sizes)
            # factors are rounded to 32 bits, as the kernels of ONNX Runtime keep them
            factors = [
                float(np.float32(n) / np.float32(x.shape[a])) for n, a in zip(targets, axes, strict=True)
            ]
            if policy != "stretch":
                one = min(factors) if policy == "not_larger" else max(factors)
                factors = [one] * len(axes)
                targets = [math.floor(one * x.shape[a] + 0.5) for a in axes]
        elif scales is not None:
            factors = scales.tolist()
            targets = [math.floor(x.shape[a] * factor) for a, factor in zip(axes, factors, strict=True)]
        else:
            raise ValueError("Resize has neither scales nor sizes")
        crops = form.coordinates == "tf_crop_and_resize" and region is not None
        bounds = region.tolist() if crops and region is not None else [0.0] * len(axes) + [1.0] * len(axes)
        changed = [
            _Axis(axis, x.shape[axis], target, factor, bounds[place], bounds[place + len(axes)])
            for place, (axis, target, factor) in enumerate(zip(axes, targets, factors, strict=True))
        ]
        return _resized(x, form, changed)

    return run


def _scaled(x: Tensor, axes: Sequence[int], factors: Sequence[float]) -> list[_Axis]:
    return [
        _Axis(axis, x.shape[axis], math.floor(x.shape[axis] * factor), factor)
        for axis, factor in zip(axes, factors, strict=True)
    ]


def _resized(x: Tensor, form: _Form, given: Sequence[_Axis]) -> Tensor:
    whole = form.coordinates == "tf_crop_and_resize"
    axes = [one for one in given if one.before != one.after or one.scale != 1 or whole]
    axes = [one for one in axes if not whole or (one.begin, one.end) != (0, 1) or one.before != one.after]
    if form.mode == "nearest":
        return _nearest(x, form, axes)
    if form.mode not in ("linear", "cubic"):
        raise NoMeaning(f"mode {form.mode}")
    dtype = x.dtype
    x = x if dtype.is_floating_point else x.float()
    fast = _by_torch(x, form, axes)
    if fast is not None:
        y = fast
    else:
        y = x
        for one in axes:
            matrix = torch.from_numpy(_matrix(form, one)).to(x.device, x.dtype)
            y = (y.movedim(one.axis, -1) @ matrix.mT).movedim(-1, one.axis)
        y = _outside(y, form, axes)
    return y if dtype.is_floating_point else y.to(dtype)


def _outside(y: Tensor, form: _Form, axes: Sequence[_Axis]) -> Tensor:
    """Put the extrapolation value where tf_crop_and_resize reads outside the input."""
    if form.coordinates != "tf_crop_and_resize":
        return y
    for one in axes:
        places = _places(form, one)
        away = torch.from_numpy((places < 0) | (places > one.before - 1)).to(y.device)
        shape = [1] * y.dim()
        shape[one.axis] = -1
        y = torch.where(away.reshape(shape), torch.full_like(y, form.outside), y)
    return y


def _by_torch(x: Tensor, form: _Form, axes: Sequence[_Axis]) -> Tensor | None:
    """Let torch's own kernel interpolate where it does the same, None elsewhere."""
    space = x.dim() - 2
    last = [one for one in axes if one.axis >= 2]
    corners = form.coordinates == "align_corners"
    same_scale = all(abs(one.scale * one.before - one.after) < 1e-4 for one in last)
    half = form.coordinates in ("half_pixel", "half_pixel_symmetric") or (
        form.coordinates == "pytorch_half_pixel" and all(one.after > 1 for one in last)
    )
    if len(last) != len(axes) or not (corners or (half and same_scale)) or form.exclude:
        return None
    sizes = list(x.shape[2:])
    for one in last:
        sizes[one.axis - 2] = one.after
    if not form.antialias and form.mode == "linear" and space in _LINEAR:
        return functional.interpolate(x, sizes, mode=_LINEAR[space], align_corners=corners)
    if not form.antialias and form.mode == "cubic" and space == 2 and form.cubic == -0.75 and len(last) == 2:
        return functional.interpolate(x, sizes, mode="bicubic", align_corners=corners)
    return None


def _places(form: _Form, one: _Axis) -> Floats:
    """Return where places of the output lie in the input, ``[after]``, in 32 bits as in ONNX Runtime."""
    y, scale = np.arange(one.after, dtype=np.float32), np.float32(one.scale)
    before, after = np.float32(one.before), np.float32(one.after)
    single = np.zeros(one.after, np.float32)
    half = np.float32(0.5)
    if form.coordinates == "asymmetric":
        return y / scale
    if form.coordinates == "align_corners":
        return single if one.after == 1 else np.asarray(y * (before - 1) / (after - 1))
    if form.coordinates == "tf_crop_and_resize":
        begin, end = np.float32(one.begin), np.float32(one.end)
        if one.after == 1:
            return single + half * (begin + end) * (before - 1)
        return begin * (before - 1) + y * (end - begin) * (before - 1) / (after - 1)
    if form.coordinates == "tf_half_pixel_for_nn":
        return (y + half) / scale
    found = (y + half) / scale - half
    if form.coordinates == "half_pixel":
        return found
    if form.coordinates == "pytorch_half_pixel":
        return single if one.after == 1 else found
    if form.coordinates == "half_pixel_symmetric":
        return before / 2 * (1 - after / (scale * before)) + found
    raise NoMeaning(f"coordinate_transformation_mode {form.coordinates}")


def _ties_down(x: Floats) -> Floats:
    return np.asarray(np.ceil(x - np.float32(0.5)))


def _ties_up(x: Floats) -> Floats:
    return np.asarray(np.floor(x + np.float32(0.5)))


_ROUNDINGS: dict[str, Callable[[Floats], Floats]] = {
    "round_prefer_floor": _ties_down,
    "round_prefer_ceil": _ties_up,
    "floor": np.floor,
    "ceil": np.ceil,
}


def _nearest(x: Tensor, form: _Form, axes: Sequence[_Axis]) -> Tensor:
    y = x
    for one in axes:
        if form.nearest == "simple":
            rounding: Callable[[Floats], Floats] = np.ceil if one.scale < 1 else np.trunc
        else:
            rounding = _ROUNDINGS[form.nearest]
        picked = np.clip(rounding(_places(form, one)), 0, one.before - 1).astype(np.int64)
        y = _picked(y, one.axis, picked)
    return _outside(y, form, axes)


def _picked(x: Tensor, axis: int, places: Integers) -> Tensor:
    """Return positions along an axis; whole repeats by a view, whose gradient is a plain sum."""
    size = x.shape[axis]
    times, rest = divmod(len(places), size) if size else (0, 1)
    if not rest and np.array_equal(places, np.repeat(np.arange(size), times)):
        return (
            x.unsqueeze(axis + 1)
            .expand(*x.shape[: axis + 1], times, *x.shape[axis + 1 :])
            .flatten(axis, axis + 1)
        )
    return x.index_select(axis, torch.from_numpy(places).to(x.device))


def _kernel(form: _Form, distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the weight of a place at a distance: a triangle, or Keys' cubic (1981, equation 15)."""
    d = np.abs(distance)
    if form.mode == "linear":
        return np.asarray(np.clip(1 - d, 0, None))
    a = form.cubic
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _matrix(form: _Form, one: _Axis) -> npt.NDArray[np.float64]:
    """Return the weights ``[after, before]`` of each place of the input for each one of the output."""
    places = _places(form, one).astype(np.float64)
    narrow = min(one.scale, 1.0) if form.antialias else 1.0
    reach = math.ceil((1 if form.mode == "linear" else 2) / narrow)
    first = np.floor(places).astype(np.int64)
    taps = first[:, None] + np.arange(-reach, reach + 2)
    weights = _kernel(form, (taps - places[:, None]) * narrow)
    inside = (taps >= 0) & (taps < one.before)
    if form.exclude:
        weights = weights * inside
    if form.exclude or form.antialias:
        weights = weights / weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((one.after, one.before))
    rows = np.broadcast_to(np.arange(one.after)[:, None], taps.shape)
    np.add.at(matrix, (rows, np.clip(taps, 0, one.before - 1)), weights)
    return matrix
