"""Names of temporary files, which tell whose they are: what a dead process left is nobody's."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from onnxprune.containment.holding import is_held

_SUFFIX = "onnxprune-tmp"
_LONGEST_STEM = 180  # bytes of the target's name within the temporary one; most file systems allow 255 in all
_PARTS = re.compile(rf"\.(?P<stem>.*)\.(?P<process>\d+)\.[0-9a-f]{{8}}\.{_SUFFIX}", re.DOTALL)


def temporary_name(name: str) -> str:
    """Return a name for a file or folder of this process that will be renamed to ``name``."""
    return f".{_stem(name)}.{os.getpid()}.{secrets.token_hex(4)}.{_SUFFIX}"


def remove_stale(target: Path) -> None:
    """Remove temporary files and folders for ``target`` whose process is gone: killed, or without power.

    A process that can't be seen may still be at work, in another container or on another machine: it then
    holds a lock on what it writes.
    """
    if os.name != "posix":
        return  # asking for a process by number is not harmless elsewhere
    stem = _stem(target.name)
    _remove(
        target.parent,
        lambda path, of, process: of == stem and not alive(process) and not is_held(path),
    )


def remove_of(folder: Path, process: int) -> None:
    """Remove the temporary files and folders in a folder that a process made, which is gone."""
    _remove(folder, lambda _path, _of, by: by == process)


def alive(process: int) -> bool:
    """Whether a process of that number is at work, as far as we may know.

    One that has ended stays in the list until whoever started it takes note: for seconds, or for ever where
    the first process of a container does not.
    """
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    try:
        state = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return True  # no such file on this system, or it is gone just now
    return state not in (b"Z", b"X")


def _remove(folder: Path, chosen: Callable[[Path, str, int], bool]) -> None:
    try:
        names = os.listdir(folder)  # noqa: PTH208 (names, not paths)
    except OSError:
        return  # writing will say what is wrong with the folder
    for name in names:
        match = _PARTS.fullmatch(name)
        path = folder / name
        if match and chosen(path, match["stem"], int(match["process"])):
            discard(path)  # somebody else's, or gone: not ours to insist


def discard(path: Path) -> None:
    """Remove a file or folder on which nothing depends; what stays is removed another time."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # an empty one goes even where there is no descriptor left
            path.rmdir()
        return
    with contextlib.suppress(OSError):
        path.unlink()


def _stem(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:_LONGEST_STEM])
