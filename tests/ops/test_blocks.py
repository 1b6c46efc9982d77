"""Space folded into channels and back."""

from __future__ import annotations

import numpy as np
import pytest
from cutting import check_cut, frozen_groups, graph, group_of, open_groups, positions

from onnxprune.analyze import analyze

STEM = "h = Conv(x, a_w) "


def channel_at(analysis, tensor: str, axis: int) -> list[int]:
    (member,) = (m for m in group_of(analysis, tensor, axis).members if (m.tensor, m.axis) == (tensor, axis))
    return [int(channel) for channel in member.channel_at]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("DCR", [0, 1, 2] * 4), ("CRD", [0] * 4 + [1] * 4 + [2] * 4)],
)
def test_depth_to_space(mode: str, expected: list[int]) -> None:
    constants = {"a_w": (12, 3, 1, 1), "a_b": (12,), "c_w": (4, 3, 1, 1)}
    body = f"""
        h = Conv(x, a_w, a_b) d = DepthToSpace<blocksize = 2, mode = "{mode}">(h) r = Relu(d)
        y = Conv(r, c_w)
    """
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis) == {"a_w": 3}
    assert frozen_groups(analysis).keys() == {"c_w"}  # no group of positions in a block is listed
    assert channel_at(analysis, "a_w", 0) == expected
    assert ("c_w", 1, True) in positions(group_of(analysis, "a_w", 0))


def test_the_default_mode_and_a_block_of_three() -> None:
    constants = {"a_w": (18, 3, 1, 1), "c_w": (4, 2, 1, 1)}
    body = STEM + "d = DepthToSpace<blocksize = 3>(h) y = Conv(d, c_w)"
    analysis = check_cut(graph(body, constants=constants))
    assert channel_at(analysis, "a_w", 0) == [0, 1] * 9


def test_depth_to_space_of_the_model_input() -> None:
    body = "d = DepthToSpace<blocksize = 2>(x) h = Conv(d, a_w) r = Relu(h) y = Conv(r, c_w)"
    constants = {"a_w": (8, 2, 1, 1), "c_w": (4, 8, 1, 1)}
    analysis = check_cut(graph(body, inputs="float[N,8,4,4] x", constants=constants))
    assert open_groups(analysis) == {"a_w": 8}


def test_a_depthwise_convolution_before_depth_to_space() -> None:
    constants = {"a_w": (12, 3, 1, 1), "b_w": (12, 1, 3, 3), "c_w": (4, 3, 1, 1)}
    body = STEM + "e = Conv<group = 12>(h, b_w) d = DepthToSpace<blocksize = 2>(e) y = Conv(d, c_w)"
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis) == {"a_w": 3}


@pytest.mark.parametrize("groups", [3, 4])
def test_a_grouped_convolution_before_depth_to_space(groups: int) -> None:
    """Three groups are the rows of CRD themselves; four cut across them, and stay exact."""
    constants = {"a_w": (12, 3, 1, 1), "b_w": (12, 12 // groups, 3, 3), "c_w": (4, 3, 1, 1)}
    body = (
        STEM
        + f"""
        e = Conv<group = {groups}>(h, b_w) d = DepthToSpace<blocksize = 2, mode = "CRD">(e)
        y = Conv(d, c_w)
    """
    )
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis)


def test_two_blocks_of_channels_concatenated_before() -> None:
    """Rows of the block that come from different layers lose the same channels."""
    constants = {"a_w": (6, 3, 1, 1), "b_w": (6, 3, 1, 1), "c_w": (4, 3, 1, 1)}
    body = (
        STEM
        + "b = Conv(x, b_w) j = Concat<axis = 1>(h, b) d = DepthToSpace<blocksize = 2>(j) y = Conv(d, c_w)"
    )
    analysis = check_cut(graph(body, constants=constants))
    assert positions(group_of(analysis, "a_w", 0)) == {
        ("a_w", 0, False),
        ("b_w", 0, False),
        ("c_w", 1, True),
    }


def test_space_to_depth_copies_channels() -> None:
    constants = {"a_w": (5, 3, 1, 1), "c_w": (4, 20, 1, 1)}
    body = STEM + "d = SpaceToDepth<blocksize = 2>(h) r = Relu(d) y = Conv(r, c_w)"
    analysis = check_cut(graph(body, constants=constants))
    assert open_groups(analysis) == {"a_w": 5}
    assert channel_at(analysis, "c_w", 1) == [0, 1, 2, 3, 4] * 4


def test_space_to_depth_and_back() -> None:
    constants = {"a_w": (5, 3, 1, 1), "c_w": (4, 5, 1, 1)}
    body = STEM + "d = SpaceToDepth<blocksize = 3>(h) e = DepthToSpace<blocksize = 3>(d) y = Conv(e, c_w)"
    assert open_groups(check_cut(graph(body, constants=constants))) == {"a_w": 5}


def test_space_to_depth_in_the_mode_of_opset_28() -> None:
    """The mode CRD is newer than the runtime: its labels are checked alone."""
    constants = {"a_w": (5, 3, 1, 1), "c_w": (4, 20, 1, 1)}
    body = STEM + 'd = SpaceToDepth<blocksize = 2, mode = "CRD">(h) y = Conv(d, c_w)'
    analysis = analyze(graph(body, constants=constants, opset=28))
    assert channel_at(analysis, "c_w", 1) == list(np.repeat(range(5), 4))


def test_col2im() -> None:
    constants = {"a_w": (6, 12), "image": [4, 4], "block": [2, 2], "c_w": (4, 3, 1, 1)}
    body = """
        h = MatMul(x, a_w) t = Transpose<perm = [0, 2, 1]>(h)
        i = Col2Im<strides = [2, 2]>(t, image, block) y = Conv(i, c_w)
    """
    analysis = check_cut(graph(body, inputs="float[N,4,6] x", constants=constants, opset=18))
    assert open_groups(analysis) == {"a_w": 3}
    assert channel_at(analysis, "a_w", 1) == [0] * 4 + [1] * 4 + [2] * 4


def test_col2im_with_computed_blocks_stays() -> None:
    constants = {"a_w": (6, 12), "image": [4, 4], "c_w": (4, 3, 1, 1)}
    body = """
        h = MatMul(x, a_w) t = Transpose<perm = [0, 2, 1]>(h)
        i = Col2Im<strides = [2, 2]>(t, image, block) y = Conv(i, c_w)
    """
    inputs = "float[N,4,6] x, int64[2] block"
    assert open_groups(analyze(graph(body, inputs=inputs, constants=constants, opset=18))) == {}
