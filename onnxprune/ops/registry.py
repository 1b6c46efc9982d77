"""All op rules, loaded: importing a family's file files its rules."""

from __future__ import annotations

from onnxprune.ops import (
    attention,
    blocks,
    contrib_attention,
    contrib_fused,
    conv,
    einsum,
    elementwise,
    matmul,
    move,
    normalize,
    pool,
    positions,
    quantized,
    quantized_contrib,
    recurrent,
    reshape,
    sizes,
)
from onnxprune.ops.base import rule_for

FAMILIES = (
    attention,
    blocks,
    contrib_attention,
    contrib_fused,
    conv,
    einsum,
    elementwise,
    matmul,
    move,
    normalize,
    pool,
    positions,
    quantized,
    quantized_contrib,
    recurrent,
    reshape,
    sizes,
)

__all__ = ["FAMILIES", "rule_for"]
