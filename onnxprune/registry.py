"""Name -> method, with a suggestion when the name is not known."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from onnxprune.errors import UsageError

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest of ``known``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


class Registry(Generic[T]):
    """Named methods of one kind; the names are those that users type."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, *names: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under every one of ``names``.

        Raises:
            ValueError: if a name is taken (a programming error).
        """

        def file(entry: T) -> T:
            for name in names:
                if name in self._entries:
                    raise ValueError(f"{self.kind} {name!r} is registered twice")
                self._entries[name] = entry
            return entry

        return file

    def get(self, name: str) -> T:
        """Return the entry called ``name``.

        Raises:
            UsageError: naming the known entries and the closest one.
        """
        if name not in self._entries:
            known = ", ".join(self._entries)
            hint = did_you_mean(name, self._entries)
            raise UsageError(f"unknown {self.kind} {name!r}{hint}; known: {known}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)
