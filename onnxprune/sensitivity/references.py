"""The outputs of the original, computed once and kept on disk, so that every trial and process reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError, UsageError
from onnxprune.messages import quoted
from onnxprune.registry import did_you_mean
from onnxprune.runtime import Session
from onnxprune.types import Skipped

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class References:
    """Outputs of the original in a folder, one file for each batch and output.

    Attributes:
        folder: where they are.
        names: of the outputs, each of floats [samples, ...].
        shapes: of one sample of each output.
        parts: where each batch lies in the data.
    """

    folder: Path
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    parts: tuple[slice, ...]

    def batch(self, number: int) -> list[Array]:
        """Return the outputs of one batch, memory-mapped, in the order of the names."""
        return [
            np.load(_file(self.folder, number, name), mmap_mode="r", allow_pickle=False)
            for name in range(len(self.names))
        ]


def _file(folder: Path, batch: int, output: int) -> Path:
    return folder / f"{batch}_{output}.npy"


def record(
    session: Session,
    feeds: Iterable[tuple[slice, Mapping[str, Array]]],
    folder: Path,
    source: str,
    wanted: str | None = None,
) -> tuple[References, list[Skipped]]:
    """Run the original over the data, and keep the outputs that trials can be compared with.

    Args:
        session: the original in float32.
        feeds: where each batch lies in the data, and the inputs.
        folder: an empty folder.
        source: of the data, for messages.
        wanted: the only output to look at; all of them if None.

    Returns:
        The outputs, and which of them are not looked at, with the reason.

    Raises:
        UsageError: there is no output called ``wanted``.
        DataError: no output holds floats for each sample, or one of them is not finite.
        RuntimeFailure: ONNX Runtime can't run the model.
    """
    if wanted is not None and wanted not in session.outputs:
        hint = did_you_mean(wanted, session.outputs)
        raise UsageError(f"the model has no output {quoted(wanted)}{hint}")
    names = list(session.outputs) if wanted is None else [wanted]
    shapes: dict[str, tuple[int, ...]] = {}
    unfit: dict[str, str] = {}
    parts = []
    for number, (part, inputs) in enumerate(feeds):
        parts.append(part)
        for place, (name, output) in enumerate(session.run(inputs, names).items()):
            reason = _why_unfit(output, part.stop - part.start, shapes.get(name))
            if reason is not None:
                unfit.setdefault(name, reason)
                continue
            if not np.isfinite(output).all():
                raise DataError(f"{source}: output {quoted(name)} of the original is not finite on this data")
            shapes[name] = output.shape[1:]
            np.save(_file(folder, number, place), output, allow_pickle=False)
    fit = [(place, name) for place, name in enumerate(names) if name not in unfit]
    if not fit:
        why = "; ".join(f"{quoted(name)} {reason}" for name, reason in unfit.items())
        raise DataError(f"{source}: no output can be compared: {why}")
    for new, (old, _) in enumerate(fit):
        for number in range(len(parts) if new != old else 0):
            _file(folder, number, old).replace(_file(folder, number, new))
    kept = tuple(name for _, name in fit)
    skipped = [Skipped(name, f"this output {reason}: it is not compared") for name, reason in unfit.items()]
    return References(folder, kept, tuple(shapes[name] for name in kept), tuple(parts)), skipped


def _why_unfit(output: object, samples: int, shape: tuple[int, ...] | None) -> str | None:
    if not isinstance(output, np.ndarray) or output.dtype.kind != "f":
        return "holds no floats"
    if output.shape[:1] != (samples,) or output.size == 0:
        return "has a first axis that is not the batch"
    if shape is not None and output.shape[1:] != shape:
        return "has another shape for other samples"
    return None
