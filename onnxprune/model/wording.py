"""Text that comes from files, made safe to print: one line, nothing that a terminal or a CI log would obey."""

from __future__ import annotations

import os
import unicodedata

#: Longest piece of foreign text in a message, in characters.
LONGEST = 240

_KEPT = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


def visible(text: str | os.PathLike[str] | bytes, longest: int = LONGEST) -> str:
    """Return ``text`` with control, format and line-breaking characters escaped, cut after ``longest``.

    Bidirectional marks and lone surrogates (undecodable bytes of a file name) count as such characters.
    """
    plain = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else os.fspath(text)
    cut = plain[:longest]
    shown = "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _KEPT
        else character
        for character in cut
    )
    return shown if len(plain) <= longest else f"{shown}..."


def quoted(name: str | os.PathLike[str] | bytes) -> str:
    """Return a name of the file's own in quotes, safe to print and at most 80 characters of it."""
    return f"'{visible(name, 80)}'"
