"""Two plans for models of one graph -> how much of what goes is something else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.errors import LimitMissed, PlanError
from onnxprune.plans.groups import look_of
from onnxprune.plans.matching import Matching, match
from onnxprune.types import Mask, Plan, PlannedGroup


@dataclass(frozen=True, slots=True)
class DriftRow:
    """What two plans remove from one group of channels, kind of layers, or tensor.

    Attributes:
        name: of it, in the later plan.
        size: channels, layers or weights of it.
        before: how many of them the earlier plan removes.
        after: how many the later plan removes.
        both: how many both remove.
        both_by_chance: how many both would remove on average, had each drawn its own at random.
    """

    name: str
    size: int
    before: int
    after: int
    both: int
    both_by_chance: float

    @property
    def moved(self) -> float:
        """Share that is something else, of what the plan that removes more removes: in [0, 1]."""
        return _share(self.both, max(self.before, self.after))

    @property
    def moved_by_chance(self) -> float:
        """The same, on average, for plans that know nothing of each other."""
        return _share(self.both_by_chance, max(self.before, self.after))

    @property
    def jaccard_distance(self) -> float:
        """1 - what both remove / what one or both remove, in [0, 1] (Jaccard 1901)."""
        return _share(self.both, self.before + self.after - self.both)


def _share(both: float, of: float) -> float:
    return 1 - both / of if of else 0.0


@dataclass(frozen=True, slots=True)
class Drift:
    """How much of what a plan removes is something else in a later plan.

    Attributes:
        rows: everything that one of the plans, or both, remove something from.
    """

    rows: tuple[DriftRow, ...]

    @property
    def total(self) -> DriftRow:
        """Everything together."""
        rows = self.rows
        return DriftRow(
            "in all",
            size=sum(row.size for row in rows),
            before=sum(row.before for row in rows),
            after=sum(row.after for row in rows),
            both=sum(row.both for row in rows),
            both_by_chance=sum(row.both_by_chance for row in rows),
        )

    @property
    def moved(self) -> float:
        """`DriftRow.moved` of everything together."""
        return self.total.moved

    def table(self) -> list[dict[str, Any]]:
        """Return the rows for a report, everything together first."""
        return [
            {
                "what": row.name, "size": row.size,
                "before": row.before, "after": row.after, "both": row.both,
                "moved_share": row.moved, "by_chance_share": row.moved_by_chance,
                "jaccard_distance": row.jaccard_distance,
            }
            for row in (self.total, *self.rows)
        ]  # fmt: skip

    def check(self, most: float | None) -> None:
        """Refuse more drift than a limit.

        Raises:
            LimitMissed: more than ``most`` of what goes is something else.
        """
        if most is not None and self.moved > most:
            worst = sorted(self.rows, key=lambda row: row.before - row.both, reverse=True)
            raise LimitMissed(
                f"{self.moved:.3f} of what goes is something else than before, more than {most:g}",
                self.moved,
                [f"{row.name}: {row.both} of {row.before} are as before" for row in worst if row.moved],
            )


def compare_plans(before: Plan, after: Plan) -> Drift:
    """Tell how much of what a plan removes is something else in a later plan, for a model of the same graph.

    Groups, layers and tensors are matched by structure where their names differ.

    Raises:
        PlanError: the plans are for other graphs, or one removes what the other only makes zero.
    """
    kinds = [_what(plan) for plan in (before, after)]
    if kinds[0] != kinds[1]:
        raise PlanError(f"a plan that removes {kinds[0]} can't be compared with one that removes {kinds[1]}")
    names = Matching({}, {}, {})
    if before.graph is not None and after.graph is not None and before.graph != after.graph:
        names = match(before.graph, after.graph)
    rows = {"weights": _masks, "layers": _layers}.get(kinds[0], _channels)(before, after, names)
    return Drift(tuple(row for row in rows if row.before or row.after))


def _what(plan: Plan) -> str:
    if plan.masks:
        return "weights"
    return "layers" if any(group.branches for group in plan.groups) else "channels"


def _row(name: str, size: int, before: Iterable[Any], after: Iterable[Any]) -> DriftRow:
    first, second = set(before), set(after)
    return DriftRow(
        name, size, len(first), len(second), len(first & second), len(first) * len(second) / max(size, 1)
    )


def _channels(before: Plan, after: Plan, names: Matching) -> list[DriftRow]:
    by_look: dict[Any, list[PlannedGroup]] = {}
    for group in before.groups:
        by_look.setdefault(look_of(group, names.nodes), []).append(group)
    rows = []
    for group in after.groups:
        same = by_look.get(look_of(group, {}), [])
        earlier = same.pop(0).removed.tolist() if same else []
        rows.append(_row(group.name, group.size, earlier, group.removed.tolist()))
    left = [group for groups in by_look.values() for group in groups if len(group.removed)]
    if left:
        raise PlanError(f"group {left[0].name} of the earlier plan is not one of the later plan")
    return rows


def _layers(before: Plan, after: Plan, names: Matching) -> list[DriftRow]:
    def gone(group: PlannedGroup, values: Mapping[str, str]) -> list[str]:
        found = [group.branches[number].value for number in group.removed.tolist()]
        return [values.get(value, value) for value in found]

    earlier = {group.name: group for group in before.groups}
    later = {group.name: group for group in after.groups}
    return [
        _row(
            name,
            (later.get(name) or earlier[name]).size,
            gone(earlier[name], names.values) if name in earlier else (),
            gone(later[name], {}) if name in later else (),
        )
        for name in {**earlier, **later}
    ]


def _masks(before: Plan, after: Plan, names: Matching) -> list[DriftRow]:
    earlier = {new: mask for old, mask in before.masks.items() for new in names.tensors.get(old, (old,))}
    rows = []
    for name in {**earlier, **after.masks}:
        masks = [plan.get(name) for plan in (earlier, after.masks)]
        first, second = (mask or _full(masks) for mask in masks)
        if first.shape != second.shape:
            raise PlanError(f"tensor {name} has shape {list(second.shape)} now, {list(first.shape)} before")
        size, in_one = first.size, Mask(first.shape, first.bits | second.bits).kept
        gone, later = size - first.kept, size - second.kept
        rows.append(DriftRow(name, size, gone, later, size - in_one, gone * later / max(size, 1)))
    return rows


def _full(masks: Iterable[Mask | None]) -> Mask:
    """Return the mask of a tensor that stays whole, of the shape that another plan knows."""
    known = next(mask for mask in masks if mask is not None)
    return Mask.pack(np.ones(known.shape, dtype=np.bool_))
