"""Losses that stand in a graph, and determinants."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.ops.meanings.base import Run, Static, meaning


@meaning("NegativeLogLikelihoodLoss")
def negative_log_likelihood(node: Static) -> Run:
    """Gives -weight[class] * x[class], summed or averaged by weight"""
    reduction, ignored = node.text("reduction", "mean"), _ignored(node)

    def run(x: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return functional.nll_loss(x, target.long(), weight, ignore_index=ignored, reduction=reduction)

    return run


@meaning("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(node: Static) -> Run:
    """Gives the negative log likelihood of log(softmax(x)), which is another output"""
    reduction, ignored = node.text("reduction", "mean"), _ignored(node)

    def run(x: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logarithms = torch.log_softmax(x, dim=1)
        loss = functional.nll_loss(
            logarithms, target.long(), weight, ignore_index=ignored, reduction=reduction
        )
        return loss, logarithms

    return run


def _ignored(node: Static) -> int:
    return node.int("ignore_index") if "ignore_index" in node.node.attributes else -(2**31)


@meaning("Det")
def determinant(node: Static) -> Run:
    """y[...] = the determinant of the matrix x[..., :, :]"""
    run: Run = torch.linalg.det
    return run
