"""Resizing, sampling, sorting, gathers and scatters, transforms: against ONNX Runtime, finite differences."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from executing import check_forward, check_gradient, in_torch, one_node

RANDOM = np.random.default_rng(13)


def f(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def i(*numbers: Any) -> np.ndarray:
    return np.array(numbers, np.int64)


def check(op: str, inputs: dict[str, np.ndarray], *, smooth: bool = True, **options: Any) -> None:
    model = one_node(op, inputs, **options)
    check_forward(model, inputs)
    if smooth:
        check_gradient(model, inputs)


IMAGE = {"x": f(1, 2, 5, 4)}
COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]
TO = {"larger": i(1, 2, 11, 8), "smaller": i(1, 2, 2, 2), "single": i(1, 2, 1, 4), "mixed": i(1, 2, 10, 3)}


@pytest.mark.parametrize("sizes", TO)
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_resize_to_sizes(sizes, coordinates, mode):
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    check(
        "Resize", IMAGE, opset=19, constants={"sizes": TO[sizes]}, order=["x", "", "", "sizes"],
        smooth=coordinates == "half_pixel", **attributes,
    )  # fmt: skip


@pytest.mark.parametrize("sizes", TO)
@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("coordinates", [*COORDINATES, "tf_half_pixel_for_nn"])
def test_resize_to_the_nearest(sizes, rounding, coordinates):
    old = coordinates == "tf_half_pixel_for_nn"
    check(
        "Resize", IMAGE, opset=11 if old else 18, order=["x", *(["roi", "s"] if old else ["", ""]), "sizes"],
        constants={"sizes": TO[sizes], **({"roi": f(0), "s": f(0)} if old else {})}, nearest_mode=rounding,
        coordinate_transformation_mode=coordinates, smooth=False, mode="nearest",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("factors", "mode"),
    list(itertools.product([(2, 3), (1.5, 2.3), (0.6, 0.8)], ["nearest", "linear", "cubic"])),
)
def test_resize_by_factors(factors, mode):
    constants = {"s": np.array([1, 1, *factors], np.float32)}
    check("Resize", IMAGE, opset=18, constants=constants, order=["x", "", "s"], mode=mode)
    if mode != "cubic":
        check("Resize", IMAGE, opset=10, constants=constants, mode=mode)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample(mode):
    constants = {"s": np.array([1, 1, 2, 3], np.float32)}
    check("Upsample", IMAGE, opset=9, constants=constants, mode=mode)


@pytest.mark.parametrize(
    "attributes",
    [
        {"mode": "linear", "antialias": 1},
        {"mode": "cubic", "antialias": 1},
        {"mode": "cubic", "exclude_outside": 1},
        {"mode": "cubic", "cubic_coeff_a": -0.5},
        {"mode": "linear", "keep_aspect_ratio_policy": "not_larger"},
        {"mode": "linear", "keep_aspect_ratio_policy": "not_smaller"},
    ],
)
@pytest.mark.parametrize("sizes", [i(3, 2), i(9, 10)])
def test_resize_of_two_axes(attributes, sizes):
    options = {"constants": {"sizes": sizes}, "order": ["x", "", "", "sizes"], "axes": [2, 3]}
    check("Resize", {"x": f(1, 2, 6, 5)}, opset=18, **options, **attributes)


def test_resize_of_a_region():
    constants = {"roi": np.array([0, 0, 0.1, 0.2, 1, 1, 0.7, 1.3], np.float32), "sizes": i(1, 2, 4, 3)}
    check(
        "Resize", IMAGE, opset=13, constants=constants, order=["x", "roi", "", "sizes"], mode="linear",
        coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=7.0,
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_grid_sample(mode, padding, corners):
    inputs = {**IMAGE, "grid": RANDOM.uniform(-1.2, 1.2, (1, 3, 3, 2)).astype(np.float32)}
    attributes = {"mode": mode, "padding_mode": padding, "align_corners": corners}
    check("GridSample", inputs, opset=16, smooth=False, **attributes)


@pytest.mark.parametrize("sizes", [i(2, 1, 3, 4), i(2, 1, 2, 3, 4)])
def test_affine_grid(sizes):
    rank = len(sizes) - 2
    inputs = {"theta": f(2, rank, rank + 1)}
    for corners in (0, 1):
        check("AffineGrid", inputs, opset=20, constants={"size": sizes}, align_corners=corners)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("opset", [10, 16])
def test_regions(mode, ratio, opset):
    constants = {
        "rois": np.array([[0.5, 1, 6.3, 5], [1, 1, 2.2, 9], [-1, 0, 3, 3]], np.float32), "at": i(1, 0, 1)
    }  # fmt: skip
    inputs = {"x": np.abs(f(2, 3, 8, 7))}
    check(
        "RoiAlign", inputs, opset=opset, constants=constants, mode=mode, sampling_ratio=ratio,
        output_height=3, output_width=2, spatial_scale=0.9, smooth=mode == "avg",
    )  # fmt: skip


def test_maxima_of_regions():
    rois = np.array([[0, 0, 0, 5, 4], [1, 2, 1, 6, 7], [0, 3, 3, 3, 3]], np.float32)
    inputs = {"x": f(2, 3, 8, 7)}
    check("MaxRoiPool", inputs, constants={"rois": rois}, pooled_shape=[3, 2])


def test_center_crop_pad():
    for axes, shape in ((None, i(2, 5, 4)), ([1, -1], i(2, 7))):
        attributes = {} if axes is None else {"axes": axes}
        check("CenterCropPad", {"x": f(3, 4, 5)}, opset=18, constants={"s": shape}, **attributes)


def test_back_from_a_pooling():
    places = np.array([[[[5, 7], [13, 15]]], [[[16, 18], [28, 31]]]])
    inputs = {"x": f(2, 1, 2, 2)}
    check("MaxUnpool", inputs, constants={"i": places}, kernel_shape=[2, 2], strides=[2, 2])


# --- order and content --------------------------------------------------------------------------------------

TIES = np.array([[3, 1, 3, 2, 1], [0, 0, 0, -1, 5]], np.float32)


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("axis", [0, -1])
def test_top_k(largest, axis):
    for x in (TIES, f(2, 5)):
        attributes = {"axis": axis, "largest": largest}
        check("TopK", {"x": x}, constants={"k": i(2)}, outputs=2, smooth=False, **attributes)
    check("TopK", {"x": f(4, 5)}, opset=7, outputs=2, k=3, axis=axis)


def test_places():
    check("NonZero", {"x": (f(3, 4) > 0).astype(np.float32)}, smooth=False)
    for axis in (-1, 0, 1):
        constants = {"depth": np.array(4), "values": np.array([-1, 3], np.float32)}
        check(
            "OneHot", {"x": np.array([[0, -1, 3], [2, 5, 1]])}, constants=constants, axis=axis, smooth=False
        )
    kept = {"c": np.array([True, False, True])}
    check("Compress", {"x": f(3, 4)}, constants=kept)
    check("Compress", {"x": f(4, 3)}, constants=kept, axis=-1)


@pytest.mark.parametrize("in_order", [0, 1])
def test_different_numbers(in_order):
    check("Unique", {"x": TIES}, outputs=4, sorted=in_order, smooth=False)
    rows = np.array([[1, 0], [2, 3], [1, 0], [0, 5]], np.float32)
    check("Unique", {"x": rows}, outputs=4, sorted=in_order, axis=0, smooth=False)


def test_boxes():
    corners = RANDOM.uniform(0, 5, (2, 9, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + RANDOM.uniform(0.5, 3, (2, 9, 2)).astype(np.float32)], axis=2)
    inputs = {"boxes": boxes, "scores": RANDOM.random((2, 3, 9)).astype(np.float32)}
    limits = {"n": i(4), "o": np.array([0.3], np.float32), "s": np.array([0.2], np.float32)}
    for center in (0, 1):
        check("NonMaxSuppression", inputs, constants=limits, center_point_box=center, smooth=False)


# --- gathers and scatters -----------------------------------------------------------------------------------


def test_gathers():
    elements = {"i": np.array([[0, -1, 1], [2, 1, 0]])}
    check("GatherElements", {"x": f(3, 3)}, constants=elements)
    check("GatherElements", {"x": f(2, 3)}, constants=elements, axis=1)
    check("GatherND", {"x": f(3, 4, 2)}, constants={"i": np.array([[[0, 1], [-1, 3]], [[2, -4], [1, 0]]])})
    check("GatherND", {"x": f(2, 4, 3)}, constants={"i": np.array([[[1], [3]], [[-1], [0]]])}, batch_dims=1)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatters(reduction):
    single = (
        np.array([[0, -1], [2, 0], [1, 1]]) if reduction == "none" else np.array([[0, -1], [0, 0], [1, 1]])
    )
    axis = {"i": single, "u": f(3, 2)}
    smooth = reduction in ("none", "add")
    order, inputs = ["x", "i", "u"], {"x": f(3, 2), "u": axis["u"]}
    if reduction != "none":
        check(
            "ScatterElements",
            inputs,
            opset=18,
            constants={"i": single},
            order=order,
            reduction=reduction,
            smooth=smooth,
        )
    check("ScatterElements", {"x": f(3, 4), "u": f(3, 1)}, opset=18, order=order,
          constants={"i": i([1], [-1], [0])}, axis=1, reduction=reduction, smooth=smooth)  # fmt: skip
    places = np.array([[0, 1], [2, -1], [0, 1 if reduction != "none" else 2]])
    check("ScatterND", {"x": f(3, 4, 2), "u": f(3, 2)}, opset=18, constants={"i": places}, order=order,
          reduction=reduction, smooth=smooth)  # fmt: skip
    if reduction == "none":
        check("Scatter", {"x": f(3, 2), "u": f(1, 2)}, opset=9, constants={"i": i([2, 0])}, order=order)


@pytest.mark.parametrize(
    "equation", ["ij,jk->ik", "bhid,bhjd->bhij", "...ij,...jk", "ii->i", "i,j", "bij, bjk -> bk"]
)
def test_einsum(equation):
    shapes = {"i": 3, "j": 4, "k": 2, "b": 2, "h": 3, "d": 5}
    inputs = {
        f"x{place}": f(*([2] if "..." in term else []), *(shapes[letter] for letter in term.strip(" .")))
        for place, term in enumerate(equation.split("->")[0].split(","))
    }
    check("Einsum", inputs, equation=equation)


# --- transforms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize(("onesided", "inverse"), [(0, 0), (1, 0), (0, 1)])
def test_fourier_transforms(opset, onesided, inverse):
    inputs = {"x": f(2, 8, 1 if onesided else 2)}
    place: dict[str, Any] = {"axis": 1} if opset < 20 else {}
    constants = {} if opset < 20 else {"axis": np.array(1)}
    order = ["x"] if opset < 20 else ["x", "", "axis"]
    check(
        "DFT",
        inputs,
        opset=opset,
        constants=constants,
        order=order,
        onesided=onesided,
        inverse=inverse,
        **place,
    )


def test_short_time_fourier_transform():
    constants = {"step": np.array(4), "w": np.hanning(8).astype(np.float32), "n": np.array(8)}
    for onesided in (0, 1):
        check("STFT", {"x": f(2, 20, 1)}, constants=constants, onesided=onesided)


@pytest.mark.parametrize("op", ["HannWindow", "HammingWindow", "BlackmanWindow"])
@pytest.mark.parametrize("periodic", [0, 1])
def test_windows(op, periodic):
    model = one_node(op, {"n": np.array(10)}, periodic=periodic)
    check_forward(model, {"n": np.array(10)}, tolerance=2e-5)


def test_mel_filters():
    constants = {"l": np.array(64), "r": np.array(8000), "a": np.float32(50), "b": np.float32(4000)}
    check("MelWeightMatrix", {"n": np.array(9)}, constants=constants, smooth=False)


# --- random numbers -----------------------------------------------------------------------------------------


def test_dropout_only_where_it_trains():
    x = {"x": np.ones((100, 100), np.float32)}
    for opset, constants in ((7, {}), (12, {}), (13, {"r": np.float32(0.25), "t": np.array(False)})):
        (y, *_) = in_torch(one_node("Dropout", x, opset=opset, constants=constants), x)
        np.testing.assert_array_equal(y, x["x"])
    model = one_node(
        "Dropout", x, opset=13, constants={"r": np.float32(0.25), "t": np.array(True)}, outputs=2
    )
    torch.manual_seed(0)
    y, kept = in_torch(model, x)
    assert 0.7 < kept.mean() < 0.8
    np.testing.assert_allclose(y, kept / np.float32(0.75))
    torch.manual_seed(0)
    np.testing.assert_array_equal(in_torch(model, x)[0], y)


def test_random_numbers_have_their_moments():
    torch.manual_seed(0)
    shape = {"x": np.zeros((200, 100), np.float32)}
    (y,) = in_torch(one_node("RandomNormalLike", shape, mean=2.0, scale=3.0), shape)
    assert abs(y.mean() - 2) < 0.1
    assert abs(y.std() - 3) < 0.1
    (y,) = in_torch(one_node("RandomUniform", {}, shape=[200, 100], low=-1.0, high=3.0), {})
    assert y.min() >= -1
    assert y.max() <= 3
    assert abs(y.mean() - 1) < 0.1
    chances = {"x": np.full((200, 100), 0.3, np.float32)}
    (y,) = in_torch(one_node("Bernoulli", chances), chances)
    assert abs(y.mean() - 0.3) < 0.02
    scores = {"x": np.log(np.array([[0.2, 0.8]], np.float32))}
    (y,) = in_torch(one_node("Multinomial", scores, sample_size=5000), scores)
    assert abs(y.mean() - 0.8) < 0.05
