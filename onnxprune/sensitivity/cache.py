"""Outcomes of trials on disk, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxprune.result_cache import Figure, ResultCache
from onnxprune.sensitivity.trials import Outcome


class Cache:
    """A folder of outcomes by key. Entries that are not exactly what was written are never used.

    Args:
        folder: created if it is missing.

    Raises:
        OutputError: the folder can't be made.
    """

    def __init__(self, folder: Path) -> None:
        self._results = ResultCache(folder, ("metric", "loss", "top1"))

    @property
    def damaged(self) -> list[str]:
        """Paths of entries that were ignored."""
        return self._results.damaged

    def find(self, key: str) -> Outcome | None:
        """Return an outcome that an earlier run stored, None if there is none or it is damaged."""
        found = self._results.find(key)
        if found is None:
            return None
        metric, loss, top1 = found["metric"], found["loss"], found["top1"]
        if not isinstance(metric, str) or not isinstance(loss, float) or isinstance(top1, str):
            return None  # whole, and not what a trial finds
        return Outcome(metric, loss, top1, cached=True)

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
        top1 = None if outcome.top1 is None else float(outcome.top1)
        found: dict[str, Figure] = {"metric": outcome.metric, "loss": float(outcome.loss), "top1": top1}
        self._results.store(key, found, about)
