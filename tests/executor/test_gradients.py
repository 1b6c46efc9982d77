"""Gradients of a module's own export are those of the module, by the names of its parameters."""

from __future__ import annotations

import copy

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from executing import exported, relative_error
from torch import nn

from onnxprune.executor.module import OnnxModule

TOLERANCE = 1e-5


class SmallNet(nn.Module):
    """Convolutions with batch norms, a depthwise one, a residual sum, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise, self.inner = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8, momentum=0.3)
        self.head = nn.Linear(8, 5)
        for norm in (self.norm, self.inner):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        y = self.inner(self.pointwise(torch.nn.functional.silu(self.depthwise(x))))
        return self.head(nn.functional.adaptive_avg_pool2d(torch.relu(x + y), 1).flatten(1))


class Pixels(nn.Module):
    """Transposed convolution, group norm, average pooling, pixel shuffle, a learned scale."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 8, 4, stride=2, padding=1)
        self.norm, self.scale = nn.GroupNorm(2, 8), nn.Parameter(torch.rand(8, 1, 1))
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.uniform_(self.norm.bias)
        self.act, self.last = nn.PReLU(8), nn.Conv2d(2, 3, 3)

    def forward(self, x):
        x = self.act(self.norm(self.up(x))) * self.scale
        return self.last(nn.functional.pixel_shuffle(nn.functional.avg_pool2d(x, 2), 2)).tanh()


class Text(nn.Module):
    """Embeddings, learned positions, two layers of a transformer, the embedding again as a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(17, 32), nn.Parameter(torch.randn(1, 6, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0, batch_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        for parameter in self.parameters():  # copied layers are equal, and exporters store equal tensors once
            nn.init.uniform_(parameter, *((0.1, 1.0) if parameter.dim() == 1 else (-0.3, 0.3)))
        self.head = nn.Linear(32, 17, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids):
        return self.head(self.layers(self.words(ids) + self.places))


def _example(kind: type[nn.Module], batch: int = 5) -> torch.Tensor:
    return torch.randint(0, 17, (batch, 6)) if kind is Text else torch.randn(batch, 3, 8, 8)


def _both(kind: type[nn.Module], dynamo: bool) -> tuple[nn.Module, OnnxModule, torch.Tensor]:
    torch.manual_seed(0)
    module, x = kind().eval(), _example(kind)
    return module, OnnxModule(exported(copy.deepcopy(module), [x], dynamo=dynamo)).eval(), x


def _compare(module: nn.Module, executed: OnnxModule, x: torch.Tensor) -> None:
    expected = module(x)
    goal = torch.randn_like(expected)
    ((expected - goal) ** 2).sum().backward()
    (found,) = executed({executed.inputs[0]: x}).values()
    assert relative_error(found.detach().numpy(), expected.detach().numpy()) < TOLERANCE
    ((found - goal) ** 2).sum().backward()
    wanted = dict(module.named_parameters())
    if "words.weight" in wanted and "head.weight" in executed.trained:  # one tensor has two names in torch
        wanted["head.weight"] = wanted.pop("words.weight")
    assert wanted.keys() == executed.trained.keys()
    for name, parameter in wanted.items():
        assert relative_error(executed.trained[name].grad.numpy(), parameter.grad.numpy()) < TOLERANCE, name


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("kind", [SmallNet, Pixels, Text])
def test_gradients_are_those_of_the_module(kind, dynamo):
    _compare(*_both(kind, dynamo))


def test_a_tied_weight_is_one_parameter():
    module, executed, x = _both(Text, dynamo=True)
    assert len(executed.trained) == len(list(module.parameters()))
    weight = executed.trained["head.weight"]
    executed({executed.inputs[0]: torch.zeros_like(x)})[executed.outputs[0]].sum().backward()
    as_classifier = weight.grad[1]  # what every word gets; the only one that is read gets more
    assert as_classifier.norm() > 0
    assert torch.allclose(weight.grad[1:], as_classifier.expand(16, -1))
    assert not torch.allclose(weight.grad[0], as_classifier)


def test_batch_norms_in_training_move_their_statistics_as_in_torch():
    module, executed, _ = _both(SmallNet, dynamo=True)
    module.train()
    executed.train()
    for _step in range(3):
        _compare(module, executed, _example(SmallNet))
        module.zero_grad()
        executed.zero_grad()
    moved = executed.values()
    for name, buffer in module.named_buffers():
        if not name.endswith("num_batches_tracked"):
            assert relative_error(moved[name], buffer.numpy()) < TOLERANCE, name


def test_a_whole_training_is_that_of_the_module():
    module, executed, x = _both(SmallNet, dynamo=True)
    labels = torch.tensor([1, 4, 0, 2, 2])
    for model, run in (
        (module, module),
        (executed, lambda x: executed({executed.inputs[0]: x})[executed.outputs[0]]),
    ):
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _step in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(run(x), labels).backward()
            optimizer.step()
    values = executed.values()
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(values[name], parameter.detach().numpy(), rtol=1e-4, atol=1e-5)
