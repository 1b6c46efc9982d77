"""A plan, and another model of the same graph -> the same plan in the names of that model.

A model that was trained and exported again may name everything anew, list it in another order, and store
apart what it stored once. Its graph is found again by structure; where the names that a plan goes by are all
the same, nothing is looked for.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.analyze import Analysis
from onnxprune.cost import cost_of
from onnxprune.errors import PlanError
from onnxprune.messages import quoted
from onnxprune.model.digest import structure_digest
from onnxprune.model.outline import outline_of
from onnxprune.model.prepare import written_out
from onnxprune.outlines import Outline
from onnxprune.planning.channels import cost_after
from onnxprune.planning.gathering import analyze_for
from onnxprune.planning.layers import Layers, find_layers, planned_branches, planned_groups
from onnxprune.planning.positions import check_groups, planned
from onnxprune.planning.recipes import STRUCTURED
from onnxprune.planning.watch import Watch
from onnxprune.plans.groups import look_of
from onnxprune.plans.matching import Matching, match, match_inputs
from onnxprune.types import ChannelGroup, Choice, Mask, Plan, PlannedGroup, PlannedMember, Skipped


def check_graph(model: ir.Model, plan: Plan) -> None:
    """Refuse another graph where the plan says too little to find names again.

    Raises:
        PlanError: the graph is not the one that the plan was made for.
    """
    digest = structure_digest(model)
    if plan.graph is None and digest != plan.structure_digest:
        raise PlanError(
            f"the plan is for another graph (structure {plan.structure_digest[:12]}, this model has "
            f"{digest[:12]}), and was written by an earlier version, which kept no outline of it: prune anew"
        )


def with_inputs_of(model: ir.Model, plan: Plan) -> Plan:
    """Return a plan whose input shapes go by the names of another model's inputs."""
    shapes = plan.recipe.get("input_shapes")
    if not shapes or plan.graph is None:
        return plan
    now = {str(value.name): value for value in model.graph.inputs if not value.is_initializer()}
    names = match_inputs([value.name for value in plan.graph.inputs], list(now))
    renamed = {names.get(name, name): sizes for name, sizes in shapes.items()}
    return replace(plan, recipe={**plan.recipe, "input_shapes": renamed})


def plan_on(model: ir.Model, plan: Plan) -> tuple[Plan, Matching | None]:
    """Return a plan in the names of a model, and how they were found; None if all are the same.

    Raises:
        PlanError: the model has another graph, or lacks what the plan removes.
    """
    if plan.pattern == "layers":
        return layers_on(find_layers(model, plan.recipe.get("input_shapes")), plan)
    if plan.pattern in STRUCTURED:
        return channels_on(analyze_for({**plan.recipe, "pattern": plan.pattern}, model), plan)
    return masks_on(model, plan)


def channels_on(analysis: Analysis, plan: Plan) -> tuple[Plan, Matching | None]:
    """Return a plan of channels in the names of a model, and how they were found; None if all are the same.

    Raises:
        PlanError: the model has another graph, or other groups where the plan removes channels.
    """
    graph = outline_of(analysis.model.graph)
    if plan.graph is None or plan.graph == graph:
        check_groups(analysis, plan)
        return replace(plan, structure_digest=structure_digest(analysis.given)), None
    names = match(plan.graph, graph)
    counterparts = _counterparts(analysis, plan, names)
    empty = np.zeros(0, np.int32)
    groups = []
    for group in analysis.groups:
        before = counterparts.get(group.name)
        removed, skipped = (empty, group.frozen) if before is None else (before.removed, before.skipped)
        groups.append(planned(Choice(group, removed, skipped)))
    renamed = {before.name: name for name, before in counterparts.items()}
    removed_of = {name: before.removed for name, before in counterparts.items()}
    plan = replace(
        plan,
        groups=tuple(groups),
        predicted=(cost_of(analysis.model.graph, analysis.channels), cost_after(analysis, removed_of)),
    )
    return _told(plan, analysis.given, graph, names, renamed), names


def _counterparts(analysis: Analysis, plan: Plan, names: Matching) -> dict[str, PlannedGroup]:
    """Return the groups of a plan by the name of the same group in a model.

    Raises:
        PlanError: a group that loses channels is not there, or its channels have other positions.
    """
    by_look: dict[tuple[Any, ...], list[PlannedGroup]] = {}
    empty = np.zeros(0, np.int32)
    for group in analysis.groups:
        now = planned(Choice(group, empty))
        by_look.setdefault(look_of(now, {}), []).append(now)
    groups = {group.name: group for group in analysis.groups}
    found: dict[str, PlannedGroup] = {}
    for before in plan.groups:
        candidates = by_look.get(look_of(before, names.nodes), [])
        same = [
            now for now in candidates
            if now.name not in found and _same_positions(before, groups[now.name], names)
        ]  # fmt: skip
        if same:
            found[same[0].name] = before
        elif len(before.removed):
            others = "; ".join(f"{quoted(name)} {what}" for name, what in names.other_sizes.items())
            because = f" ({others})" if others else ""
            raise PlanError(
                f"group {before.name} stands on other tensors or positions in this model{because}; prune anew"
            )
    return found


def _same_positions(before: PlannedGroup, group: ChannelGroup, names: Matching) -> bool:
    now = planned(Choice(group, before.removed))

    def positions(members: Iterable[PlannedMember], nodes: Mapping[str, str]) -> list[tuple[Any, ...]]:
        return sorted(
            (nodes.get(m.consumer, m.consumer), m.axis, m.size, m.contracted, m.removed.tolist())
            for m in members
        )

    return positions(before.members, names.nodes) == positions(now.members, {})


def layers_on(layers: Layers, plan: Plan) -> tuple[Plan, Matching | None]:
    """Return a plan of residual branches in the names of a model: see `channels_on`.

    Raises:
        PlanError: the model has another graph, or other branches.
    """
    graph = outline_of(layers.model.graph)
    if plan.graph is None or plan.graph == graph:
        planned_branches(layers, plan)
        return replace(plan, structure_digest=structure_digest(layers.given)), None
    names = match(plan.graph, graph)
    before = {names.values.get(b.value, b.value): b for group in plan.groups for b in group.branches}
    now = {branch.value: number for number, branch in enumerate(layers.branches)}
    if before.keys() != now.keys():
        other = next(iter(before.keys() ^ now.keys()))
        raise PlanError(
            f"the branch at {quoted(other)} is one of the plan or of this model alone; prune anew"
        )
    removed = [
        now[names.values.get(group.branches[number].value, group.branches[number].value)]
        for group in plan.groups
        for number in group.removed.tolist()
    ]
    scores = np.array([before[branch.value].score for branch in layers.branches])
    groups = planned_groups(layers.branches, scores, np.array(sorted(removed), np.int32))
    renamed = {before[branch.value].name: branch.name for branch in layers.branches}
    return _told(replace(plan, groups=groups), layers.given, graph, names, renamed), names


def masks_on(model: ir.Model, plan: Plan) -> tuple[Plan, Matching | None]:
    """Return a plan of zeros in the names of a model: see `channels_on`.

    Raises:
        PlanError: the model has another graph, or a masked tensor has another shape or mask there.
    """
    graph = outline_of(written_out(model).graph)
    if plan.graph is None or plan.graph == graph:
        return replace(plan, structure_digest=structure_digest(model)), None
    names = match(plan.graph, graph)
    masks: dict[str, Mask] = {}
    for name, mask in plan.masks.items():
        for new in names.tensors.get(name, (name,)):
            tensor = graph.tensors.get(new)
            if tensor is not None and tensor.shape != mask.shape:
                raise PlanError(
                    f"tensor {quoted(new)} has shape {list(tensor.shape)}, its mask {list(mask.shape)}; "
                    "prune anew"
                )
            if new in masks and not np.array_equal(masks[new].bits, mask.bits):
                raise PlanError(
                    f"tensor {quoted(new)} is stored once in this model, and has several masks in the plan; "
                    "prune anew"
                )
            masks[new] = mask
    return _told(replace(plan, masks=masks), model, graph, names, {}), names


def _told(plan: Plan, model: ir.Model, graph: Outline, names: Matching, renamed: Mapping[str, str]) -> Plan:
    """Return a plan whose recipe and remarks are in the names of a model, too.

    Args:
        plan: whose groups or masks are.
        model: that was given.
        graph: its outline.
        names: how its parts were found.
        renamed: later name of groups or branches, by their earlier one.
    """
    nodes = {old: (new,) for old, new in names.nodes.items()}
    known = {**nodes, **names.tensors, **{old: (new,) for old, new in renamed.items()}}
    skipped = [
        replace(entry, name=known[entry.name][0] if entry.name in known else entry.name)
        for entry in plan.skipped
    ]
    skipped += [
        Skipped(name, f"it {what} as in the model of the plan; nothing is removed along that axis")
        for name, what in names.other_sizes.items()
    ]
    recipe = dict(plan.recipe)
    if "protect" in recipe:
        protectable = known.keys() - (nodes.keys() - renamed.keys() if plan.pattern in STRUCTURED else ())
        recipe["protect"] = _globs(recipe["protect"], {name: known[name] for name in sorted(protectable)})
    return replace(
        plan, graph=graph, recipe=recipe, skipped=tuple(skipped), structure_digest=structure_digest(model)
    )


def tell_names(watch: Watch, names: Matching | None) -> None:
    """Put into the report how many names are others than those of the plan."""
    if names is not None:
        watch.sections["matched"] = {
            "nodes": len(names.nodes), "stored tensors": len(names.tensors), "of another name": names.renamed,
        }  # fmt: skip


def _globs(globs: Sequence[str], known: Mapping[str, Sequence[str]]) -> list[str]:
    """Return globs that match, in a model with other names, what given ones matched before.

    A glob that matches the same names as ever stays; else each name stands for itself.
    """
    found: list[str] = []
    for glob in globs:
        before = fnmatch.filter(known, glob)
        after = [new for old in before for new in known[old]]
        if all(known[old] == (old,) for old in before):
            found.append(glob)
        else:
            found += [re.sub(r"([*?[])", r"[\1]", name) for name in dict.fromkeys(after)]
    return list(dict.fromkeys(found))
