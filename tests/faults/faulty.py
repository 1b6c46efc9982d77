"""A file system that fails: every change below a folder is counted, and the n-th one goes wrong.

This is installed in a process that does one thing and ends (see ``server.py``). Seen are changes that Python
code makes: opening for writing, writing, flushing, making, linking, renaming, exchanging, removing.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: What happens at a point: nothing, the process is killed, a write gets half way and the process is killed, a
#: write gets half way and says so, the disk is full from then on, one operation fails; or the data file of
#: the input changes.
WAYS = ("count", "kill", "torn", "short", "full", "broken", "truncate", "swap", "overwrite", "delete")

#: The data file of an input, beside one of the same size.
_DATA, _OTHER = Path("in/external.onnx.data"), Path("in/other.data")

#: A disk that is full or fails still removes files; what could not be removed is tested by killing.
_REMOVING = ("unlink", "rmdir")

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Faulty:
    """The file system below a folder.

    Args:
        folder: where operations count.
        at: the number of the operation that goes wrong, from 1 on.
        way: one of `WAYS`.

    Attributes:
        operations: the names of all operations so far.
    """

    def __init__(self, folder: str, at: int, way: str) -> None:
        self._folder = os.path.realpath(folder)
        self._at = at
        self._way = way
        self._paths: dict[int, str] = {}  # of open descriptors
        self.operations: list[str] = []

    def happens(self, name: str, *, writes: bool = False) -> bool:
        """Count an operation; return whether it shall be done by half."""
        self.operations.append(name)
        number = len(self.operations)
        if self._way == "full" and number >= self._at and name not in _REMOVING:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if number != self._at:
            return False
        if self._way == "broken" and name not in _REMOVING:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self._way in _CHANGES:
            _CHANGES[self._way]()
        if self._way == "kill" or (self._way == "torn" and not writes):
            self.die()
        return writes and self._way in ("torn", "short")

    def written_by_half(self) -> None:
        """Die, where that is what shall happen after half a write."""
        if self._way == "torn":
            self.die()

    def die(self) -> None:
        """End the process as nothing can keep it from being ended."""
        os.kill(os.getpid(), signal.SIGKILL)

    def is_below(self, path: Any, folder: int | None = None) -> bool:
        """Whether a path, or an open descriptor, lies in the folder."""
        full = self._paths.get(path, "/") if isinstance(path, int) else self._full(path, folder)
        return f"{os.path.abspath(full)}/".startswith(f"{self._folder}/")  # noqa: PTH100 # no link is followed

    def _full(self, path: Any, folder: int | None) -> str:
        start = Path.cwd() if folder is None else Path(self._paths.get(folder, "/"))
        return str(start / os.fsdecode(path))

    # ---- what takes the place of the originals

    def install(self) -> None:
        """Put this between Python code and the file system, until the process ends."""
        self._wrap_open()
        for name in ("mkdir", "rmdir", "unlink", "remove"):
            self._wrap(name, lambda path, *_rest, dir_fd=None, **_more: self.is_below(path, dir_fd))
        for name in ("replace", "rename", "link", "symlink"):
            self._wrap(name, lambda _source, target, *_rest, **_more: self.is_below(target))
        self._wrap("fsync", self.is_below)
        self._wrap_files()
        from onnxprune.containment import placing
        from onnxprune.model import together

        real = placing.swap

        def swap(one: Any, other: Any) -> bool:
            if self.is_below(other):
                self.happens("swap")
            return real(one, other)

        placing.swap = together.swap = swap

    def _wrap(self, name: str, counts: Callable[..., bool]) -> None:
        real = getattr(os, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            if counts(*arguments, **named):
                self.happens("unlink" if name == "remove" else name)
            return real(*arguments, **named)

        setattr(os, name, wrapped)

    def _wrap_open(self) -> None:
        real = os.open

        def opened(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            below = self.is_below(path, dir_fd)
            if below and flags & _WRITING:
                self.happens("open")
            descriptor = real(path, flags, mode, dir_fd=dir_fd)
            self._paths[descriptor] = self._full(path, dir_fd)
            return descriptor

        os.open = opened

    def _wrap_files(self) -> None:
        real, faults = io.open, self

        class File(io.FileIO):
            """A file whose writes count."""

            def write(self, data: Any) -> int:
                view = memoryview(data).cast("B")
                if faults.happens("write", writes=True):
                    done = super().write(view[: len(view) // 2])
                    faults.written_by_half()
                    return done
                return super().write(view)

        def opened(
            file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None,
            errors: str | None = None, newline: str | None = None, closefd: bool = True, opener: Any = None,
        ) -> Any:  # fmt: skip
            if not set(mode) & set("wax+") or not self.is_below(file):
                return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
            if not isinstance(file, int):
                self.happens("open")
            raw = File(file, mode.replace("b", "").replace("t", ""), closefd, opener)
            if buffering == 0:
                return raw
            size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
            buffer = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
            return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)

        io.open = builtins.open = opened


def _swap() -> None:
    (beside := _DATA.with_suffix(".new")).write_bytes(_OTHER.read_bytes())
    beside.replace(_DATA)


def _overwrite() -> None:
    with _DATA.open("r+b") as file:
        file.write(_OTHER.read_bytes())


_CHANGES: dict[str, Callable[[], None]] = {
    "truncate": lambda: os.truncate(_DATA, _DATA.stat().st_size // 2),
    "swap": _swap,
    "overwrite": _overwrite,
    "delete": lambda: _DATA.unlink(missing_ok=True),
}
