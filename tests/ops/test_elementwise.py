"""Activations, and operators that broadcast their operands against each other."""

from __future__ import annotations

import numpy as np
import pytest
from cutting import check_cut, frozen_groups, graph, group_of, open_groups, positions

STEM = "h = Conv(x, a_w) "
HEAD = " y = Conv(r, c_w)"
CONSTANTS = {"a_w": (8, 3, 1, 1), "c_w": (4, 8, 1, 1)}


@pytest.mark.parametrize(
    "operator",
    ["Relu", "LeakyRelu<alpha = 0.2>", "Sigmoid", "Tanh", "Elu", "HardSwish", "HardSigmoid", "Softplus",
     "Erf", "Abs", "Neg", "Exp", "Identity", "Selu", "Celu", "Sign", "Floor"],
)  # fmt: skip
def test_activations_pass_channels(operator: str) -> None:
    analysis = check_cut(graph(STEM + f"r = {operator}(h)" + HEAD, constants=CONSTANTS))
    assert open_groups(analysis) == {"a_w": 8}


def test_clip_with_constant_bounds() -> None:
    scalars = {"low": np.array(-0.5, np.float32), "high": np.array(0.5, np.float32)}
    body = STEM + "r = Clip(h, low, high)" + HEAD
    assert open_groups(check_cut(graph(body, constants=CONSTANTS | scalars))) == {"a_w": 8}


def test_clip_without_a_lower_bound() -> None:
    scalars = {"high": np.array(0.5, np.float32)}
    body = STEM + 'r = Clip(h, "", high)' + HEAD
    assert open_groups(check_cut(graph(body, constants=CONSTANTS | scalars))) == {"a_w": 8}


def test_casts_there_and_back() -> None:
    body = STEM + "d = Cast<to = 11>(h) r = Cast<to = 1>(d)" + HEAD
    assert open_groups(check_cut(graph(body, constants=CONSTANTS))) == {"a_w": 8}


@pytest.mark.parametrize("slope", [(8, 1, 1), (1, 8, 1, 1), (1,), (1, 1, 1), (8, 6, 6)])
def test_prelu(slope: tuple[int, ...]) -> None:
    analysis = check_cut(graph(STEM + "r = PRelu(h, p_w)" + HEAD, constants=CONSTANTS | {"p_w": slope}))
    assert open_groups(analysis) == {"a_w": 8}
    members = {tensor: axis for tensor, axis, _ in positions(group_of(analysis, "a_w", 0))}
    assert members.get("p_w") == (slope.index(8) if 8 in slope else None)


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1, 1), (1,), (), (1, 1, 6), (6, 6), (8, 6, 1)])
@pytest.mark.parametrize("operator", ["Add", "Mul", "Sub", "Max"])
@pytest.mark.parametrize("first", [True, False])
def test_broadcasting_in_all_alignments(operator: str, shape: tuple[int, ...], first: bool) -> None:
    operands = "b_w, h" if first else "h, b_w"
    model = graph(STEM + f"r = {operator}({operands})" + HEAD, constants=CONSTANTS | {"b_w": shape})
    assert open_groups(check_cut(model)) == {"a_w": 8}


@pytest.mark.parametrize(
    ("shape", "perm"),
    [((8,), [0, 2, 3, 1]), ((6, 8), [0, 2, 3, 1]), ((8, 1), [0, 2, 1, 3]), ((8, 6), [0, 2, 1, 3])],
)
def test_broadcasting_beside_a_transpose(shape: tuple[int, ...], perm: list[int]) -> None:
    back = [perm.index(axis) for axis in range(4)]
    body = f"t = Transpose<perm = {perm}>(h) s = Add(t, b_w) r = Transpose<perm = {back}>(s)"
    analysis = check_cut(graph(STEM + body + HEAD, constants=CONSTANTS | {"b_w": shape}))
    assert open_groups(analysis) == {"a_w": 8}
    assert ("b_w", shape.index(8), False) in positions(group_of(analysis, "a_w", 0))


def test_a_computed_operand_of_lower_rank() -> None:
    """A vector [8] made from a second input scales every channel."""
    body = STEM + "s = MatMul(z, b_w) u = Reshape(s, column) r = Mul(h, u)" + HEAD
    model = graph(
        body,
        inputs="float[N,3,4,4] x, float[5] z",
        constants=CONSTANTS | {"b_w": (5, 8), "column": [8, 1, 1]},
    )
    analysis = check_cut(model)
    assert open_groups(analysis) == {"a_w": 8}
    assert ("b_w", 1, False) in positions(group_of(analysis, "a_w", 0))


def test_an_operand_from_outside_freezes_channels() -> None:
    body = STEM + "r = Add(h, z)" + HEAD
    model = graph(body, inputs="float[N,3,4,4] x, float[8,1,1] z", constants=CONSTANTS)
    analysis = check_cut(model)
    assert open_groups(analysis) == {}
    assert "no channels along this axis" in frozen_groups(analysis)["a_w"]


def test_an_operand_of_one_channel_is_repeated() -> None:
    """A spatial gate [n, 1, h, w] goes over all channels and couples none."""
    constants = CONSTANTS | {"g_w": (1, 8, 1, 1)}
    body = STEM + "g = Conv(h, g_w) s = Sigmoid(g) r = Mul(h, s)" + HEAD
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis) == {"a_w": 8}


def test_where_with_a_constant_condition() -> None:
    constants = CONSTANTS | {"b_w": (8, 3, 1, 1), "keep": np.arange(8).reshape(8, 1, 1) % 3 > 0}
    body = STEM + "b = Conv(x, b_w) r = Where(keep, h, b)" + HEAD
    analysis = check_cut(graph(body, constants=constants))
    assert list(open_groups(analysis).values()) == [8]
    assert ("keep", 0, False) in positions(group_of(analysis, "a_w", 0))


def test_where_with_a_computed_condition_and_a_scalar() -> None:
    constants = CONSTANTS | {"zero": np.array(0, np.float32), "b_w": (8, 1, 1)}
    body = STEM + "m = Greater(h, b_w) r = Where(m, h, zero)" + HEAD
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis) == {"a_w": 8}
    assert ("b_w", 0, False) in positions(group_of(analysis, "a_w", 0))


def test_sums_of_several_operands() -> None:
    constants = CONSTANTS | {"b_w": (8, 3, 1, 1), "d_w": (8, 3, 1, 1)}
    body = STEM + "b = Conv(x, b_w) d = Conv(x, d_w) r = Sum(h, b, d, h)" + HEAD
    analysis = check_cut(graph(body, constants=constants))
    assert {tensor for tensor, _, _ in positions(group_of(analysis, "a_w", 0))} == {
        "a_w",
        "b_w",
        "d_w",
        "c_w",
    }


def test_constants_that_meet_only_each_other() -> None:
    """A kernel made of two constants loses what its channels lose, in both."""
    constants = CONSTANTS | {"f_w": (8, 1, 1, 1), "e_w": (1, 3, 1, 1)}
    body = "k = Mul(f_w, e_w) s = Add(a_w, k) h = Conv(x, s) r = Relu(h)" + HEAD
    analysis = check_cut(graph(body, constants=constants))
    assert list(open_groups(analysis).values()) == [8]
    assert ("f_w", 0, False) in positions(group_of(analysis, "a_w", 0))


def test_an_outer_sum_keeps_both_axes() -> None:
    """[8, 1] + [1, 4]: every axis of the result has the channels of one operand."""
    body = """
        a = MatMul(x, a_w) b = MatMul(x, b_w) ua = Unsqueeze(a, last) ub = Unsqueeze(b, middle)
        s = Add(ua, ub) r = Relu(s) d = MatMul(r, d_w) e = Squeeze(d, last) y = MatMul(e, c_w)
    """
    constants = {"a_w": (6, 8), "b_w": (6, 4), "d_w": (4, 1), "c_w": (8, 3), "last": [2], "middle": [1]}
    analysis = check_cut(graph(body, inputs="float[N,6] x", constants=constants))
    assert sorted(open_groups(analysis).values()) == [4, 8]


def test_dropout_at_inference() -> None:
    body = STEM + "r, m = Dropout(h)" + HEAD
    assert open_groups(check_cut(graph(body, constants=CONSTANTS))) == {"a_w": 8}
