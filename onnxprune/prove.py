"""Proof of a cut: the cut model computes what its exact twin computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxprune.calibration.part import Tap
from onnxprune.calibration.relay import relay
from onnxprune.calibration.stretches import cut_into_stretches, stored_bytes
from onnxprune.errors import RuntimeFailure
from onnxprune.feeds import random_feeds
from onnxprune.model.float32 import in_float32
from onnxprune.model.scopes import numbered_nodes
from onnxprune.model.switches import (
    Decision,
    combinations,
    decisions,
    reached,
    switch_feeds,
    with_switches,
)
from onnxprune.model.unrounded import without_rounding
from onnxprune.runtime import Session, open_session
from onnxprune.types import Check

#: Two outputs of float32 arithmetic in another order differ by far less; a wrong index by far more.
TOLERANCE = 1e-4

#: How a failed check says that nothing was compared, so that no part of the cut is to blame.
ORIGINAL_REFUSES = "the original itself does not run on"

#: How much larger the error without rounding may be where the models agree as they are.
_ILL_CONDITIONED = 10

#: Branches that are tried by themselves, because the original does not run with all conditions set.
_MOST_SINGLE_TRIALS = 32

#: Shares of a standard normal input that are tried where the original overflows on it.
_SMALLER = (1e-6, 1e-18, 1e-30)

#: And, Or broadcast from here on.
_BROADCASTING_OPSET = 7


def prove(
    twin: ir.Model,
    pruned: ir.Model,
    shapes: Sequence[Mapping[str, tuple[int, ...]]],
    *,
    tolerance: float,
    seed: int = 0,
    samples: Sequence[Mapping[str, np.ndarray]] = (),
) -> Check:
    """Run a cut model and its twin on random inputs, and on real ones if there are any; compare every output.

    Models in other floating-point types are compared in float32. The error of an output is
    ``max |pruned - twin| / max |twin|``; values that are not finite must stand in the same places.

    Beyond the given trials, every branch of every If is run, whatever its condition says; a branch in which
    the original fails at these sizes is named in the detail.

    Where quantizers round activations, the error that counts is that without the rounding: float sums in
    another order may round to the next step, which says nothing about the cut. Both models must run as they
    are all the same, and their error with the rounding is told. Where that one passes, the other may be ten
    times as large: a model can be ill-conditioned between the steps that it was quantized to.

    Args:
        twin: the original with zeros, from `make_twin`.
        pruned: the cut model.
        shapes: one set of input shapes for each trial. The first must run; later ones are skipped where the
            original itself does not take them (a batch size that the exporter fixed inside the graph).
        tolerance: largest error that passes.
        seed: of the inputs.
        samples: real inputs by name, in float32; where there are some, random ones that the original does
            not take are skipped.
    """
    twin, pruned = in_float32(twin), in_float32(pruned)
    trials = [
        _Trial({name: array.shape for name, array in feeds.items()}, seed, real=feeds) for feeds in samples
    ]
    trials += [_Trial(sizes, seed + number) for number, sizes in enumerate(shapes)]
    inputs = "inputs, real ones first" if samples else "random inputs"
    as_they_are = _run_all(twin, pruned, trials, twin)
    plain_twin, plain_cut = without_rounding(twin), without_rounding(pruned)
    if plain_twin is None or plain_cut is None or not as_they_are.ran:
        return _verdict(as_they_are, tolerance, inputs)
    rounded = as_they_are.wrong or f"{as_they_are.error:.1e}"
    how = f"{inputs}, without the rounding of quantizers ({rounded} with it)"
    exact = as_they_are.wrong is None and as_they_are.error <= tolerance
    unrounded = _run_all(plain_twin, plain_cut, trials, twin)
    limit = tolerance * _ILL_CONDITIONED if exact and unrounded.error > tolerance else tolerance
    return _verdict(unrounded, limit, how)


#: What messages call the models.
_LABELS = ("the exact twin", "the cut model")

#: Where both models have more weights than this, each is run by itself, stretch by stretch.
_LARGE_BYTES = 1 << 29


@dataclass(frozen=True, slots=True)
class _Trial:
    """One input, random unless it is given, and the conditions that are set instead of computed."""

    shapes: Mapping[str, tuple[int, ...]]
    seed: int
    forced: Mapping[int, bool] = field(default_factory=dict)
    real: Mapping[str, np.ndarray] | None = None
    scale: float = 1.0  # of random floats


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one or several trials showed.

    Attributes:
        error: the largest error.
        wrong: what is wrong with the cut model, so that there is no error to tell.
        refused: why the original did not run.
        ran: both models ran, and their outputs have equal shapes.
        count: on how many inputs.
        note: what else there is to tell.
        overflows: an output of the original is finite nowhere.
    """

    error: float = 0.0
    wrong: str | None = None
    refused: str | None = None
    ran: bool = True
    count: int = 1
    note: str = ""
    overflows: bool = False


def _verdict(outcome: _Outcome, tolerance: float, how: str) -> Check:
    name = "cut equals its exact twin"
    if outcome.wrong is not None:
        return Check(name, False, outcome.wrong)
    return Check(
        name,
        outcome.error <= tolerance,
        f"largest relative error {outcome.error:.1e} over {outcome.count} {how} "
        f"(tolerance {tolerance:.0e}){outcome.note}",
    )


def _run_all(twin: ir.Model, pruned: ir.Model, trials: Sequence[_Trial], inputs_of: ir.Model) -> _Outcome:
    """Run the given trials, on inputs drawn for one model, and those that take every branch.

    What is wrong ends it.
    """
    paths = _common_decisions(twin, pruned)
    try:
        pair = _Pair(twin, pruned, tuple(paths), inputs_of)
    except RuntimeFailure as error:
        return _Outcome(wrong=str(error), ran=False)
    worst, count, note = 0.0, 0, ""
    for trial, outcome in zip(trials, _run_in_range(pair, trials), strict=True):
        if outcome.refused is not None:
            if trial is trials[0]:
                what = "the data"
                if trial.real is None:
                    what = "random inputs: give it real ones (data), or other sizes (input_shapes)"
                return replace(outcome, wrong=f"{outcome.refused}; {ORIGINAL_REFUSES} {what}")
            note = f"; the original itself does not run at {dict(trial.shapes)}"
            continue
        if outcome.wrong is not None:
            return outcome
        worst, count = max(worst, outcome.error), count + 1
    unset = sum(node.op_type == "If" for node in numbered_nodes(pruned).values()) - len(paths)
    if unset:
        note += f"; {unset} If ran as their conditions said"
    if paths:
        branches = _run_branches(pair, paths, trials)
        if branches.wrong is not None:
            return branches
        worst, note = max(worst, branches.error), note + branches.note
    return _Outcome(worst, count=count, note=note)


def _run_in_range(pair: _Pair, trials: Sequence[_Trial]) -> list[_Outcome]:
    """Run trials, those on random inputs that are too large for the original on smaller ones instead."""
    outcomes = pair.run(trials)
    for scale in _SMALLER:
        if not any(outcome.overflows for outcome in outcomes):
            break
        trials = [
            replace(trial, scale=scale) if outcome.overflows else trial
            for trial, outcome in zip(trials, outcomes, strict=True)
        ]
        outcomes = pair.run(trials)
    return outcomes


class _Pair:
    """A twin and a cut model, ready to run."""

    def __init__(
        self, twin: ir.Model, pruned: ir.Model, switched: Sequence[int], inputs_of: ir.Model
    ) -> None:
        self.inputs_of = inputs_of
        self.switched = switched
        self.names = {number: str(node.name) for number, node in numbered_nodes(pruned).items()}
        models = [with_switches(model, switched) if switched else model for model in (twin, pruned)]
        self.sessions: list[Session] = []
        self.large: list[ir.Model] = models if all(map(_is_large, models)) else []
        if not self.large:
            with ThreadPoolExecutor(2) as pool:  # the runtime leaves Python alone while it opens, too
                opened = pool.map(_open, models, _LABELS)
                self.sessions = list(opened)

    def run(self, trials: Sequence[_Trial]) -> list[_Outcome]:
        """Run both models on the input of every trial, and compare all outputs."""
        feeds = [
            {
                **(trial.real or _drawn(self.inputs_of, trial)),
                **switch_feeds(self.switched, trial.forced),
            }
            for trial in trials
        ]
        if self.large:
            both = [_in_stretches(*each, feeds) for each in zip(self.large, _LABELS, strict=True)]
            return [_outcome(*pair) for pair in zip(*both, strict=True)]
        with ThreadPoolExecutor(2) as pool:  # the runtime leaves Python alone while it works
            jobs = [(session, feed) for session in self.sessions for feed in feeds]
            answers = list(pool.map(lambda job: _answer(*job), jobs))
        return [_outcome(*both) for both in zip(answers[: len(feeds)], answers[len(feeds) :], strict=True)]


def _open(model: ir.Model, label: str) -> Session:
    return open_session(model, optimize="none", prepack=False, label=label)


def _drawn(model: ir.Model, trial: _Trial) -> dict[str, np.ndarray]:
    feeds = random_feeds(model, trial.shapes, trial.seed)
    if trial.scale == 1:
        return feeds
    return {
        name: np.asarray(array * trial.scale, dtype=array.dtype) if array.dtype.kind == "f" else array
        for name, array in feeds.items()
    }


def _is_large(model: ir.Model) -> bool:
    """Tell whether a model is run in stretches: one that takes much memory, its outputs being computed."""
    computed = all(value.producer() is not None for value in model.graph.outputs)
    return computed and stored_bytes(model) > _LARGE_BYTES


def _in_stretches(
    model: ir.Model, label: str, feeds: Sequence[Mapping[str, np.ndarray]]
) -> list[dict[str, np.ndarray] | RuntimeFailure]:
    """Return the outputs of a large model for some inputs, or why there are none."""
    names = list(dict.fromkeys(str(value.name) for value in model.graph.outputs))
    cut = cut_into_stretches(model.graph, [[name] for name in names], weight_bytes=_LARGE_BYTES // 2)
    shares = [[[Tap(names[number]) for number in stretch.bundles]] for stretch in cut]
    found: list[dict[str, np.ndarray] | RuntimeFailure] = [{} for _ in feeds]
    for turn in relay(
        model, cut, shares, feeds.__getitem__, len(feeds),
        spill_bytes=_LARGE_BYTES // 2, threads=1, form="written", label=label,
    ):  # fmt: skip
        mine = found[turn.batch]
        if isinstance(turn.found, RuntimeFailure):
            found[turn.batch] = turn.found
        elif not isinstance(mine, RuntimeFailure):
            mine.update({tap.name: array.copy() for tap, array in turn.found.items()})
    return found


def _outcome(
    expected: dict[str, np.ndarray] | RuntimeFailure, actual: dict[str, np.ndarray] | RuntimeFailure
) -> _Outcome:
    if isinstance(expected, RuntimeFailure):
        return _Outcome(refused=str(expected), ran=False)
    if isinstance(actual, RuntimeFailure):
        return _Outcome(wrong=str(actual), ran=False)
    error, why = _compare(expected, actual)
    same = all(actual[output].shape == array.shape for output, array in expected.items())
    overflows = why is not None and any(
        array.dtype.kind == "f" and array.size and not np.isfinite(array).any() for array in expected.values()
    )
    return _Outcome(error, wrong=why, ran=same, overflows=overflows)


def _common_decisions(twin: ir.Model, pruned: ir.Model) -> dict[int, tuple[Decision, ...]]:
    """Return the Ifs that both models have, with the decisions that lead to them."""
    if twin.opset_imports.get("", 1) < _BROADCASTING_OPSET:
        return {}
    others, paths = decisions(twin), decisions(pruned)
    return {number: path for number, path in paths.items() if others.get(number) is not None}


def _run_branches(
    pair: _Pair, paths: Mapping[int, tuple[Decision, ...]], given: Sequence[_Trial]
) -> _Outcome:
    """Run every branch of every If, whatever the conditions say: all at once, then those left one by one."""
    distinct = list({tuple(sorted(trial.shapes.items())): trial for trial in given}.values())
    wanted = {(number, holds) for number in paths for holds in (True, False)}
    trials = [
        _Trial(trial.shapes, trial.seed, forced) for forced in combinations(paths) for trial in distinct
    ]
    worst, covered = 0.0, set[Decision]()
    for one_by_one in (False, True):
        if one_by_one:
            left = sorted(wanted - covered)[:_MOST_SINGLE_TRIALS]
            trials = [
                _Trial(given[0].shapes, given[0].seed, dict((*paths[number], (number, holds))))
                for number, holds in left
            ]
        for trial, outcome in zip(trials, pair.run(trials), strict=True):
            if outcome.wrong is not None:
                return outcome
            if outcome.refused is None:
                worst = max(worst, outcome.error)
                covered |= reached(trial.forced, paths)
    note = f", and over both branches of {len(paths)} If"
    if idle := sorted(wanted - covered):
        number, holds = idle[0]
        more = f" (and {len(idle) - 1} more)" if len(idle) > 1 else ""
        note = f"; the {'then' if holds else 'else'} branch of {pair.names[number]}{more} never ran"
    return _Outcome(worst, note=note)


def _answer(session: Session, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | RuntimeFailure:
    """Return the outputs for an input, or why there are none."""
    try:
        return session.run(feed)
    except RuntimeFailure as error:
        return error


def _compare(
    expected: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray]
) -> tuple[float, str | None]:
    """Return the largest relative error over all outputs, or why there is none."""
    worst = 0.0
    for name, reference in expected.items():
        result = actual[name]
        if result.shape != reference.shape:
            return np.inf, f"output {name} has shape {result.shape}, the twin's {reference.shape}"
        difference = relative_error(result, reference)
        if not np.isfinite(difference):
            return np.inf, f"output {name} is not finite where the twin's is, or nowhere"
        worst = max(worst, difference)
    return worst, None


def relative_error(result: np.ndarray, reference: np.ndarray) -> float:
    """Return ``max |result - reference| / max |reference|``; infinity if other places are not finite.

    Booleans and integers count as numbers. Two empty arrays are equal; all-zero ones must be equal exactly.
    """
    if reference.size == 0:
        return 0.0
    a, b = result.astype(np.float64), reference.astype(np.float64)
    finite = np.isfinite(b)
    if not finite.any() or not np.array_equal(finite, np.isfinite(a)):
        return float("inf")
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    difference = float(np.abs(a[finite] - b[finite]).max())
    scale = float(np.abs(b[finite]).max())
    return difference / scale if scale > 0 else (0.0 if difference == 0 else float("inf"))
