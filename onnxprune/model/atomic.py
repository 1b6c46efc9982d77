"""Files and folders that appear whole or not at all.

A file is written under a temporary name in its own folder, flushed to the disk and renamed. Whoever reads the
final name finds the old file or the complete new one, whatever happens in between. A folder is filled under a
temporary name beside its final one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

from onnxprune.containment import told
from onnxprune.containment.holding import hold, hold_folder, let_go
from onnxprune.containment.temporary import discard, remove_stale, temporary_name
from onnxprune.errors import OutputError
from onnxprune.messages import visible

_WRITE_BUFFER_BYTES = 1 << 20


class NewFile:
    """A file on its way: write to ``stream``, ``finish``, ``commit``; leaving the block before discards it.

    Attributes:
        target: the name it shall have.
        temporary: the name it has until then, in the same folder.
        stream: open for writing bytes.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.temporary = target.parent / temporary_name(target.name)
        self.stream: IO[bytes]
        self._held: int | None = None
        self._present = False

    def __enter__(self) -> NewFile:
        remove_stale(self.target)
        told.writes_in(self.target.parent)
        with output_errors(self.target):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            descriptor = os.open(self.temporary, flags, 0o666)
            self._present = True
            self.stream = os.fdopen(descriptor, "wb", buffering=_WRITE_BUFFER_BYTES)
            self._held = hold(descriptor)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stream.close()
        except OSError:
            # The rest of the buffer did not fit. Discarding makes that harmless, and after ``finish`` the
            # stream is closed already, so nothing is hidden.
            pass
        finally:
            let_go(self._held)
            if self._present:
                self._present = False
                with contextlib.suppress(FileNotFoundError):
                    self.temporary.unlink()

    def finish(self) -> None:
        """Write out everything and wait until the disk has it; ``temporary`` is then complete.

        Raises:
            OutputError: the disk is full or fails.
        """
        with output_errors(self.target):
            self.stream.flush()
            os.fsync(self.stream.fileno())
            self.stream.close()

    def commit(self, name: Path | None = None) -> None:
        """Give the finished file its name, replacing what has it now, and make the name last.

        Args:
            name: another name in the same folder than the target's.

        Raises:
            OutputError: the name can't be taken, or may not outlive a power failure.
        """
        with output_errors(self.target):
            os.replace(self.temporary, name or self.target)  # noqa: PTH105 (the name says what happens)
            let_go(self.moved())
            flush_folder(self.target.parent)

    def moved(self) -> int | None:
        """Take note that the file has its name, so that leaving the block does not discard it.

        Returns:
            A descriptor that holds the lock on the file, which is the caller's from now on.
        """
        held, self._held, self._present = self._held, None, False
        return held


class NewFolder:
    """A folder on its way: fill ``temporary``, ``finish``, and let `Together` place it; else it is discarded.

    Args:
        target: the name it shall have.
        check: refuses a name that something has which may not be replaced; by default, whatever has it.

    Attributes:
        temporary: the name it has until then, in the same folder.
    """

    def __init__(self, target: Path, check: Callable[[Path], None] | None = None) -> None:
        self.target = target
        self._check = check or check_new_folder
        self.temporary = target.parent / temporary_name(target.name)
        self._held: int | None = None
        self._present = False

    def __enter__(self) -> NewFolder:
        self.check()
        remove_stale(self.target)
        told.writes_in(self.target.parent)
        with output_errors(self.target):
            self.temporary.mkdir()
            self._present = True
            try:
                self._held = hold_folder(self.temporary)
            except OSError:  # there are too few descriptors
                self.__exit__(None, None, None)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        let_go(self._held)
        if self._present:
            self._present = False
            discard(self.temporary)

    def check(self) -> None:
        """Refuse a name that can't be taken.

        Raises:
            OutputError: something has it that may not be replaced, or the folder to be in is missing.
        """
        self._check(self.target)

    def finish(self) -> None:
        """Wait until the disk has everything in it.

        Raises:
            OutputError: the disk is full or fails.
        """
        with output_errors(self.target):
            for folder, _, names in os.walk(self.temporary, topdown=False):
                for name in names:
                    _flush_file(Path(folder, name))
                flush_folder(Path(folder))

    def moved(self) -> int | None:
        """Take note that the folder has its name; see `NewFile.moved`."""
        held, self._held, self._present = self._held, None, False
        return held


def check_new_folder(target: Path) -> None:
    """Refuse the name of a folder that is to be made, if something has it or its place is missing.

    Raises:
        OutputError: likewise.
    """
    if target.exists() or target.is_symlink():
        raise OutputError(f"{visible(target)}: is there already; name a folder that is not")
    if not target.absolute().parent.is_dir():
        raise OutputError(f"{visible(target)}: there is no folder {visible(target.parent)}; create it first")


def _flush_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)  # it may be read-only
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(target: Path, contents: bytes) -> None:
    """Write a file that appears whole or not at all.

    Raises:
        OutputError: it can't be written.
    """
    check_target(target)
    with NewFile(target) as file:
        with output_errors(target):
            file.stream.write(contents)
        file.finish()
        file.commit()


def check_target(target: Path) -> None:
    """Refuse an output path that can't become a regular file.

    Raises:
        OutputError: its folder is missing, or something else than a regular file has the name.
    """
    folder = target.parent
    if not folder.is_dir():
        raise OutputError(f"{visible(target)}: there is no folder {visible(folder)}; create it first")
    try:
        present = target.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(
            f"{visible(target)}: can't be written: {error.strerror}; choose another name"
        ) from error
    if stat.S_ISDIR(present.st_mode):
        raise OutputError(f"{visible(target)}: is a folder; name a file in it")
    if not stat.S_ISREG(present.st_mode):
        raise OutputError(f"{visible(target)}: is not a regular file; choose another name")


@contextlib.contextmanager
def output_errors(target: Path) -> Iterator[None]:
    """Turn operating system errors of a block that writes ``target`` into one line.

    Raises:
        OutputError: in place of any ``OSError``.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{visible(target)}: can't be written: {reason}; free space or choose another folder"
        ) from error


def check_room(target: Path, size_bytes: int) -> None:
    """Refuse to start writing what can't fit, rather than fill the disk first.

    Raises:
        OutputError: the file system of ``target`` has less than ``size_bytes`` left, or the process may not
            write files of that size.
    """
    with output_errors(target):
        free = shutil.disk_usage(target.absolute().parent).free
    if os.name == "posix":
        import resource

        largest, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if largest != resource.RLIM_INFINITY and largest < size_bytes:
            raise OutputError(
                f"{visible(target)}: needs {size_bytes} bytes, but this process may write files of {largest} "
                "(ulimit -f); raise that limit"
            )
    if free < size_bytes:
        raise OutputError(
            f"{visible(target)}: needs {size_bytes} bytes, but its disk has {free} left; "
            "free space or choose another folder"
        )


def flush_folder(folder: Path) -> None:
    """Make renames within ``folder`` last; does nothing where folders can't be opened (Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
