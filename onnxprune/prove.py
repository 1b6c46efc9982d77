"""Proof of a cut: the cut model computes what its exact twin computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.errors import RuntimeFailure
from onnxprune.model.float32 import in_float32
from onnxprune.model.unrounded import without_rounding
from onnxprune.runtime import Session, open_session, random_feeds
from onnxprune.types import Check

#: Two outputs of float32 arithmetic in another order differ by far less; a wrong index by far more.
TOLERANCE = 1e-4

#: How much larger the error without rounding may be where the models agree as they are.
_ILL_CONDITIONED = 10


def prove(
    twin: ir.Model,
    pruned: ir.Model,
    shapes: Sequence[Mapping[str, tuple[int, ...]]],
    *,
    tolerance: float,
    seed: int = 0,
) -> Check:
    """Run a cut model and its twin on random inputs, and compare every output.

    Models in other floating-point types are compared in float32. The error of an output is
    ``max |pruned - twin| / max |twin|``; values that are not finite must stand in the same places.

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
    """
    name = "cut equals its exact twin"
    twin, pruned = in_float32(twin), in_float32(pruned)
    plain_twin, plain_cut = without_rounding(twin), without_rounding(pruned)
    feeds = [random_feeds(twin, sizes, seed + number) for number, sizes in enumerate(shapes)]
    as_they_are = _trials(twin, pruned, feeds)
    if plain_twin is None or plain_cut is None or not as_they_are.ran:
        return _verdict(name, as_they_are, tolerance, "")
    rounded = as_they_are.failure or f"{as_they_are.worst:.1e}"
    how = f" without the rounding of quantizers ({rounded} with it)"
    exact = as_they_are.failure is None and as_they_are.worst <= tolerance
    unrounded = _trials(plain_twin, plain_cut, feeds)
    limit = tolerance * _ILL_CONDITIONED if exact and unrounded.worst > tolerance else tolerance
    return _verdict(name, unrounded, limit, how)


@dataclass(frozen=True, slots=True)
class _Trials:
    """What came of running two models.

    Attributes:
        worst: the largest error.
        count: on how many inputs.
        skipped: which inputs the original itself does not take.
        failure: why there is no error to tell.
        ran: both models ran, and their outputs have equal shapes.
    """

    worst: float = 0.0
    count: int = 0
    skipped: str = ""
    failure: str | None = None
    ran: bool = True


def _verdict(name: str, trials: _Trials, tolerance: float, how: str) -> Check:
    if trials.failure is not None:
        return Check(name, False, trials.failure)
    return Check(
        name,
        trials.worst <= tolerance,
        f"largest relative error {trials.worst:.1e} over {trials.count} random inputs{how} "
        f"(tolerance {tolerance:.0e}){trials.skipped}",
    )


def _trials(twin: ir.Model, pruned: ir.Model, feeds: Sequence[Mapping[str, np.ndarray]]) -> _Trials:
    """Run both models on the same inputs, and compare every output."""
    try:
        expected_by = open_session(twin, optimize="none", prepack=False, label="the exact twin")
        actual_by = open_session(pruned, optimize="none", prepack=False, label="the cut model")
    except RuntimeFailure as error:
        return _Trials(failure=str(error), ran=False)
    with ThreadPoolExecutor(2) as pool:  # the runtime leaves Python alone while it works
        jobs = [(session, feed) for session in (expected_by, actual_by) for feed in feeds]
        answers = list(pool.map(lambda job: _answer(*job), jobs))
    expected, actual = answers[: len(feeds)], answers[len(feeds) :]
    worst, trials, skipped = 0.0, 0, ""
    for number, (reference, result) in enumerate(zip(expected, actual, strict=True)):
        if isinstance(reference, RuntimeFailure):
            if number == 0:
                return _Trials(failure=str(reference), ran=False)
            sizes = {name: array.shape for name, array in feeds[number].items()}
            skipped = f"; the original itself does not run at {sizes}"
            continue
        if isinstance(result, RuntimeFailure):
            return _Trials(failure=str(result), ran=False)
        difference, why = _compare(reference, result)
        if why is not None:
            same = all(result[output].shape == array.shape for output, array in reference.items())
            return _Trials(failure=why, ran=same)
        worst, trials = max(worst, difference), trials + 1
    return _Trials(worst, trials, skipped)


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
