"""What a training step of an exported model costs in the executor, beside the same step of the torch module.

A step is forward, cross entropy, backward and one step of SGD with momentum, on the same batch. Both sides,
and a second copy of the torch module as a control, run in turns in one process, the order turned around every
round; the ratios are medians over the rounds. Three exports of each network:

- ``kept``: not optimised; batch norms train on both sides
- ``optimised``: as ``torch.onnx.export(dynamo=True)`` writes it. Its batch norms are folded into
  convolutions, so the torch module runs in evaluation mode, with statistics that stand still
- ``torchscript``: as the older exporter writes it, evaluation mode on both sides as well

python benchmarks/training_step.py [--rounds 15] [--batch 8] [--size 64] [--threads 1]
"""

from __future__ import annotations

import argparse
import copy
import io
import itertools
import logging
import statistics
import time
import warnings
from collections.abc import Callable

import onnx
import onnx_ir as ir
import torch
from torch import nn

from onnxprune.executor.module import OnnxModule

CLASSES, WORDS, WIDTH, LAYERS = 100, 1000, 256, 4


class Block(nn.Module):
    """Two convolutions and a shortcut (He et al. 2015)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(2))
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the network."""
        y = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18, 11.2 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
        self.blocks = nn.Sequential(*(Block(a, b, 1 + (a != b)) for a, b in itertools.pairwise(widths)))
        self.head = nn.Linear(512, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the network."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Attention(nn.Module):
    """Self-attention with eight heads, in plain operators or torch's fused one as torch chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the network."""
        batch, length, _ = x.shape
        parts = self.project(x).reshape(batch, length, 3, 8, WIDTH // 8).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        return self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))


class Transformer(nn.Module):
    """Four pre-norm layers of 256 features on an embedding; the mean is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Parameter(torch.randn(1, 64, WIDTH) / 10)
        self.attentions = nn.ModuleList(Attention() for _ in range(LAYERS))
        self.perceptrons = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
            for _ in range(LAYERS)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * LAYERS))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Run the network."""
        x = self.words(ids) + self.places
        for index in range(LAYERS):
            x = x + self.attentions[index](self.norms[2 * index](x))
            x = x + self.perceptrons[index](self.norms[2 * index + 1](x))
        return self.head(x.mean(1))


def scatter(module: nn.Module) -> nn.Module:
    """Draw everything that starts out as zeros or ones: exporters store equal tensors once."""
    for name, tensor in module.state_dict().items():
        if tensor.dim() == 1:
            spread = (0.5, 1.5) if name.endswith(("weight", "var")) else (-0.1, 0.1)
            nn.init.uniform_(tensor, *spread)
    return module


def export(module: nn.Module, x: torch.Tensor, form: str) -> ir.Model:
    """Return an export of a copy."""
    copied = copy.deepcopy(module).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form != "torchscript":
            optimise = form == "optimised"
            return torch.onnx.export(copied, (x,), dynamo=True, optimize=optimise, verbose=False).model
        buffer = io.BytesIO()
        torch.onnx.export(copied, (x,), buffer, dynamo=False, opset_version=17)
    return ir.from_proto(onnx.load_from_string(buffer.getvalue()))


def step_of(
    module: nn.Module, run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> Callable[[], None]:
    """Return a function that makes one training step."""
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)
    labels = torch.arange(len(x)) % CLASSES

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(run(x), labels).backward()
        optimizer.step()

    return step


def compare(module: nn.Module, x: torch.Tensor, form: str, rounds: int) -> str:
    """Measure one export in turns with the module; return a row of the table."""
    executed = OnnxModule(export(module, x, form))
    name, (output,) = executed.inputs[0], executed.outputs
    sides = [copy.deepcopy(module), copy.deepcopy(module), executed]
    for side in sides:
        side.train(form == "kept")
    steps = [step_of(side, side, x) for side in sides[:2]]
    steps.append(step_of(executed, lambda x: executed({name: x})[output], x))
    seconds: list[list[float]] = []
    for number in range(rounds + 2):
        taken = [0.0] * len(steps)
        for index in range(len(steps)) if number % 2 else reversed(range(len(steps))):
            started = time.perf_counter()
            steps[index]()
            taken[index] = time.perf_counter() - started
        if number >= 2:  # the first ones make memory and caches
            seconds.append(taken)
    ratios = [statistics.median(row[side] / row[0] for row in seconds) for side in (1, 2)]
    torch_ms = 1e3 * statistics.median(row[0] for row in seconds)
    row = f"{type(module).__name__:12s} {form:12s} {torch_ms:8.1f} ms  {ratios[0]:6.2f}  {ratios[1]:8.2f}"
    return f"{row}  {len(executed.trained):4d} of {len(list(module.parameters()))} parameters"


def main() -> None:
    """Measure both networks in all forms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each, in turns")
    parser.add_argument("--batch", type=int, default=8, help="samples in a batch")
    parser.add_argument("--size", type=int, default=64, help="height and width of the images")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    logging.disable(logging.WARNING)  # of the exporter
    print(f"{'':25s} {'torch':>11s} {'control':>7s} {'executor':>9s}  (ratios to torch)")
    images = torch.randn(options.batch, 3, options.size, options.size)
    words = torch.randint(0, WORDS, (options.batch, 64))
    for module, x in ((scatter(ResNet18()), images), (scatter(Transformer()), words)):
        for form in ("kept", "optimised", "torchscript"):
            print(compare(module, x, form, options.rounds), flush=True)


if __name__ == "__main__":
    main()
