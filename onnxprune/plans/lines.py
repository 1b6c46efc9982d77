"""JSON with a line for each entry: two plans can be compared by their lines, and it is quick to write."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any


def in_lines(document: Mapping[str, Any]) -> str:
    """Return a JSON object, in ASCII, whose lists and objects have a line for each entry.

    Raises:
        ValueError: a number is not finite.
    """
    return (
        "{\n " + ",\n ".join(f"{_text(key)}: {_entries(value)}" for key, value in document.items()) + "\n}\n"
    )


def _entries(value: Any) -> str:
    if isinstance(value, Mapping):
        return _lines((f"{_text(key)}: {_text(entry)}" for key, entry in value.items()), "{}")
    return _lines(map(_text, value), "[]") if isinstance(value, (list, tuple)) else _text(value)


def _lines(entries: Iterable[str], brackets: str) -> str:
    inside = ",\n  ".join(entries)
    return f"{brackets[0]}\n  {inside}\n {brackets[1]}" if inside else brackets


def _text(value: Any) -> str:
    return json.dumps(value, allow_nan=False)
