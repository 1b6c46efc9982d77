"""What this machine does at best, measured in a second: multiply, move data, call a kernel."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

#: Sizes of the matrix product: 0.4 G multiply-accumulates, some milliseconds.
_ROWS, _INNER, _COLUMNS = 384, 1024, 1024
#: Floats that are copied: 64 MiB, more than caches hold.
_COPIED = 1 << 24
#: Empty kernels in a row.
_CALLS = 200
_SECONDS_EACH = 0.25
_LEAST_RUNS = 3


@dataclass(frozen=True, slots=True)
class Machine:
    """What was measured with the same provider and threads as the model.

    Attributes:
        gmacs_per_second: 10^9 multiply-accumulates per second of a large float32 matrix product.
        gbytes_per_second: 10^9 bytes per second that a large elementwise kernel reads and writes.
        call_microseconds: what calling a kernel takes that has nothing to do.
    """

    gmacs_per_second: float
    gbytes_per_second: float
    call_microseconds: float


def measure_machine(open_model: Callable[[ir.Model], Callable[[dict[str, Any]], Any]]) -> Machine:
    """Run three tiny models, each for a quarter of a second, and take the best time of each.

    Args:
        open_model: opens a model and returns what runs it on inputs by name.
    """
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((_INNER, _COLUMNS)).astype(np.float32)
    x = generator.standard_normal((_ROWS, _INNER)).astype(np.float32)
    product = _best_seconds(open_model(_product(weight)), x)
    copied = _best_seconds(open_model(_chain(1, _COPIED)), np.zeros(_COPIED, np.float32))
    called = _best_seconds(open_model(_chain(_CALLS, 1)), np.zeros(1, np.float32))
    return Machine(
        gmacs_per_second=_ROWS * _INNER * _COLUMNS / product / 1e9,
        gbytes_per_second=2 * 4 * _COPIED / copied / 1e9,
        call_microseconds=called / _CALLS * 1e6,
    )


def _product(weight: np.ndarray) -> ir.Model:
    x = ir.val("x", ir.DataType.FLOAT, [_ROWS, _INNER])
    w = ir.Value(
        name="w", const_value=ir.tensor(weight, name="w"), type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(weight.shape),
    )  # fmt: skip
    return _model(x, [ir.node("MatMul", [x, w])], [w])


def _chain(length: int, size: int) -> ir.Model:
    """Return a chain of kernels that negate a vector."""
    x = ir.val("x", ir.DataType.FLOAT, [size])
    nodes: list[ir.Node] = []
    for _ in range(length):
        nodes.append(ir.node("Neg", [nodes[-1].outputs[0] if nodes else x]))
    return _model(x, nodes, [])


def _model(x: ir.Value, nodes: list[ir.Node], weights: list[ir.Value]) -> ir.Model:
    for number, node in enumerate(nodes):
        node.name = node.outputs[0].name = f"y{number}"
    y = nodes[-1].outputs[0]
    y.dtype = ir.DataType.FLOAT
    graph = ir.Graph([x], [y], nodes=nodes, initializers=weights, opset_imports={"": 17}, name="machine")
    return ir.Model(graph, ir_version=8)


def _best_seconds(run: Callable[[dict[str, Any]], Any], x: np.ndarray) -> float:
    """Return the shortest of the runs of a quarter of a second, after one to warm up."""
    feeds = {"x": x}
    run(feeds)
    best, runs = float("inf"), 0
    end = time.perf_counter() + _SECONDS_EACH
    while runs < _LEAST_RUNS or time.perf_counter() < end:
        started = time.perf_counter()
        run(feeds)
        best, runs = min(best, time.perf_counter() - started), runs + 1
    return best
