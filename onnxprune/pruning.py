"""What pruning gives, how it is repaired, and what all of its kinds have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.planning.curves import Setting
from onnxprune.planning.latency.wish import LatencyWish
from onnxprune.planning.recipes import DEAD
from onnxprune.planning.watch import Watch
from onnxprune.proving import Trials
from onnxprune.pruning_report import RepairedRound, pruned_report, repair_sections
from onnxprune.recover import METHODS, repair
from onnxprune.registry import did_you_mean
from onnxprune.rewrite.fold import Fold
from onnxprune.types import BoolArray, Check, Cost, Mask, Plan, Report


@dataclass(frozen=True, slots=True)
class PruneResult:
    """A pruned model in memory.

    Attributes:
        model: the pruned model; the one that was given is not changed.
        plan: what was removed; applies again to a re-trained model of the same graph.
        report: before and after, checks, what was skipped and why, seconds by stage.
    """

    model: ir.Model
    plan: Plan
    report: Report


#: (what is left of a model, which of its weights may differ from zero, number of the round from 1 on) -> the
#: same graph with better weights
Mend: TypeAlias = Callable[[ir.Model, Mapping[str, Mask], int], ir.Model]


@dataclass(frozen=True, slots=True)
class Repair:
    """How a pruned model is to be repaired.

    Attributes:
        method: one of `METHODS`, or "none".
        rounds: of removing and repairing.
        shape: how what goes grows from round to round: see `onnxprune.schedule.Schedule`.
        mend: what is done after each round in place of a method.
    """

    method: str = "none"
    rounds: int = 1
    shape: str = "cubic"
    mend: Mend | None = None

    @property
    def wanted(self) -> bool:
        """Tell whether anything is done."""
        return self.mend is not None or self.method != "none"

    def check(self, data: Dataset | None, pattern: str) -> None:
        """Refuse what makes no sense.

        Raises:
            UsageError: an unknown method, no data for it, or rounds without repair.
        """
        known = ("none", *METHODS)
        if self.method not in known:
            raise UsageError(
                f"unknown repair {self.method!r}{did_you_mean(self.method, known)}; known: {', '.join(known)}"
            )
        if not isinstance(self.rounds, (int, np.integer)) or self.rounds < 1:
            raise UsageError(f"rounds is a whole number from 1 on, not {self.rounds}")
        if self.method == "none":
            if self.rounds > 1 and self.mend is None:
                raise UsageError(
                    "rounds remove and repair in turn: say how to repair (--recover), or leave out --rounds"
                )
            return
        if data is None:
            raise UsageError(f"repair {self.method!r} works on samples: give --data calib.npz")
        if pattern == DEAD:
            raise UsageError(f"pattern {DEAD!r} changes no result: there is nothing to repair")


@dataclass(frozen=True, slots=True)
class Task:
    """A model that is to be pruned, and how; only what goes is said by a recipe.

    Attributes:
        model: not changed.
        samples: what scores from data are measured on, and what is left is proved and repaired on.
        repair: of what is left.
        seed: of every random choice.
        setting: how trials are run where the scope is "sensitivity".
        latency: on which machine targets in time are to be met; None where there are none.
    """

    model: ir.Model
    samples: Dataset | None
    repair: Repair = Repair()  # frozen
    seed: int = 0
    setting: Setting = Setting()  # noqa: RUF009 # frozen
    latency: LatencyWish | None = None


class Pruner(Protocol):
    """Prunes one model by any number of recipes that differ in amount or targets: scores are taken once.

    What a recipe gives depends on no other recipe.
    """

    def plan(self, recipe: Mapping[str, Any], watch: Watch) -> Plan:
        """Decide what goes, in one round.

        Raises:
            UsageError, NothingToPrune, LimitMissed: as `onnxprune.prune`.
        """

    def prune(self, recipe: Mapping[str, Any], watch: Watch) -> PruneResult:
        """Decide what goes, remove it, prove the result and repair it.

        Raises:
            UsageError, NothingToPrune, LimitMissed, ProofError: as `onnxprune.prune`.
        """


class Repairs:
    """Repairs of one model, one for each round, and what became of them."""

    def __init__(self, wish: Repair, trials: Trials, watch: Watch) -> None:
        self.wish = wish
        self.trials = trials
        self.watch = watch
        self.rounds: list[RepairedRound] = []

    def __call__(
        self,
        original: ir.Model,
        pruned: ir.Model,
        kept: Mapping[str, Mapping[int, BoolArray]],
        left: Mapping[str, float],
        *,
        number: int = 1,
        masks: Mapping[str, Mask] | None = None,
    ) -> ir.Model:
        """Repair a model if that is wished.

        Args:
            original: a prepared working copy.
            pruned: what became of it.
            kept: which positions of its values are left, by name and axis; all where nothing is said.
            left: shares of the original that are left, for the report.
            number: of the round.
            masks: by name of the stored tensor: where weights may differ from zero.
        """
        if self.wish.mend is not None:
            with self.watch.stage("tune"):
                return self.wish.mend(pruned, masks or {}, number)
        if self.wish.method == "none" or self.trials.samples is None:
            return pruned
        running = self.watch.running
        with self.watch.stage("repair"):
            repaired = repair(
                original,
                pruned,
                lambda name: kept.get(name, {}),
                self.trials.samples,
                method=self.wish.method,
                masks=masks,
                batch=running.batch,
                limit_bytes=running.limit_bytes,
                threads=running.threads,
                seed=self.trials.seed,
                progress=self.watch.progress,
            )
        self.rounds.append(RepairedRound(number, left, repaired))
        return repaired.model

    def report(
        self,
        plan: Plan,
        checks: Sequence[Check] = (),
        predicted: tuple[Cost, Cost] | None = None,
        folds: Sequence[Fold] = (),
    ) -> Report:
        """Return the report of the model; its cost is that of the plan unless another one is given."""
        sections = {**self.watch.sections, **repair_sections(self.wish.method, self.rounds)}
        costs = predicted or plan.predicted
        return pruned_report(plan, costs, checks, self.watch.seconds, folds=folds, sections=sections)


def numbered(checks: Sequence[Check]) -> tuple[Check, ...]:
    """Tell the checks of several rounds apart."""
    names = [check.name for check in checks]
    if len(set(names)) == len(names):
        return tuple(checks)
    return tuple(
        replace(check, name=f"{check.name} (round {names[:number].count(check.name) + 1})")
        for number, check in enumerate(checks)
    )
