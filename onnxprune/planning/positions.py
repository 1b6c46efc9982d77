"""Chosen channels down to positions of tensors, and whether those of a plan are those of a model."""

from __future__ import annotations

import numpy as np

from onnxprune.analyze import Analysis
from onnxprune.errors import PlanError
from onnxprune.types import Choice, Plan, PlannedGroup, PlannedMember


def planned(choice: Choice) -> PlannedGroup:
    """Return a choice down to the positions of every tensor."""
    gone = np.zeros(choice.group.size + 1, dtype=np.bool_)  # the last for positions of other groups, -1
    gone[choice.removed] = True
    members = tuple(
        PlannedMember(
            member.tensor,
            member.axis,
            len(member.channel_at),
            member.consumer,
            member.contracted,
            np.flatnonzero(gone[member.channel_at]).astype(np.int32),
        )
        for member in choice.group.members
    )
    group = choice.group
    return PlannedGroup(
        group.name, group.kind, group.size, choice.removed, members, choice.skipped, group.exact
    )


def check_groups(analysis: Analysis, plan: Plan) -> None:
    """Compare a plan, position by position, with the groups of the model that it is applied to."""
    groups = {group.name: group for group in analysis.groups}
    for found in plan.groups:
        group = groups.get(found.name)
        if group is None or group.size != found.size:
            raise PlanError(f"group {found.name} of {found.size} channels is not in this model; prune anew")
        if len(found.removed) == 0:
            continue
        expected = planned(Choice(group, found.removed))
        if not _same_members(expected, found):
            raise PlanError(
                f"group {found.name} stands on other tensors or positions in this model; prune anew"
            )


def _same_members(a: PlannedGroup, b: PlannedGroup) -> bool:
    return len(a.members) == len(b.members) and all(
        (x.tensor, x.axis, x.size, x.consumer, x.contracted)
        == (y.tensor, y.axis, y.size, y.consumer, y.contracted)
        and np.array_equal(x.removed, y.removed)
        for x, y in zip(a.members, b.members, strict=True)
    )
