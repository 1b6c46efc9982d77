"""Reshape and Flatten: refining shapes, and the idioms that exporters write with them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import onnx_ir as ir
import pytest
from cutting import check_cut, frozen_groups, graph, group_of, open_groups
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.analyze import analyze
from onnxprune.model.dims import Dim
from onnxprune.model.prepare import prepare
from onnxprune.ops.channels import Channels
from onnxprune.ops.registry import rule_for
from onnxprune.ops.reshape import refine

STEM = "h = Conv(x, a_w) "
CONSTANTS = {"a_w": (8, 3, 1, 1)}


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes of the same size: the same factors, merged in two ways; sometimes in another order."""
    factors = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))

    def merged(sizes: list[int]) -> tuple[int, ...]:
        cuts = sorted(draw(st.sets(st.integers(0, len(sizes)), max_size=4)) | {0, len(sizes)})
        return tuple(math.prod(sizes[a:b]) for a, b in pairwise(cuts))

    other = draw(st.permutations(factors)) if draw(st.booleans()) else factors
    return merged(factors), merged(other)


@settings(max_examples=400, deadline=None)
@given(reshapes())
def test_factors_multiply_back_to_both_shapes(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    source, target = shapes
    factors = refine(source, target)
    used = []
    for axis, size in enumerate(source):
        if axis not in factors.mixed:
            assert math.prod(factors.sizes[part] for part in factors.of_source[axis]) == size
            used += factors.of_source[axis]
    assert used == list(range(len(factors.sizes)))  # every factor once, in order
    assert [part for parts in factors.of_target for part in parts] == used
    whole = [axis for axis, parts in enumerate(factors.of_target) if parts]
    assert all(
        math.prod(factors.sizes[part] for part in factors.of_target[axis]) == target[axis] for axis in whole
    )
    assert all(size > 1 for size in factors.sizes)
    if not factors.mixed:
        assert math.prod(factors.sizes) == math.prod(source)


@settings(max_examples=200, deadline=None)
@given(reshapes())
def test_factors_name_the_same_positions(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """Along an axis of factors, source and target index the same elements."""
    source, target = shapes
    factors = refine(source, target)
    if factors.mixed:
        return
    elements = np.arange(math.prod(source)).reshape(factors.sizes)
    np.testing.assert_array_equal(elements.reshape(source).reshape(target), elements.reshape(target))


@pytest.mark.parametrize(
    ("source", "target", "sizes", "mixed"),
    [
        ((17, 2, 192), (17, 2, 3, 64), (17, 2, 3, 64), set()),
        ((4, 6), (6, 4), (), {0, 1}),
        ((2, 12), (2, 3, 4), (2, 3, 4), set()),
        ((2, 3, 4), (24,), (2, 3, 4), set()),
        ((1, 6), (6, 1), (6,), set()),
        ((), (1, 1), (), set()),
        ((0, 3), (3, 0), (), {0, 1}),
        ((5, 4, 6), (5, 6, 4), (5,), {1, 2}),
    ],
)
def test_refine(
    source: tuple[int, ...], target: tuple[int, ...], sizes: tuple[int, ...], mixed: set[int]
) -> None:
    factors = refine(source, target)
    assert factors.sizes == sizes
    assert factors.mixed == mixed


@pytest.mark.parametrize("flatten", ["Flatten(r)", "Reshape(r, flat)", "Reshape(r, open)"])
def test_flatten_after_a_convolution(flatten: str) -> None:
    constants = CONSTANTS | {"c_w": (8 * 36, 5)}
    constants |= (
        {"flat": [0, 288]} if "flat)" in flatten else {"open": [-1, 288]} if "open" in flatten else {}
    )
    body = STEM + f"r = Relu(h) f = {flatten} y = MatMul(f, c_w)"
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis) == {"a_w": 8}
    (member,) = (m for m in group_of(analysis, "a_w", 0).members if m.tensor == "c_w")
    np.testing.assert_array_equal(member.channel_at, np.repeat(np.arange(8), 36))


def test_flatten_of_axis_2() -> None:
    constants = CONSTANTS | {"c_w": (36, 5)}
    body = STEM + "f = Flatten<axis = 2>(h) m = MatMul(f, c_w) b = Reshape(m, back) y = MatMul(d_w, b)"
    model = graph(body, constants=constants | {"back": [-1, 8, 5], "d_w": (3, 8)})
    assert open_groups(check_cut(model)) == {"a_w": 8}


@pytest.mark.parametrize("split", [2, 4])
def test_channel_shuffle(split: int) -> None:
    """Every row of the shuffle keeps as many channels as the others."""
    constants = CONSTANTS | {"s": [0, split, 8 // split, 6, 6], "m": [0, 8, 6, 6], "c_w": (4, 8, 1, 1)}
    body = (
        STEM
        + """
        r = Reshape(h, s) t = Transpose<perm = [0, 2, 1, 3, 4]>(r) u = Reshape(t, m) y = Conv(u, c_w)
    """
    )
    assert list(open_groups(check_cut(graph(body, constants=constants))).values()) == [4]


def test_pixel_shuffle_by_reshape() -> None:
    """[n, 2 * 2 * 2, h, w] -> [n, 2, 2h, 2w]: a channel of the result is four channels before."""
    constants = CONSTANTS | {"s": [0, 2, 2, 2, 6, 6], "m": [0, 2, 12, 12], "c_w": (4, 2, 1, 1)}
    body = (
        STEM
        + """
        r = Reshape(h, s) t = Transpose<perm = [0, 1, 4, 2, 5, 3]>(r) u = Reshape(t, m) y = Conv(u, c_w)
    """
    )
    analysis = check_cut(graph(body, constants=constants))
    assert list(open_groups(analysis).values()) == [2]
    (member,) = (m for m in group_of(analysis, "c_w", 1).members if m.tensor == "a_w")
    np.testing.assert_array_equal(member.channel_at, np.repeat([0, 1], 4))


def test_patches_become_a_sequence() -> None:
    constants = CONSTANTS | {"s": [0, 8, -1], "b_w": (8, 7), "c_w": (7, 5)}
    body = (
        STEM
        + """
        r = Reshape(h, s) t = Transpose<perm = [0, 2, 1]>(r) b = MatMul(t, b_w) g = Tanh(b) y = MatMul(g, c_w)
    """
    )
    assert open_groups(check_cut(graph(body, constants=constants))) == {"a_w": 8, "b_w": 7}


def test_windows() -> None:
    """[n, 6, 6, c] -> windows of 3 x 3: channels pass."""
    constants = CONSTANTS | {"s": [-1, 2, 3, 2, 3, 8], "m": [-1, 9, 8], "b_w": (8, 5)}
    body = (
        STEM
        + """
        c = Transpose<perm = [0, 2, 3, 1]>(h) r = Reshape(c, s) t = Transpose<perm = [0, 1, 3, 2, 4, 5]>(r)
        w = Reshape(t, m) y = MatMul(w, b_w)
    """
    )
    assert open_groups(check_cut(graph(body, constants=constants))) == {"a_w": 8}


def test_mixing_channels_with_space_freezes_them() -> None:
    constants = CONSTANTS | {"s": [0, 6, 8, 6], "c_w": (4, 6, 1, 1)}
    body = STEM + "r = Reshape(h, s) y = Conv(r, c_w)"
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis) == {}
    assert "mixes this axis with others" in frozen_groups(analysis)["a_w"]


def test_a_weight_behind_a_reshape() -> None:
    body = "w = Reshape(a_w, s) h = MatMul(x, w) r = Relu(h) y = MatMul(r, c_w)"
    constants = {"a_w": (6, 2, 4), "s": [6, 8], "c_w": (8, 3)}
    analysis = check_cut(graph(body, inputs="float[N,5,6] x", constants=constants))
    assert list(open_groups(analysis).values()) == [4]


@pytest.mark.parametrize("splits", ["axes", "whole"])
def test_a_computed_target_with_symbolic_batch_and_sequence(splits: str) -> None:
    """Shape -> Gather -> Unsqueeze -> Concat -> Reshape, as tracing exporters write; two sizes are run."""
    constants = {
        "a_w": (6, 12), "c_w": (12, 3), "i0": np.array(0), "i1": np.array(1), "zero": [0],
        "h": [3], "d": [4], "hd": [12],
    }  # fmt: skip
    back = "Concat<axis = 0>(un, ut, hd)"
    if splits == "whole":
        back = "Concat<axis = 0>(un, ut, minus)"
        constants["minus"] = [-1]
        del constants["hd"]
    body = f"""
        q = MatMul(x, a_w) s = Shape(q) n = Gather(s, i0) t = Gather(s, i1)
        un = Unsqueeze(n, zero) ut = Unsqueeze(t, zero) split = Concat<axis = 0>(un, ut, h, d)
        r = Reshape(q, split) p = Transpose<perm = [0, 2, 1, 3]>(r) g = Tanh(p)
        b = Transpose<perm = [0, 2, 1, 3]>(g) joined = {back} f = Reshape(b, joined) y = MatMul(f, c_w)
    """
    analysis = check_cut(graph(body, inputs="float[N,T,6] x", constants=constants))
    # The split value exists at run time, so its three rows lose the same positions.
    assert open_groups(analysis) == {"a_w": 4}


@pytest.mark.parametrize("zero", ["", "<allowzero = 0>", "<allowzero = 1>"])
def test_a_computed_target_from_the_model_input(zero: str) -> None:
    """The newer exporter reads sizes off the model's input, and says that a zero means an empty axis."""
    constants = {
        "a_w": (6, 12), "c_w": (12, 3), "table": (32, 12), "i1": [1], "zero": [0], "h": [3], "d": [4],
        "hd": [12],
    }  # fmt: skip
    body = f"""
        n = Shape<start = 0, end = 1>(x) t = Shape<start = 1, end = 2>(x) q = MatMul(x, a_w)
        p = Slice(table, zero, t, zero, i1) w = Add(q, p)
        split = Concat<axis = 0>(n, t, h, d) r = Reshape{zero}(w, split) g = Tanh(r)
        joined = Concat<axis = 0>(n, t, hd) f = Reshape{zero}(g, joined) y = MatMul(f, c_w)
    """
    analysis = check_cut(graph(body, inputs="float[N,T,6] x", constants=constants))
    assert open_groups(analysis) == {"a_w": 4}


def test_an_empty_axis_in_a_target_stays_empty() -> None:
    """With allowzero, a written 0 is a size: it must not come to mean the source's size."""
    body = """
        h = MatMul(x, a_w) n = Shape<start = 0, end = 1>(x) s = Slice(h, zero, zero, zero)
        split = Concat<axis = 0>(zero, n, four) r = Reshape<allowzero = 1>(s, split)
        m = ReduceSum<keepdims = 0>(r, zero) k = Add(h, m) y = MatMul(k, c_w)
    """
    constants = {"a_w": (6, 4), "c_w": (4, 3), "zero": [0], "four": [4]}
    check_cut(graph(body, inputs="float[N,6] x", constants=constants))


def test_a_target_that_merges_batch_and_sequence() -> None:
    constants = {"a_w": (6, 8), "c_w": (8, 3), "i": [0, 1], "minus": [-1], "hidden": [8]}
    body = """
        q = MatMul(x, a_w) flat = Concat<axis = 0>(minus, hidden) r = Reshape(q, flat) g = Relu(r)
        m = MatMul(g, c_w) s = Shape(x) nt = Gather(s, i) back = Concat<axis = 0>(nt, minus)
        y = Reshape(m, back)
    """
    analysis = check_cut(graph(body, inputs="float[N,T,6] x", constants=constants))
    assert open_groups(analysis) == {"a_w": 8}


def test_a_target_from_another_value_with_the_same_symbols() -> None:
    """The target is read from the shape of the input, not of what is reshaped."""
    constants = {"a_w": (6, 8), "c_w": (8, 3), "i0": [0], "i1": [1], "eight": [8], "zero": [0, -1, 8]}
    body = """
        s = Shape(x) n = Gather(s, i0) t = Gather(s, i1) q = MatMul(x, a_w)
        p = Transpose<perm = [1, 0, 2]>(q) target = Concat<axis = 0>(n, t, eight)
        u = Reshape(p, target) y = MatMul(u, c_w)
    """
    model = graph(
        body, inputs="float[N,T,6] x", constants={k: v for k, v in constants.items() if k != "zero"}
    )
    analysis = check_cut(model)
    assert open_groups(analysis) == {"a_w": 8}


def test_a_target_that_does_not_fit_freezes() -> None:
    """Such a model does not run, but inspecting it must say so and not crash."""
    model = graph("h = MatMul(x, a_w) r = Reshape(h, t) y = MatMul(r, c_w)", inputs="float[2,6] x",
                  constants={"a_w": (6, 8), "t": [2, 4], "c_w": (4, 3)})  # fmt: skip
    (group,) = (g for g in analyze(model).groups if g.size == 8)
    assert "does not fit its input" in str(group.frozen)


def test_heads_in_the_batch_with_the_rest_of_the_sizes_left_open() -> None:
    """[n, 12, h, w] -> [3n, 4, -1]: what -1 stands for is known, so that the batch may be the open size."""
    body = """
        h = Conv(x, a_w) s = Shape(x) n = Gather(s, first) m = Mul(n, three) t = Concat<axis = 0>(m, rest)
        r = Reshape(h, t) g = Relu(r) b = Reshape(g, back) y = Conv(b, c_w)
    """
    constants = {"a_w": (12, 3, 1, 1), "c_w": (4, 12, 1, 1), "first": [0], "three": [3], "rest": [4, -1],
                 "back": [-1, 12, 6, 6]}  # fmt: skip
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis)


def test_a_size_that_is_only_known_at_run_time_keeps_its_axis() -> None:
    """Nobody can tell whom a size reaches that is computed; where inference knows it, it was folded."""
    model = graph("h = MatMul(x, a_w) s = Shape(h) y = Reshape(h, s)", inputs="float[N,6] x",
                  constants={"a_w": (6, 8)})  # fmt: skip
    work, shapes = prepare(model)
    product = next(iter(work.graph))
    measured = ir.node("Shape", [product.outputs[0]], name="s")
    shapes.dims[product.outputs[0]] = (Dim(2, 1, ("N",)), Dim(8, 1, ("h.1",)))
    channels = Channels(shapes)
    for node in (product, measured):
        rule_for(node).link(node, channels)  # type: ignore[union-attr]
    labels = channels.alone(product.outputs[0], 1)
    assert labels is not None
    assert channels.labels.is_frozen(channels.labels.resolve(labels)).all()


def test_repeats_by_the_batch_keep_the_other_sizes() -> None:
    """A learned query for each sample: the repeats are read from the input, its width is known."""
    body = """
        s = Shape(x) n = Slice(s, zero, one, zero) t = Concat<axis = 0>(n, one, one) q = Tile(p_w, t)
        w = Shape(q) m = Slice(w, two, three, zero) e = Concat<axis = 0>(zero, zero, m) f = Reshape(q, e)
        h = MatMul(f, a_w) y = Add(h, x)
    """
    constants = {"p_w": (1, 2, 8), "a_w": (8, 4), "zero": [0], "one": [1], "two": [2], "three": [3]}
    analysis = check_cut(graph(body, inputs="float[N,2,4] x", constants=constants))
    assert list(open_groups(analysis).values()) == [8]
