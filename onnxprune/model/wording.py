"""Paths and other whole texts of unknown origin, made safe to print on one line of a terminal."""

from __future__ import annotations

import os
import unicodedata

#: Longest piece of foreign text in a message, in characters.
LONGEST = 240

_ESCAPED = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


def visible(text: str | os.PathLike[str] | bytes, longest: int = LONGEST) -> str:
    """Return ``text`` with control, format and line-breaking characters escaped, cut after ``longest``.

    Bidirectional marks and lone surrogates (undecodable bytes of a file name) count as such characters.
    """
    plain = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else os.fspath(text)
    cut = plain[:longest]
    shown = "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _ESCAPED
        else character
        for character in cut
    )
    return shown if len(plain) <= longest else f"{shown}..."
