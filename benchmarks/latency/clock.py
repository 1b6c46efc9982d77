"""Two models against each other on the clock, as every question here asks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnxprune
from onnxprune.measure.intervals import Estimate
from onnxprune.runtime import Execution


@dataclass(frozen=True, slots=True)
class Clock:
    """How models are timed.

    Attributes:
        threads: of ONNX Runtime.
        batch: size of the first axis where that is symbolic; None for 1.
        input_shapes: of other inputs, by name.
        pairs: rounds in which two models take turns, at least.
    """

    threads: int = 1
    batch: int | None = None
    input_shapes: Mapping[str, tuple[int, ...]] | None = None
    pairs: int = 60

    @classmethod
    def of(cls, task: Mapping[str, Any]) -> Clock:
        """Return the clock that a task names."""
        shapes = task.get("input_shapes")
        shapes = {name: tuple(shape) for name, shape in shapes.items()} if shapes else None
        return cls(task["threads"], task.get("batch"), shapes, task["pairs"])

    def quick(self) -> Clock:
        """Return a clock for figures that only lead to the next one."""
        return replace(self, pairs=max(20, self.pairs // 3))

    def ratio(self, a: Path, b: Path) -> Estimate:
        """Return the time of ``b`` as a share of that of ``a``, over pairs of runs."""
        found = self._compared(a, b).ratio
        assert found is not None
        return found

    def figures(self, a: Path, b: Path) -> dict[str, float]:
        """Return the ratio with its 95 % interval, that of a second session of ``a``, and the times in ms."""
        found = self._compared(a, b)
        assert found.ratio is not None
        assert found.b is not None
        return {
            "ratio": found.ratio.value,
            "low": found.ratio.low,
            "high": found.ratio.high,
            "control": found.control.value,
            "a ms": found.a.median_ms,
            "b ms": found.b.median_ms,
        }

    def _compared(self, a: Path, b: Path) -> Any:
        return onnxprune.benchmark(
            a,
            b,
            execution=Execution(threads=self.threads),
            batch=self.batch,
            input_shapes=self.input_shapes,
            pairs=self.pairs,
        )
