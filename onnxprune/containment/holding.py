"""Locks on files and folders that are being written: whoever holds one is at work, wherever it runs."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

if sys.platform != "win32":
    import fcntl


def hold(descriptor: int) -> int | None:
    """Lock an open file while the descriptor that is returned is open; None where there are no locks.

    To be called on what is new: others hold it for a moment at most, to find out whether it is held.
    """
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return os.dup(descriptor)
    except OSError:
        return None  # a file system without locks: the number of the process must do


def claim_folder(folder: Path) -> int | None:
    """Lock a folder that other runs may want too, while the descriptor that is returned is open.

    Returns:
        None where there are no locks.

    Raises:
        BlockingIOError: somebody else has it.
        OSError: it can't be opened.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def hold_folder(folder: Path) -> int | None:
    """Lock a folder: see `hold`."""
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return hold(descriptor)
    finally:
        os.close(descriptor)


def share(descriptor: int) -> None:
    """Wait until no process holds an open file, and let none hold it while the descriptor is open."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_SH)


def let_go(descriptor: int | None) -> None:
    """End what `hold` began."""
    if descriptor is not None:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Tell whether a process holds a file or folder."""
    if sys.platform == "win32":
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
