"""Gathered figures, and a target in time -> a decision about channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from onnxprune.planning.channels import Decision, decide, limits_of, tell_importance
from onnxprune.planning.gathering import Gathered
from onnxprune.planning.latency.meet import Deciding, Latency, shrinking
from onnxprune.planning.latency.wish import LatencyWish, parse_target
from onnxprune.planning.recipes import TARGET_LATENCY
from onnxprune.planning.workbench import Cutter

#: As much as floors let go.
_ALL = 1 - 1e-9


def measure(gathered: Gathered, wish: LatencyWish) -> Latency:
    """Time the parts of a model: once for any number of targets."""
    candidates = gathered.candidates
    subject = shrinking(
        gathered.analysis, candidates.analysis_options, candidates.groups, candidates.options, gathered.seed
    )
    return Latency(subject, wish)


def decide_in_time(gathered: Gathered, recipe: Mapping[str, Any], latency: Latency) -> Decision:
    """Choose the channels that go, cut and time what is left, and correct, until the target is met.

    Raises:
        NothingToPrune: nothing needs to go, or nothing can.
        LimitMissed: the target can't be met; ``reasons`` says what stands in the way.
    """
    share, ms = parse_target(recipe[TARGET_LATENCY])
    exact = limits_of(gathered, recipe)
    everything = {**recipe, "amount": _ALL, "scope": "uniform"}

    def least(steps: Mapping[str, int]) -> Decision:
        """Leave as little as floors let. If that is too much for another target, that one is missed."""
        decision = decide(gathered, everything, [], steps)
        if any(limit.left(decision.removed) > limit.keep for limit in exact):
            return decide(gathered, recipe, exact, steps)  # raises LimitMissed
        return decision

    deciding = Deciding(
        lambda limit, steps: decide(gathered, recipe, [*exact, limit], steps),
        least,
        Cutter(gathered.analysis, gathered.sums).cut,
    )
    with gathered.watch.stage("meet the time"):
        met = latency.meet(deciding, share, ms)
    decision: Decision = met.decision
    tell_importance(decision)
    gathered.watch.sections["latency"] = met.section
    gathered.watch.sections["latency rounds"] = met.rounds
    plan = replace(decision.plan, recipe=dict(recipe), skipped=(*decision.plan.skipped, *met.skipped))
    return replace(decision, plan=plan)
