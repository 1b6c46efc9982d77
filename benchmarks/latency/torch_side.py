"""Torch-Pruning's side, in its own environment: prune one network at one ratio, and export it.

``other_tool.py`` starts it with the task as JSON; the last line of its output is what it did, as JSON. It
imports nothing of onnxprune. The trained weights come from the ONNX file that the other side prunes, so that
both start from the same function; exported files have their batch norms folded, and here they are unfolded
again: a batch norm gets the mean and deviation that its input has on the calibration samples, and the scale
and offset that undo them. Where the network was trained with these statistics this gives its own scales back,
so that criteria that read them, and estimating them anew, mean what they mean for a trained module.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

warnings.filterwarnings("ignore")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

BATCH = 128

#: Of the output of the rebuilt module against that of the file, relative to the greatest output.
TOLERANCE = 1e-3


def build(network: str) -> nn.Module:
    """Return a network of the accuracy benchmark with random weights."""
    from accuracy.networks import ResNet, VisionTransformer

    if network.startswith("fashion"):
        return ResNet() if network == "fashion_resnet" else VisionTransformer()
    path = HERE.parents[1] / "samples" / "digits" / "models.py"
    spec = importlib.util.spec_from_file_location("digits_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    built: nn.Module = (
        module.ResidualNetwork() if network == "digits_residual" else module.VisionTransformer()
    )
    return built


def norms_of(model: nn.Module) -> Iterator[tuple[str, nn.BatchNorm2d]]:
    """Yield the batch norms with the name of the convolution before each: its neighbour in a Sequential."""
    for prefix, parent in model.named_modules():
        children = list(parent.named_children())
        for (before, first), (_, second) in pairwise(children):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                yield f"{prefix}.{before}" if prefix else before, second


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a module with the weights of its exported file.

    Initializers that the exporter renamed are matrices it stored transposed: they are taken in the order in
    which the graph uses them, which is that of the module.

    Raises:
        ValueError: a parameter has no counterpart of its shape.
    """
    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    of_norms = {id(parameter) for _, norm in norms_of(model) for parameter in norm.parameters()}
    used = dict.fromkeys(name for node in graph.node for name in node.input if name in stored)
    names = {name for name, _ in model.named_parameters()}
    unnamed = [name for name in used if name not in names and stored[name].ndim == 2]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if id(parameter) in of_norms:
                continue
            array = stored[name] if name in stored else stored[unnamed.pop(0)].T
            if array.shape != tuple(parameter.shape):
                raise ValueError(f"{name} has the shape {tuple(parameter.shape)}, the file's {array.shape}")
            parameter.copy_(torch.from_numpy(np.array(array)))
        for convolution, norm in norms_of(model):
            norm.weight.fill_(1 + norm.eps).sqrt_()
            norm.bias.copy_(torch.from_numpy(np.array(stored[f"{convolution}.weight_bias"])))
            norm.running_mean.zero_()  # type: ignore[union-attr]
            norm.running_var.fill_(1)  # type: ignore[union-attr]


def estimate(model: nn.Module, images: torch.Tensor) -> None:
    """Give every batch norm the mean and variance that its input has over the images [n, ...]."""
    norms = [norm for _, norm in norms_of(model)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches
        norm.train()
    with torch.no_grad():
        for batch in images.split(BATCH):
            model(batch)
    model.eval()


def unfold(model: nn.Module, images: torch.Tensor) -> None:
    """Give every batch norm the statistics of the images without changing what the module computes.

    y = s (x - m) / sqrt(v + e) + o, with s = sqrt(v + e) and o = b + m, is x + b whatever m and v are.
    Statistics are taken one norm after the other in the order of the module's work, which changes none of the
    functions, so all of them are taken at once, over the inputs of the unchanged module.
    """
    sums: dict[nn.Module, list[torch.Tensor]] = {}
    norms = [norm for _, norm in norms_of(model)]
    hooks = [
        norm.register_forward_hook(lambda norm, inputs, _: sums.setdefault(norm, []).append(inputs[0]))
        for norm in norms
    ]
    with torch.no_grad():
        model(images)
        for norm in norms:
            (x,) = sums[norm]
            mean, variance = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), unbiased=True)
            norm.bias += mean
            norm.weight.copy_((variance + norm.eps).sqrt())
            norm.running_mean.copy_(mean)  # type: ignore[union-attr]
            norm.running_var.copy_(variance)  # type: ignore[union-attr]
    for hook in hooks:
        hook.remove()


def prune(model: nn.Module, example: torch.Tensor, task: Mapping[str, Any]) -> None:
    """Cut by Torch-Pruning's MagnitudePruner: L2 over the group, the classifier left alone."""
    import torch_pruning

    if not task["ratio"]:
        return
    heads = {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=task["ratio"],
        global_pruning=task["global"],
        round_to=task["round_to"],
        num_heads=heads,
        ignored_layers=ignored(model, task["left_whole"]),
    )
    pruner.step()


def ignored(model: nn.Module, names: list[str]) -> list[nn.Module]:
    """Return what must keep its outputs: the classifier, which comes last, and all that ``names`` names."""
    classifier = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    named = [m for name, m in model.named_modules() if name.split(".")[0] in names]
    return [classifier, *named]


def export(model: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Write a module as ONNX with a symbolic batch, by the exporter that the original came from."""
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.cat([example, example]),), str(path), dynamo=True, opset_version=20,
            input_names=["image"], dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False,
            verbose=False,
        )  # fmt: skip


def read(path: str) -> torch.Tensor:
    with np.load(path) as arrays:
        return torch.from_numpy(arrays["image"])


def main() -> None:
    task = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build(task["network"]).eval()
    load_weights(model, Path(task["weights"]))
    calibration = [read(path) for path in task["calibration"]]
    with torch.no_grad():
        wanted = torch.from_numpy(np.load(task["expected"]))
        inputs = calibration[0][: len(wanted)]
        unfold(model, calibration[0])
        difference = float((model(inputs) - wanted).abs().max() / wanted.abs().max())
    if difference > TOLERANCE:
        raise ValueError(f"the rebuilt network differs from the file by {difference:.1e}")
    example = calibration[0][:1]
    started = time.perf_counter()
    prune(model, example, task)
    seconds = time.perf_counter() - started
    folder = Path(task["out"])
    export(model, example, folder / "plain.onnx")
    with_norms = bool(list(norms_of(model)))
    for seed, images in enumerate(calibration if with_norms and task["statistics"] else ()):
        estimate(model, images)
        export(model, example, folder / f"statistics-{seed}.onnx")
    shapes = [list(parameter.shape) for parameter in model.parameters()]
    print(json.dumps({"seconds": seconds, "difference": difference, "shapes": shapes}))


if __name__ == "__main__":
    main()
