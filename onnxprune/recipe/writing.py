"""Recipes as commented text: every key with what it means, alternatives behind a ``#``.

Keys and their meanings are those of the schema: what it does not know can't be written.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from onnxprune.errors import UsageError
from onnxprune.messages import quoted, visible

_WIDTH = 100
#: Where comments behind a key begin, if the key is not longer.
_COLUMN = 34


class RecipeText:
    """The text of a recipe, table by table."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._fields: dict[str, FieldInfo] = {}
        self._off = False

    def say(self, text: str) -> None:
        """Add a paragraph of comment; names in it may be of any origin."""
        self.lines += [f"# {line}" for line in textwrap.wrap(visible(text, 2000), _WIDTH - 2)]

    def table(self, heading: str, model: type[BaseModel], *, off: bool = False) -> None:
        """Begin a table, such as ``[data]``; with ``off``, all of it is an alternative."""
        self._fields = {field.alias or key: field for key, field in model.model_fields.items()}
        self._off = off
        self.lines += [f"# {heading}" if off else heading]

    def key(self, name: str, value: Any, note: str | None = None, *, off: bool = False) -> None:
        """Add a key with its meaning, or another note.

        Raises:
            KeyError: the table has no such key.
        """
        description = self._fields[name].description
        text = f"{name} = {toml_value(value)}"
        text = f"# {text}" if off or self._off else text
        meaning = visible(note or description or "")
        self.lines.append(f"{text:<{_COLUMN}}  # {meaning}" if meaning else text)

    def gap(self) -> None:
        """Leave a line empty."""
        self.lines.append("")

    def __str__(self) -> str:
        return "\n".join(self.lines).rstrip("\n") + "\n"


def toml_value(value: Any) -> str:
    """Return a plain value as TOML has it: text, numbers, booleans, lists and tables of these.

    Raises:
        UsageError: a text that no UTF-8 file can hold.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_text(str(key))} = {toml_value(each)}' for key, each in value.items())} }}"
    if isinstance(value, Sequence):
        return f"[{', '.join(toml_value(each) for each in value)}]"
    return repr(value)


def _text(value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{visible(value)}: no recipe can hold this name, it is no Unicode") from None
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")  # JSON leaves DEL as it is


def path_from(folder: str | Path, path: str | Path) -> str:
    """Return a path as a recipe in ``folder`` says it: relative to it, with forward slashes.

    Raises:
        UsageError: a recipe would take a part of it for an environment variable.
    """
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:  # another drive
        relative = str(Path(path).absolute())
    if "${" in relative:
        raise UsageError(f"{quoted(relative)}: ${{ stands for an environment variable in recipes: rename it")
    return Path(relative).as_posix()
