"""``key=value`` from the command line -> a change in the values of a recipe."""

from __future__ import annotations

import sys
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.messages import quoted
from onnxprune.registry import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def override(values: dict[str, Any], entry: str) -> None:
    """Set one key, in place.

    A stage goes by its name, its kind (if it is the only one of it) or its number from 0 on, as in
    ``stages.prune.amount=0.3`` or ``stages.0.amount=0.3``.

    Args:
        values: of the recipe, as they were read.
        entry: ``key=value``; dots lead into tables. The value is TOML, or else plain text.

    Raises:
        UsageError: it has no such form, or a stage is not there.
    """
    key, equals, text = entry.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise UsageError(
            f"--set {quoted(entry)} is not of the form key=value, as in gates.accuracy_drop=0.01"
        )
    holder: Any = values
    for place, name in enumerate(names[:-1]):
        holder = _inside(holder, name, names[:place], entry)
    last = names[-1]
    if isinstance(holder, list):
        holder[_position(holder, last, entry)] = value_of(text)
    elif isinstance(holder, dict):
        holder[last] = value_of(text)
    else:
        raise UsageError(f"--set {quoted(entry)}: {'.'.join(names[:-1])} is a value, it holds no keys")


def value_of(text: str) -> Any:
    """Return what a text means as a TOML value; the text itself if it is none."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text.strip()
    return parsed["value"] if len(parsed) == 1 else text.strip()  # a line break may have begun a second key


def _inside(holder: Any, name: str, above: list[str], entry: str) -> Any:
    if isinstance(holder, list):
        return holder[_position(holder, name, entry)]
    if not isinstance(holder, dict):
        raise UsageError(f"--set {quoted(entry)}: {'.'.join(above)} is a value, it holds no keys")
    return holder.setdefault(name, {})


def _position(stages: list[Any], name: str, entry: str) -> int:
    """Return the place in a list that a number, a name or a kind means."""
    if name.isdecimal() and int(name) < len(stages):
        return int(name)
    tables = {place: stage for place, stage in enumerate(stages) if isinstance(stage, dict)}
    for keys in (("name", "kind"), ("kind",)):  # a stage without a name goes by its kind
        called = {
            place: next((stage[key] for key in keys if key in stage), None) for place, stage in tables.items()
        }
        found = [place for place, label in called.items() if label == name]
        if len(found) == 1:
            return found[0]
        if found:
            numbers = ", ".join(map(str, found))
            raise UsageError(
                f"--set {quoted(entry)}: {quoted(name)} means several ({numbers}); say its number"
            )
    known = [str(stage.get("name") or stage.get("kind")) for stage in tables.values()]
    raise UsageError(
        f"--set {quoted(entry)}: there is no {quoted(name)}{did_you_mean(name, known)}; there are: "
        f"{', '.join(known) or 'none'}"
    )
