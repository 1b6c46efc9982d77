"""Outcomes of trials on disk: one small file each, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxprune.errors import OutputError
from onnxprune.messages import one_line, visible
from onnxprune.model.atomic import write_whole
from onnxprune.sensitivity.trials import Outcome

#: Larger files are none of ours.
_MOST_BYTES = 4096


class Cache:
    """A folder of outcomes by key. Entries that are not exactly what was written are never used.

    Args:
        folder: created if it is missing.

    Raises:
        OutputError: the folder can't be made.

    Attributes:
        damaged: paths of entries that were ignored.
    """

    def __init__(self, folder: Path) -> None:
        self.damaged: list[str] = []
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{visible(folder)}: is no folder for a cache ({one_line(error.strerror or error)}); "
                "name another one"
            ) from None

    def find(self, key: str) -> Outcome | None:
        """Return an outcome that an earlier run stored, None if there is none or it is damaged."""
        path = self._folder / f"{key}.json"
        try:
            with path.open("rb") as stream:
                text = stream.read(_MOST_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError:
            self.damaged.append(str(path))  # a folder of that name, a failing disk: measured anew
            return None
        outcome = _parse(text, key)
        if outcome is None:
            self.damaged.append(str(path))
        return outcome

    def store(self, key: str, outcome: Outcome, about: Mapping[str, Any]) -> None:
        """Write an outcome whole, unless the trial failed: that may have been the machine.

        Args:
            key: of the trial.
            outcome: what it found.
            about: plain JSON values for people who look into the folder; not read again.

        Raises:
            OutputError: it can't be written.
        """
        if outcome.loss is None or not math.isfinite(outcome.loss):
            return
        found = {"metric": outcome.metric, "loss": outcome.loss, "top1": outcome.top1}
        line = json.dumps({"key": key, **found, "check": _check(key, found), **about})
        write_whole(self._folder / f"{key}.json", f"{line}\n".encode())


def _check(key: str, found: Mapping[str, Any]) -> str:
    return hashlib.sha256(repr((key, sorted(found.items()))).encode()).hexdigest()[:16]


def _parse(text: bytes, key: str) -> Outcome | None:
    """Return the outcome in a file, None unless it is complete and exactly what was written for this key."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or len(text) > _MOST_BYTES:
        return None
    found = {name: entry.get(name) for name in ("metric", "loss", "top1")}
    metric, loss, top1 = found.values()
    if (
        not isinstance(metric, str)
        or not isinstance(loss, float)
        or not isinstance(top1, (float, type(None)))
    ):
        return None
    if not math.isfinite(loss) or not math.isfinite(top1 or 0.0):
        return None
    if entry.get("key") != key or entry.get("check") != _check(key, found):
        return None
    return Outcome(metric, loss, top1, cached=True)
