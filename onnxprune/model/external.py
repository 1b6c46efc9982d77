"""External data: where a tensor's file may lie, whether it fits, and how it is read.

A model file is somebody else's text, and a location in it is a path that we are asked to open. It must be a
plain relative path that ends, after all links, in a regular file below the model's folder (or below the
folder the model file itself is a link to, which is how the Hugging Face cache is laid out), with a single
name on the file system, so that a hard link can't smuggle another file in.

Data files are neither mapped nor kept open. A mapped file that somebody truncates kills the process, its
pages count as resident memory, and one descriptor per tensor runs into the limit. So each reading opens the
file, makes sure that it is still the file that was checked, and copies out what is asked for.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.messages import quoted, visible

#: Bytes of one piece when a tensor is copied from file to file.
PIECE_BYTES = 1 << 22

_PLAIN_OPEN = (
    os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
)


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that was checked once; reading it again fails if it has become another one since.

    Attributes:
        path: absolute, without links.
        shown: how messages call it.
        size: in bytes.
        identity: device, inode, time of change in nanoseconds.
    """

    path: str
    shown: str
    size: int
    identity: tuple[int, int, int]

    @classmethod
    def examine(cls, path: str, shown: str, *, single: bool = True) -> DataFile:
        """Note what is at ``path`` now.

        Args:
            path: absolute, without links.
            shown: how messages call the file.
            single: refuse a file with several names.

        Raises:
            ModelError: it is missing, not a regular file, or has several names.
        """
        try:
            found = Path(path).lstat()
        except FileNotFoundError as error:
            raise ModelError(f"{shown} is missing; check the path") from error
        except OSError as error:
            raise ModelError(
                f"{shown} can't be opened: {error.strerror}; check its name and permissions"
            ) from error
        if not stat.S_ISREG(found.st_mode):
            raise ModelError(f"{shown} is a folder or a device, not a regular file; check the path")
        if single and found.st_nlink != 1:
            raise ModelError(
                f"{shown} has {found.st_nlink} names (hard links), so it may be another file than it seems; "
                "replace it with a copy"
            )
        return cls(path, shown, found.st_size, (found.st_dev, found.st_ino, found.st_mtime_ns))

    def open(self) -> BinaryIO:
        """Open the file for reading, unbuffered.

        Raises:
            ModelError: it can't be opened, or is not the file that was checked.
        """
        try:
            stream = os.fdopen(os.open(self.path, _PLAIN_OPEN), "rb", buffering=0)
        except OSError as error:
            raise ModelError(
                f"{self.shown} can't be opened: {error.strerror}; restore it and start again"
            ) from error
        try:
            self.check_unchanged(stream)
        except ModelError:
            stream.close()
            raise
        return stream

    def check_unchanged(self, stream: BinaryIO) -> None:
        """Make sure that an open stream still is the file that was examined.

        Raises:
            ModelError: it is another one, or was written to.
        """
        now = os.fstat(stream.fileno())
        if (now.st_dev, now.st_ino, now.st_mtime_ns) != self.identity or now.st_size != self.size:
            raise ModelError(f"{self.shown} changed while it was in use; start again")

    def read_into(self, stream: BinaryIO, target: memoryview, position: int) -> None:
        """Fill ``target`` with the bytes at ``position``.

        Raises:
            ModelError: the file ends early or can't be read.
        """
        try:
            stream.seek(position)
            done = 0
            while done < len(target):
                count = stream.readinto(target[done : done + (1 << 30)])  # type: ignore[attr-defined]
                if not count:
                    raise ModelError(f"{self.shown} changed while it was in use: it ends early; start again")
                done += count
        except OSError as error:
            raise ModelError(f"{self.shown} can't be read: {error.strerror}; check the disk") from error

    def sha1(self) -> str:
        """Return the SHA-1 of the contents, which is what ONNX's ``checksum`` entry holds."""
        digest = hashlib.sha1(usedforsecurity=False)
        buffer = memoryview(bytearray(PIECE_BYTES))
        with self.open() as stream:
            for start in range(0, self.size, PIECE_BYTES):
                piece = buffer[: min(PIECE_BYTES, self.size - start)]
                self.read_into(stream, piece, start)
                digest.update(piece)
        return digest.hexdigest()


class FileTensor(ir.ExternalTensor):
    """A tensor in a data file: every reading copies it out afresh, and nothing stays in memory."""

    __slots__ = ("_file",)

    def __init__(self, file: DataFile, offset: int, proto: onnx.TensorProto) -> None:
        """Describe the tensor of ``proto`` at ``offset`` of ``file``; sizes have been checked.

        Args:
            file: the data file.
            offset: first byte of the tensor.
            proto: gives type, shape, name and metadata; its own payload is not used.
        """
        folder, location = os.path.split(file.path)
        dtype = ir.DataType(proto.data_type)
        super().__init__(
            location,
            offset,
            (dtype.bitwidth * int(np.prod(proto.dims, dtype=object)) + 7) // 8,
            dtype,
            shape=ir.Shape(proto.dims),
            name=proto.name,
            doc_string=proto.doc_string or None,
            metadata_props={entry.key: entry.value for entry in proto.metadata_props} or None,
            base_dir=folder,
        )
        self._file = file

    @property
    def file(self) -> DataFile:
        """The file that holds the tensor."""
        return self._file

    def numpy(self) -> npt.NDArray[Any]:
        """Return a new array with the tensor's shape; read-only, as other stored tensors are.

        Raises:
            ModelError: the file is missing or has changed.
        """
        stored = np.empty(self.nbytes, dtype=np.uint8)
        if stored.size:
            with self._file.open() as stream:
                self._file.read_into(stream, stored.data, self.offset or 0)
        array = as_array(stored, self.dtype, self.shape.numpy())
        array.flags.writeable = False
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self.numpy().__array__(dtype)

    def pieces(self) -> Iterator[memoryview]:
        """Yield the stored bytes in order, in pieces, each valid until the next but one is asked for.

        Raises:
            ModelError: the file is missing or has changed.
        """
        size = self.nbytes
        if not size:
            return
        count = 1 if size <= PIECE_BYTES else 2
        buffers = [memoryview(bytearray(min(size, PIECE_BYTES))) for _ in range(count)]
        with self._file.open() as stream:
            for number, start in enumerate(range(0, size, PIECE_BYTES)):
                piece = buffers[number % count][: min(PIECE_BYTES, size - start)]
                self._file.read_into(stream, piece, (self.offset or 0) + start)
                yield piece

    def tobytes(self) -> bytes:
        """Return the stored bytes.

        Raises:
            ModelError: the file is missing or has changed.
        """
        return b"".join(bytes(piece) for piece in self.pieces())

    def tofile(self, file: Any) -> None:
        """Write the stored bytes to ``file``, piece by piece.

        Raises:
            ModelError: the file is missing or has changed.
        """
        for piece in self.pieces():
            file.write(piece)


def as_array(stored: npt.NDArray[np.uint8], dtype: ir.DataType, shape: Any) -> npt.NDArray[Any]:
    """View (or, below 8 bits, unpack) stored little-endian bytes as an array of ``dtype`` and ``shape``."""
    if dtype.bitwidth < 8:
        return np.asarray(ir.PackedTensor(stored, dtype, shape=shape).numpy())
    return stored.view(np.dtype(dtype.numpy()).newbyteorder("<")).reshape(shape)


class DataFolder:
    """Finds and checks the data files of one model; each is examined once."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self.folder = model.parent
        real = os.path.realpath(model)
        self.allowed = tuple(
            dict.fromkeys((os.path.realpath(self.folder), os.path.dirname(real)))  # noqa: PTH120 (string paths)
        )
        self._files: dict[str, DataFile] = {}
        self._verified: set[tuple[str, str]] = set()

    def files(self) -> tuple[Path, ...]:
        """Return every data file that was asked for, without links, in order."""
        return tuple(dict.fromkeys(Path(file.path) for file in self._files.values()))

    def tensor(self, proto: onnx.TensorProto, size_bytes: int) -> FileTensor:
        """Return the tensor that ``proto`` describes, once its place is known to be safe and to fit.

        Args:
            proto: a tensor whose type and shape have been checked.
            size_bytes: what type and shape ask for.

        Raises:
            ModelError: without the model's name in front; the file or the entries are not acceptable.
        """
        what = f"external tensor {quoted(proto.name)}"
        entries: dict[str, str] = {}
        for entry in proto.external_data:
            if entry.key in entries:
                raise ModelError(f"{what} has the entry {quoted(entry.key)} twice; export the model again")
            entries[entry.key] = entry.value
        if not entries.get("location"):
            raise ModelError(f"{what} names no file; export the model again")
        file = self._find(entries["location"], what)
        offset = _number(entries, "offset", 0, what)
        length = _number(entries, "length", size_bytes, what)
        if length != size_bytes:
            raise ModelError(
                f"{what} claims {length} bytes, but its type and shape need {size_bytes}; "
                "export the model again"
            )
        if offset + length > file.size:
            raise ModelError(
                f"{what} ends at byte {offset + length}, but {file.shown} has {file.size}; "
                "the data file is truncated or another one: restore it"
            )
        self._verify(file, entries.get("checksum"))
        return FileTensor(file, offset, proto)

    def _find(self, location: str, what: str) -> DataFile:
        if location not in self._files:
            problem = unsafe_location(location)
            if problem:
                raise ModelError(
                    f"{what} points to {quoted(location)}, {problem}; keep data files beside the model"
                )
            shown = f"external data file {visible(self.folder / location)}"
            real = os.path.realpath(self.folder / location)
            if not any(real.startswith(os.path.join(folder, "")) for folder in self.allowed):  # noqa: PTH118
                raise ModelError(
                    f"{shown} leads out of the model's folder through a link; "
                    "keep data files beside the model"
                )
            self._files[location] = DataFile.examine(real, shown)
        return self._files[location]

    def _verify(self, file: DataFile, checksum: str | None) -> None:
        if checksum is None or (file.path, checksum) in self._verified:
            return
        if file.sha1() != checksum.lower():
            raise ModelError(
                f"{file.shown} does not have the SHA-1 that the model gives for it; restore the file"
            )
        self._verified.add((file.path, checksum))


def _number(entries: dict[str, str], key: str, default: int, what: str) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 19:
        raise ModelError(
            f"{what} has the {key} {quoted(text)}, which is no number of bytes; export the model again"
        )
    return int(text)


def unsafe_location(location: str) -> str | None:
    """Return why a location must not be opened on any platform, or None."""
    parts = location.split("/")
    if location.startswith("/"):
        return "an absolute path"
    if ".." in parts:
        return "a path with '..'"
    if "_ORT_MEM_ADDR_" in location:
        return "a memory address of ONNX Runtime's"
    if "\\" in location or (len(location) > 1 and location[1] == ":") or "://" in location:
        return "a path of another system or an address"
    if any(unicodedata.category(character) == "Cc" for character in location):
        return "a name with control characters"
    return None
