"""What a group of a plan is known by, whatever it is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxprune.types import PlannedGroup


def look_of(group: PlannedGroup, nodes: Mapping[str, str]) -> tuple[Any, ...]:
    """Return what a group is, and which axes of what nodes read shrink with it.

    Args:
        group: of a plan.
        nodes: other names of its nodes, where they go by these.
    """
    members = [(nodes.get(m.consumer, m.consumer), m.axis, m.size, m.contracted) for m in group.members]
    return group.kind, group.size, group.exact, tuple(sorted(members))
