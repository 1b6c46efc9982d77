"""Cuts and removed branches beside their twins: what is proved, on which inputs, and who is to blame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import onnx_ir as ir

from onnxprune.analyze import Analysis
from onnxprune.calibration.activations import feeds_by_batch
from onnxprune.data import Dataset
from onnxprune.errors import ModelError, ProofError
from onnxprune.model.float32 import in_float32
from onnxprune.model.inputs import trial_shapes
from onnxprune.model.nonfinite import find_nonfinite
from onnxprune.ops.sums import Sums
from onnxprune.planning.layers import Layers
from onnxprune.prove import ORIGINAL_REFUSES, TOLERANCE, prove
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.depth import make_depth_twin, remove_branches
from onnxprune.rewrite.fold import Fold, apply_folds, exact_positions, plan_folds
from onnxprune.rewrite.twin import make_twin
from onnxprune.types import BoolArray, Branch, Check, IntArray

#: Name of the proof where a cut claims to lose nothing: its twin is the original itself.
UNCHANGED = "cut equals the original"

#: Real inputs are taken in batches of two, and two batches are enough.
_BATCH = 2


@dataclass(frozen=True, slots=True)
class Trials:
    """The inputs of a proof.

    Attributes:
        seed: of random inputs.
        samples: real inputs, which are run first; None if there are none.
    """

    seed: int
    samples: Dataset | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """A cut that is not proved yet.

    Attributes:
        pruned: the model.
        in_single: it in float32, with biases that were not rounded to 16 bits: what is proved.
        gone: bool ``[labels.count]``, the labels that went.
        folds: what became of constant terms.
        added: how many numbers the folds added, and their bytes.
    """

    pruned: ir.Model
    in_single: ir.Model
    gone: BoolArray
    folds: tuple[Fold, ...]
    added: tuple[int, int]


def make_cut(analysis: Analysis, sums: Sums, removed: Mapping[str, IntArray]) -> Cut:
    """Remove channels, by group, from a copy of an analysed model."""
    gone = analysis.removed_labels(removed)
    folds = plan_folds(sums, gone)
    pruned = cut(analysis.model, analysis.channels, gone)
    in_single = in_float32(pruned)
    if in_single is not pruned:
        apply_folds(in_single, sums, folds, gone)
    return Cut(pruned, in_single, gone, folds, apply_folds(pruned, sums, folds, gone))


def prove_cut(
    analysis: Analysis, sums: Sums, removed: Mapping[str, IntArray], made: Cut, trials: Trials
) -> tuple[Check, ...]:
    """Compare a cut with its exact twin.

    Raises:
        ProofError: they differ; the groups to blame are named.
        ModelError: they differ, and weights of the original are not finite.
    """
    check = _check_cut(analysis, made, trials)
    if not check.passed:
        _refuse_nonfinite(analysis.original)
        blame = _blame(analysis, sums, removed, trials) if _can_blame(check) else ""
        raise ProofError(f"{check.detail}{blame}; nothing was written")
    return (check, *_check_written_out(analysis, trials))


def prove_layers(
    layers: Layers, branches: Sequence[Branch], pruned: ir.Model, trials: Trials
) -> tuple[Check, ...]:
    """Compare a model without some branches with a twin that adds zeros in their place.

    Raises:
        ProofError: they differ; the branches to blame are named.
        ModelError: they differ, and weights of the original are not finite.
    """
    check = _check_layers(layers, pruned, branches, trials)
    if not check.passed:
        _refuse_nonfinite(layers.original)
        blame = _blame_layers(layers, branches, trials) if _can_blame(check) else ""
        raise ProofError(f"{check.detail}{blame}; nothing was written")
    return (check, *_check_written_out(layers, trials))


def _refuse_nonfinite(model: ir.Model) -> None:
    """Say so where weights that are not finite are the reason why nothing can be proved.

    Raises:
        ModelError: there are some.
    """
    problem = find_nonfinite(model)
    if problem is not None:
        raise ModelError(f"{problem}; nothing was written")


def compare(
    original: ir.Model, twin: ir.Model, pruned: ir.Model, first: Mapping[str, tuple[int, ...]], trials: Trials
) -> Check:
    """Run a twin and a pruned model on real and on random inputs.

    Args:
        original: whose interface the inputs are made for.
        twin: what must come out.
        pruned: what is judged.
        first: shapes of the inputs by name.
        trials: seed, and real inputs if there are any.
    """
    shapes = trial_shapes(original, first)
    real = () if trials.samples is None else feeds_by_batch(original, trials.samples, batch=_BATCH)
    return prove(
        twin,
        pruned,
        shapes if len(shapes) > 1 else shapes * 2,
        tolerance=TOLERANCE,
        seed=trials.seed,
        samples=[feeds for _, feeds in islice(real, 2)],
    )


def _check_cut(analysis: Analysis, made: Cut, trials: Trials) -> Check:
    twin = make_twin(analysis.original, analysis.channels, made.gone, exact_positions(made.folds))
    check = compare(analysis.original, twin, made.in_single, analysis.shapes.input_shapes, trials)
    lossless = all(fold.lossless for fold in made.folds) and not _restricted(analysis, made.gone)
    return replace(check, name=UNCHANGED) if lossless else check


def _check_layers(layers: Layers, pruned: ir.Model, branches: Sequence[Branch], trials: Trials) -> Check:
    twin = make_depth_twin(layers.original, layers.model, branches)
    return compare(layers.original, twin, pruned, layers.shapes.input_shapes, trials)


def _check_written_out(found: Analysis | Layers, trials: Trials) -> tuple[Check, ...]:
    """Check that a model whose functions were written out is still the same; the pruned one has none."""
    if found.original is found.given:
        return ()
    check = compare(found.original, found.given, found.original, found.shapes.input_shapes, trials)
    if not check.passed:
        raise ProofError(f"writing out the functions changed the model: {check.detail}; nothing was written")
    count = len(found.given.functions) - len(found.original.functions)
    return (replace(check, name="functions written out", detail=f"{count} functions; {check.detail}"),)


def _restricted(analysis: Analysis, gone: BoolArray) -> bool:
    """Return whether a statistic loses channels that it was taken over."""
    labels = analysis.channels.labels
    return any(gone[labels.resolve(s.labels)].any() for s in analysis.channels.statistics)


def _can_blame(check: Check) -> bool:
    """Return whether trying the parts one by one would tell more: not where the original does not run."""
    return ORIGINAL_REFUSES not in check.detail


def _blame(analysis: Analysis, sums: Sums, removed: Mapping[str, IntArray], trials: Trials) -> str:
    """Cut one group at a time, and name those whose proof fails."""
    guilty = []
    for name, numbers in removed.items():
        if not _check_cut(analysis, make_cut(analysis, sums, {name: numbers}), trials).passed:
            guilty.append(name)
    return _guilty("group", guilty)


def _blame_layers(layers: Layers, branches: Sequence[Branch], trials: Trials) -> str:
    """Remove one branch at a time, and name those whose proof fails."""
    alone = {branch.name: remove_branches(layers.model, [branch]) for branch in branches}
    return _guilty(
        "branch",
        [b.name for b in branches if not _check_layers(layers, alone[b.name], [b], trials).passed],
    )


def _guilty(what: str, names: Sequence[str]) -> str:
    if not names:
        return f"; no single {what} fails, only several together"
    return f"; the proof fails for {what} {', '.join(names)}: protect it, and please report this"
