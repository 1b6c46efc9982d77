"""Operators that only move positions, in the spellings of old and new opsets."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cutting import (
    check_cut,
    check_declared_shapes,
    frozen_groups,
    graph,
    group_of,
    open_groups,
    positions,
    proved_cut,
    trial_shapes,
)

from onnxprune.analyze import Analysis, analyze
from onnxprune.ops.channels import Use

STEM = "h = Conv(x, a_w) "
CONSTANTS = {"a_w": (8, 3, 1, 1), "c_w": (4, 8, 1, 1)}
SEQUENCE = "float[N,5,6] x"


# --- Transpose, Squeeze, Unsqueeze ---


def test_transpose_there_and_back() -> None:
    body = (
        STEM
        + """
        t = Transpose<perm = [0, 2, 3, 1]>(h) m = MatMul(t, b_w) u = Transpose<perm = [0, 3, 1, 2]>(m)
        y = Conv(u, c_w)
    """
    )
    constants = CONSTANTS | {"b_w": (8, 7), "c_w": (4, 7, 1, 1)}
    assert open_groups(check_cut(graph(body, constants=constants))) == {"a_w": 8, "b_w": 7}


def test_transpose_without_perm_reverses() -> None:
    body = "a = MatMul(x, a_w) t = Transpose(a) y = MatMul(c_w, t)"
    constants = {"a_w": (6, 8), "c_w": (3, 8)}
    assert open_groups(check_cut(graph(body, inputs="float[N,6] x", constants=constants))) == {"a_w": 8}


def test_a_weight_behind_a_transpose() -> None:
    body = "t = Transpose<perm = [1, 0]>(a_w) h = MatMul(x, t) r = Relu(h) y = MatMul(r, c_w)"
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants={"a_w": (8, 6), "c_w": (8, 3)}))
    assert list(open_groups(analysis).values()) == [8]
    assert positions(group_of(analysis, "a_w", 0)) == {("a_w", 0, False), ("c_w", 0, True)}


@pytest.mark.parametrize("opset", [11, 17])
def test_squeeze_and_unsqueeze(opset: int) -> None:
    squeeze = ("Squeeze<axes = [2, 3]>(p)", "Unsqueeze<axes = [2, 3]>(m)")
    if opset == 17:
        squeeze = ("Squeeze(p, space)", "Unsqueeze(m, space)")
    body = (
        STEM
        + f"""
        p = GlobalAveragePool(h) s = {squeeze[0]} m = MatMul(s, b_w) u = {squeeze[1]}
        g = Sigmoid(u) r = Mul(h, g) y = Conv(r, c_w)
    """
    )
    constants = CONSTANTS | {"b_w": (8, 8), **({"space": [2, 3]} if opset == 17 else {})}
    analysis = check_cut(graph(body, constants=constants, opset=opset))
    assert open_groups(analysis) == {"a_w": 8}
    assert {("b_w", 0, True), ("b_w", 1, False)} <= positions(group_of(analysis, "a_w", 0))


# --- Concat ---


def test_concat_joins_channels() -> None:
    constants = CONSTANTS | {"b_w": (5, 3, 1, 1), "c_w": (4, 13, 1, 1)}
    body = STEM + "b = Conv(x, b_w) j = Concat<axis = -3>(h, b) r = Relu(j) y = Conv(r, c_w)"
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis) == {"a_w": 8, "b_w": 5}
    (member,) = (m for m in group_of(analysis, "b_w", 0).members if m.tensor == "c_w")
    np.testing.assert_array_equal(member.channel_at, [-1] * 8 + [0, 1, 2, 3, 4])


def test_concat_with_the_model_input() -> None:
    constants = CONSTANTS | {"c_w": (4, 11, 1, 1)}
    body = STEM + "j = Concat<axis = 1>(x, h) y = Conv(j, c_w)"
    assert open_groups(check_cut(graph(body, constants=constants))) == {"a_w": 8}


def test_concat_along_space_couples_channels() -> None:
    constants = CONSTANTS | {"b_w": (8, 3, 1, 1)}
    body = STEM + "b = Conv(x, b_w) j = Concat<axis = 2>(h, b) y = Conv(j, c_w)"
    assert list(open_groups(check_cut(graph(body, constants=constants))).values()) == [8]


@pytest.mark.parametrize("batch", ["fixed", "symbolic"])
def test_concat_of_a_class_token(batch: str) -> None:
    """The token is expanded to the batch, which is read from the input where it is symbolic."""
    constants = {"a_w": (6, 20), "k_w": (1, 1, 20), "c_w": (20, 3)}
    target, inputs = "", "float[2,5,6] x"
    if batch == "fixed":
        constants["target"] = [2, 1, 20]
    else:
        constants |= {"i": [0], "rest": [1, 20]}
        target, inputs = "s = Shape(x) n = Gather(s, i) target = Concat<axis = 0>(n, rest)", "float[N,5,6] x"
    body = f"""
        h = MatMul(x, a_w) {target} e = Expand(k_w, target) j = Concat<axis = 1>(e, h) r = Tanh(j)
        y = MatMul(r, c_w)
    """
    analysis = check_cut(graph(body, inputs=inputs, constants=constants))
    assert open_groups(analysis) == {"a_w": 20}
    assert ("k_w", 2, False) in positions(group_of(analysis, "a_w", 1))


# --- Split ---


@pytest.mark.parametrize("spelling", ["equal", "sizes", "num_outputs", "attribute"])
def test_split(spelling: str) -> None:
    call = {
        "equal": "Split<axis = 1>(h)",
        "sizes": "Split<axis = 1>(h, sizes)",
        "num_outputs": "Split<axis = 1, num_outputs = 2>(h)",
        "attribute": "Split<axis = 1, split = [3, 5]>(h)",
    }[spelling]
    first = 3 if spelling in ("sizes", "attribute") else 4
    constants = CONSTANTS | {"b_w": (4, first, 1, 1), "c_w": (4, 8 - first, 1, 1)}
    if spelling == "sizes":
        constants["sizes"] = [3, 5]
    opset = {"num_outputs": 18, "attribute": 11}.get(spelling, 13)
    body = STEM + f"u, v = {call} b = Conv(u, b_w) c = Conv(v, c_w) y = Add(b, c)"
    analysis = check_cut(graph(body, constants=constants, opset=opset))
    assert sorted(open_groups(analysis).values()) == sorted([first, 8 - first])


def test_split_of_uneven_num_outputs() -> None:
    """Ten channels in three parts: 4, 4, 2."""
    constants = {"a_w": (10, 3, 1, 1), "b_w": (4, 4, 1, 1), "d_w": (4, 2, 1, 1)}
    body = (
        STEM
        + """
        u, v, w = Split<axis = 1, num_outputs = 3>(h) b = Conv(u, b_w) d = Conv(w, d_w) s = Add(b, v)
        y = Add(s, d)
    """
    )
    analysis = check_cut(graph(body, constants=constants, opset=18))
    assert sorted(open_groups(analysis).values()) == [2, 4]


def test_split_along_a_negative_axis() -> None:
    constants = {"a_w": (6, 8), "c_w": (4, 3), "sizes": [4, 4]}
    body = (
        "h = MatMul(x, a_w) u, v = Split<axis = -1>(h, sizes) s = Sigmoid(u) r = Mul(s, v) y = MatMul(r, c_w)"
    )
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    assert open_groups(analysis) == {"a_w": 4}  # a gated unit: both halves go together


# --- Slice ---


@pytest.mark.parametrize(
    ("start", "end", "size"),
    [(0, 4, 4), (-4, 2**40, 4), (2, -1, 5), (-6, -2, 4), (0, 2**31 - 1, 8), (7, 8, 1)],
)
def test_slice_of_channels(start: int, end: int, size: int) -> None:
    constants = CONSTANTS | {"b": [start], "e": [end], "a": [-3], "d_w": (4, size, 1, 1)}
    body = STEM + "s = Slice(h, b, e, a) d = Conv(s, d_w) c = Conv(h, c_w) y = Add(d, c)"
    analysis = check_cut(graph(body, constants=constants))
    assert sum(open_groups(analysis).values()) >= size - (size == 1)


def test_slice_backwards() -> None:
    constants = CONSTANTS | {"b": [-1], "e": [-(2**40)], "a": [1], "s": [-1]}
    body = STEM + "r = Slice(h, b, e, a, s) y = Conv(r, c_w)"
    analysis = check_cut(graph(body, constants=constants))
    (member,) = (m for m in group_of(analysis, "a_w", 0).members if m.tensor == "c_w")
    np.testing.assert_array_equal(member.channel_at, np.arange(8)[::-1])


def operators_after(analysis: Analysis, gone: dict[tuple[str, int], list[int]]) -> list[str]:
    """Remove positions of weights, named by tensor and axis; prove the cut; return the operators left."""
    channels = analysis.channels
    removed = np.zeros(channels.labels.count, np.bool_)
    for use in [ref for ref in channels.blocks if isinstance(ref, Use)]:
        for (tensor, axis), numbers in gone.items():
            if use.value.name == tensor:
                labels = channels.alone(use, axis)
                assert labels is not None
                removed[labels[numbers]] = True
    pruned = proved_cut(analysis, removed, trial_shapes(analysis))
    check_declared_shapes(ir.to_proto(pruned))
    return [node.op_type for node in pruned.graph]


@pytest.mark.parametrize(("start", "step"), [(0, 2), (1, 3), (-1, -2)])
def test_slice_with_a_stride(start: int, step: int) -> None:
    """Picked channels and those between them go independently."""
    size = len(range(8)[start::step])
    end = -(2**40) if step < 0 else 2**40
    constants = CONSTANTS | {"b": [start], "e": [end], "a": [1], "s": [step], "d_w": (4, size, 1, 1)}
    body = STEM + "r = Slice(h, b, e, a, s) d = Conv(r, d_w) c = Conv(h, c_w) y = Add(c, d)"
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis) == {"a_w": 8 - size, "a_w#2": size} or open_groups(analysis) == {
        "a_w": size,
        "a_w#2": 8 - size,
    }


@pytest.mark.parametrize(
    ("gone", "operators"),
    [
        ([1, 3, 5, 7], ["Conv", "Slice", "Conv"]),  # what is left stands side by side
        ([1], ["Conv", "Gather", "Conv"]),
        ([0, 4], ["Conv", "Slice", "Conv"]),  # two are always evenly spaced
        ([1, 3, 4], ["Conv", "Gather", "Conv"]),
        ([0, 1], ["Conv", "Slice", "Conv"]),
    ],
)
def test_a_stride_becomes_a_gather_only_where_it_must(gone: list[int], operators: list[str]) -> None:
    constants = CONSTANTS | {"b": [0], "e": [8], "a": [1], "s": [2], "c_w": (4, 4, 1, 1)}
    body = STEM + "r = Slice(h, b, e, a, s) y = Conv(r, c_w)"
    analysis = analyze(graph(body, constants=constants))
    assert operators_after(analysis, {("a_w", 0): gone}) == operators


def test_a_stride_along_channels_and_space() -> None:
    constants = CONSTANTS | {"b": [1, 7], "e": [6, -(2**40)], "a": [2, 1], "s": [2, -2], "c_w": (4, 4, 1, 1)}
    analysis = check_cut(graph(STEM + "r = Slice(h, b, e, a, s) y = Conv(r, c_w)", constants=constants))
    assert operators_after(analysis, {("a_w", 0): [3]}) == ["Conv", "Gather", "Slice", "Conv"]
    assert operators_after(analysis, {("a_w", 0): [2]}) == ["Conv", "Gather", "Slice", "Conv"]
    assert operators_after(analysis, {("a_w", 0): [0, 2, 4, 6]}) == ["Conv", "Slice", "Conv"]


def test_strides_along_two_axes_of_channels() -> None:
    """Rows from a weight on the left, columns from one on the right."""
    constants = {"l_w": (8, 5), "r_w": (6, 9), "b": [0, 1], "e": [8, 9], "a": [1, 2], "s": [3, 2]}
    constants |= {"m_w": (3, 3), "c_w": (4, 4)}
    body = """
        l = MatMul(l_w, x) h = MatMul(l, r_w) t = Slice(h, b, e, a, s)
        m = MatMul(m_w, t) y = MatMul(m, c_w)
    """
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    both = operators_after(analysis, {("l_w", 0): [1], ("r_w", 1): [2]})
    assert both == ["MatMul", "MatMul", "Gather", "Gather", "MatMul", "MatMul"]
    one = operators_after(analysis, {("l_w", 0): [1, 2, 4, 5, 7], ("r_w", 1): [2]})
    assert one == ["MatMul", "MatMul", "Gather", "Slice", "MatMul", "MatMul"]


def test_slice_of_opset_9() -> None:
    constants = {"a_w": (8, 3, 1, 1), "d_w": (4, 5, 1, 1), "e_w": (4, 3, 1, 1)}
    body = (
        STEM
        + """
        s = Slice<axes = [1, 2], starts = [-5, 1], ends = [100, 5]>(h) d = Conv(s, d_w)
        t = Slice<axes = [1, 2], starts = [0, 1], ends = [3, 5]>(h) e = Conv(t, e_w) y = Add(d, e)
    """
    )
    analysis = check_cut(graph(body, constants=constants, opset=9))
    assert sorted(open_groups(analysis).values()) == [3, 5]


def test_slice_at_computed_bounds_freezes() -> None:
    constants = CONSTANTS | {"b": [0], "a": [1]}
    body = STEM + "r = Slice(h, b, e, a) y = ReduceSum<keepdims = 0>(r)"
    model = graph(body, inputs="float[N,3,4,4] x, int64[1] e", constants={**constants})
    analysis = analyze(model)
    assert open_groups(analysis) == {}


def test_slice_of_space_leaves_channels_alone() -> None:
    constants = CONSTANTS | {"b": [1, 0], "e": [5, 2**40], "a": [2, 3], "s": [2, 3]}
    body = STEM + "r = Slice(h, b, e, a, s) y = Conv(r, c_w)"
    assert open_groups(check_cut(graph(body, constants=constants))) == {"a_w": 8}


# --- Gather ---


def test_gather_of_one_time_step() -> None:
    constants = {"a_w": (6, 8), "c_w": (8, 3), "i": np.array(-1)}
    body = "h = MatMul(x, a_w) r = Gather<axis = 1>(h, i) y = MatMul(r, c_w)"
    assert open_groups(check_cut(graph(body, inputs=SEQUENCE, constants=constants))) == {"a_w": 8}


def test_gather_of_one_channel_keeps_it() -> None:
    constants = CONSTANTS | {"i": np.array(2)}
    body = STEM + "g = Gather<axis = 1>(h, i) u = Unsqueeze(g, one) r = Mul(h, u) y = Conv(r, c_w)"
    analysis = check_cut(graph(body, constants=constants | {"one": [1]}))
    assert sorted(open_groups(analysis).values()) == [7]


@pytest.mark.parametrize("places", [[7, 0, 3], [-1, -8, 2, 2], [5]])
def test_gather_of_listed_channels(places: list[int]) -> None:
    constants = CONSTANTS | {"i": places, "d_w": (4, len(places), 1, 1)}
    body = STEM + "g = Gather<axis = -3>(h, i) d = Conv(g, d_w) c = Conv(h, c_w) y = Add(c, d)"
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis)


def test_gather_at_computed_places_freezes_the_axis_alone() -> None:
    """An embedding: rows are looked up, columns are channels."""
    constants = {"e_w": (10, 8), "c_w": (8, 3), "ten": np.array(3.0, np.float32)}
    body = """
        m = Mul(x, ten) a = Abs(m) i = Cast<to = 7>(a) h = Gather(e_w, i) r = Relu(h) y = MatMul(r, c_w)
    """
    analysis = check_cut(graph(body, inputs="float[N,5] x", constants=constants))
    assert open_groups(analysis) == {"e_w": 8}
    assert positions(group_of(analysis, "e_w", 1)) == {("e_w", 1, False), ("c_w", 0, True)}


def test_gather_along_channels_at_computed_places() -> None:
    constants = CONSTANTS
    body = (
        STEM
        + """
        i = ArgMax<axis = 1, keepdims = 0>(x) z = Gather<axis = 1>(h, i) y = ReduceSum<keepdims = 0>(z)
    """
    )
    constants = {"a_w": (8, 3, 1, 1)}
    analysis = check_cut(graph(body, constants=constants))
    assert "computed positions" in frozen_groups(analysis)["a_w"]


def test_gather_with_a_table_of_places() -> None:
    """Constant places in a matrix pick along time: channels pass."""
    constants = {"a_w": (6, 8), "c_w": (8, 3), "i": np.array([[0, 1], [4, -1]])}
    body = "h = MatMul(x, a_w) r = Gather<axis = 1>(h, i) y = MatMul(r, c_w)"
    assert open_groups(check_cut(graph(body, inputs=SEQUENCE, constants=constants))) == {"a_w": 8}


def test_gather_nd_leaves_later_axes_alone() -> None:
    constants = {"a_w": (6, 8), "c_w": (8, 3), "i": np.array([[0, 1], [1, 4], [0, 0]])}
    body = "h = MatMul(x, a_w) r = GatherND(h, i) y = MatMul(r, c_w)"
    assert open_groups(check_cut(graph(body, inputs="float[2,5,6] x", constants=constants))) == {"a_w": 8}


def test_scatter_nd_freezes() -> None:
    constants = {"a_w": (6, 8), "c_w": (8, 3), "i": np.array([[0], [1]]), "u": (2, 5, 8)}
    body = "h = MatMul(x, a_w) r = ScatterND(h, i, u) y = MatMul(r, c_w)"
    analysis = check_cut(graph(body, inputs="float[2,5,6] x", constants=constants))
    assert "picks positions by their number" in frozen_groups(analysis)["a_w"]


# --- Expand, Tile, Pad ---


@pytest.mark.parametrize("target", [[1, 8, 6, 6], [2, 1, 1, 1], [1, 1], [2, 8, 6, 6]])
def test_expand_of_full_channels(target: list[int]) -> None:
    body = STEM + "p = GlobalAveragePool(h) e = Expand(p, shape) r = Mul(h, e) y = Conv(r, c_w)"
    model = graph(body, inputs="float[2,3,6,6] x", constants=CONSTANTS | {"shape": target})
    assert open_groups(check_cut(model)) == {"a_w": 8}


def test_expand_of_one_channel_to_many_asks_for_fewer() -> None:
    constants = CONSTANTS | {"g_w": (1, 3, 1, 1), "shape": [2, 8, 6, 6]}
    body = STEM + "g = Conv(x, g_w) e = Expand(g, shape) r = Mul(h, e) y = Conv(r, c_w)"
    analysis = check_cut(graph(body, inputs="float[2,3,6,6] x", constants=constants))
    assert open_groups(analysis) == {"a_w": 8}


def test_numbers_of_a_shape_have_channels() -> None:
    constants = CONSTANTS | {"sizes": [8, 1, 1], "first": [0]}
    body = STEM + "s = Shape(x) n = Gather(s, first) t = Concat<axis = 0>(n, sizes)"
    body += " z = ConstantOfShape(t) r = Add(h, z) y = Conv(r, c_w)"
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis) == {"a_w": 8}


def test_positions_gathered_into_several_axes() -> None:
    """As one exporter flattens a tensor and picks its positions anew."""
    places = np.arange(16).reshape(2, 8, 1, 1)
    constants = CONSTANTS | {"flat": [-1], "places": places}
    body = STEM + "p = GlobalAveragePool(h) f = Reshape(p, flat) r = Gather(f, places) y = Conv(r, c_w)"
    analysis = check_cut(graph(body, inputs="float[2,3,6,6] x", constants=constants))
    assert open_groups(analysis) == {"a_w": 8}


def test_an_empty_part_of_a_slice() -> None:
    """Rotary embeddings of whole heads leave nothing for the part that is not rotated."""
    constants = CONSTANTS | {"c_w": (4, 8, 1, 1), "from": [8], "to": [2**62], "one": [1]}
    body = STEM + "e = Slice(h, from, to, one) r = Concat<axis = 1>(h, e) y = Conv(r, c_w)"
    assert open_groups(check_cut(graph(body, constants=constants))) == {"a_w": 8}


def test_expand_to_a_computed_shape() -> None:
    """Batch is computed, space is repeated by a constant, channels are repeated by nothing."""
    constants = CONSTANTS | {"g_w": (1, 8, 1, 1)}
    body = STEM + "s = Shape(h) e = Expand(g_w, s) r = Mul(h, e) y = Conv(r, c_w)"
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis) == {"a_w": 8}


def test_expand_to_a_target_that_cannot_be_followed() -> None:
    constants = {"a_w": (6, 20), "c_w": (20, 3)}
    body = "m = ReduceMax<keepdims = 0>(x) i = Cast<to = 7>(m) a = Abs(i) b = Reshape(a, one)"
    body += " t = Concat<axis = 0>(b, two) h = MatMul(x, a_w) e = Expand(h, t) r = MatMul(e, c_w)"
    body += " y = ReduceMax<keepdims = 0>(r)"
    model = graph(body, inputs="float[1,6] x", constants=constants | {"one": [1], "two": [1]})
    analysis = analyze(model)
    assert open_groups(analysis) == {}


def test_tile() -> None:
    constants = CONSTANTS | {"times": [1, 1, 2, 3]}
    body = STEM + "r = Tile(h, times) y = Conv(r, c_w)"
    assert open_groups(check_cut(graph(body, constants=constants))) == {"a_w": 8}
    constants = CONSTANTS | {"times": [1, 2, 1, 1], "c_w": (4, 16, 1, 1)}
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis) == {"a_w": 8}
    assert [len(m.channel_at) for m in group_of(analysis, "c_w", 1).members] == [8, 16]


def test_pad() -> None:
    body = STEM + "r = Pad(h, pads) y = Conv(r, c_w)"
    space = CONSTANTS | {"pads": [0, 0, 1, 2, 0, 0, 0, 1]}
    assert open_groups(check_cut(graph(body, constants=space))) == {"a_w": 8}
    channels = CONSTANTS | {"pads": [0, 1, 0, 0, 0, 1, 0, 0], "c_w": (4, 10, 1, 1)}
    assert "pads this axis" in frozen_groups(check_cut(graph(body, constants=channels)))["a_w"]


def test_pad_of_listed_axes() -> None:
    body = STEM + 'r = Pad(h, pads, "", axes) y = Conv(r, c_w)'
    space = CONSTANTS | {"pads": [1, 0, 0, 2], "axes": [-1, 2]}
    assert open_groups(check_cut(graph(body, constants=space, opset=18))) == {"a_w": 8}
    channels = CONSTANTS | {"pads": [1, 0], "axes": [-3], "c_w": (4, 9, 1, 1)}
    analysis = check_cut(graph(body, constants=channels, opset=18))
    assert "pads this axis" in frozen_groups(analysis)["a_w"]


def test_pad_of_opset_10() -> None:
    body = STEM + "r = Pad<pads = [0, 0, 1, 1, 0, 0, 1, 1]>(h) y = Conv(r, c_w)"
    assert open_groups(check_cut(graph(body, constants=CONSTANTS, opset=10))) == {"a_w": 8}


def test_pad_that_shifts_channels_freezes_them() -> None:
    """One channel less in front, one more behind: the size stays, the places do not."""
    body = STEM + "r = Pad(h, pads) y = Conv(r, c_w)"
    analysis = check_cut(graph(body, constants=CONSTANTS | {"pads": [0, -1, 0, 0, 0, 1, 0, 0]}))
    assert open_groups(analysis) == {}


@pytest.mark.parametrize(
    "parts",
    ["p = Slice(table, one, four, zero) q = Slice(table, zero, three, zero)",
     "p, v = Split<axis = 0>(table, sizes) q = Slice(table, zero, three, zero) e = Exp(v)"],
)  # fmt: skip
def test_a_table_whose_rows_are_picked_loses_columns(parts: str) -> None:
    """Rows that overlap, so that the table stays one weight: its columns are channels all the same."""
    body = f"""
        {parts} h = MatMul(x, a_w) s = Mul(h, p) t = Add(s, q) y = MatMul(t, c_w)
    """
    constants = {
        "a_w": (6, 8), "c_w": (8, 3), "table": (4, 8), "zero": [0], "one": [1], "three": [3], "four": [4],
        "sizes": [3, 1],
    }  # fmt: skip
    analysis = check_cut(graph(body, inputs="float[N,3,6] x", constants=constants))
    assert list(open_groups(analysis).values()) == [8]
    assert ("table", 1, False) in positions(group_of(analysis, "a_w", 1))


def test_elements_picked_along_another_axis() -> None:
    """Relative positions of an attention: the indices are the same for all heads."""
    constants = CONSTANTS | {"places": np.array([5, 0, 2], np.int64).reshape(1, 1, 1, 3), "all": [2, 8, 6, 3]}
    body = STEM + "i = Expand(places, all) r = GatherElements<axis = 3>(h, i) y = Conv(r, c_w)"
    analysis = check_cut(graph(body, inputs="float[2,3,6,6] x", constants=constants))
    assert open_groups(analysis) == {"a_w": 8}
    along = STEM + "i = Expand(places, all) r = GatherElements<axis = 1>(h, i) y = Conv(r, c_w)"
    frozen = CONSTANTS | {"places": np.array([5, 0, 2], np.int64).reshape(1, 3, 1, 1), "all": [2, 3, 6, 6],
                          "c_w": (4, 3, 1, 1)}  # fmt: skip
    analysis = check_cut(graph(along, inputs="float[2,3,6,6] x", constants=frozen))
    assert "picks positions by their number" in frozen_groups(analysis)["a_w"]


def test_a_slice_at_computed_bounds_leaves_other_axes_open() -> None:
    """As biases that grow with the distance are cut to the length of a sequence."""
    constants = CONSTANTS | {"b_w": (9, 8, 1, 1), "first": [0], "one": [1]}
    body = STEM + "s = Shape(x) n = Slice(s, first, one, first) b = Slice(b_w, first, n, first)"
    body += " r = Mul(h, b) y = Conv(r, c_w)"
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis) == {"a_w": 8}
    assert ("b_w", 1, False) in positions(group_of(analysis, "a_w", 0))


def test_a_table_that_is_read_by_index_tuples() -> None:
    """Relative biases [distances, heads]: the heads of the table go with those of the scores."""
    places = np.arange(36).reshape(6, 6, 1) % 11
    constants = CONSTANTS | {"b_w": (11, 8), "places": places}
    body = (
        STEM + "p = GatherND(b_w, places) t = Transpose<perm = [2, 0, 1]>(p) r = Add(h, t) y = Conv(r, c_w)"
    )
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis) == {"a_w": 8}
    assert ("b_w", 1, False) in positions(group_of(analysis, "a_w", 0))


def test_a_table_sliced_to_the_length_of_the_input_loses_columns() -> None:
    """positions[:length]: the sliced axis stays, and the columns are channels of the sum."""
    body = """
        s = Shape(x) length = Gather(s, one) h = MatMul(x, a_w) p = Slice(table, zero, length, zero, one)
        t = Add(h, p) y = MatMul(t, c_w)
    """
    constants = {"a_w": (6, 8), "c_w": (8, 3), "table": (32, 8), "zero": [0], "one": [1]}
    analysis = check_cut(graph(body, inputs="float[N,T,6] x", constants=constants))
    assert open_groups(analysis) == {"a_w": 8}
    assert ("table", 1, False) in positions(group_of(analysis, "a_w", 1))
    assert "table" not in open_groups(analysis)


def test_computed_axes_of_a_slice_freeze_everything() -> None:
    body = """
        n = Shape<start = 0, end = 1>(x) axis = Mod(n, one) h = MatMul(x, a_w) s = Slice(h, zero, one, axis)
        y = MatMul(s, c_w)
    """
    constants = {"a_w": (6, 8), "c_w": (8, 3), "zero": [0], "one": [1]}
    analysis = check_cut(graph(body, inputs="float[N,4,6] x", constants=constants))
    assert open_groups(analysis) == {}
