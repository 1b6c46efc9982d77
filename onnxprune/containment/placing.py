"""Taking back that a name was given to a new file or folder, by who gave it or by who outlives that."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from onnxprune.containment.temporary import discard


class Placed(NamedTuple):
    """A name that a new file or folder has, or is about to get.

    Attributes:
        target: the name.
        device, number: of the new file or folder, which tell it from every other.
        second: the name under which what it replaces is kept; nothing has it where there was nothing.
    """

    target: str
    device: int
    number: int
    second: str

    def has_name(self) -> bool:
        """Tell whether the new thing has its name, and no other thing has it by now."""
        try:
            found = os.lstat(self.target)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (self.device, self.number)

    def take_back(self) -> bool:
        """Give the name back to what had it; return False where the disk does not let us."""
        target, second = Path(self.target), Path(self.second)
        if os.path.lexists(target) and not self.has_name():
            return True  # it was not placed yet, or somebody has placed something else meanwhile
        try:
            if not os.path.lexists(second):
                discard(target)
            elif second.is_symlink() or not second.is_dir():
                os.replace(second, target)  # noqa: PTH105 (the name says what happens)
            elif not swap(second, target):
                discard(target)
                second.rename(target)
        except OSError:
            return False
        return not self.has_name()


def take_back(placed: Sequence[Placed]) -> None:
    """Take back what was placed in this order, the last one first.

    Where that fails, what is left stays as it is: the new things are whole, and go with each other.
    """
    for each in reversed(placed):
        if not each.take_back():
            return


def swap(one: Path, other: Path) -> bool:
    """Exchange two names in one step; return False where the system or the file system can't."""
    name = {"linux": "renameat2", "darwin": "renameatx_np"}.get(sys.platform)
    function = None if name is None else getattr(ctypes.CDLL(None), name, None)
    if function is None:
        return False
    here, exchange = (-100, 2) if sys.platform == "linux" else (-2, 2)  # AT_FDCWD, RENAME_EXCHANGE or _SWAP
    done: int = function(here, os.fsencode(one), here, os.fsencode(other), exchange)
    return done == 0
