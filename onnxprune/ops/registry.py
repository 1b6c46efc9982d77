"""All op rules, loaded: importing a family's file files its rules."""

from __future__ import annotations

from onnxprune.ops import (
    conv,
    elementwise,
    matmul,
    move,
    normalize,
    pool,
    quantized,
    quantized_contrib,
    recurrent,
    reshape,
    sizes,
)
from onnxprune.ops.base import rule_for

FAMILIES = (
    conv, elementwise, matmul, move, normalize, pool, quantized, quantized_contrib, recurrent,
    reshape, sizes,
)  # fmt: skip

__all__ = ["FAMILIES", "rule_for"]
