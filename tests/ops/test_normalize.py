"""Normalisation: stored statistics pass, statistics taken at run time freeze what they are taken over."""

from __future__ import annotations

import numpy as np
import pytest
from cutting import check_cut, frozen_groups, graph, group_of, open_groups, positions

CONSTANTS = {"a_w": (8, 3, 1, 1), "c_w": (4, 8, 1, 1)}
SEQUENCE = "float[N,5,6] x"
HIDDEN = {"a_w": (6, 8), "c_w": (8, 3)}


def test_batch_norm() -> None:
    statistics = {"s": (8,), "b": (8,), "m": (8,), "v": np.linspace(0.5, 2, 8, dtype=np.float32)}
    body = "h = Conv(x, a_w) r = BatchNormalization(h, s, b, m, v) y = Conv(r, c_w)"
    analysis = check_cut(graph(body, constants=CONSTANTS | statistics))
    assert open_groups(analysis) == {"a_w": 8}
    assert {(name, 0, False) for name in "sbmv"} <= positions(group_of(analysis, "a_w", 0))


def test_batch_norm_of_the_model_input_stays() -> None:
    statistics = {"s": (3,), "b": (3,), "m": (3,), "v": np.ones(3, np.float32)}
    body = "n = BatchNormalization(x, s, b, m, v) h = Conv(n, a_w) y = Conv(h, c_w)"
    assert open_groups(check_cut(graph(body, constants=CONSTANTS | statistics))) == {"a_w": 8}


def test_instance_norm_is_exact() -> None:
    body = "h = Conv(x, a_w) r = InstanceNormalization(h, s, b) y = Conv(r, c_w)"
    analysis = check_cut(graph(body, constants=CONSTANTS | {"s": (8,), "b": (8,)}))
    assert open_groups(analysis) == {"a_w": 8}
    assert ("s", 0, False) in positions(group_of(analysis, "a_w", 0))


def test_layer_norm_freezes_its_channels_and_no_others() -> None:
    constants = HIDDEN | {"s": (8,), "b": (8,), "d_w": (3, 7), "e_w": (7, 3)}
    body = """
        h = MatMul(x, a_w) r = LayerNormalization(h, s, b) m = MatMul(r, c_w)
        d = MatMul(m, d_w) e = Relu(d) y = MatMul(e, e_w)
    """
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    assert sorted(open_groups(analysis)) == ["c_w", "d_w"]
    assert "mean and deviation over these channels" in frozen_groups(analysis)["a_w"]
    assert "not exact" in frozen_groups(analysis)["a_w"]


def test_layer_norm_over_another_axis_leaves_channels_alone() -> None:
    """Statistics over time: channels, moved to the front, are independent of each other."""
    constants = HIDDEN | {"s": (5,), "b": (5,)}
    body = """
        h = MatMul(x, a_w) t = Transpose<perm = [0, 2, 1]>(h) n = LayerNormalization(t, s, b)
        r = Transpose<perm = [0, 2, 1]>(n) y = MatMul(r, c_w)
    """
    assert open_groups(check_cut(graph(body, inputs=SEQUENCE, constants=constants))) == {"a_w": 8}


def test_rms_norm_in_primitive_operators_freezes_its_channels() -> None:
    constants = HIDDEN | {"two": np.array(2, np.float32), "eps": np.array(1e-5, np.float32), "g": (8,)}
    body = """
        h = MatMul(x, a_w) p = Pow(h, two) m = ReduceMean<axes = [-1]>(p) e = Add(m, eps) q = Sqrt(e)
        d = Div(h, q) r = Mul(d, g) y = MatMul(r, c_w)
    """
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    assert open_groups(analysis) == {}
    assert "takes the mean over these channels" in frozen_groups(analysis)["a_w"]


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_over_channels_freezes_them(operator: str) -> None:
    body = f"h = MatMul(x, a_w) r = {operator}<axis = 2>(h) y = MatMul(r, c_w)"
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=HIDDEN))
    assert open_groups(analysis) == {}
    assert f"({operator}) normalises along this axis" in frozen_groups(analysis)["a_w"]


def test_softmax_over_another_axis_passes() -> None:
    body = "h = MatMul(x, a_w) r = Softmax<axis = 1>(h) y = MatMul(r, c_w)"
    assert open_groups(check_cut(graph(body, inputs=SEQUENCE, constants=HIDDEN))) == {"a_w": 8}


def test_softmax_before_opset_13_normalises_all_later_axes() -> None:
    """The same attribute: from axis 1 on, so over the channels in axis 2 too."""
    body = "h = MatMul(x, a_w) r = Softmax<axis = 1>(h) y = MatMul(r, c_w)"
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=HIDDEN, opset=11))
    assert open_groups(analysis) == {}


def test_lp_norm() -> None:
    body = "h = MatMul(x, a_w) r = LpNormalization<axis = {}>(h) y = MatMul(r, c_w)"
    for axis in (1, 2):  # zeros add nothing to a norm
        analysis = check_cut(graph(body.format(axis), inputs=SEQUENCE, constants=HIDDEN))
        assert open_groups(analysis) == {"a_w": 8}


def test_group_norm_spelled_with_instance_norm() -> None:
    """[n, 8, h, w] -> [n, 4, 2hw]: statistics run over pairs of channels, so only whole pairs may go."""
    constants = CONSTANTS | {
        "s": (4,),
        "b": (4,),
        "g_s": (8, 1, 1),
        "pairs": [0, 4, -1],
        "back": [0, 8, 6, 6],
    }
    body = """
        h = Conv(x, a_w) p = Reshape(h, pairs) n = InstanceNormalization(p, s, b) i = Reshape(n, back)
        r = Mul(i, g_s) y = Conv(r, c_w)
    """
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis) == {"a_w": 4}
    assert {("s", 0, False), ("g_s", 0, False)} <= positions(
        next(group for group in analysis.groups if group.frozen is None)
    )


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("groups", [2, 4, 8])
def test_group_norm_loses_whole_groups(opset: int, groups: int) -> None:
    """Scale and bias belong to groups until opset 20, to channels since."""
    size = groups if opset == 18 else 8
    constants = CONSTANTS | {"s": (size,), "b": (size,)}
    body = f"h = Conv(x, a_w) r = GroupNormalization<num_groups = {groups}>(h, s, b) y = Conv(r, c_w)"
    analysis = check_cut(graph(body, constants=constants, opset=opset))
    (group,) = (group for group in analysis.groups if group.frozen is None)
    assert group.size == groups
    assert {("s", 0, False), ("b", 0, False), ("a_w", 0, False), ("c_w", 1, True)} == positions(group)
    (member,) = (m for m in group.members if m.tensor == "a_w")
    np.testing.assert_array_equal(member.channel_at, np.repeat(range(groups), 8 // groups))


@pytest.mark.parametrize("opset", [18, 21])
def test_group_norm_of_one_group_stays(opset: int) -> None:
    size = 1 if opset == 18 else 8
    body = "h = Conv(x, a_w) r = GroupNormalization<num_groups = 1>(h, s, b) y = Conv(r, c_w)"
    analysis = check_cut(graph(body, constants=CONSTANTS | {"s": (size,), "b": (size,)}, opset=opset))
    assert "takes mean and deviation" in frozen_groups(analysis)["a_w"]


def test_group_norm_of_the_model_input_stays() -> None:
    body = "r = GroupNormalization<num_groups = 3>(x, s, b) h = Conv(r, a_w) y = Conv(h, c_w)"
    analysis = check_cut(graph(body, constants=CONSTANTS | {"s": (3,), "b": (3,)}, opset=21))
    assert open_groups(analysis) == {"a_w": 8}


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("LRN<size = 3>(h)", "neighbouring channels"),
        ("MeanVarianceNormalization<axes = [0, -3]>(h)", "mean and deviation"),
    ],
)
def test_statistics_over_channels_keep_them(call: str, reason: str) -> None:
    body = f"h = Conv(x, a_w) n = {call} y = Conv(n, c_w)"
    analysis = check_cut(graph(body, constants=CONSTANTS))
    assert reason in frozen_groups(analysis)["a_w"]
    assert "not exact" in frozen_groups(analysis)["a_w"]


@pytest.mark.parametrize("call", ["MeanVarianceNormalization(h)", "LpNormalization(h)"])
def test_statistics_over_space_pass_channels(call: str) -> None:
    body = f"h = Conv(x, a_w) n = {call} y = Conv(n, c_w)"
    assert open_groups(check_cut(graph(body, constants=CONSTANTS))) == {"a_w": 8}


@pytest.mark.parametrize(
    "call",
    [
        "LRN<size = 3>(h)",
        "MeanVarianceNormalization<axes = [1]>(h)",
        "GroupNormalization<num_groups = 1>(h, s, b)",
    ],
)
def test_statistics_over_channels_on_request(call: str) -> None:
    constants = CONSTANTS | ({"s": (8,), "b": (8,)} if "Group" in call else {})
    model = graph(f"h = Conv(x, a_w) n = {call} y = Conv(n, c_w)", constants=constants, opset=21)
    analysis = check_cut(model, allow_inexact=True)
    (group,) = (group for group in analysis.groups if group.frozen is None)
    assert (group.size, group.exact) == (8, False)


def test_group_norm_loses_places_in_its_groups_on_request() -> None:
    """Groups and places in them are rivals: one of the two is offered."""
    body = "h = Conv(x, a_w) r = GroupNormalization<num_groups = 2>(h, s, b) y = Conv(r, c_w)"
    model = graph(body, constants=CONSTANTS | {"s": (8,), "b": (8,)}, opset=21)
    assert sum(group.frozen is None for group in check_cut(model, allow_inexact=True).groups) == 1
