"""All torch meanings of operators, loaded: importing a family's file files its meanings. Needs torch."""

from __future__ import annotations

from onnxprune.ops.meanings import (
    attention,
    constants,
    contrib_attention,
    contrib_fused,
    control,
    conv,
    einsum,
    elementwise,
    experts,
    image,
    losses,
    matmul,
    move,
    normalize,
    pool,
    positions,
    random,
    recurrent,
    reduce,
    reshape,
    resize,
    scatter,
    sequence,
    spectral,
)

FAMILIES = (
    attention,
    constants,
    contrib_attention,
    contrib_fused,
    control,
    conv,
    einsum,
    elementwise,
    experts,
    image,
    losses,
    matmul,
    move,
    normalize,
    pool,
    positions,
    random,
    recurrent,
    reduce,
    reshape,
    resize,
    scatter,
    sequence,
    spectral,
)

__all__ = ["FAMILIES"]
