"""Data in a folder, for other processes: one file for each array, memory-mapped when it is read again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.data import Dataset

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class StoredData:
    """What of a data set is not in the folder.

    Attributes:
        inputs: names of the inputs, in order.
        types: of the arrays, in the order of their files.
        labels: whether there are labels.
        segments: whether there are segments.
        source: of the data set.
        digest: of the data set.
        noise: of the data set.
    """

    inputs: tuple[str, ...]
    types: tuple[np.dtype[Any], ...]
    labels: bool
    segments: bool
    source: str
    digest: str
    noise: bool

    def read(self, folder: Path) -> Dataset:
        """Return the data set, of which nothing is in memory."""
        arrays = [
            np.asarray(np.load(_file(folder, number), mmap_mode="r", allow_pickle=False)).view(dtype)
            for number, dtype in enumerate(self.types)
        ]
        segments = arrays.pop() if self.segments else None
        labels = arrays.pop() if self.labels else None
        inputs = dict(zip(self.inputs, arrays, strict=True))
        return Dataset(inputs, labels, segments, self.source, self.digest, self.noise)


def store(data: Dataset, folder: Path) -> StoredData:
    """Write the arrays of a data set into an empty folder."""
    arrays = [*data.arrays.values()]
    arrays += [array for array in (data.labels, data.segments) if array is not None]
    for number, array in enumerate(arrays):
        plain = np.ascontiguousarray(array)
        # types of ml_dtypes, such as bfloat16, are no types of .npy
        np.save(_file(folder, number), plain.view(f"V{plain.itemsize}") if plain.dtype.kind == "V" else plain)
    return StoredData(
        tuple(data.arrays), tuple(array.dtype for array in arrays), data.labels is not None,
        data.segments is not None, data.source, data.digest, data.noise,
    )  # fmt: skip


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number}.npy"
