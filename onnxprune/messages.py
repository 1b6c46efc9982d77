"""Text that others wrote, made fit for our one-line messages: short, on one line, harmless to a terminal."""

from __future__ import annotations

import unicodedata

#: Longest text of others that is repeated in one of our messages.
TEXT_LIMIT = 240


def one_line(text: object, limit: int = TEXT_LIMIT) -> str:
    """Return the first line of ``text`` that says something, at most ``limit`` characters.

    Control, formatting (bidirectional marks) and unassigned characters are shown as escapes: the text may
    come from a file that wants to move the cursor or reverse what follows.
    """
    lines = [line.strip() for line in str(text).split("\n")]
    line = next((line for line in lines if line), "no reason given")
    shown = "".join(_escape(character) for character in line[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def _escape(character: str) -> str:
    # C: control, format, surrogate, private, unassigned; Zl and Zp: line and paragraph separators
    category = unicodedata.category(character)
    if category.startswith("C") or category in ("Zl", "Zp"):
        return character.encode("unicode_escape").decode("ascii")
    return character


def quoted(name: object, limit: int = 80) -> str:
    """Return a name in quotes, what is not printable as escapes, at most ``limit`` characters."""
    shown = repr(str(name))
    return shown if len(shown) <= limit else f"{shown[: limit - 4]}...{shown[0]}"
