"""Does a file run, and does it answer with numbers?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxprune import runtime
from onnxprune.errors import OnnxPruneError, RuntimeFailure
from onnxprune.feeds import random_feeds
from onnxprune.model.float32 import in_float32
from onnxprune.model.inputs import trial_shapes
from onnxprune.model.io import model_files
from onnxprune.model.shapes import input_shapes
from onnxprune.model.size import tensor_bytes
from onnxprune.resident import pages_dropped
from onnxprune.types import Check

#: Tensors of a model from which on its pages are kept out of resident memory.
_LARGE_BYTES = 256 << 20


def check_outputs_finite(
    model: ir.Model,
    path: Path,
    against: Path | None,
    shapes: Mapping[str, Sequence[int]] | None,
    seeds: Sequence[int],
    threads: int,
) -> Check:
    """Check that no output is NaN or infinite on random inputs, unless the original's is as well.

    Inputs that the original does not take either are left out.
    """
    session, note = _open(model, path, threads)
    trials = trial_shapes(model, input_shapes(model, shapes))
    ran = 0
    for seed, concrete in [(seed, trials[0]) for seed in seeds] + [(seeds[0], shape) for shape in trials[1:]]:
        feeds = random_feeds(model, concrete, seed)
        try:
            with pages_dropped(_mapped_files(model, path)):
                bad = _not_finite(session.run(_as_taken(session, feeds)))
        except RuntimeFailure:
            if _runs(against, feeds, threads):
                raise
            refused = f"; of shapes {concrete} neither this model nor its original runs on all"
            note += refused if refused not in note else ""
            continue
        ran += 1
        if not bad:
            continue
        if against is not None and _original_agrees(against, feeds, bad, threads):
            detail = f"output {bad[0]!r} is not finite on random inputs, nor is the original's"
            return Check("outputs finite", True, detail)
        return Check(
            "outputs finite", False, f"output {bad[0]!r} is not finite on random inputs (seed {seed})"
        )
    return Check("outputs finite", True, f"on {ran} random inputs{note}")


def _open(model: ir.Model, path: Path, threads: int) -> tuple[runtime.Session, str]:
    """Open the file, or, where ONNX Runtime lacks kernels for its precision, the model in float32."""
    try:
        # Packed weights are a second copy: large ones stay in their file, mapped.
        return runtime.open_session(path, threads=threads, prepack=not _mapped_files(model, path)), ""
    except RuntimeFailure:
        single = in_float32(model)
        if single is model:
            raise
        return runtime.open_session(single, threads=threads), ", in float32: ONNX Runtime lacks its kernels"


def _mapped_files(model: ir.Model, path: Path) -> tuple[Path, ...]:
    """Return the data files that ONNX Runtime maps, where they are large enough to matter."""
    return model_files(path)[1:] if tensor_bytes(model) >= _LARGE_BYTES else ()


def _as_taken(session: runtime.Session, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.astype(session.inputs[name].dtype, copy=False) for name, array in feeds.items()}


def _runs(against: Path | None, feeds: Mapping[str, np.ndarray], threads: int) -> bool:
    """Tell whether the original takes an input; without an original, it is expected to."""
    if against is None:
        return True
    try:
        runtime.open_session(against, threads=threads).run(feeds)
    except OnnxPruneError:
        return False
    return True


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
