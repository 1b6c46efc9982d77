"""What a recipe asks for: patterns, scores, scopes, amounts and targets, and which of them make no sense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxprune.allocate.options import SENSITIVITY
from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.planning.earlier import check_earlier
from onnxprune.registry import did_you_mean
from onnxprune.scores.magnitude import CHANNEL_SCORERS
from onnxprune.scores.movement import MOVEMENT_SCORERS
from onnxprune.scores.on_data import DATA_SCORERS
from onnxprune.types import Budget, Cost, Metric

#: The pattern that removes what does nothing: there is no amount to choose.
DEAD = "dead"

#: What each structured pattern may remove.
STRUCTURED: Mapping[str, frozenset[str]] = {
    "channels": frozenset({"channels", "hidden", "heads"}),
    "experts": frozenset({"experts"}),
    "heads": frozenset({"heads"}),
    "head_dim": frozenset({"head_dim"}),
    DEAD: frozenset({"channels", "hidden", "heads", "head_dim", "experts"}),
}

#: The options that say which share of something may stay, by what they count.
TARGETS: Mapping[str, Metric] = {"target_macs": "macs", "target_params": "params", "target_size": "bytes"}

#: The option that says how much time may stay, which only measuring tells.
TARGET_LATENCY = "target_latency"


def check_score(name: str, data: Dataset | None, before: str | None) -> None:
    """Refuse a score without the data or the earlier weights that it takes, and names that nobody knows."""
    check_earlier(name, before)
    if name in DATA_SCORERS:
        if data is None:
            raise UsageError(f"score {name!r} is measured on samples: give --data calib.npz")
    elif name not in CHANNEL_SCORERS and name not in MOVEMENT_SCORERS:
        known = [*CHANNEL_SCORERS, *DATA_SCORERS, *MOVEMENT_SCORERS]
        raise UsageError(f"unknown score {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")


def check_scope(scope: str, data: Dataset | None) -> None:
    """Refuse a scope that is measured on data without data."""
    if scope == SENSITIVITY and data is None:
        raise UsageError("scope 'sensitivity' is measured on samples: give --data calib.npz")


def check_no_amount(recipe: Mapping[str, Any]) -> None:
    """Refuse to say how much goes where there is nothing to say."""
    for name in ("amount", *TARGETS, TARGET_LATENCY):
        if recipe.get(name) is not None:
            raise UsageError(f"pattern {DEAD!r} removes all that does nothing, no more: leave out {name}")


def budgets_of(recipe: Mapping[str, Any]) -> tuple[Budget, ...]:
    """Return what may stay by a recipe; nothing is said of it where the recipe has an amount.

    Raises:
        UsageError: neither an amount nor a target, or both, or a target that is no share.
    """
    targets = (*TARGETS, TARGET_LATENCY)
    given = [name for name in targets if recipe.get(name) is not None]
    if recipe.get("amount") is not None and given:
        raise UsageError(f"give either an amount or targets, not amount and {' and '.join(given)}")
    if recipe.get("amount") is None and not given:
        raise UsageError(f"give amount, or one or more of {', '.join(targets)}, such as --target-macs 0.5")
    given = [name for name in given if name in TARGETS]
    for name in given:
        if not 0 < recipe[name] <= 1:
            raise UsageError(f"{name} is the share that stays, in (0, 1], not {recipe[name]}")
    return tuple(Budget(TARGETS[name], recipe[name]) for name in given)


def share_of(left: Cost, whole: Cost, metric: Metric) -> float:
    """Return which share of a cost is left."""
    field = _FIELDS[metric]
    return float(getattr(left, field) / max(getattr(whole, field), 1))


#: The field of `Cost` for each metric that follows from shapes.
_FIELDS: Mapping[str, str] = {"macs": "macs", "params": "params", "bytes": "size_bytes"}
