"""Does a file run, and does it answer with numbers?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxprune import runtime
from onnxprune.errors import OnnxPruneError
from onnxprune.model.shapes import input_shapes
from onnxprune.types import Check


def check_outputs_finite(
    model: ir.Model,
    path: Path,
    against: Path | None,
    shapes: Mapping[str, Sequence[int]] | None,
    seeds: Sequence[int],
    threads: int,
) -> Check:
    """Check that no output is NaN or infinite on random inputs, unless the original's is as well."""
    session = runtime.open_session(path, threads=threads)
    concrete = input_shapes(model, shapes)
    for seed in seeds:
        feeds = runtime.random_feeds(model, concrete, seed)
        bad = _not_finite(session.run(feeds))
        if not bad:
            continue
        if against is not None and _original_agrees(against, feeds, bad, threads):
            detail = f"output {bad[0]!r} is not finite on random inputs, nor is the original's"
            return Check("outputs finite", True, detail)
        return Check(
            "outputs finite", False, f"output {bad[0]!r} is not finite on random inputs (seed {seed})"
        )
    return Check("outputs finite", True, f"on {len(seeds)} random inputs")


def _original_agrees(
    against: Path, feeds: Mapping[str, np.ndarray], bad: Sequence[str], threads: int
) -> bool:
    try:
        results = runtime.open_session(against, threads=threads).run(feeds)
    except OnnxPruneError:
        return False  # an original that takes no such inputs excuses nothing
    return set(bad) <= set(_not_finite(results))


def _not_finite(results: Mapping[str, np.ndarray]) -> list[str]:
    """Return the names of outputs with a NaN or infinite element; outputs that are no numbers are finite."""
    bad = []
    for name, result in results.items():
        numbers = isinstance(result, np.ndarray) and result.dtype.kind not in "OSU"
        if numbers and not np.isfinite(result).all():
            bad.append(name)
    return bad
