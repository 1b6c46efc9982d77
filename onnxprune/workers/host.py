"""One measurement of time per machine, and nothing else of ours beside it.

Whoever works holds a lock of the machine together with others; whoever measures holds it alone. Both take a
second lock first, a turnstile, for as long as they wait: so those who begin to work later let a measurement
pass. Locks are files in the folder for temporary files, one pair per user, and the system drops them with the
process. Where they can't be had, work goes on without.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

if os.name == "posix":
    import fcntl

_Mode = Literal["", "work", "measure"]

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
    _change(mode)
    try:
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
        _acquire(mode)
    _held = mode


def _acquire(mode: _Mode) -> None:
    global _file
    turnstile = _open(_path("turn"))
    if turnstile is None:
        return
    try:
        fcntl.flock(turnstile, fcntl.LOCK_EX)
        _file = _open(_path("work"))
        if _file is not None:
            fcntl.flock(_file, fcntl.LOCK_SH if mode == "work" else fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        pass
    finally:
        os.close(turnstile)


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None


def _path(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"onnxprune-{os.getuid()}-{name}.lock"
