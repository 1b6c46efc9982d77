"""Pruning without a clock, brought to the same measured time: the same share everywhere, or by MACs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

import onnxprune
from latency.clock import Clock
from latency.equal_time import Meeting, meet
from onnxprune.errors import LimitMissed, NothingToPrune
from onnxprune.planning.channels import importance_of
from onnxprune.planning.gathering import gather
from onnxprune.planning.watch import Watch
from onnxprune.types import Plan

#: Options of `onnxprune.prune` by name of the way, from the amount that goes.
RIVALS = {
    "uniform": lambda amount: {"scope": "uniform", "amount": amount},
    "global MACs": lambda amount: {"scope": "global", "target_macs": 1 - amount},
}


@dataclass(frozen=True, slots=True)
class Made:
    """A pruned model as a file, and the plan that made it; the original and None where nothing goes."""

    path: Path
    plan: Plan | None


class Rival:
    """One way to prune one model.

    Args:
        name: key of `RIVALS`.
        source: file of the original.
        folder: for the models it makes.
        options: of `onnxprune.plan`, beside those of the way.
    """

    def __init__(self, name: str, source: Path, folder: Path, options: Mapping[str, Any]) -> None:
        self._wish, self._options = RIVALS[name], options
        self._source, self._folder, self._name = source, folder, name
        self._model = onnxprune.load(source)

    def make(self, amount: float) -> Made | None:
        """Cut what a plan for this amount says, without any repair; None where it can't be met."""
        try:
            plan = onnxprune.plan(self._model, **self.options(amount))
        except LimitMissed:
            return None
        except NothingToPrune:  # too little to take a single step
            return Made(self._source, None)
        path = self._folder / f"{self._name}-{amount:.6f}.onnx"
        onnxprune.save(onnxprune.apply_plan(self._model, plan).model, path)
        return Made(path, plan)

    def options(self, amount: float) -> dict[str, Any]:
        """Return the options of `onnxprune.prune` for an amount."""
        return {**self._options, **self._wish(amount)}

    def meet(self, ours: Path, clock: Clock) -> Meeting[Made]:
        """Bring it to the time that another model takes: they take turns, and the ratio is to be 1."""
        quick = clock.quick()
        return meet(self.make, lambda made: quick.ratio(ours, made.path).value, counts_of, 1.0)


def counts_of(made: Made) -> tuple[int, ...]:
    """Return how many channels every group loses."""
    return () if made.plan is None else tuple(len(group.removed) for group in made.plan.groups)


def importance_kept(model: ir.Model, plan: Plan | None, score: str = "l2") -> float:
    """Return the share of importance that a plan keeps, as reports have it (see `docs/budgets.md`)."""
    recipe = {"pattern": "channels", "score": score, "scope": "uniform"}
    gathered = gather(model, recipe, None, 0, Watch())
    return importance_of(gathered, {} if plan is None else plan.removed)
