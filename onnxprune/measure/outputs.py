"""The outputs of several models on the same samples, batch by batch and in step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.data import Dataset, fixed_batch
from onnxprune.errors import DataError
from onnxprune.messages import quoted
from onnxprune.runtime import Session

Array = npt.NDArray[Any]


def outputs_of(
    sessions: Sequence[Session], data: Dataset, batch: int
) -> Iterator[tuple[slice, list[dict[str, Array]]]]:
    """Yield, for ``batch`` samples at a time, where they lie in the data and each session's outputs by name.

    A model with a fixed batch gets pieces of that size; the last one is filled up with copies of its last
    sample, whose outputs are dropped. Outputs whose first axis is not the batch are left out.

    Raises:
        DataError: a model whose inputs have different fixed batches.
        RuntimeFailure: a model can't be run.
    """
    sizes = [fixed_batch(session.inputs) for session in sessions]
    start = 0
    for feeds in data.batches(batch):
        count = len(next(iter(feeds.values())))
        results = [
            _run(session, feeds, count, size or count) for session, size in zip(sessions, sizes, strict=True)
        ]
        yield slice(start, start + count), results
        start += count


def _run(session: Session, feeds: dict[str, Array], count: int, size: int) -> dict[str, Array]:
    pieces: dict[str, list[Array]] = {}
    for start in range(0, count, size):
        piece = {name: array[start : start + size] for name, array in feeds.items()}
        missing = size - min(size, count - start)
        if missing:
            piece = {name: np.concatenate([a, a[-1:].repeat(missing, axis=0)]) for name, a in piece.items()}
        for name, result in session.run(piece).items():
            if isinstance(result, np.ndarray) and result.shape[:1] == (size,):
                pieces.setdefault(name, []).append(result[: size - missing])
    return {name: parts[0] if len(parts) == 1 else np.concatenate(parts) for name, parts in pieces.items()}


def finite(result: dict[str, Array], name: str, label: str, start: int) -> Array:
    """Return one output of a batch after checking it.

    Args:
        result: the outputs of the batch by name.
        name: the output.
        label: what messages call the model.
        start: index of the batch's first sample.

    Raises:
        DataError: its first axis is not the batch, or it holds text, NaN or infinities.
    """
    if name not in result:
        raise DataError(
            f"{label}: the first axis of output {quoted(name)} is not the batch; name another output"
        )
    array = result[name]
    if array.dtype.kind not in "biufV":
        raise DataError(f"{label}: output {quoted(name)} holds {array.dtype}, no numbers")
    if array.dtype.kind == "V":  # bfloat16 and float8, which numpy's own functions know little of
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        bad = start + int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))[0])
        raise DataError(f"{label}: output {quoted(name)} of sample {bad} holds NaN or infinity")
    return array
