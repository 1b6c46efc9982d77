"""What there is to say of a pruned model, as tables: cost, what went, what was folded, what was repaired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.recover import Repaired
from onnxprune.rewrite.fold import Fold
from onnxprune.types import Check, Cost, Plan, Report


@dataclass(frozen=True, slots=True)
class RepairedRound:
    """One round of removing and repairing.

    Attributes:
        number: of the round, from 1 on.
        left: shares of the original that are left after it, by the name of what is counted.
        repaired: what the repair did.
    """

    number: int
    left: Mapping[str, float]
    repaired: Repaired


def pruned_report(
    plan: Plan,
    predicted: tuple[Cost, Cost],
    checks: Sequence[Check],
    seconds: Mapping[str, float],
    *,
    folds: Sequence[Fold] = (),
    sections: Mapping[str, Any],
) -> Report:
    """Return the report of a pruned model.

    Args:
        plan: what went.
        predicted: cost before and after, with what the model gained.
        checks: proofs.
        seconds: by stage.
        folds: constants that took the place of channels.
        sections: what was measured and repaired, as tables by name.
    """
    tables = {"cost": _cost(*predicted), **_removed(plan)}
    if folded := _folded(folds):
        tables["folded constants"] = folded
    tables |= sections
    if plan.masks:
        tables["masks"] = [
            {"tensor": name, "weights": mask.size, "zero": mask.size - mask.kept,
             "sparsity": 1 - mask.kept / max(mask.size, 1)}
            for name, mask in plan.masks.items()
        ]  # fmt: skip
    return Report(f"pruned by {plan.pattern}", tables, tuple(checks), plan.skipped, dict(seconds))


def _cost(before: Cost, after: Cost) -> list[dict[str, Any]]:
    return [
        {"what": name, "before": getattr(before, key), "after": getattr(after, key),
         "ratio": getattr(after, key) / max(getattr(before, key), 1)}
        for name, key in (("parameters", "params"), ("MACs", "macs"), ("bytes of weights", "size_bytes"))
    ]  # fmt: skip


def _removed(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Return a table of the branches, or of the groups that lost channels."""
    branches = [
        {"branch": b.name, "kind": g.kind.replace("_", " "), "score": b.score, "removed": number in g.removed}
        for g in plan.groups
        for number, b in enumerate(g.branches)
    ]
    if branches:
        return {"layers": sorted(branches, key=lambda row: (not row["removed"], row["score"]))}
    if not plan.groups:
        return {}
    return {
        "groups": [
            {
                "group": g.name,
                "kind": g.kind,
                "before": g.size,
                "after": g.size - len(g.removed),
                "exact": g.exact,
            }
            for g in plan.groups
            if len(g.removed)
        ]
    }


def _folded(folds: Sequence[Fold]) -> list[dict[str, Any]]:
    return [
        {"consumer": str(fold.seen.contraction.node.name), "into": into, "channels": len(numbers)}
        for fold in folds
        for into, numbers in (("bias", fold.into_bias), ("weights", fold.into_weight))
        if len(numbers)
    ]


def repair_sections(method: str, rounds: Sequence[RepairedRound]) -> dict[str, Any]:
    """Return tables of the repair: of all rounds where there are several, and of the last one by layer."""
    if not rounds:
        return {}
    last = rounds[-1].repaired
    names = {layer.name for layer in last.layers}
    done = len({layer.name for layer in last.layers if layer.repaired})
    summary = {
        "method": method,
        "layers repaired": done,
        "layers left as they were": len(names) - done,
        "samples held out": last.held_out,
        "outputs differ on them, before": last.before,
        "outputs differ on them, after": last.after,
        "outcome": last.outcome,
    }
    rows = [
        {"layer": layer.name, "error before": layer.before, "after": layer.after, "ridge": layer.ridge,
         "outcome": layer.outcome}
        for layer in last.layers
    ]  # fmt: skip
    found: dict[str, Any] = {}
    if len(rounds) > 1:
        found["rounds"] = [
            {"round": each.number, **each.left, "error before repair": each.repaired.before,
             "error after": each.repaired.after, "outcome": each.repaired.outcome}
            for each in rounds
        ]  # fmt: skip
    return {**found, "repair": summary, "repaired layers": rows}
