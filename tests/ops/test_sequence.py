"""Sequences of tensors: their elements share channels, within loops and outside."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cutting import check_cut, frozen_groups, graph, group_of, open_groups, positions

TWO = {"a_w": (6, 8), "b_w": (6, 8), "c_w": (8, 4)}


@pytest.mark.parametrize(
    "sequence",
    ["s = SequenceConstruct(a, b)", "e = SequenceEmpty() p = SequenceInsert(e, a) s = SequenceInsert(p, b)"],
)
@pytest.mark.parametrize("joined", ["axis = 0, new_axis = 1", "axis = -2", "axis = 1, new_axis = 1"])
def test_elements_have_the_same_channels(sequence: str, joined: str) -> None:
    body = f"""
        a = MatMul(x, a_w) b = MatMul(x, b_w) {sequence}
        t = ConcatFromSequence<{joined}>(s) y = MatMul(t, c_w)
    """
    analysis = check_cut(graph(body, inputs="float[N,6] x", constants=TWO))
    assert open_groups(analysis) == {"a_w": 8}
    assert positions(group_of(analysis, "a_w", 1)) == {
        ("a_w", 1, False), ("b_w", 1, False), ("c_w", 0, True),
    }  # fmt: skip


def test_joined_along_the_channels_they_stay() -> None:
    body = """
        a = MatMul(x, a_w) b = MatMul(x, b_w) s = SequenceConstruct(a, b)
        t = ConcatFromSequence<axis = 1>(s) y = Relu(t)
    """
    analysis = check_cut(graph(body, inputs="float[N,6] x", constants=TWO))
    assert open_groups(analysis) == {}
    assert "joins elements" in frozen_groups(analysis)["a_w"]


def test_an_element_without_channels_freezes_the_others() -> None:
    body = "a = MatMul(x, a_w) s = SequenceConstruct(a, z) t = SequenceAt(s, i) y = MatMul(t, c_w)"
    model = graph(body, inputs="float[N,6] x, float[N,8] z", constants={**TWO, "i": [0]})
    model.graph.initializers["i"].const_value = ir.tensor(0, name="i")
    model.graph.initializers["i"].shape = ir.Shape([])
    analysis = check_cut(model)
    assert open_groups(analysis) == {}
    assert "has no channels along this axis" in frozen_groups(analysis)["a_w"]


def test_elements_of_different_lengths_keep_their_channels() -> None:
    body = """
        a = MatMul(x, a_w) b = MatMul(x, b_w) s = SequenceConstruct(a, b)
        t = SequenceAt(s, i) y = ReduceMax<axes = [1]>(t)
    """
    constants = {"a_w": (6, 8), "b_w": (6, 4), "i": np.array(1)}
    analysis = check_cut(graph(body, inputs="float[N,6] x", constants=constants))
    assert open_groups(analysis) == {}
    assert any("different sizes" in reason for reason in frozen_groups(analysis).values())


def test_a_tensor_is_split_into_steps() -> None:
    """Time becomes a sequence, and the steps are stacked again; the channels behind pass."""
    body = """
        h = MatMul(x, a_w) s = SplitToSequence<axis = 1, keepdims = 0>(h)
        t = ConcatFromSequence<axis = 1, new_axis = 1>(s) y = MatMul(t, c_w)
    """
    analysis = check_cut(graph(body, inputs="float[N,3,6] x", constants=TWO))
    assert open_groups(analysis) == {"a_w": 8}


def test_a_tensor_that_is_split_along_its_channels_keeps_them() -> None:
    body = """
        h = MatMul(x, a_w) s = SplitToSequence<axis = 1>(h, four)
        t = SequenceAt(s, i) y = Relu(t)
    """
    constants = {"a_w": (6, 8), "four": np.array(4), "i": np.array(1)}
    analysis = check_cut(graph(body, inputs="float[N,6] x", constants=constants))
    assert open_groups(analysis) == {}
    assert "splits this axis" in frozen_groups(analysis)["a_w"]


def test_a_sequence_that_a_loop_fills() -> None:
    """As exporters write a list that a loop appends to: hidden channels and those of the elements go."""
    body = """
        e = SequenceEmpty()
        s = Loop(m, , e) <body = b (int64 i, bool go, seq(float[N,8]) q) => (bool on, seq(float[N,8]) r) {
            xi = Gather<axis = 0>(x, i) u = MatMul(xi, u_w) v = Relu(u) w = MatMul(v, a_w)
            r = SequenceInsert(q, w) on = Identity(go) }>
        t = ConcatFromSequence<axis = 0, new_axis = 1>(s) y = MatMul(t, c_w)
    """
    constants = {"u_w": (6, 12), "a_w": (12, 8), "c_w": (8, 4), "m": np.array(3)}
    analysis = check_cut(graph(body, inputs="float[3,N,6] x", constants=constants))
    assert open_groups(analysis) == {"u_w": 12, "a_w": 8}
    assert analysis.unknown == ()
