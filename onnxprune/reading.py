"""Files that nobody vouches for: only regular ones are opened, and never more is read than is allowed.

A named pipe would be waited for without end, ``/dev/zero`` never ends, and what is checked by name may be
something else once it is opened: so a file is opened once, and what was opened is what is checked.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from onnxprune.errors import OnnxPruneError
from onnxprune.messages import one_line, quoted, visible

#: Deeper nests are nothing that we, or people, write; parsers and validators that recurse never see them.
DEEPEST = 100

#: Texts, the last one perhaps without its end: so that a search never begins anew behind it.
_TEXTS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


@contextmanager
def opened(path: str | os.PathLike[str], error: type[OnnxPruneError]) -> Iterator[BinaryIO]:
    """Open a regular file for reading.

    Args:
        path: of the file; links are followed.
        error: raised, with one line, if it can't be opened or is no regular file.
    """
    where = visible(path)
    try:
        _check_regular(Path(path).stat().st_mode, where, error)  # opening some devices does something already
        stream = os.fdopen(os.open(path, _FLAGS), "rb")
    except OSError as problem:
        raise error(f"{where}: cannot be read ({one_line(problem.strerror or problem)})") from None
    except ValueError:  # what Python says of a null character
        raise error(f"{where}: cannot be read (no file has such a name)") from None
    with stream:
        _check_regular(os.fstat(stream.fileno()).st_mode, where, error)
        yield stream


def contents(
    path: str | os.PathLike[str], error: type[OnnxPruneError], largest_bytes: int, too_large: str
) -> bytes:
    """Return the whole of a regular file.

    Args:
        path: of the file; links are followed.
        error: raised, with one line, if it can't be read, is no regular file or too large.
        largest_bytes: that may be read.
        too_large: what is said of a larger file, after its name.
    """
    with opened(path, error) as stream:
        try:
            found = stream.read(largest_bytes + 1)
        except OSError as problem:
            reason = one_line(problem.strerror or problem)
            raise error(f"{visible(path)}: cannot be read ({reason})") from None
    if len(found) > largest_bytes:
        raise error(f"{visible(path)}: {too_large}")
    return found


def is_ours(stream: BinaryIO, folder: Path) -> bool:
    """Tell whether this user, or the owner of the folder that the user named, owns a file that was opened.

    In a folder that others may write into, such as ``/tmp``, a file of a stranger is no result of ours.
    """
    if os.name != "posix":
        return True
    return os.fstat(stream.fileno()).st_uid in (os.geteuid(), folder.stat().st_uid)


def parse_json(text: bytes, deepest: int = DEEPEST) -> Any:
    """Parse JSON, refusing what Python's parser lets through: NaN, infinities, keys that stand twice.

    Raises:
        ValueError: it is no JSON, or what is refused; the message says where or what.
    """
    _check_depth(text, deepest)
    return json.loads(
        text.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_once
    )


def _check_regular(mode: int, where: str, error: type[OnnxPruneError]) -> None:
    if not stat.S_ISREG(mode):
        raise error(f"{where}: is no regular file")


def _check_depth(text: bytes, deepest: int) -> None:
    """Refuse nests that are too deep before anything recurses; each round takes the innermost pairs away."""
    unbalanced = True
    brackets = _TEXTS.sub(b"", text).translate(None, _NO_BRACKETS)
    for _ in range(deepest):
        before, brackets = brackets, brackets.replace(b"[]", b"").replace(b"{}", b"")
        if before == brackets:
            break
    else:
        unbalanced = False
    if len(brackets) > (deepest if unbalanced else 0):
        raise ValueError(f"it is nested too deeply, more than {deepest} levels")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set[str]()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {quoted(twice)} stands there twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{one_line(text, 40)} is no finite number")
    return number
