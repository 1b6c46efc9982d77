"""Does a file run, and does it answer with numbers?"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune import runtime
from onnxprune.errors import ModelError, OnnxPruneError, RuntimeFailure, RunTooLong
from onnxprune.feeds import random_feeds
from onnxprune.model.float32 import in_float32
from onnxprune.model.inputs import trial_shapes
from onnxprune.model.io import load, model_files, save
from onnxprune.model.shapes import input_shapes
from onnxprune.model.size import tensor_bytes
from onnxprune.resident import pages_dropped
from onnxprune.runtime.admission import MISSING_HERE
from onnxprune.types import Check

#: From this many bytes of tensors on, weights stay in their file while the model runs: the graph is run as it
#: stands, and pages are dropped as soon as they were read.
LARGE_BYTES = 64 << 20

#: From this many bytes on, one run has to do: each of them reads the whole file.
_ONE_RUN_BYTES = 1 << 30

#: After a run that took so long there is no other.
_LONG_RUN_SECONDS = 5.0

_IN_PLACE = ", with the graph as it stands and weights read in place"

_Run: TypeAlias = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def check_outputs_finite(
    model: ir.Model,
    path: Path,
    against: Path | None,
    shapes: Mapping[str, Sequence[int]] | None,
    seeds: Sequence[int],
    threads: int,
) -> Check:
    """Check that no output is NaN or infinite on random inputs, unless the original's is as well.

    Inputs that the original does not take either are left out; if all of them are, the detail says that
    nothing was checked.
    """
    trials = trial_shapes(model, _input_shapes(model, against, shapes))
    inputs = [(seed, trials[0]) for seed in seeds] + [(seeds[0], shape) for shape in trials[1:]]
    size = tensor_bytes(model)
    refused: list[str] = []
    ran = 0
    with _opened(model, path, threads) as (run, note):
        if size >= _ONE_RUN_BYTES:
            inputs, note = inputs[:1], f"{note}; not on more, because each run reads {size} bytes"
        for seed, concrete in inputs:
            feeds = random_feeds(model, concrete, seed)
            started = time.monotonic()
            try:
                bad = _not_finite(run(feeds))
            except RunTooLong:
                raise
            except RuntimeFailure:
                if _runs(against, feeds, threads):
                    raise
                refused.append(f"; of shapes {concrete} neither this model nor its original runs on all")
                continue
            ran += 1
            took = time.monotonic() - started
            if not bad:
                if took > _LONG_RUN_SECONDS and len(inputs) > 1:
                    note = f"{note}; not on more, because a run takes {took:.0f} s"
                    break
                continue
            if against is not None and _original_agrees(against, feeds, bad, threads):
                detail = f"output {bad[0]!r} is not finite on random inputs, nor is the original's"
                return Check("outputs finite", True, detail)
            return Check(
                "outputs finite", False, f"output {bad[0]!r} is not finite on random inputs (seed {seed})"
            )
    if not ran:
        detail = f"not checked, on no input{refused[0]}: give sizes that they take (input_shapes)"
        return Check("outputs finite", True, detail)
    note += "".join(dict.fromkeys(refused))
    return Check("outputs finite", True, f"on {ran} random input{'' if ran == 1 else 's'}{note}")


def _input_shapes(
    model: ir.Model, against: Path | None, shapes: Mapping[str, Sequence[int]] | None
) -> dict[str, tuple[int, ...]]:
    """Return concrete shapes of the inputs; those without a rank get it from the layers of the original.

    In a quantized model, something may stand between an input and the layer that tells its rank.
    """
    try:
        return input_shapes(model, shapes)
    except ModelError:
        if against is None:
            raise
        return input_shapes(load(against), shapes)


@contextmanager
def _opened(model: ir.Model, path: Path, threads: int) -> Iterator[tuple[_Run, str]]:
    """Open the file, or, where ONNX Runtime lacks kernels for its precision, the model in float32.

    A large one is read in place, whichever it is: float32 then is a file of its own.
    """
    mapped = _mapped_files(model, path)
    try:
        session, note = _open(path, threads, mapped), _IN_PLACE if mapped else ""
    except RuntimeFailure as error:
        single = in_float32(model, when_read=bool(mapped)) if _lacks_kernels(error) else model
        if single is model:
            raise
        note = ", in float32: ONNX Runtime lacks its kernels"
        if not mapped:
            yield runtime.open_session(single, threads=threads).run, note
            return
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            files = save(single, Path(folder) / "single.onnx", external_data=True)
            session = _open(files[0], threads, files[1:])
            yield _dropping(session, files[1:]), f"{note}{_IN_PLACE}"
        return
    yield _dropping(session, mapped), note


def _open(path: Path, threads: int, mapped: Sequence[Path]) -> runtime.Session:
    if mapped:  # optimizing and packing would make copies of weights in memory
        return runtime.open_session(
            path, threads=threads, optimize="none", prepack=False, arena=False, in_order=True
        )
    return runtime.open_session(path, threads=threads)


def _lacks_kernels(error: RuntimeFailure) -> bool:
    """Tell whether a model may open in another precision: there is nothing else wrong with it."""
    return MISSING_HERE in str(error) or "tensor(bfloat16)" in str(error)


def _dropping(session: runtime.Session, mapped: Sequence[Path]) -> _Run:
    """Return what runs a session while the pages of mapped files are dropped as soon as they were read."""

    def run(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        with pages_dropped(mapped):
            return session.run(_as_taken(session, feeds))

    return run


def _mapped_files(model: ir.Model, path: Path) -> tuple[Path, ...]:
    """Return the data files that ONNX Runtime maps, where they are large enough to matter."""
    return model_files(path)[1:] if tensor_bytes(model) >= LARGE_BYTES else ()


def _as_taken(session: runtime.Session, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.astype(session.inputs[name].dtype, copy=False) for name, array in feeds.items()}


def _runs(against: Path | None, feeds: Mapping[str, np.ndarray], threads: int) -> bool:
    """Tell whether the original takes an input; without an original, it is expected to."""
    if against is None:
        return True
    try:
        _answer(against, feeds, threads)
    except OnnxPruneError:
        return False
    return True


def _answer(path: Path, feeds: Mapping[str, np.ndarray], threads: int) -> Mapping[str, np.ndarray]:
    """Return the outputs of another file."""
    mapped = _mapped_files(load(path), path)
    session = _open(path, threads, mapped)
    with pages_dropped(mapped):
        return session.run(feeds)


def _original_agrees(
    against: Path, feeds: Mapping[str, np.ndarray], bad: Sequence[str], threads: int
) -> bool:
    try:
        results = _answer(against, feeds, threads)
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
