"""Operators that quantizers and ONNX Runtime's optimizer write: which of their inputs are weights.

They are read (to see which zeros a saved file holds), never cut; so they need no rule of their own to say
which channels go together, and stay opaque to the channel engine until one is written.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from onnxprune.ops.base import WeightInput


class LoweredWeight(NamedTuple):
    """A weight input, and the input that holds its zero point (None: zero is zero)."""

    weight: WeightInput
    zero_point_index: int | None


#: A kernel [outputs, inputs per group, taps...]: the operators, the input, the input of its zero point.
_KERNELS = {
    ("com.microsoft", "NhwcFusedConv"): (1, None),
    ("com.microsoft", "QLinearConv"): (3, 5),
}


def lowered_weights(node: ir.Node) -> tuple[LoweredWeight, ...]:
    """Return the weight inputs of a lowered operator; empty for every other operator."""
    key = ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
    if key not in _KERNELS:
        return ()
    index, zero = _KERNELS[key]
    return (LoweredWeight(WeightInput(index, summed_axis=1, output_axis=0), zero),)
