"""What was left alone, gathered by reason: a model of 300 layers has a handful of reasons."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from onnxprune.types import Skipped

#: A word with a digit, or a dot or the like inside: a name or a number, which differs from layer to layer.
_PARTICULAR = re.compile(r"'[^']*'|\S*(?:\d|\w[./_:]\w)\S*")

_ANY = "..."


@dataclass(frozen=True, slots=True)
class SkippedTogether:
    """Things that were left alone for the same reason.

    Attributes:
        reason: the reason; names and numbers in which the members differ are ``...``.
        names: of the members, in their order.
    """

    reason: str
    names: tuple[str, ...]


def gather(skipped: Iterable[Skipped]) -> tuple[SkippedTogether, ...]:
    """Gather by reason, whatever the names and numbers in it; the order is that of the first of each."""
    members: dict[str, list[Skipped]] = {}
    for entry in skipped:
        members.setdefault(_PARTICULAR.sub(_ANY, entry.reason), []).append(entry)
    return tuple(
        SkippedTogether(_common(shape, entries), tuple(entry.name for entry in entries))
        for shape, entries in members.items()
    )


def _common(shape: str, entries: list[Skipped]) -> str:
    """Return the reason itself where all agree to the letter."""
    reasons = {entry.reason for entry in entries}
    return reasons.pop() if len(reasons) == 1 else shape
