"""All op rules, loaded: importing a family's file files its rules."""

from __future__ import annotations

from onnxprune.ops import (
    attention,
    blocks,
    contrib_attention,
    contrib_fused,
    control,
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
    sequence,
    sizes,
)
from onnxprune.ops.base import rule_for
from onnxprune.ops.linking import link_graph

FAMILIES = (
    attention,
    blocks,
    contrib_attention,
    contrib_fused,
    control,
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
    sequence,
    sizes,
)

__all__ = ["FAMILIES", "link_graph", "rule_for"]
