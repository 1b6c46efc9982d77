"""Gradient scores of residual branches against the same block in torch, with a mask on each branch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import small_models
from test_gradient import tensors_of

from onnxprune import prune
from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.planning.layers import find_layers
from onnxprune.scores.influence import BRANCH_SCORERS

torch = pytest.importorskip("torch")

PROTO = small_models.attention(width=8, heads=2, tokens=3)


def data() -> Dataset:
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal((6, 3, 8)).astype(np.float32) for name in ("x", "label")}
    return Dataset.from_arrays(arrays, "calib.npz")


def images() -> Dataset:
    random = np.random.default_rng(0)
    return Dataset.from_arrays({"x": random.standard_normal((4, 3, 8, 8)).astype(np.float32)}, "calib.npz")


def block(x, first, second):
    w = tensors_of(PROTO)

    def split(name):
        return (x @ w[f"{name}.weight"] + w[f"{name}.bias"]).reshape(len(x), 3, 2, 4).transpose(1, 2)

    shares = (split("query") @ split("key").transpose(2, 3) / 2).softmax(dim=-1)
    joined = (shares @ split("value")).transpose(1, 2).reshape(x.shape)
    y = x + first * (joined @ w["out.weight"] + w["out.bias"])
    inner = (y @ w["up.weight"] + w["up.bias"]).relu()
    return y + second * (inner @ w["down.weight"] + w["down.bias"])


def test_a_mask_on_each_branch():
    samples, changes = data(), []
    x, labels = torch.from_numpy(samples.arrays["x"]), torch.from_numpy(samples.labels)
    for number in range(6):
        masks = torch.ones(2, requires_grad=True)
        y = block(x[number : number + 1], masks[0], masks[1])
        loss = (y - labels[number : number + 1]).square().mean()
        changes.append(torch.autograd.grad(loss, masks)[0])
    change = torch.stack(changes)
    layers = find_layers(ir.from_proto(PROTO))
    assert [branch.kind for branch in layers.branches] == ["attention", "feed_forward"]
    taylor = BRANCH_SCORERS.get("taylor_activation")(layers.model, layers.branches, samples, 0)
    np.testing.assert_allclose(taylor, change.abs().mean(dim=0), rtol=1e-4)
    fisher = BRANCH_SCORERS.get("fisher")(layers.model, layers.branches, samples, 0)
    np.testing.assert_allclose(fisher, change.square().mean(dim=0) / 2, rtol=1e-4)


def test_layers_go_by_gradients():
    twice = ir.from_proto(small_models.residual_net(width=4))
    branches = find_layers(twice).branches
    scores = BRANCH_SCORERS.get("fisher")(find_layers(twice).model, branches, images(), 0)
    assert scores.shape == (len(branches),)
    assert scores.min() > 0
    with pytest.raises(UsageError, match="gradients of layers are measured on data"):
        prune(twice, pattern="layers", amount=0.5, score="taylor_activation")
