"""Reading ``.npz`` archives that nobody vouches for: numbers and text only, sizes checked first."""

from __future__ import annotations

import math
import os
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from onnxprune import machine
from onnxprune.errors import DataError
from onnxprune.messages import one_line, quoted
from onnxprune.reading import opened

#: Far above any real archive of model inputs; each member costs a header to read.
MEMBER_LIMIT = 1024

#: Archives that unpack to more than this, and to more than so many times their size, are bombs. Zeros are
#: packed a thousand times; images, tokens with their padding, even masks, less than a hundred times.
_HARMLESS_BYTES = 64 << 20
_MOST_PACKED = 250

_SUFFIX = ".npy"
#: What readers of archives, and numpy's of headers, which parses Python, raise of damaged ones.
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, SyntaxError,
    EOFError, OSError, ValueError, RuntimeError, TypeError, LookupError, ArithmeticError, AttributeError,
)  # fmt: skip


def read(path: Path, room_bytes: int | None = None) -> dict[str, npt.NDArray[Any]]:
    """Return every array of an archive by name, in native byte order.

    Args:
        path: of the archive.
        room_bytes: that the arrays may take; by default this machine's memory.

    Raises:
        DataError: not a regular file, truncated or damaged, holds pickled objects, a header that disagrees
            with the archive, duplicate names, more than there is room for, or far more than a file
            of its size holds.
    """
    label = one_line(path)
    if not path.exists():
        raise DataError(f"{label}: no such file")
    try:
        with opened(path, DataError) as stream, zipfile.ZipFile(stream) as archive:
            return _read_members(archive, os.fstat(stream.fileno()).st_size, label, room_bytes)
    except zipfile.BadZipFile as error:
        raise DataError(f"{label}: is no .npz archive, or a truncated one ({one_line(error, 80)})") from None
    except _DAMAGED as error:
        raise DataError(f"{label}: cannot be read: {one_line(error)}") from None


def _read_members(
    archive: zipfile.ZipFile, size_bytes: int, label: str, room_bytes: int | None
) -> dict[str, npt.NDArray[Any]]:
    members = archive.infolist()
    if len(members) > MEMBER_LIMIT:
        raise DataError(f"{label}: holds {len(members)} arrays; at most {MEMBER_LIMIT} are read")
    total_bytes = sum(member.file_size for member in members)
    room_bytes = machine.memory_bytes() if room_bytes is None else room_bytes
    if room_bytes is not None and total_bytes > room_bytes:
        raise DataError(f"{label}: unpacks to {total_bytes / 2**30:.1f} GiB, more than this machine's memory")
    if total_bytes > _HARMLESS_BYTES and total_bytes > size_bytes * _MOST_PACKED:
        raise DataError(
            f"{label}: unpacks to {total_bytes / 2**20:.0f} MiB, {total_bytes // size_bytes} times its size, "
            "as no samples do; save it by numpy.savez, which does not pack"
        )
    arrays: dict[str, npt.NDArray[Any]] = {}
    for member in members:
        shown = quoted(member.filename)
        if not member.filename.endswith(_SUFFIX):
            raise DataError(f"{label}: {shown} is no array; np.savez writes names that end in {_SUFFIX}")
        name = member.filename[: -len(_SUFFIX)]
        if name in arrays:
            raise DataError(f"{label}: holds {shown} twice")
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{label}: {shown} is encrypted or packed as numpy never does")
        try:
            with archive.open(member) as stream:
                _check_header(stream, member.file_size, f"{label}: {shown}")
            with archive.open(member) as stream:
                array = np.lib.format.read_array(stream, allow_pickle=False)
        except _DAMAGED as error:
            raise DataError(f"{label}: {shown} cannot be read: {one_line(error)}") from None
        arrays[name] = np.asarray(array, array.dtype.newbyteorder("="), order="C")
    return arrays


def _check_header(stream: IO[bytes], size_bytes: int, where: str) -> None:
    """Compare the size that a header declares with the size of the member, before numpy allocates it."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise DataError(f"{where} has .npy format {version}; only 1.0 and 2.0 hold plain arrays")
    if dtype.hasobject:
        raise DataError(f"{where} holds pickled Python objects, which are never loaded; save plain arrays")
    if dtype.kind not in "biufUS":
        raise DataError(f"{where} has type {one_line(dtype, 80)}; numbers, truth values and text are read")
    if any(size < 0 for size in shape):
        raise DataError(f"{where} declares a negative size: {one_line(shape, 80)}")
    declared_bytes = math.prod(shape) * dtype.itemsize
    stored_bytes = size_bytes - stream.tell()
    if declared_bytes != stored_bytes:
        raise DataError(f"{where} declares {declared_bytes} bytes, the archive holds {stored_bytes}")
