"""Evaluation and calibration data: one array per model input, labels, segments.

Sources: an ``.npz`` file (first axis = samples; labels under ``label``, optionally ``segment``), a folder of
such files, ``module:function`` yielding dictionaries of the same arrays, or an object with ``get_next()``
(ONNX Runtime's CalibrationDataReader). Files are not trusted: nothing is unpickled, and no array is allocated
before its declared size has been compared with what the archive holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxprune import machine, npz
from onnxprune.errors import DataError
from onnxprune.messages import one_line, quoted
from onnxprune.registry import did_you_mean
from onnxprune.user_code import current_folder_importable, is_reference, load_function, reporting

LABEL = "label"
SEGMENT = "segment"

#: In a folder; each is opened, and far fewer hold all samples that fit into memory.
_MOST_FILES = 100_000

Array = npt.NDArray[Any]

#: Shape (None for a symbolic axis; the first axis is the batch) and type of every input of a model, by name.
Inputs: TypeAlias = Mapping[str, tuple[tuple[int | None, ...], np.dtype[Any]]]


class DataReader(Protocol):
    """ONNX Runtime's CalibrationDataReader."""

    def get_next(self) -> Mapping[str, Array] | None:
        """Return the next batch of inputs by name, None after the last one."""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Samples that passed every check that needs no model.

    Attributes:
        arrays: one array [samples, ...] for each model input, finite.
        labels: [samples, ...] or None.
        segments: text [samples], the segment each sample belongs to, or None.
        source: where it came from, for messages.
        digest: sha256 over names, types, shapes and contents.
        noise: drawn at random, not taken from anywhere.
    """

    arrays: Mapping[str, Array]
    labels: Array | None
    segments: npt.NDArray[np.str_] | None
    source: str
    digest: str
    noise: bool = False

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], source: str = "data") -> Dataset:
        """Check arrays [samples, ...] by name, ``label`` and ``segment`` among them, and wrap them.

        Raises:
            DataError: empty, not of equal length, not numeric, or not finite.
        """
        inputs = {name: np.asarray(array) for name, array in arrays.items()}
        labels = inputs.pop(LABEL, None)
        segments = inputs.pop(SEGMENT, None)
        _check_arrays(inputs, labels, segments, source)
        text = None if segments is None else segments.astype(np.str_)
        return cls(inputs, labels, text, source, _digest({**inputs, LABEL: labels, SEGMENT: text}))

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Yield the inputs of ``size`` samples at a time, in order; the last batch may be smaller."""
        if size < 1:
            raise ValueError(f"batch size must be positive, not {size}")
        for start in range(0, len(self), size):
            yield {name: array[start : start + size] for name, array in self.arrays.items()}

    def take(self, which: npt.NDArray[np.intp]) -> Dataset:
        """Return some of the samples, by their numbers."""
        arrays = {name: array[which] for name, array in self.arrays.items()}
        for name, kept in ((LABEL, self.labels), (SEGMENT, self.segments)):
            if kept is not None:
                arrays[name] = kept[which]
        return replace(Dataset.from_arrays(arrays, self.source), noise=self.noise)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Name this data in what goes wrong with it in the block: errors that deeper parts raise do not."""
        try:
            yield
        except DataError as error:
            if self.source in str(error):
                raise
            raise DataError(f"{self.source}: {error}") from error

    def check_against(self, inputs: Inputs) -> None:
        """Check that the arrays fit a model's inputs.

        Args:
            inputs: shapes and types by name.

        Raises:
            DataError: a name, rank, size or type differs.
        """
        for name in self.arrays:
            if name not in inputs:
                hint = did_you_mean(name, [*inputs, LABEL, SEGMENT])
                raise DataError(
                    f"{self.source}: {quoted(name)} is no input of the model{hint}; inputs: {_names(inputs)}"
                )
        for name, (shape, dtype) in inputs.items():
            if name not in self.arrays:
                raise DataError(
                    f"{self.source}: no array for input {quoted(name)}; it has: {_names(self.arrays)}"
                )
            array = self.arrays[name]
            if array.dtype != dtype:
                raise DataError(
                    f"{self.source}: {quoted(name)} is {array.dtype}, the model takes {dtype}; convert it"
                )
            fits = array.ndim == len(shape) and all(
                wanted is None or wanted == size
                for wanted, size in zip(shape[1:], array.shape[1:], strict=True)
            )
            if not fits:
                wanted_text = ", ".join(
                    "?" if size is None else str(size) for size in ("samples", *shape[1:])
                )
                raise DataError(
                    f"{self.source}: {quoted(name)} has shape {array.shape}, the model takes [{wanted_text}]"
                )


def fixed_batch(inputs: Inputs) -> int | None:
    """Return the size of the first axis of a model's inputs, None if it is symbolic.

    Raises:
        DataError: the inputs have different fixed sizes.
    """
    shapes = [shape for shape, _ in inputs.values()]
    sizes = {shape[0] for shape in shapes if shape} - {None}
    if len(sizes) > 1:
        raise DataError(
            "the first axes of the model's inputs have different fixed sizes "
            f"({', '.join(map(str, shapes))}), so none is the batch"
        )
    return next(iter(sizes), None)


def load_data(source: str | Path | DataReader) -> Dataset:
    """Read data from a file, a folder, the user's function or a calibration data reader.

    Args:
        source: an ``.npz`` file, a folder of them (concatenated by file name), ``module:function`` (called
            without arguments; yields dictionaries of arrays, each with a first axis of samples), or a reader.

    Raises:
        DataError: missing, damaged, unsafe, empty, inconsistent or not finite.
    """
    if not isinstance(source, (str, Path)):
        return Dataset.from_arrays(_concatenate(iter(source.get_next, None), "data reader"), "data reader")
    path = Path(source)
    label = one_line(source)
    if path.is_dir():
        return Dataset.from_arrays(_read_folder(path, label), label)
    if not path.exists() and isinstance(source, str) and is_reference(source):
        return Dataset.from_arrays(_call(source), label)
    if path.suffix.lower() != ".npz":
        reason = "is no .npz file, folder or module:function" if path.exists() else "no such file or folder"
        raise DataError(f"{label}: {reason}")
    return Dataset.from_arrays(npz.read(path), label)


def _read_folder(folder: Path, label: str) -> dict[str, Array]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".npz")
    if not paths:
        raise DataError(f"{label}: the folder holds no .npz file")
    if len(paths) > _MOST_FILES:
        raise DataError(f"{label}: holds {len(paths)} .npz files; at most {_MOST_FILES} are read")
    return _concatenate(_each(paths), label)


def _each(paths: Iterable[Path]) -> Iterator[dict[str, Array]]:
    """Yield what archives hold, as long as all of it fits into this machine's memory."""
    room_bytes = machine.memory_bytes()
    for path in paths:
        arrays = npz.read(path, room_bytes)
        if room_bytes is not None:
            room_bytes -= sum(array.nbytes for array in arrays.values())
        yield arrays


def _call(reference: str) -> dict[str, Array]:
    function = load_function(reference)
    with reporting(reference), current_folder_importable():  # a generator imports while it runs
        return _concatenate(function(), reference)


def _concatenate(parts: Iterable[Mapping[str, Array]], source: str) -> dict[str, Array]:
    collected: dict[str, list[Array]] = {}
    for index, part in enumerate(parts):
        if not isinstance(part, Mapping):
            raise DataError(f"{source}: part {index} is {type(part).__name__}, not a dictionary of arrays")
        if index and part.keys() != collected.keys():
            raise DataError(
                f"{source}: part {index} holds {_names(part)}, those before it {_names(collected)}"
            )
        for name, value in part.items():
            array = np.asarray(value)
            earlier = collected.setdefault(str(name), [])
            if earlier and _kind(earlier[0]) != _kind(array):
                raise DataError(
                    f"{source}: {quoted(name)} of part {index} is {array.dtype}{array.shape}, "
                    f"before it {earlier[0].dtype}{earlier[0].shape}"
                )
            if array.ndim == 0:
                raise DataError(f"{source}: {quoted(name)} of part {index} has no first axis of samples")
            earlier.append(array)
    if not collected:
        raise DataError(f"{source}: holds no samples")
    return {
        name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for name, arrays in collected.items()
    }


def _kind(array: Array) -> tuple[str, tuple[int, ...]]:
    """Return what must be equal for arrays to be concatenated; texts may differ in width."""
    return "text" if array.dtype.kind in "US" else str(array.dtype), array.shape[1:]


def _check_arrays(
    inputs: Mapping[str, Array], labels: Array | None, segments: Array | None, source: str
) -> None:
    if not inputs:
        raise DataError(f"{source}: holds no array for a model input")
    named = [*inputs.items(), *((n, a) for n, a in ((LABEL, labels), (SEGMENT, segments)) if a is not None)]
    count = None
    for name, array in named:
        if array.ndim == 0:
            raise DataError(f"{source}: {quoted(name)} has no first axis of samples")
        if array.size == 0:
            raise DataError(f"{source}: {quoted(name)} is empty, its shape is {array.shape}")
        if count is not None and len(array) != count[1]:
            raise DataError(
                f"{source}: {quoted(name)} has {len(array)} samples, {quoted(count[0])} has {count[1]}"
            )
        count = count or (name, len(array))
        _check_contents(name, array, source, may_be_text=name in (LABEL, SEGMENT))
    if segments is not None and segments.ndim != 1:
        raise DataError(f"{source}: {SEGMENT!r} has shape {segments.shape}, expected one entry per sample")


def _check_contents(name: str, array: Array, source: str, may_be_text: bool) -> None:
    # "V" without fields: the types of ml_dtypes, such as bfloat16
    numeric = array.dtype.kind in "biuf" or (array.dtype.kind == "V" and array.dtype.type is not np.void)
    if not numeric and not (may_be_text and array.dtype.kind in "US"):
        raise DataError(f"{source}: {quoted(name)} has type {array.dtype}, which is no number")
    if array.dtype.kind in "fV" and not np.isfinite(array).all():
        position = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise DataError(
            f"{source}: {quoted(name)} is {array[position]} at {list(position)}; leave that sample out"
        )


def _digest(arrays: Mapping[str, Array | None]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        if array is not None:
            digest.update(repr((name, array.dtype.name, array.shape)).encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _names(names: Iterable[str]) -> str:
    return one_line(", ".join(map(str, names)) or "nothing")
