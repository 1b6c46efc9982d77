"""Random numbers and dropout. They come from torch's generator: a seed in an attribute is not read.

A program that is seeded with ``torch.manual_seed`` repeats itself; ONNX Runtime draws other numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onnxprune.ops.meanings.base import Run, Static, meaning


@meaning("Dropout", host=(1, 2), folds=False)
def dropout(node: Static) -> Run:
    """Gives x / (share that stays) with random zeros where the node says that it trains, else x"""
    fixed, wants_mask = node.float("ratio", 0.5), node.outputs > 1

    def run(
        x: Tensor, ratio: Tensor | None = None, trains: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        share = fixed if ratio is None else float(ratio)
        if trains is None or not bool(trains) or not share:
            return (x, torch.ones_like(x, dtype=torch.bool)) if wants_mask else x
        kept = torch.rand_like(x, dtype=torch.float32) >= share
        y = torch.where(kept, x / (1 - share), 0)
        return (y, kept) if wants_mask else y

    return run


@meaning("Bernoulli", folds=False)
def bernoulli(node: Static) -> Run:
    """Gives 1 with the probability x, else 0"""
    dtype = node.dtype("dtype")
    return lambda x: torch.bernoulli(x.detach()).to(dtype or x.dtype)


@meaning("Multinomial", folds=False)
def multinomial(node: Static) -> Run:
    """y[n] = classes drawn with the probabilities softmax(x[n])"""
    count, dtype = node.int("sample_size", 1), node.dtype("dtype", 6)
    return lambda x: torch.multinomial(torch.softmax(x.detach().float(), 1), count, True).to(dtype)


@meaning("RandomNormal", "RandomUniform", folds=False)
def random_of_shape(node: Static) -> Run:
    """Gives random numbers of the shape in an attribute"""
    shape, dtype = node.ints("shape") or [], node.dtype("dtype", 1)
    draw = _distribution(node)
    return lambda: draw(torch.empty(shape, dtype=dtype))


@meaning("RandomNormalLike", "RandomUniformLike", folds=False)
def random_like(node: Static) -> Run:
    """Gives random numbers of the shape of x"""
    dtype, draw = node.dtype("dtype"), _distribution(node)
    return lambda x: draw(torch.empty_like(x, dtype=dtype or x.dtype))


def _distribution(node: Static) -> Run:
    if node.node.op_type.startswith("RandomNormal"):
        mean, deviation = node.float("mean", 0.0), node.float("scale", 1.0)
        return lambda empty: empty.normal_(mean, deviation)
    low, high = node.float("low", 0.0), node.float("high", 1.0)
    return lambda empty: empty.uniform_(low, high)
