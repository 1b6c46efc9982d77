"""Where the channels that go stand on the tensors of a group."""

from __future__ import annotations

import numpy as np

from onnxprune.planning.positions import planned
from onnxprune.types import ChannelGroup, Choice, Member


def test_positions_of_other_groups_are_not_planned() -> None:
    channel_at = np.array([-1, 2, 0, -1, 1, 2], np.int32)  # -1: a position of another group
    member = Member(tensor="w", axis=0, channel_at=channel_at, contracted=False, consumer="n")
    group = ChannelGroup("g", "channels", 3, (member,), None)
    (found,) = planned(Choice(group, np.array([2], np.int32))).members
    assert found.removed.tolist() == [1, 5]
    assert found.removed.dtype == np.int32
    (nothing,) = planned(Choice(group, np.zeros(0, np.int32))).members
    assert nothing.removed.tolist() == []
