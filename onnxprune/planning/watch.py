"""What is noted while a plan is made: seconds, tables, and how far long work is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from onnxprune.calibration.activations import USUAL, Running


@dataclass(slots=True)
class Watch:
    """Seconds and findings by stage, who is told which share of long work is done, and how models are run."""

    seconds: dict[str, float] = field(default_factory=dict)
    sections: dict[str, Any] = field(default_factory=dict)  # tables for the report, of what was measured
    progress: Callable[[float], None] | None = None
    running: Running = USUAL

    def tell(self, share: float) -> None:
        """Say which share of the work is done, in (0, 1]."""
        if self.progress is not None:
            self.progress(share)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
