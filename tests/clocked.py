"""A machine on which time is what a model holds: a millisecond for every thousand numbers of its weights.

What is tested with it is what is done with times, not how they are taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.measure.intervals import Estimate
from onnxprune.measure.part_times import PartTime
from onnxprune.planning import part_timer
from onnxprune.planning.latency import machine
from onnxprune.runtime import Kernel


def numbers_of(node: ir.Node) -> int:
    """Return how many floating-point numbers of weights a node reads."""
    tensors = [value.const_value for value in node.inputs if value is not None]
    return sum(t.size for t in tensors if t is not None and t.dtype.is_floating_point())


def model_ms(model: ir.Model) -> float:
    return max(1, sum(numbers_of(node) for node in model.graph)) / 1000


class PretendMachine:
    """Takes the place of ONNX Runtime where whole models and parts are timed."""

    def __init__(self, monkeypatch: Any) -> None:
        self.original_ms: float | None = None
        self.cut: list[ir.Model] = []
        self.parts = 0
        monkeypatch.setattr(machine, "quick_ratio", self.quick_ratio)
        monkeypatch.setattr(machine, "time_kernels", self.time_kernels)
        monkeypatch.setattr(machine.Machine, "fastest_ms", lambda _: self.original_ms)
        monkeypatch.setattr(part_timer, "time_part", self.time_part)

    def quick_ratio(
        self, original: Any, model: ir.Model, *_: Any, **__: Any
    ) -> tuple[Estimate, float, float]:
        ms = model_ms(model)
        if self.original_ms is None:
            self.original_ms = ms
        self.cut.append(model)
        share = ms / self.original_ms
        return Estimate(share, share, share, 20), self.original_ms, ms

    def time_kernels(self, model: ir.Model, *_: Any, **__: Any) -> tuple[Kernel, ...]:
        return tuple(
            Kernel(str(node.name), node.op_type, (str(node.name),), np.full(4, float(numbers_of(node))))
            for node in model.graph
        )

    def time_part(self, model: ir.Model, *_: Any, **__: Any) -> Any:
        self.parts += 1
        return PartTime(model_ms(model), spread=0.0, bursts=2, agreed=True)
