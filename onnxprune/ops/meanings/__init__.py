"""All torch meanings of operators, loaded: importing a family's file files its meanings. Needs torch."""

from __future__ import annotations

from onnxprune.ops.meanings import (
    constants,
    conv,
    elementwise,
    matmul,
    move,
    normalize,
    pool,
    reduce,
    reshape,
)

FAMILIES = (constants, conv, elementwise, matmul, move, normalize, pool, reduce, reshape)

__all__ = ["FAMILIES"]
