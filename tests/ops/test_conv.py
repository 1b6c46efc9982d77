"""Convolutions: plain, grouped, depthwise, transposed; in one, two and three dimensions."""

from __future__ import annotations

import pytest
from cutting import check_cut, frozen_groups, graph, group_of, open_groups, positions

IMAGE = {"a_w": (8, 3, 3, 3), "a_b": (8,), "c_w": (4, 8, 1, 1)}


def test_plain() -> None:
    analysis = check_cut(graph("h = Conv(x, a_w, a_b) r = Relu(h) y = Conv(r, c_w)", constants=IMAGE))
    assert open_groups(analysis) == {"a_w": 8}
    group = group_of(analysis, "a_w", 0)
    assert group.kind == "channels"
    assert positions(group) == {("a_w", 0, False), ("a_b", 0, False), ("c_w", 1, True)}
    assert "output y" in str(group_of(analysis, "c_w", 0).frozen)


def test_input_channels_are_never_cut() -> None:
    analysis = check_cut(graph("y = Conv(x, a_w)", constants=IMAGE))
    assert open_groups(analysis) == {}
    assert "output y" in frozen_groups(analysis)["a_w"]


@pytest.mark.parametrize(("groups", "offered", "rivals"), [(2, [4, 6], [2]), (4, [4], [2, 3])])
def test_grouped_offers_whole_groups_or_places_in_them(
    groups: int, offered: list[int], rivals: list[int]
) -> None:
    """A channel is a group and a place in it; of two on the same axis, the larger is offered."""
    constants = {"a_w": (8, 3, 1, 1), "g_w": (12, 8 // groups, 3, 3), "g_b": (12,), "c_w": (4, 12, 1, 1)}
    body = f"h = Conv(x, a_w) g = Conv<group = {groups}>(h, g_w, g_b) r = Relu(g) y = Conv(r, c_w)"
    analysis = check_cut(graph(body, constants=constants))
    assert sorted(open_groups(analysis).values()) == offered
    assert sorted(g.size for g in analysis.groups if "by way of" in str(g.frozen)) == rivals


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise(multiplier: int) -> None:
    constants = {
        "a_w": (6, 3, 1, 1),
        "d_w": (6 * multiplier, 1, 3, 3),
        "d_b": (6 * multiplier,),
        "c_w": (4, 6 * multiplier, 1, 1),
    }
    body = "h = Conv(x, a_w) d = Conv<group = 6>(h, d_w, d_b) r = Relu(d) y = Conv(r, c_w)"
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis) == {"a_w": 6}
    assert ("d_w", 0, False) in positions(group_of(analysis, "a_w", 0))


def test_depthwise_over_the_model_input_keeps_its_channels() -> None:
    constants = {"d_w": (6, 1, 3, 3), "c_w": (4, 6, 1, 1)}
    analysis = check_cut(graph("d = Conv<group = 3>(x, d_w) y = Conv(d, c_w)", constants=constants))
    assert open_groups(analysis) == {"d_w": 2}  # two places in each of three groups


@pytest.mark.parametrize(("groups", "offered"), [(1, [6, 12]), (2, [3, 6]), (6, [6])])
def test_transposed(groups: int, offered: list[int]) -> None:
    constants = {"a_w": (6, 3, 1, 1), "t_w": (6, 12 // groups, 2, 2), "t_b": (12,), "c_w": (4, 12, 1, 1)}
    body = (
        f"h = Conv(x, a_w) t = ConvTranspose<group = {groups}, strides = [2, 2]>(h, t_w, t_b)"
        " r = Relu(t) y = Conv(r, c_w)"
    )
    analysis = check_cut(graph(body, constants=constants))
    assert sorted(open_groups(analysis).values()) == offered
    if groups == 1:
        outputs = positions(group_of(analysis, "t_w", 1))
        assert outputs == {("t_w", 1, False), ("t_b", 0, False), ("c_w", 1, True)}
        assert ("t_w", 0, True) in positions(group_of(analysis, "a_w", 0))


@pytest.mark.parametrize("dimensions", [1, 3])
def test_other_dimensions(dimensions: int) -> None:
    space = ",".join(["4"] * dimensions)
    constants = {"a_w": (6, 3, *[3] * dimensions), "c_w": (4, 6, *[1] * dimensions)}
    pads = ", ".join(["1"] * (2 * dimensions))
    model = graph(
        f"h = Conv<pads = [{pads}]>(x, a_w) r = Tanh(h) y = Conv(r, c_w)",
        inputs=f"float[N,3,{space}] x",
        constants=constants,
    )
    assert open_groups(check_cut(model)) == {"a_w": 6}


def test_a_residual_sum_couples_its_branches() -> None:
    constants = {"a_w": (8, 3, 1, 1), "b_w": (8, 8, 1, 1), "c_w": (4, 8, 1, 1)}
    analysis = check_cut(
        graph("h = Conv(x, a_w) b = Conv(h, b_w) s = Add(h, b) y = Conv(s, c_w)", constants=constants)
    )
    assert open_groups(analysis) == {"a_w": 8}
    assert {("a_w", 0, False), ("b_w", 0, False), ("b_w", 1, True), ("c_w", 1, True)} == positions(
        group_of(analysis, "a_w", 0)
    )


def test_a_kernel_that_is_computed_is_followed() -> None:
    """The kernel is scaled at run time, as weight normalisation does."""
    constants = {"a_w": (8, 3, 1, 1), "g_w": (8, 1, 1, 1), "c_w": (4, 8, 1, 1)}
    body = "k = Mul(a_w, g_w) h = Conv(x, k) y = Conv(h, c_w)"
    analysis = check_cut(graph(body, constants=constants))
    assert list(open_groups(analysis).values()) == [8]
    assert ("g_w", 0, False) in positions(group_of(analysis, "a_w", 0))


def test_a_kernel_that_is_an_input_stays() -> None:
    constants = {"a_w": (8, 3, 1, 1)}
    analysis = check_cut(
        graph(
            "h = Conv(x, a_w) y = Conv(h, k)",
            inputs="float[N,3,4,4] x, float[4,8,1,1] k",
            constants=constants,
        )
    )
    assert open_groups(analysis) == {}


def test_sliding_along_a_labelled_axis_freezes_it() -> None:
    """Channels moved into space by a transpose are slid over, so none may go."""
    constants = {"a_w": (8, 3, 1, 1), "b_w": (5, 6, 3, 1), "c_w": (4, 5, 1, 1)}
    body = "h = Conv(x, a_w) t = Transpose<perm = [0, 2, 1, 3]>(h) b = Conv(t, b_w) y = Conv(b, c_w)"
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis) == {"b_w": 5}
    assert "slides along this axis" in frozen_groups(analysis)["a_w"]


@pytest.mark.parametrize(
    ("attributes", "passes"),
    [
        ("", True),
        ("<group = 3, strides = [1, 2]>", True),
        ("<strides = [2, 1]>", False),
        ("<pads = [1, 0, 0, 0]>", False),
        ("<pads = [0, 0, 1, 0]>", False),
        ('<auto_pad = "SAME_UPPER">', True),
    ],
)
def test_a_pointwise_kernel_lets_the_places_beside_it_pass(attributes: str, passes: bool) -> None:
    """As in a perceptron across tokens: channels stand in space, and each output sees its own place alone."""
    groups = 3 if "group" in attributes else 1
    constants = {"a_w": (8, 3, 1, 1), "b_w": (6, 6 // groups, 1, 1), "b_b": (6,), "c_w": (4, 8, 1, 1)}
    back = "u = Transpose<perm = [0, 2, 1, 3]>(b)"
    if not passes:
        constants["c_w"] = (4, 4 if "strides" in attributes else 9, 1, 1)
    body = f"h = Conv(x, a_w) t = Transpose<perm = [0, 2, 1, 3]>(h) b = Conv{attributes}(t, b_w, b_b) {back}"
    analysis = check_cut(graph(f"{body} r = Relu(u) y = Conv(r, c_w)", constants=constants))
    assert ("a_w" in open_groups(analysis)) == passes
    if passes:
        assert open_groups(analysis)["a_w"] == 8
        assert ("c_w", 1, True) in positions(group_of(analysis, "a_w", 0))


@pytest.mark.parametrize(("groups", "offset_groups"), [(1, 1), (1, 2), (2, 1), (2, 4), (4, 2)])
@pytest.mark.parametrize("extra", ["", ", d_b", ", d_b, m"])
def test_deformable(groups: int, offset_groups: int, extra: str) -> None:
    """Offset groups stay, and lose equally many places; the network that makes offsets ends in them."""
    constants = {
        "a_w": (8, 3, 1, 1), "d_w": (8, 8 // groups, 3, 3), "d_b": (8,), "c_w": (4, 8, 1, 1),
        "o_w": (18 * offset_groups, 3, 3, 3), "m_w": (9 * offset_groups, 3, 3, 3),
    }  # fmt: skip
    attributes = (
        f"group = {groups}, offset_group = {offset_groups}, kernel_shape = [3, 3], pads = [1, 1, 1, 1]"
    )
    body = f"""
        h = Conv(x, a_w) o = Conv<pads = [1, 1, 1, 1]>(x, o_w) m = Conv<pads = [1, 1, 1, 1]>(x, m_w)
        d = DeformConv<{attributes}>(h, d_w, o{extra}) r = Relu(d) y = Conv(r, c_w)
    """
    model = graph(body, inputs="float[N,3,6,6] x", constants=constants, opset=19)
    analysis = check_cut(model)
    assert "reads offsets" in frozen_groups(analysis)["o_w"]
    offered = open_groups(analysis)
    assert offered
    if groups == offset_groups == 1:
        assert offered == {"a_w": 8, "d_w": 8}
    elif groups == 1:
        assert sorted(offered.values()) == [4, 8]
