"""Products of matrices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from onnxprune.ops.meanings.base import Run, Static, meaning


@meaning("MatMul")
def matmul(node: Static) -> Run:
    """As numpy's matmul."""
    return torch.matmul


@meaning("Gemm")
def gemm(node: Static) -> Run:
    """``alpha A B + beta C``, with A or B transposed."""
    alpha, beta = node.float("alpha", 1.0), node.float("beta", 1.0)
    turn_a, turn_b = bool(node.int("transA")), bool(node.int("transB"))
    if alpha == 1 and beta == 1 and not turn_a and turn_b:
        return _linear

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = a.t() if turn_a else a, b.t() if turn_b else b
        if c is None:
            product = a @ b
            return product if alpha == 1 else alpha * product
        if a.is_floating_point():
            return torch.addmm(c, a, b, beta=beta, alpha=alpha)
        return (alpha * (a @ b) + beta * c).to(a.dtype)  # integers, by factors that may be fractions

    return run


def _linear(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    if c is None or (c.dim() == 1 and c.shape[0] == b.shape[0]):
        return F.linear(a, b, c)
    return a @ b.t() + c
