"""What a worker tells its supervisor while it works: lines of JSON through a pipe.

Without a supervisor every call does nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from onnxprune.containment.placing import Placed

_LONGEST = 4000  # bytes; below PIPE_BUF, so that lines of several threads don't mix

_descriptor: int | None = None
_subject = ""


def tell_through(descriptor: int | None) -> None:
    """Use this pipe from now on; None for no one who listens."""
    global _descriptor
    _descriptor = descriptor


def is_heard() -> bool:
    """Whether this process is a worker."""
    return _descriptor is not None


def subject(text: str) -> None:
    """Say which file the command is about."""
    global _subject
    _subject = text
    _tell("subject", text)


def current_subject() -> str:
    """Return the file that the command is about, as far as that was said."""
    return _subject


def step(text: str) -> None:
    """Say what is being done."""
    _tell("step", text)


def writes_in(folder: Path) -> None:
    """Say in which folder temporary files are about to appear."""
    _tell("folder", os.path.abspath(folder))  # noqa: PTH100 # Path.absolute keeps ".."


def places(group: int, placed: Placed) -> None:
    """Say which name is about to be given to what; who outlives this process takes it back."""
    _tell("places", json.dumps([group, placed]))


def settled(group: int) -> None:
    """Say that all names of a group are settled: given for good, or taken back."""
    _tell("settled", json.dumps(group))


def ends(status: int) -> None:
    """Say that everything is done and said, and what that means, whatever becomes of this process now."""
    _tell("ends", json.dumps(status))


def limit_time(seconds: float) -> None:
    """Ask to be ended after so many seconds from the start."""
    _tell("timeout", str(seconds))


def show_noise() -> None:
    """Ask that what native libraries print is shown in the end."""
    _tell("noise", "")


def _tell(kind: str, text: str) -> None:
    if _descriptor is None:
        return
    line = (json.dumps([kind, text]) + "\n").encode("ascii")
    if len(line) <= _LONGEST:
        with contextlib.suppress(OSError):  # the supervisor is gone, and this process is about to be
            os.write(_descriptor, line)
