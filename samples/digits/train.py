"""Train both networks on scikit-learn's digits and write what onnxprune needs: two models and two data files.

python train.py --out FOLDER
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from models import ResidualNetwork, VisionTransformer
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import onnxprune

HELD_OUT = 600
MEAN, DEVIATION = 0.305, 0.376  # of the pixels, which lie between 0 and 1
CALIBRATION = 256
BATCH = 64


class Digits(NamedTuple):
    """Images float32 [n, 1, 8, 8], normalised, and their labels int64 [n]."""

    images: torch.Tensor
    labels: torch.Tensor


class Recipe(NamedTuple):
    """How to train a network: plain stochastic gradient descent or AdamW, with a one-cycle learning rate."""

    optimizer: type[torch.optim.Optimizer]
    learning_rate: float
    options: dict[str, float | bool]
    epochs: int


# The weight decay of the residual network is stronger than usual. Together with batch norm it lets filters
# fade that the task does not need, which is why half of the work can go later without any repair.
RECIPES = {
    "residual": Recipe(
        torch.optim.SGD, 0.2, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}, epochs=40
    ),
    "vit": Recipe(torch.optim.AdamW, 2e-3, {"weight_decay": 0.05}, epochs=60),
}
NETWORKS = {"residual": ResidualNetwork, "vit": VisionTransformer}


def load_splits(seed: int = 0) -> tuple[Digits, Digits]:
    """Return the digits to train on and those held out, split at random."""
    data = load_digits()
    images = torch.tensor((data.images / 16 - MEAN) / DEVIATION, dtype=torch.float32)[:, None]
    labels = torch.tensor(data.target, dtype=torch.int64)
    order = torch.tensor(np.random.default_rng(seed).permutation(len(labels)))
    held_out, train = order[:HELD_OUT], order[HELD_OUT:]
    return Digits(images[train], labels[train]), Digits(images[held_out], labels[held_out])


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move the whole batch by up to a pixel in each direction."""
    top, left = torch.randint(0, 3, (2,), generator=generator).tolist()
    return functional.pad(images, (1, 1, 1, 1), value=-MEAN / DEVIATION)[:, :, top : top + 8, left : left + 8]


def train(
    model: nn.Module,
    digits: Digits,
    recipe: Recipe,
    seed: int = 0,
    after_epoch: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """Train in place, and return the model in evaluation mode.

    Args:
        model: with random weights.
        digits: to train on.
        recipe: how.
        seed: of the order of the digits and their shifts.
        after_epoch: called with the number of the epoch, from 1 on, and the model.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = len(digits.labels) // BATCH
    optimizer = recipe.optimizer(model.parameters(), lr=recipe.learning_rate, **recipe.options)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.epochs * steps
    )
    model.train()
    for epoch in range(1, recipe.epochs + 1):
        order = torch.randperm(len(digits.labels), generator=generator)
        for rows in order[: steps * BATCH].split(BATCH):
            logits = model(shifted(digits.images[rows], generator))
            loss = functional.cross_entropy(logits, digits.labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if after_epoch is not None:
            after_epoch(epoch, model)
    return model.eval()


def accuracy(model: nn.Module, digits: Digits) -> float:
    """Return the share of digits that the model names correctly."""
    with torch.no_grad():
        return (model(digits.images).argmax(dim=1) == digits.labels).float().mean().item()


def write_data(folder: Path, train_split: Digits, held_out: Digits) -> None:
    """Write ``eval.npz`` (held out; in two segments by how much ink there is) and ``calibration.npz``."""
    ink = held_out.images.mean(dim=(1, 2, 3))
    segment = np.where(ink < train_split.images.mean(), "thin", "thick")
    np.savez_compressed(
        folder / "eval.npz", image=held_out.images.numpy(), label=held_out.labels.numpy(), segment=segment
    )
    np.savez_compressed(folder / "calibration.npz", image=train_split.images[:CALIBRATION].numpy())


def main() -> None:
    """Train, export and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("digits-output"), help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    torch.set_num_threads(1)  # as fast as several for networks of this size, and the same result everywhere
    train_split, held_out = load_splits()
    write_data(options.out, train_split, held_out)
    for name, network in NETWORKS.items():
        started = time.perf_counter()
        torch.manual_seed(options.seed)
        model = train(network(), train_split, RECIPES[name], options.seed)
        seconds = time.perf_counter() - started
        imported = onnxprune.import_model(model, held_out.images[:1])
        onnxprune.save(imported.model, options.out / f"{name}.onnx")
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(
            f"{name}: {parameters:,} parameters, trained in {seconds:.0f} s, "
            f"{accuracy(model, held_out):.1%} of {HELD_OUT} held-out digits right, "
            f"the export differs by {imported.max_relative_difference:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
