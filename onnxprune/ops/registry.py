"""All op rules, loaded: importing a family's file files its rules."""

from __future__ import annotations

from onnxprune.ops import (conv, einsum, elementwise, matmul, move, normalize, pool, recurrent, reshape, sizes)
from onnxprune.ops.base import rule_for

FAMILIES = (conv, einsum, elementwise, matmul, move, normalize, pool, recurrent, reshape, sizes)

__all__ = ["FAMILIES", "rule_for"]
