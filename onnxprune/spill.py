"""Arrays that wait for their turn: in memory up to a limit, beyond it in a file without a name.

The file lies where the system keeps temporary files (the environment variable TMPDIR says where). It has no
name while it is open, so that nothing is left of it however the process ends.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxprune.errors import OutputError
from onnxprune.messages import one_line, visible

Array: TypeAlias = npt.NDArray[Any]


class Spill:
    """A place for arrays, which is closed with the last of them that is in use, or earlier by hand.

    Args:
        limit_bytes: of the arrays that may wait in memory.

    Attributes:
        held_bytes: of those that do.
        file_bytes: the length of the file so far.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self.file_bytes = 0
        self._file: IO[bytes] | None = None
        self._holes: dict[int, list[int]] = {}  # by length: where arrays were that are gone

    def __enter__(self) -> Spill:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the room of all arrays back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def put(self, array: Array) -> Spilled:
        """Take an array; it may change afterwards.

        Raises:
            OutputError: there is no room for it on disk.
        """
        if self.held_bytes + array.nbytes <= self.limit_bytes or array.dtype.hasobject:
            self.held_bytes += array.nbytes
            return Spilled(self, array.shape, array.dtype, array.copy(), 0)
        holes = self._holes.get(array.nbytes)
        offset = holes.pop() if holes else self.file_bytes
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 # closed with this
                weakref.finalize(self, self._file.close)
            written, data = 0, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            while written < len(data):
                written += os.pwrite(self._file.fileno(), data[written:], offset + written)
        except OSError as error:
            raise _failed(error, "written") from None
        self.file_bytes = max(self.file_bytes, offset + array.nbytes)
        return Spilled(self, array.shape, array.dtype, None, offset)

    def _read(self, spilled: Spilled) -> Array:
        array = np.empty(spilled.shape, spilled.dtype)
        data, read = array.reshape(-1).view(np.uint8).data, 0
        if self._file is None:
            raise ValueError("the place of this array is closed")
        try:
            while read < len(data):
                count = os.preadv(self._file.fileno(), [data[read:]], spilled.offset + read)
                if not count:
                    raise OSError("the file is shorter than it was")
                read += count
        except OSError as error:
            raise _failed(error, "read") from None
        return array

    def _drop(self, spilled: Spilled) -> None:
        size = spilled.nbytes
        if spilled.held is None:
            self._holes.setdefault(size, []).append(spilled.offset)
        else:
            self.held_bytes -= size
            spilled.held = None


@dataclass(slots=True, eq=False)
class Spilled:
    """One array in its place.

    Attributes:
        spill: the place.
        shape: of the array.
        dtype: of the array.
        held: the array, where it waits in memory.
        offset: where it begins in the file otherwise.
    """

    spill: Spill
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    held: Array | None
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def array(self) -> Array:
        """Return the array; not to be written to.

        Raises:
            OutputError: the file can't be read.
        """
        return self.spill._read(self) if self.held is None else self.held

    def drop(self) -> None:
        """Give its room back; it must not be asked for again."""
        self.spill._drop(self)


class SpilledArrays(Mapping[str, Array]):
    """Arrays by name that are read when they are asked for.

    Args:
        limit_bytes: of those that wait in memory.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._spill = Spill(limit_bytes)
        self._places: dict[str, Spilled] = {}

    def add(self, name: str, array: Array) -> None:
        """Take an array.

        Raises:
            OutputError: there is no room for it on disk.
        """
        self._places[name] = self._spill.put(array)

    def place(self, name: str) -> Spilled:
        """Return where an array is, without reading it."""
        return self._places[name]

    def __getitem__(self, name: str) -> Array:
        return self._places[name].array()

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _failed(error: OSError, what: str) -> OutputError:
    folder = visible(tempfile.gettempdir()) if tempfile.tempdir or what == "read" else "temporary files"
    return OutputError(
        f"{folder}: what does not fit into memory can't be {what} ({one_line(error.strerror or error)}); "
        "set TMPDIR to a folder on a disk with more room"
    )
