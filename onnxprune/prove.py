"""Proof of a cut: the cut model computes what its exact twin computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir

from onnxprune.errors import RuntimeFailure
from onnxprune.model.float32 import in_float32
from onnxprune.runtime import Session, open_session, random_feeds
from onnxprune.types import Check

#: Two outputs of float32 arithmetic in another order differ by far less; a wrong index by far more.
TOLERANCE = 1e-4


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
    try:
        expected_by = open_session(twin, optimize="none", prepack=False, label="the exact twin")
        actual_by = open_session(pruned, optimize="none", prepack=False, label="the cut model")
    except RuntimeFailure as error:
        return Check(name, False, str(error))
    feeds = [random_feeds(twin, sizes, seed + number) for number, sizes in enumerate(shapes)]
    with ThreadPoolExecutor(2) as pool:  # the runtime leaves Python alone while it works
        jobs = [(session, feed) for session in (expected_by, actual_by) for feed in feeds]
        answers = list(pool.map(lambda job: _answer(*job), jobs))
    expected, actual = answers[: len(feeds)], answers[len(feeds) :]
    worst, trials, skipped = 0.0, 0, ""
    for number, (reference, result) in enumerate(zip(expected, actual, strict=True)):
        if isinstance(reference, RuntimeFailure):
            if number == 0:
                return Check(name, False, str(reference))
            skipped = f"; the original itself does not run at {dict(shapes[number])}"
            continue
        if isinstance(result, RuntimeFailure):
            return Check(name, False, str(result))
        difference, why = _compare(reference, result)
        if why is not None:
            return Check(name, False, why)
        worst, trials = max(worst, difference), trials + 1
    detail = (
        f"largest relative error {worst:.1e} over {trials} random inputs (tolerance {tolerance:.0e}){skipped}"
    )
    return Check(name, worst <= tolerance, detail)


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
