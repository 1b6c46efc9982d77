"""Train a network of the digits sample, and keep what it was early in training: two files of one graph.

python train.py --out FOLDER [--network residual]
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

import onnxprune

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "digits"))

from train import NETWORKS, RECIPES, load_splits, train

#: Lottery tickets of networks that learn fast start a little after the beginning.
EARLY_EPOCH = 2


def main() -> None:
    """Train, export both, and write the samples to learn from and those to judge by."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--network", choices=NETWORKS, default="residual")
    parser.add_argument("--epochs", type=int, help="of training, instead of the usual number")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    learned, held_out = load_splits()
    recipe = RECIPES[options.network]
    recipe = recipe._replace(epochs=options.epochs or recipe.epochs)
    early: list[nn.Module] = []

    def keep(epoch: int, model: nn.Module) -> None:
        if epoch == min(EARLY_EPOCH, recipe.epochs):
            early.append(copy.deepcopy(model).eval())

    trained = train(NETWORKS[options.network](), learned, recipe, after_epoch=keep)
    for name, module in (("trained", trained), ("early", early[0])):
        imported = onnxprune.import_model(module, held_out.images[:1])
        onnxprune.save(imported.model, options.out / f"{options.network}-{name}.onnx")
    for name, digits in (("train", learned), ("eval", held_out)):
        np.savez(options.out / f"{name}.npz", image=digits.images.numpy(), label=digits.labels.numpy())


if __name__ == "__main__":
    main()
