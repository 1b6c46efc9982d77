"""Operators that read positions by number, order or content."""

from __future__ import annotations

import numpy as np
import pytest
from cutting import Constant, check_cut, frozen_groups, graph, group_of, open_groups, positions

from onnxprune.analyze import analyze

STEM = "h = Conv(x, a_w) "
CONSTANTS: dict[str, Constant] = {"a_w": (8, 3, 1, 1), "c_w": (4, 8, 1, 1)}
SPACE: dict[str, Constant] = {"two": np.array(2, np.int64), "axis": [2], "k": [3], "lengths": [6, 2]}
CHANNELS: dict[str, Constant] = {"two": np.array(1, np.int64), "axis": [1], "k": [3], "lengths": [6, 2]}


@pytest.mark.parametrize(
    "call",
    [
        "CumSum(h, two)",
        "CumSum<reverse = 1, exclusive = 1>(h, two)",
        "Trilu(h)",
    ],
)
def test_channels_pass_where_space_is_ordered(call: str) -> None:
    body = STEM + f"o = {call} y = Conv(o, c_w)"
    model = graph(body, inputs="float[2,3,6,6] x", constants=CONSTANTS | SPACE)
    assert open_groups(check_cut(model)) == {"a_w": 8}


@pytest.mark.parametrize("batch", [0, 1])
def test_sequences_reversed_by_length(batch: int) -> None:
    call = f"ReverseSequence<batch_axis = {batch}, time_axis = {1 - batch}>(h, lengths)"
    body = f"h = MatMul(x, a_w) o = {call} y = MatMul(o, c_w)"
    constants = {"a_w": (6, 8), "c_w": (8, 3), "lengths": [1, 3, 2]}
    assert open_groups(check_cut(graph(body, inputs="float[3,3,6] x", constants=constants))) == {"a_w": 8}


@pytest.mark.parametrize("opset", [9, 11, 24])
def test_the_largest_along_space(opset: int) -> None:
    call = "TopK<axis = 2, k = 3>(h)" if opset == 9 else "TopK<axis = 2>(h, k)"
    body = STEM + f"o, i = {call} y = Conv(o, c_w)"
    assert open_groups(check_cut(graph(body, constants=CONSTANTS | SPACE, opset=opset))) == {"a_w": 8}


@pytest.mark.parametrize(
    "call",
    [
        "CumSum(h, two)",
        "ReverseSequence<batch_axis = 1, time_axis = 2>(h, order)",
        "ReverseSequence<batch_axis = 0, time_axis = 1>(h, lengths)",
        "Trilu(t)",
    ],
)
def test_channels_stay_where_they_are_ordered(call: str) -> None:
    body = STEM + f"t = Transpose<perm = [0, 2, 3, 1]>(h) o = {call} r = Relu(o) y = ReduceMax(r)"
    constants = CONSTANTS | CHANNELS | {"order": [1, 2, 3, 4, 5, 6, 6, 6]}
    analysis = analyze(graph(body, inputs="float[2,3,6,6] x", constants=constants))
    assert "needs the order" in frozen_groups(analysis)["a_w"]


def test_the_largest_channels_stay() -> None:
    body = STEM + "o, i = TopK<axis = 1>(h, k) y = Conv(o, c_w)"
    analysis = analyze(graph(body, constants=CONSTANTS | CHANNELS | {"c_w": (4, 3, 1, 1)}))
    assert "needs the order" in frozen_groups(analysis)["a_w"]


def test_a_product_of_all_before() -> None:
    """CumProd is newer than the runtime."""
    body = STEM + "o = CumProd(h, two) y = Conv(o, c_w)"
    assert open_groups(analyze(graph(body, constants=CONSTANTS | SPACE, opset=26))) == {"a_w": 8}


@pytest.mark.parametrize("axis", [-1, 1])
def test_an_embedding_as_one_hot_times_a_matrix(axis: int) -> None:
    constants = {"depth": np.array(7), "values": np.array([0, 1], np.float32), "a_w": (7, 8), "c_w": (8, 3)}
    moved = "o" if axis == -1 else "p"
    body = f"""
        o = OneHot<axis = {axis}>(x, depth, values) p = Transpose<perm = [0, 2, 1]>(o)
        h = MatMul({moved}, a_w) r = Tanh(h) y = MatMul(r, c_w)
    """
    analysis = check_cut(graph(body, inputs="int64[N,5] x", constants=constants))
    assert open_groups(analysis) == {"a_w": 8}
    assert positions(group_of(analysis, "a_w", 1)) == {("a_w", 1, False), ("c_w", 0, True)}


def test_sampling_and_regions_pass_channels() -> None:
    body = (
        STEM
        + """
        s = GridSample(h, g) r = RoiAlign<output_height = 6, output_width = 6>(h, boxes, images)
        m = MaxRoiPool<pooled_shape = [6, 6]>(h, rois) a = Add(s, r) b = Add(a, m) y = Conv(b, c_w)
    """
    )
    constants = CONSTANTS | {
        "boxes": np.array([[0, 0, 3, 3], [1, 2, 5, 5]], np.float32),
        "images": [0, 1],
        "rois": np.array([[0, 0, 0, 3, 3], [1, 1, 2, 5, 5]], np.float32),
    }
    inputs = "float[2,3,6,6] x, float[2,6,6,2] g"
    assert open_groups(check_cut(graph(body, inputs=inputs, constants=constants, opset=16))) == {"a_w": 8}


def test_coordinates_that_are_computed_stay() -> None:
    constants = CONSTANTS | {"g_w": (2, 3, 1, 1)}
    body = (
        STEM + "g = Conv(x, g_w) t = Transpose<perm = [0, 2, 3, 1]>(g) s = GridSample(h, t) y = Conv(s, c_w)"
    )
    analysis = check_cut(graph(body, constants=constants, opset=16))
    assert open_groups(analysis) == {"a_w": 8}
    assert "reads coordinates" in frozen_groups(analysis)["g_w"]


def test_a_grid_made_from_a_matrix() -> None:
    """A spatial transformer: the network that says where to look ends in six numbers, which stay."""
    constants = CONSTANTS | {
        "l_w": (3, 5), "m_w": (5, 6), "split": [0, 2, 3], "size": [2, 8, 6, 6], "flat": [2, 3],
    }  # fmt: skip
    body = (
        STEM
        + """
        p = ReduceMean<axes = [2, 3], keepdims = 0>(x) l = MatMul(p, l_w) r = Relu(l) m = MatMul(r, m_w)
        t = Reshape(m, split) g = AffineGrid(t, size) s = GridSample(h, g) y = Conv(s, c_w)
    """
    )
    body = body.replace("ReduceMean<axes = [2, 3], keepdims = 0>(x)", "ReduceMean<keepdims = 0>(x, flat)")
    model = graph(body, inputs="float[2,3,6,6] x", constants=constants, opset=20)
    assert open_groups(check_cut(model)) == {"a_w": 8, "l_w": 5}


def test_unpooling_counts_places_anew() -> None:
    """The encoder and the decoder of one resolution lose the same channels, and no others."""
    constants = CONSTANTS | {"b_w": (8, 8, 3, 3)}
    body = (
        STEM
        + """
        p, i = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(h) b = Conv<pads = [1, 1, 1, 1]>(p, b_w)
        u = MaxUnpool<kernel_shape = [2, 2], strides = [2, 2]>(b, i) y = Conv(u, c_w)
    """
    )
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis) == {"a_w": 8}
    assert {("b_w", 0, False), ("b_w", 1, True)} <= positions(group_of(analysis, "a_w", 0))


@pytest.mark.parametrize(
    "lines",
    [
        # Places of another tensor, and a result of another size than what was pooled.
        "u = MaxUnpool<kernel_shape = [2, 2], strides = [2, 2]>(p, places)",
        "u = MaxUnpool<kernel_shape = [2, 2], strides = [2, 2]>(p, i, size)",
    ],
)
def test_unpooling_of_something_else_stays(lines: str) -> None:
    places = np.arange(2 * 8 * 9).reshape(2, 8, 3, 3)
    constants = CONSTANTS | {"places": places, "size": [2, 8, 7, 7]}
    body = STEM + f"p, i = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(h) {lines} y = Conv(u, c_w)"
    analysis = analyze(graph(body, inputs="float[2,3,6,6] x", constants=constants))
    reason = frozen_groups(analysis)["a_w"]
    assert "maxima" in reason or "u is not known" in reason


def test_cropping_space() -> None:
    constants = CONSTANTS | {"all": [2, 8, 4, 9], "some": [7]}
    body = STEM + "p = CenterCropPad(h, all) q = CenterCropPad<axes = [-2]>(p, some) y = Conv(q, c_w)"
    model = graph(body, inputs="float[2,3,6,6] x", constants=constants, opset=18)
    assert open_groups(check_cut(model)) == {"a_w": 8}


def test_cropping_channels_keeps_them() -> None:
    constants = CONSTANTS | {"some": [6], "c_w": (4, 6, 1, 1)}
    body = STEM + "q = CenterCropPad<axes = [1]>(h, some) y = Conv(q, c_w)"
    analysis = analyze(graph(body, constants=constants, opset=18))
    assert "crops or pads" in frozen_groups(analysis)["a_w"]


@pytest.mark.parametrize(
    ("opset", "call"),
    [(17, "DFT<axis = 1>(u)"), (20, "DFT(u, n, one)"), (20, "DFT(u)")],
)
def test_frequencies_along_time(opset: int, call: str) -> None:
    """Channels pass along the axes that are not transformed."""
    moved = "Transpose<perm = [0, 2, 1]>(h)" if call == "DFT(u)" else "Identity(h)"
    back = "Transpose<perm = [0, 2, 1]>(r)" if call == "DFT(u)" else "Identity(r)"
    body = f"""
        h = MatMul(x, a_w) t = {moved} u = Unsqueeze(t, last) f = {call}
        r = ReduceSum<keepdims = 0>(f, last) s = {back} y = MatMul(s, c_w)
    """
    constants = {"a_w": (6, 8), "c_w": (8, 3), "last": [3], "one": np.array(1), "n": np.array(5)}
    model = graph(body, inputs="float[N,5,6] x", constants=constants, opset=opset)
    assert open_groups(check_cut(model)) == {"a_w": 8}


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("NonZero(h)", "not known|lists"),
        ("Det(h)", "determinant"),
        ("Bernoulli(h)", "random"),
        ("RandomNormalLike(h)", "random"),
        ("RandomUniformLike(h)", "random"),
        ("Unique(h)", "not known|compares"),
    ],
)
def test_what_reads_everything_keeps_everything(call: str, reason: str) -> None:
    body = STEM + f"o = {call} f = Cast<to = 1>(o) y = ReduceSum<keepdims = 0>(f)"
    analysis = analyze(graph(body, constants=CONSTANTS))
    assert open_groups(analysis) == {}
    assert any(word in frozen_groups(analysis)["a_w"] for word in reason.split("|"))


def test_made_numbers_have_no_channels() -> None:
    """A window of constant length multiplies time; channels pass."""
    constants = {"n": np.array(5), "a_w": (6, 8), "c_w": (8, 3), "one": [1]}
    body = """
        w = HannWindow(n) v = HammingWindow(n) u = BlackmanWindow(n) s = Sum(w, v, u) t = Unsqueeze(s, one)
        h = MatMul(x, a_w) r = Mul(h, t) y = MatMul(r, c_w)
    """
    assert open_groups(check_cut(graph(body, inputs="float[N,5,6] x", constants=constants))) == {"a_w": 8}


def test_random_numbers_that_meet_channels_keep_them() -> None:
    body = STEM + "n = RandomNormal<shape = [1, 8, 1, 1]>() s = Add(h, n) y = Conv(s, c_w)"
    analysis = analyze(graph(body, constants=CONSTANTS))
    assert "no channels along this axis" in frozen_groups(analysis)["a_w"]


@pytest.mark.parametrize("axis", [0, 1])
def test_a_constant_in_order_keeps_the_axis_that_is_ordered(axis: int) -> None:
    """Labels that come later, with the first operator that copies them, don't stand on that axis."""
    constants = {"a_w": (6, 8), "axis": np.array(axis), "c_w": (8, 3)}
    body = "w = CumSum(a_w, axis) h = MatMul(x, w) r = Relu(h) y = MatMul(r, c_w)"
    analysis = check_cut(graph(body, inputs="float[N,6] x", constants=constants))
    assert list(open_groups(analysis).values()) == ([8] if axis == 0 else [])


def test_one_hot_of_positions_that_belong_to_channels() -> None:
    """Where each channel is largest: the new axis stands before that of the channels."""
    constants = CONSTANTS | {"depth": np.array(6), "values": np.array([0, 1], np.float32), "m_w": (8, 3)}
    body = (
        STEM
        + """
        i = ArgMax<axis = 2, keepdims = 0>(h) o = OneHot<axis = 1>(i, depth, values)
        t = Transpose<perm = [0, 1, 3, 2]>(o) y = MatMul(t, m_w)
    """
    )
    del constants["c_w"]
    assert open_groups(check_cut(graph(body, constants=constants))) == {"a_w": 8}
