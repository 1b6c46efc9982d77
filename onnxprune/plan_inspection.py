"""A plan folder -> what it removes; two of them -> how much of it is something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxprune.plans import compare_plans, load_plan
from onnxprune.pruning_report import pruned_report
from onnxprune.types import Plan, Report


def is_plan(path: str | Path) -> bool:
    """Tell whether a path is a folder that a plan may stand in."""
    return Path(path).is_dir()


def inspect_plan(path: str | Path) -> Report:
    """Return what a plan removes, what that costs and saves, and by which recipe it was made.

    Raises:
        PlanError: the folder is missing, damaged, or no plan.
    """
    plan = load_plan(path)
    report = pruned_report(plan, plan.predicted, (), {}, sections={"recipe": dict(plan.recipe)})
    sections = {"plan": _summary(plan), **report.sections}
    return Report(f"inspect {path}", sections, skipped=plan.skipped)


def inspect_drift(before: str | Path, after: str | Path, *, max_drift: float | None = None) -> Report:
    """Return how much of what a plan removes is something else in a later one.

    Args:
        before: folder of the earlier plan.
        after: folder of the later plan.
        max_drift: share of what goes, in [0, 1], that may be something else at most.

    Raises:
        PlanError: a folder is missing or damaged, or the plans are for other graphs.
        LimitMissed: more than ``max_drift`` is something else.
    """
    drift = compare_plans(load_plan(before), load_plan(after))
    drift.check(max_drift)
    return Report(f"inspect {before} {after}", {"drift": drift.table()})


def _summary(plan: Plan) -> dict[str, Any]:
    removed = sum(len(group.removed) for group in plan.groups)
    removed += sum(mask.size - mask.kept for mask in plan.masks.values())
    return {
        "pattern": plan.pattern,
        "removed": removed,
        "groups": len(plan.groups),
        "masked_tensors": len(plan.masks),
        "structure": plan.structure_digest[:12],
        "weights": plan.weights_digest[:12],
        "seed": plan.seed,
        "versions": dict(plan.versions),
    }
