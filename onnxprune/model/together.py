"""Outputs that belong together: all of them appear under their names, or none does."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from onnxprune.containment import told
from onnxprune.containment.holding import let_go, share
from onnxprune.containment.placing import Placed, swap, take_back
from onnxprune.containment.temporary import discard, temporary_name
from onnxprune.model.atomic import NewFile, NewFolder, check_target, flush_folder, output_errors

_New = TypeVar("_New", NewFile, NewFolder)

_numbers = itertools.count()

_PLAIN = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)

#: What a disk says that can't take anything; other errors of a hard link mean that there are none.
_FAILING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}

#: Larger files are not copied to be put back.
_MOST_COPIED_BYTES = 64 << 20


class Together:
    """Files and folders that get their names one after the other; if one can't, those before go back.

    What is placed in the block, or is to be placed later, has its name if the block ends well. If it fails,
    every name holds what it held before, or nothing. A process that is killed in the block leaves some of the
    new things under their names, each of them whole, and what they replaced under temporary names, which the
    next run removes; where a supervisor outlives it, that takes everything back.
    """

    def __init__(self) -> None:
        self._number = next(_numbers)
        self._placed: list[Placed] = []
        self._later: list[NewFile | NewFolder] = []
        self._begun = contextlib.ExitStack()
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Together:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._held, self._begun:
            try:
                if kind is None:
                    self.place_rest()
                else:
                    take_back(self._placed)
            except BaseException:
                take_back(self._placed)
                raise
            finally:
                told.settled(self._number)
                for placed in self._placed:
                    discard(Path(placed.second))

    def begin(self, new: _New) -> _New:
        """Make a new file or folder under its temporary name, which goes with the block unless it is placed.

        Raises:
            OutputError: it can't be made.
        """
        return self._begun.enter_context(new)

    def place_later(self, new: NewFile | NewFolder) -> None:
        """Flush a file or folder that was begun; it is placed by `place_rest`, or when the block ends.

        So whatever a full disk refuses to take is refused before anything has a new name.

        Raises:
            OutputError: the disk is full or fails.
        """
        new.finish()
        self._later.append(new)

    def place_rest(self) -> None:
        """Place all that was to be placed later, in this order.

        Raises:
            OutputError: a name can't be taken.
        """
        while self._later:
            self.place(self._later.pop(0))

    def place(self, new: NewFile | NewFolder, name: Path | None = None) -> None:
        """Give a finished file or folder its name, and make the name last.

        Args:
            new: what was written; its own block may end before this one.
            name: another name in the same folder than the target's.

        Raises:
            OutputError: the name can't be taken, or may not outlive a power failure.
        """
        target = name or new.target
        with output_errors(new.target):
            if isinstance(new, NewFolder):
                new.check()  # somebody else may have been faster
                self._place_folder(new.temporary, target)
            else:
                self._place_file(new.temporary, target)
            self._held.callback(let_go, new.moved())
            flush_folder(target.parent)

    def write(self, target: Path, contents: bytes) -> None:
        """Write a file, and place it later.

        Raises:
            OutputError: it can't be written.
        """
        check_target(target)
        file = self.begin(NewFile(target))
        with output_errors(target):
            file.stream.write(contents)
        self.place_later(file)

    def adopt(self, path: Path) -> int | None:
        """Use a file that another run may have placed just now; wait until that keeps it, or takes it back.

        Returns:
            A descriptor to read the file from, which closes with the block; None if there is no such file. It
            is not taken back while the block lasts.
        """
        try:
            descriptor = os.open(path, _PLAIN)
        except FileNotFoundError:
            return None
        self._held.callback(os.close, descriptor)
        if not any(placed.has_name() for placed in self._placed if _names(placed, path)):
            share(descriptor)  # of its own it would wait for itself
        return descriptor if _is(path, os.fstat(descriptor)) else None

    def _place_file(self, temporary: Path, target: Path) -> None:
        second = target.parent / temporary_name(target.name)
        if _give_second_name(target, second):
            self._note(temporary, target, second)
        os.replace(temporary, target)  # noqa: PTH105 (the name says what happens)

    def _place_folder(self, temporary: Path, target: Path) -> None:
        if not target.exists():
            self._note(temporary, target, target.parent / temporary_name(target.name))
            temporary.rename(target)
            return
        self._note(temporary, target, temporary)
        if swap(temporary, target):
            return
        second = target.parent / temporary_name(target.name)
        self._note(temporary, target, second)
        target.rename(second)
        try:
            temporary.rename(target)
        except OSError:
            second.rename(target)
            raise

    def _note(self, new: Path, target: Path, second: Path) -> None:
        """Note what takes a step back, before it is taken: a signal may come between any two of them."""
        found = new.lstat()
        absolute = [os.path.abspath(path) for path in (target, second)]  # noqa: PTH100 # Path.absolute keeps ".."
        self._placed.append(Placed(absolute[0], found.st_dev, found.st_ino, absolute[1]))
        told.places(self._number, self._placed[-1])


def _is(path: Path, known: os.stat_result) -> bool:
    """Tell whether a name belongs to a certain file or folder."""
    try:
        return os.path.samestat(path.lstat(), known)
    except OSError:
        return False


def _names(placed: Placed, path: Path) -> bool:
    return placed.target == os.path.abspath(path)  # noqa: PTH100 # as it was noted


def _give_second_name(target: Path, second: Path) -> bool:
    """Keep what has a name under a second one; return whether nothing is lost if it is replaced.

    A large file is not kept where a file system has no hard links.
    """
    if not os.path.lexists(target):
        return True
    try:
        os.link(target, second, follow_symlinks=False)
    except OSError as error:
        if error.errno in _FAILING:
            raise
        if target.lstat().st_size > _MOST_COPIED_BYTES:
            return False
        try:
            shutil.copy2(target, second, follow_symlinks=False)
        except BaseException:
            discard(second)
            raise
    return True


@contextlib.contextmanager
def new_folder(target: Path, together: Together | None = None) -> Iterator[Path]:
    """Give a folder to fill, which gets its name when the block ends, and is gone if the block fails.

    Args:
        target: the name; nothing may have it.
        together: what it appears with.

    Raises:
        OutputError: it can't be made, filled or renamed.
    """
    with contextlib.ExitStack() as stack:
        together = together or stack.enter_context(Together())
        new = together.begin(NewFolder(target))
        yield new.temporary
        together.place_later(new)
