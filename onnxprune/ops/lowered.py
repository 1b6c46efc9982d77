"""Operators that quantizers and ONNX Runtime's optimizer write: which of their inputs are weights.

They are read (to see which zeros a saved file holds), never cut; so they need no rule of their own to say
which channels go together, and stay opaque to the channel engine until one is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import onnx_ir as ir

from onnxprune.ops.base import WeightInput


class LoweredWeight(NamedTuple):
    """A weight input, and the input that holds its zero point (None: zero is zero)."""

    weight: WeightInput
    zero_point_index: int | None


#: A kernel [outputs, inputs per group, taps...]: the operators, the input, the input of its zero point.
_KERNELS = {
    ("com.microsoft", "FusedConv"): (1, None),
    ("com.microsoft", "NhwcFusedConv"): (1, None),
    ("com.microsoft", "QLinearConv"): (3, 5),
}

#: The right operand of a matrix product [..., inputs, outputs]; ``transB`` swaps the last two axes.
_MATRICES = {
    ("com.microsoft", "Attention"): (1, None),
    ("com.microsoft", "FusedGemm"): (1, None),
    ("com.microsoft", "FusedMatMul"): (1, None),
}


def lowered_weights(node: ir.Node, rank_of: Callable[[ir.Value], int]) -> tuple[LoweredWeight, ...]:
    """Return the weight inputs of a lowered operator; empty for every other operator."""
    key = ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
    if key in _KERNELS:
        index, zero = _KERNELS[key]
        return (LoweredWeight(WeightInput(index, summed_axis=1, output_axis=0), zero),)
    if key not in _MATRICES:
        return ()
    index, zero = _MATRICES[key]
    operand = node.inputs[index] if index < len(node.inputs) else None
    rank = 0 if operand is None else rank_of(operand)
    if rank < 2:
        return ()
    rows, columns = rank - 2, rank - 1
    if node.attributes.get_int("transB", 0):
        rows, columns = columns, rows
    return (LoweredWeight(WeightInput(index, summed_axis=rows, output_axis=columns), zero),)
