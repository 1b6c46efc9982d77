"""Masks of models larger than memory: from some size on, their bits wait in a temporary file."""

from __future__ import annotations

import tempfile
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from onnxprune.errors import ModelError
from onnxprune.types import Mask

#: Masks up to this size together stay in memory.
HELD_BYTES = 64 << 20


class _FileMask(Mask):
    """A mask whose bits are read from a file each time they are asked for."""

    __slots__ = ("_file", "_offset")
    _file: BinaryIO
    _offset: int

    def __init__(self, shape: tuple[int, ...], file: BinaryIO, offset: int) -> None:
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "_file", file)
        object.__setattr__(self, "_offset", offset)

    @property
    def bits(self) -> npt.NDArray[np.uint8]:
        """The bits, read anew.

        Raises:
            ModelError: the disk fails.
        """
        bits = np.empty((self.size + 7) // 8, dtype=np.uint8)
        try:
            self._file.seek(self._offset)
            count = self._file.readinto(bits.data)  # type: ignore[attr-defined]
        except OSError as error:
            raise ModelError(f"masks can't be read again: {error.strerror}; check the disk") from error
        if count != bits.size:
            raise ModelError("masks can't be read again: their temporary file was cut; start again")
        return bits

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process gets the bits themselves."""
        return Mask, (self.shape, self.bits)


class MaskStore:
    """Takes masks, and keeps their bits in memory as long as there are few of them."""

    def __init__(self) -> None:
        self._held = 0
        self._file: BinaryIO | None = None

    def keep(self, mask: Mask) -> Mask:
        """Return the same mask, kept here.

        Raises:
            ModelError: the folder for temporary files is full.
        """
        bits = mask.bits
        if self._held + bits.nbytes <= HELD_BYTES:
            self._held += bits.nbytes
            return mask
        try:
            if self._file is None:
                # without a name: it goes with the process, however that ends
                self._file = tempfile.TemporaryFile(prefix="onnxprune-masks-", buffering=0)  # noqa: SIM115
            offset = self._file.seek(0, 2)
            data: memoryview = bits.data
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise ModelError(
                f"masks can't be kept in {tempfile.gettempdir()}: {error.strerror}; free space there, or set "
                "TMPDIR to another folder"
            ) from error
        return _FileMask(mask.shape, self._file, offset)
