"""One measurement of time per machine, and nothing else of ours beside it.

Whoever works holds a lock of the machine together with others; whoever measures holds it alone. Both take a
second lock first, a turnstile, for as long as they wait: so those who begin to work later let a measurement
pass. What is locked are two files of this package: they are always there, nothing is written, and the system
lets go with the process. Runs of another installation on the same machine are not seen, nor those of a file
system without locks: work goes on without.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

if os.name == "posix":
    import fcntl

_Mode = Literal["", "work", "measure"]

#: The turnstile, and what is held.
_FILES = (Path(__file__).with_name("__init__.py"), Path(__file__))

_held: _Mode = ""  # by this process; its tasks take turns
_file: int | None = None


@contextlib.contextmanager
def working() -> Iterator[None]:
    """Work beside others, and not while somebody measures on this machine."""
    with _holding("work"):
        yield


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """Measure, while nothing else of ours works or measures on this machine; within `working`, too."""
    with _holding("measure"):
        yield


@contextlib.contextmanager
def _holding(mode: _Mode) -> Iterator[None]:
    before = _held
    if before in (mode, "measure"):  # what is held is as good
        yield
        return
    try:
        _change(mode)
        yield
    finally:
        _change(before)


def _change(mode: _Mode) -> None:
    """Let go of the lock, and wait for it in another way."""
    global _held, _file
    _held = ""
    if _file is not None:
        os.close(_file)
        _file = None
    if mode and os.name == "posix":
        with contextlib.suppress(OSError):
            _file = _acquired(mode)
    _held = mode


def _acquired(mode: _Mode) -> int:
    """Wait for the lock; return the file that holds it."""
    turnstile = os.open(_FILES[0], os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(turnstile, fcntl.LOCK_EX)
        file = os.open(_FILES[1], os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(file, fcntl.LOCK_SH if mode == "work" else fcntl.LOCK_EX)
        except BaseException:
            os.close(file)
            raise
        return file
    finally:
        os.close(turnstile)
