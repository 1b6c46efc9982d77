"""Results of measurements on disk, one small readable file each, so that none is taken twice.

An entry appears whole or not at all, and is never believed unless it is exactly what was written for its key,
by this user or by the owner of the folder: where others may write too, their files are no figures of ours.
Any number of processes may share a folder: they write the same figures under the same names.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from onnxprune.errors import DataError, OutputError
from onnxprune.messages import one_line, visible
from onnxprune.model.atomic import write_whole
from onnxprune.reading import is_ours, opened, parse_json

#: What an entry may hold.
Figure: TypeAlias = "float | str | None"

#: Larger files are none of ours.
_MOST_BYTES = 4096


class ResultCache:
    """A folder of results by key.

    Args:
        folder: created if it is missing.
        fields: names of the figures of each entry.

    Raises:
        OutputError: the folder can't be made.

    Attributes:
        damaged: paths of entries that were ignored.
    """

    def __init__(self, folder: Path, fields: Sequence[str]) -> None:
        self.damaged: list[str] = []
        self._folder = folder
        self._fields = tuple(fields)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{visible(folder)}: is no folder for a cache ({one_line(error.strerror or error)}); "
                "name another one"
            ) from None

    def find(self, key: str) -> dict[str, Figure] | None:
        """Return the figures that were stored for a key, None if there are none or they are damaged."""
        path = self._folder / f"{key}.json"
        if not os.path.lexists(path):
            return None
        found = self._read(path, key)
        if found is None:  # a folder or pipe of that name, a failing disk, a stranger's file: measured anew
            self.damaged.append(str(path))
        return found

    def store(self, key: str, found: Mapping[str, Figure], about: Mapping[str, Any]) -> None:
        """Write an entry whole.

        Args:
            key: what tells it from all others: hexadecimal digits.
            found: a finite number, a text or None for each of the fields.
            about: plain JSON values for people who look into the folder; not read again.

        Raises:
            OutputError: it can't be written.
            ValueError: a figure is missing, or is neither.
        """
        if set(found) != set(self._fields) or not all(map(_is_figure, found.values())):
            raise ValueError(f"an entry holds {', '.join(self._fields)}, not {found}")
        line = json.dumps({"key": key, **found, "check": _check(key, found), **about})
        write_whole(self._folder / f"{key}.json", f"{line}\n".encode())

    def _read(self, path: Path, key: str) -> dict[str, Figure] | None:
        """Return what a regular file of our own, or of the folder's owner, holds for this key."""
        try:
            with opened(path, DataError) as stream:
                ours = is_ours(stream, self._folder)
                return self._parse(stream.read(_MOST_BYTES + 1), key) if ours else None
        except (DataError, OSError):
            return None

    def _parse(self, text: bytes, key: str) -> dict[str, Figure] | None:
        """Return what a file holds, None unless it is complete and exactly what was written for this key."""
        try:
            entry = parse_json(text) if len(text) <= _MOST_BYTES else None
        except (ValueError, RecursionError):
            return None
        if not isinstance(entry, dict):
            return None
        found = {name: entry.get(name) for name in self._fields}
        if not all(map(_is_figure, found.values())):
            return None
        if entry.get("key") != key or entry.get("check") != _check(key, found):
            return None
        return found


def _is_figure(figure: object) -> bool:
    return figure is None or isinstance(figure, str) or (isinstance(figure, float) and math.isfinite(figure))


def _check(key: str, found: Mapping[str, Figure]) -> str:
    return hashlib.sha256(repr((key, sorted(found.items()))).encode()).hexdigest()[:16]
