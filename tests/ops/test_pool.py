"""Pooling, resizing and reductions."""

from __future__ import annotations

import numpy as np
import pytest
from cutting import check_cut, frozen_groups, graph, group_of, open_groups, positions

CONSTANTS = {"a_w": (8, 3, 1, 1), "c_w": (4, 8, 1, 1)}


@pytest.mark.parametrize(
    "operator",
    ["MaxPool<kernel_shape = [2, 2], strides = [2, 2]>",
     "AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>",
     "GlobalAveragePool", "GlobalMaxPool", "LpPool<kernel_shape = [2, 2]>"],
)  # fmt: skip
def test_pools_pass_channels(operator: str) -> None:
    body = f"h = Conv(x, a_w) r = {operator}(h) y = Conv(r, c_w)"
    assert open_groups(check_cut(graph(body, constants=CONSTANTS))) == {"a_w": 8}


def test_pooling_along_channels_freezes_them() -> None:
    body = """
        h = Conv(x, a_w) t = Transpose<perm = [0, 2, 1, 3]>(h) p = MaxPool<kernel_shape = [2, 1]>(t)
        r = Transpose<perm = [0, 2, 1, 3]>(p) y = Conv(r, c_w)
    """
    analysis = check_cut(graph(body, constants=CONSTANTS | {"c_w": (4, 7, 1, 1)}))
    assert open_groups(analysis) == {}
    assert "pools along this axis" in frozen_groups(analysis)["a_w"]


def test_resize_with_sizes_follows_the_cut() -> None:
    constants = CONSTANTS | {"sizes": [2, 8, 12, 9]}
    body = 'h = Conv(x, a_w) r = Resize<mode = "nearest">(h, "", "", sizes) y = Conv(r, c_w)'
    model = graph(body, inputs="float[2,3,6,6] x", constants=constants)
    assert open_groups(check_cut(model)) == {"a_w": 8}


def test_resize_with_sizes_of_some_axes() -> None:
    constants = CONSTANTS | {"sizes": [12, 9]}
    body = 'h = Conv(x, a_w) r = Resize<mode = "nearest", axes = [2, 3]>(h, "", "", sizes) y = Conv(r, c_w)'
    assert open_groups(check_cut(graph(body, constants=constants, opset=18))) == {"a_w": 8}


def test_resize_with_scales() -> None:
    constants = CONSTANTS | {"scales": np.array([1, 1, 2, 1.5], np.float32)}
    body = 'h = Conv(x, a_w) r = Resize<mode = "linear">(h, "", scales) y = Conv(r, c_w)'
    assert open_groups(check_cut(graph(body, constants=constants))) == {"a_w": 8}


def test_resize_of_channels_freezes_them() -> None:
    constants = CONSTANTS | {"scales": np.array([1, 2, 1, 1], np.float32), "c_w": (4, 16, 1, 1)}
    body = 'h = Conv(x, a_w) r = Resize<mode = "nearest">(h, "", scales) y = Conv(r, c_w)'
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis) == {}
    assert "interpolates along this axis" in frozen_groups(analysis)["a_w"]


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("operator", ["ReduceMean", "ReduceMax", "ReduceL2"])
def test_reductions_over_space_pass_channels(operator: str, keep: int) -> None:
    reduction = f"{operator}<axes = [2, -1], keepdims = {keep}>"
    body = f"h = Conv(x, a_w) r = {reduction}(h) f = Flatten(r) y = Gemm(f, d_w)"
    model = graph(body, constants=CONSTANTS | {"d_w": (8, 5)})
    assert open_groups(check_cut(model)) == {"a_w": 8}


@pytest.mark.parametrize(
    ("operator", "reason"),
    [("ReduceMean", "takes the mean over these channels"), ("ReduceMax", "takes the max over these channels"),
     ("ReduceProd", "takes the prod over these channels")],
)  # fmt: skip
def test_statistics_over_channels_freeze_them(operator: str, reason: str) -> None:
    body = f"h = Conv(x, a_w) y = {operator}<axes = [1]>(h)"
    analysis = check_cut(graph(body, constants=CONSTANTS))
    assert open_groups(analysis) == {}
    assert reason in frozen_groups(analysis)["a_w"]
    opened = group_of(check_cut(graph(body, constants=CONSTANTS), allow_inexact=True), "a_w", 0)
    assert (opened.frozen, opened.exact) == (None, False)


@pytest.mark.parametrize("keep", [0, 1])
def test_a_sum_over_channels_is_exact(keep: int) -> None:
    body = f"h = Conv(x, a_w) r = Sigmoid(h) y = ReduceSum<keepdims = {keep}>(r, axes)"
    analysis = check_cut(graph(body, constants=CONSTANTS | {"axes": [1]}))
    assert open_groups(analysis) == {"a_w": 8}
    assert positions(group_of(analysis, "a_w", 0)) == {("a_w", 0, False)}


def test_a_sum_over_everything_is_exact() -> None:
    body = "h = Conv(x, a_w) r = Sigmoid(h) y = ReduceSum<keepdims = 0>(r)"
    assert open_groups(check_cut(graph(body, constants=CONSTANTS))) == {"a_w": 8}


def test_a_reduction_over_no_axes_changes_nothing() -> None:
    body = "h = Conv(x, a_w) r = ReduceSum<noop_with_empty_axes = 1>(h, axes) y = Conv(r, c_w)"
    assert open_groups(check_cut(graph(body, constants=CONSTANTS | {"axes": []}))) == {"a_w": 8}


def test_the_largest_channel_is_picked_by_number() -> None:
    body = "h = Conv(x, a_w) i = ArgMax<axis = 1>(h) y = Cast<to = 1>(i)"
    analysis = check_cut(graph(body, constants=CONSTANTS))
    assert open_groups(analysis) == {}
    assert "(ArgMax) counts positions" in frozen_groups(analysis)["a_w"]


def test_squeeze_and_excite() -> None:
    constants = CONSTANTS | {"s_w": (4, 8, 1, 1), "e_w": (8, 4, 1, 1)}
    body = """
        h = Conv(x, a_w) p = GlobalAveragePool(h) s = Conv(p, s_w) t = Relu(s) e = Conv(t, e_w)
        g = HardSigmoid(e) r = Mul(h, g) y = Conv(r, c_w)
    """
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis) == {"a_w": 8, "s_w": 4}
