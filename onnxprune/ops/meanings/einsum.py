"""Einsum: sums of products along named axes."""

from __future__ import annotations

import torch

from onnxprune.ops.meanings.base import Run, Static, meaning


@meaning("Einsum")
def einsum(node: Static) -> Run:
    """Gives sums of products, as the equation names them"""
    equation = node.text("equation").replace(" ", "")
    return lambda *operands: torch.einsum(equation, *operands)
