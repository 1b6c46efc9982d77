"""What could be done to a model: each candidate makes the model that would come out, in memory, unproved.

Which channels go does not change how long what is left takes, only how many; so they go by the default score,
the same share everywhere, as ``prune --amount`` has it without data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.analyze import Analysis
from onnxprune.branches import Removal
from onnxprune.errors import LimitMissed, NothingToPrune
from onnxprune.model.copies import copy_of
from onnxprune.ops.kept import Kept
from onnxprune.planning.channels import choose, cost_after
from onnxprune.planning.gathering import candidates_of, gather
from onnxprune.planning.layers import decide_layers, find_layers, gather_layers, planned_branches
from onnxprune.planning.masks import decide_masks, gather_weights
from onnxprune.planning.recipes import DEAD, STRUCTURED
from onnxprune.planning.watch import Watch
from onnxprune.proving import make_cut
from onnxprune.rewrite.depth import remove_branches
from onnxprune.rewrite.mask import apply_masks
from onnxprune.types import Cost, IntArray, Scores

#: What is constant is folded in every pruned model, without anything being removed.
FOLD = "fold"

#: From this share of the nodes on, that is worth timing by itself.
_FOLDED = 0.1

#: What a share of the channels is called on the command line, and floors that allow it.
_FLOOR = 0.1


@dataclass(frozen=True, slots=True)
class Made:
    """A model that a candidate makes.

    Attributes:
        model: in memory, or a file.
        size_ratio: bytes of its weights, as a share of the original's.
        macs_ratio: its multiply-accumulates, the same; None where they don't say what it costs.
        kept: what is left of the channels of the analysed model; None where other things go.
        gone: names of its nodes that go whole.
    """

    model: ir.Model | Path
    size_ratio: float
    macs_ratio: float | None = None
    kept: Kept | None = None
    gone: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that could be done.

    Attributes:
        name: in a few words.
        pattern: as ``prune`` has it, or "int8" or "fold".
        amount: share that goes, where the pattern has one.
        options: further options of ``prune`` that it takes.
        make: makes the model.
        cheap: that takes seconds at most.
    """

    name: str
    pattern: str
    amount: float | None
    options: Mapping[str, Any]
    make: Callable[[], Made]
    cheap: bool = True


class Subject:
    """A model as candidates see it: analysed once, scored once.

    Args:
        model: not changed.
        input_shapes: as for `onnxprune.prune`.
        seed: of every random choice.
    """

    def __init__(self, model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None, seed: int) -> None:
        self.model = model
        self.seed = seed
        self._input_shapes = input_shapes
        self._gathered = gather(model, self._recipe("channels"), None, seed, Watch())
        self.analysis: Analysis = self._gathered.analysis
        self.whole: Cost = self._gathered.whole

    @property
    def folds(self) -> bool:
        """Tell whether constants are folded, and functions written out, before anything is removed."""
        before, after = (sum(1 for _ in model.graph) for model in (self.model, self.analysis.model))
        return after <= (1 - _FOLDED) * before or bool(self.model.functions)

    @property
    def kinds(self) -> dict[str, int]:
        """How many groups of each kind may lose channels."""
        found: dict[str, int] = {}
        for group in self.analysis.groups:
            if group.frozen is None:
                found[group.kind] = found.get(group.kind, 0) + 1
        return found

    def smallest(self) -> Kept:
        """Return what is left once every channel that may go is gone, but for the floor."""
        removed = {
            group.name: np.arange(max(1, int(np.ceil(_FLOOR * group.size))), group.size, dtype=np.int32)
            for group in self.analysis.groups
            if group.frozen is None and group.kind in STRUCTURED["channels"]
        }
        return Kept(self.analysis.channels, self.analysis.removed_labels(removed))

    def removed(self, pattern: str, amount: float | None, align: int | str = "auto") -> dict[str, IntArray]:
        """Return the channels that go, by group name.

        Raises:
            NothingToPrune: none does.
        """
        recipe = self._recipe(pattern, amount, align)
        gathered = self._gathered
        scores = Scores("l2", {}) if pattern == DEAD else gathered.candidates.scores
        candidates = candidates_of(recipe, gathered.analysis, gathered.sums, scores)
        choices, _ = choose(recipe, replace(gathered, candidates=candidates))
        removed = {choice.group.name: choice.removed for choice in choices if len(choice.removed)}
        if not removed:
            reasons = [f"{choice.group.name}: {choice.skipped}" for choice in choices if choice.skipped]
            raise NothingToPrune(f"no channel goes by pattern {pattern!r}", reasons)
        return removed

    def cut(self, pattern: str, amount: float | None, align: int | str = "auto") -> Made:
        """Remove channels."""
        removed = self.removed(pattern, amount, align)
        left = cost_after(self.analysis, removed)
        kept = Kept(self.analysis.channels, self.analysis.removed_labels(removed))
        model = make_cut(self.analysis, self._gathered.sums, removed).pruned
        return self._made(model, left, kept)

    def without_layers(self, amount: float) -> Made:
        """Remove residual branches."""
        recipe = self._recipe("layers", amount)
        gathered = gather_layers(self.model, recipe, None, self.seed, Watch())
        plan, layers = decide_layers(gathered, recipe), gathered.layers
        branches = planned_branches(layers, plan)
        gone = frozenset(str(node.name) for node in Removal(layers.model.graph).gone_with(branches))
        made = self._made(remove_branches(layers.model, branches), plan.predicted[1])
        return replace(made, gone=gone)

    def with_zeros(self, pattern: str) -> Made:
        """Set weights to zero; the smallest that one could store is what is left and a bit for each place."""
        recipe = self._recipe(pattern)
        plan, _ = decide_masks(gather_weights(self.model, recipe, None, self.seed, Watch()), recipe)
        model = copy_of(self.model)
        apply_masks(model, plan.masks)
        gone = sum(mask.size - mask.kept for mask in plan.masks.values())
        size = sum(mask.size for mask in plan.masks.values())
        bytes_each = self.whole.size_bytes / max(self.whole.params, 1)
        saved = gone * bytes_each - size / 8
        return Made(model, 1 - saved / max(self.whole.size_bytes, 1), 1.0)

    @property
    def has_layers(self) -> bool:
        """Tell whether the model has residual branches that can go."""
        return bool(find_layers(self.model, self._input_shapes).branches)

    def _made(self, model: ir.Model, left: Cost, kept: Kept | None = None) -> Made:
        size = left.size_bytes / max(self.whole.size_bytes, 1)
        return Made(model, size, left.macs / max(self.whole.macs, 1), kept)

    def _recipe(self, pattern: str, amount: float | None = None, align: int | str = "auto") -> dict[str, Any]:
        scope = "global" if pattern == "layers" else "uniform"
        recipe = {
            "pattern": pattern, "amount": amount, "score": "l2", "scope": scope, "align": align,
            "floor": _FLOOR, "input_shapes": self._input_shapes,
        }  # fmt: skip
        return {name: value for name, value in recipe.items() if value is not None}


def structured(subject: Subject, off_grid: Mapping[str, int], grid: int) -> list[Candidate]:
    """Return what could be removed from a model, what tells most first.

    Args:
        subject: the model.
        off_grid: sizes of the groups whose number of channels suits no kernel, by name.
        grid: what that number should be a multiple of.
    """
    kinds = subject.kinds
    found = []
    if _has(lambda: subject.removed(DEAD, None)):
        found.append(Candidate("remove dead channels", DEAD, None, {}, lambda: subject.cut(DEAD, None)))
    if kinds.keys() & STRUCTURED["channels"]:
        found.append(_share(subject, "channels", 0.5))
    if subject.folds:
        folded = Made(subject.analysis.model, 1.0, 1.0)
        found.append(Candidate("fold what is constant", FOLD, None, {}, lambda: folded))
    if kinds.get("heads"):
        found.append(_share(subject, "heads", 0.5))
    if kinds.get("experts"):
        found.append(_share(subject, "experts", 0.5))
    if off_grid:
        found.append(_onto_grid(subject, off_grid, grid))
    if subject.has_layers:
        found.append(_layers(subject, 0.25))
    if kinds.keys() & STRUCTURED["channels"]:
        found += [_share(subject, "channels", amount) for amount in (0.25, 0.75)]
    if subject.has_layers:
        found.append(_layers(subject, 0.5))
    return found


def zeros(subject: Subject) -> Candidate:
    """Return what stands for zeros of any pattern: 2 of 4 weights, which is half of all."""
    return Candidate(
        "set 2 of 4 weights to zero", "2:4", None, {}, lambda: subject.with_zeros("2:4"), cheap=False
    )


def _share(subject: Subject, pattern: str, amount: float) -> Candidate:
    name = f"remove {amount:.0%} of the {pattern}"
    return Candidate(name, pattern, amount, {}, lambda: subject.cut(pattern, amount))


def _layers(subject: Subject, amount: float) -> Candidate:
    name = f"remove {amount:.0%} of the residual layers"
    return Candidate(
        name, "layers", amount, {"score": "l2"}, lambda: subject.without_layers(amount)
    )  # fmt: skip


def _onto_grid(subject: Subject, off_grid: Mapping[str, int], grid: int) -> Candidate:
    """Return the smallest cut that brings the counts of some groups onto the grid below them.

    A count moves to the nearest multiple, so a group gets there once half of what it has too much is asked
    for. Groups on the grid stay where the same share of them is less than half a step.
    """
    share = max((size % grid / 2 + 0.01) / size for size in off_grid.values())
    amount = float(np.ceil(share * 1e4) / 1e4)
    sizes = sorted(set(off_grid.values()))
    listed = ", ".join(map(str, sizes[:3])) + (" ..." if len(sizes) > 3 else "")
    name = f"bring channel counts ({listed}) to multiples of {grid}"
    return Candidate(
        name, "channels", amount, {"align": grid}, lambda: subject.cut("channels", amount, grid)
    )  # fmt: skip


def _has(removed: Callable[[], Any]) -> bool:
    try:
        removed()
    except (NothingToPrune, LimitMissed):
        return False
    return True
