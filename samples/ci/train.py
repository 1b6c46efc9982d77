"""Train the residual network of the digits sample, as a team that owns a model would do again and again.

python train.py --out FOLDER [--name model.onnx] [--seed 0]

Writes the model, ``calibration.npz`` and ``eval.npz``. Another seed gives other weights of the same graph.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import onnxprune

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "digits"))

from train import NETWORKS, RECIPES, accuracy, load_splits, train, write_data

NETWORK = "residual"


def main() -> None:
    """Train, export and say how good it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("ci-output"), help="folder to write to")
    parser.add_argument("--name", default="model.onnx", help="of the model's file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="instead of the usual number")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    learned, held_out = load_splits()
    recipe = RECIPES[NETWORK]
    recipe = recipe._replace(epochs=options.epochs or recipe.epochs)
    model = train(NETWORKS[NETWORK](), learned, recipe, options.seed)
    write_data(options.out, learned, held_out)
    imported = onnxprune.import_model(model, held_out.images[:1])
    onnxprune.save(imported.model, options.out / options.name)
    print(f"{options.name}: {accuracy(model, held_out):.1%} of the held-out digits are right")


if __name__ == "__main__":
    main()
