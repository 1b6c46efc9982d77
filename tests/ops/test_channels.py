"""Blocks of labels: joint axes, axes of one position, constants that get labels when they are asked for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cutting import graph

from onnxprune.model.prepare import prepare
from onnxprune.ops.channels import Channels, Use


@pytest.fixture
def channels() -> Channels:
    model = graph(
        "h = MatMul(x, a_w) y = Gather<axis = 2>(h, i)",
        inputs="float[N,5,6] x",
        constants={"a_w": (6, 12), "i": [0, 1]},
    )
    work, shapes = prepare(model)
    made = Channels(shapes)
    made.nodes = list(work.graph)  # type: ignore[attr-defined]
    return made


def nodes(channels: Channels) -> list[ir.Node]:
    return channels.nodes  # type: ignore[attr-defined, no-any-return]


def test_a_constant_is_labelled_when_it_is_asked_for(channels: Channels) -> None:
    weight = channels.ref(nodes(channels)[0], 1)
    assert isinstance(weight, Use)
    assert channels.block_at(weight, 1) is None
    labels = channels.alone(weight, -1)
    assert labels is not None
    assert labels.shape == (12, 1)
    np.testing.assert_array_equal(channels.alone(weight, 1), labels)


def test_indices_have_no_channels(channels: Channels) -> None:
    assert channels.alone(channels.ref(nodes(channels)[1], 1), 0) is None


def test_inputs_have_no_channels(channels: Channels) -> None:
    x = channels.ref(nodes(channels)[0], 0)
    assert isinstance(x, ir.Value)
    assert channels.alone(x, 2) is None


def test_a_joint_block_is_separated_for_one_axis(channels: Channels) -> None:
    h = nodes(channels)[0].outputs[0]
    joint = channels.labels.fresh(10).reshape(2, 5, 1)
    channels.put(h, (0, 1), joint)
    own = channels.alone(h, 1)
    assert own is not None
    assert own.shape == (5, 1)
    assert sorted(block.axes for block in channels.blocks[h]) == [(0,), (1,)]
    channels.labels.flush()
    every = channels.labels.resolve(joint)
    assert every.shape == (2, 5, 2)
    assert len(np.unique(every)) == 7  # two rows and five columns instead of ten positions


def test_axes_are_stored_in_ascending_order(channels: Channels) -> None:
    h = nodes(channels)[0].outputs[0]
    joint = channels.labels.fresh(10).reshape(5, 2, 1)
    channels.put(h, (1, 0), joint)
    (block,) = channels.blocks[h]
    assert block.axes == (0, 1)
    np.testing.assert_array_equal(block.labels, joint.transpose(1, 0, 2))


def test_an_axis_of_one_position_leaves_its_block(channels: Channels) -> None:
    h = nodes(channels)[0].outputs[0]
    channels.put(h, (0, 1), channels.labels.fresh(5).reshape(1, 5, 1))
    assert [block.axes for block in channels.blocks[h]] == [(1,)]


def test_a_single_position_is_frozen(channels: Channels) -> None:
    h = nodes(channels)[0].outputs[0]
    labels = channels.labels.fresh(1)
    channels.put(h, (0,), labels)
    assert h not in channels.blocks
    assert channels.labels.frozen_reason(labels.ravel()) == ["a single position is left along an axis"]


def test_untracked_labels_are_not_stored(channels: Channels) -> None:
    h = nodes(channels)[0].outputs[0]
    channels.put(h, (1,), np.zeros((5, 1), np.int32))
    channels.put(h, (1,), None)
    assert h not in channels.blocks


def test_meeting_an_untracked_axis_freezes(channels: Channels) -> None:
    x = channels.ref(nodes(channels)[0], 0)
    labels = channels.labels.fresh(6)
    channels.meet(x, 2, labels, "nothing here")
    assert channels.labels.is_frozen(labels).all()


def test_a_constant_takes_over_what_it_meets(channels: Channels) -> None:
    weight = channels.ref(nodes(channels)[0], 1)
    labels = channels.labels.fresh(6)
    channels.meet(weight, 0, labels, "")
    np.testing.assert_array_equal(channels.alone(weight, 0), labels)
    assert not channels.labels.is_frozen(labels).any()


def test_sums_over_untracked_axes_are_no_contractions(channels: Channels) -> None:
    node = nodes(channels)[0]
    channels.sums_over(node, 1, 0)
    assert channels.contractions == []
    channels.alone(channels.ref(node, 1), 0)
    channels.sums_over(node, 1, -2)
    assert [(c.operand, c.axis) for c in channels.contractions] == [(1, 0)]


def test_picking_one_position_drops_the_axis(channels: Channels) -> None:
    h, y = (node.outputs[0] for node in nodes(channels))
    labels = channels.labels.fresh(12)
    channels.put(h, (2,), labels)
    channels.index(h, y, 2, np.array(4))
    assert channels.labels.is_frozen(labels).ravel().tolist() == [position == 4 for position in range(12)]


def test_finish_stores_plain_labels(channels: Channels) -> None:
    h = nodes(channels)[0].outputs[0]
    a, b = channels.labels.fresh(12), channels.labels.fresh(12)
    channels.put(h, (2,), b)
    channels.labels.equate(a, b, "")
    channels.finish()
    (block,) = channels.blocks[h]
    np.testing.assert_array_equal(block.labels, channels.labels.resolve(a))
