"""Text that others wrote, made fit for our one-line messages: short, on one line, harmless to a terminal."""

from __future__ import annotations

import os
import re
import unicodedata

#: Longest text of others that is repeated in one of our messages.
TEXT_LIMIT = 240

#: What build servers take for commands in the lines that a program prints: ``::set-output``, ``##[group]``,
#: ``##vso[task]``, ``##teamcity[...]``. The first one counts at the start of a line, which a text may come to
#: stand at; in the middle of a word, as in ``aten::conv``, it is none.
_COMMANDS = re.compile(r"(?<![^\s'\"|]):(?=:)|#(?=#[A-Za-z]*\[)")

#: What JSON lets stand, although it is a control character, or begins a command.
_UNSAFE_IN_JSON = re.compile(r"\x7f|#(?=#[A-Za-z]*\[)")


def one_line(text: object, limit: int = TEXT_LIMIT) -> str:
    """Return the first line of ``text`` that says something, at most ``limit`` characters, escaped."""
    lines = [line.strip() for line in str(text).split("\n")]
    shown = visible(next((line for line in lines if line), "no reason given"), limit + 1)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def visible(text: str | os.PathLike[str] | bytes, longest: int = TEXT_LIMIT) -> str:
    """Return the whole of a text with control, format and line-breaking characters escaped.

    Bidirectional marks and lone surrogates (undecodable bytes of a file name) count as such characters: the
    text may come from a file that wants to move the cursor or reverse what follows. It is cut after
    ``longest`` characters.
    """
    plain = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else os.fspath(text)
    shown = plain[:longest]
    if not shown.isprintable():
        shown = "".join(_escape(character) for character in shown)
    shown = without_commands(shown)
    return shown if len(plain) <= longest else f"{shown}..."


def root_cause(error: BaseException) -> str:
    """Return the innermost message of a chain of errors, safe to print."""
    while error.__cause__ is not None:
        error = error.__cause__
    return visible(str(error) or type(error).__name__)


def _escape(character: str) -> str:
    # C: control, format, surrogate, private, unassigned; Zl and Zp: line and paragraph separators
    category = unicodedata.category(character)
    if category.startswith("C") or category in ("Zl", "Zp"):
        return character.encode("unicode_escape").decode("ascii")
    return character


def quoted(name: object, limit: int = 80) -> str:
    """Return a name in quotes, what is not printable as escapes, at most ``limit`` characters."""
    shown = without_commands(repr(str(name)))
    return shown if len(shown) <= limit else f"{shown[: limit - 4]}...{shown[0]}"


def without_commands(text: str) -> str:
    """Return a text in which no build server finds a command; the first character of each is escaped."""
    return _COMMANDS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def harmless_json(text: str) -> str:
    """Return the same JSON, which is ASCII, with nothing that a terminal or build server acts upon."""
    return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
