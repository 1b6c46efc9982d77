from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrize, prune  # noqa: E402

from onnxprune.importers.baking import bake_masks, copy_for_inference  # noqa: E402


class Masked(nn.Module):
    """A parametrization: weight -> weight * mask."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.mask


@pytest.fixture
def pruned() -> nn.Sequential:
    """A linear layer masked by prune, one masked by a parametrization, one with both tensors masked."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    prune.l1_unstructured(model[0], "weight", amount=0.25)
    parametrize.register_parametrization(model[1], "weight", Masked((torch.rand(8, 8) > 0.5).float()))
    prune.random_unstructured(model[2], "weight", amount=16)
    prune.random_unstructured(model[2], "bias", amount=2)
    return model


def test_the_function_stays_and_the_masks_go(pruned: nn.Sequential) -> None:
    x = torch.randn(3, 8)
    expected = pruned(x)

    copied = copy_for_inference(pruned)
    bake_masks(copied)

    torch.testing.assert_close(copied(x), expected, rtol=0, atol=0)
    assert set(copied.state_dict()) == {f"{layer}.{name}" for layer in "012" for name in ("weight", "bias")}


def test_reports_each_mask_with_its_share_of_zeros(pruned: nn.Sequential) -> None:
    zeros = (pruned[1].weight == 0).float().mean().item()

    baked = bake_masks(copy_for_inference(pruned))

    assert baked == (
        "0.weight (pruned): 25.0% zeros",
        f"1.weight (parametrized): {zeros:.1%} zeros",
        "2.weight (pruned): 50.0% zeros",
        "2.bias (pruned): 50.0% zeros",
    )


def test_the_given_module_is_not_touched(pruned: nn.Sequential) -> None:
    pruned.train()
    x = torch.randn(3, 8)
    expected = pruned(x)
    state = {name: value.clone() for name, value in pruned.state_dict().items()}

    bake_masks(copy_for_inference(pruned))

    assert pruned.training
    assert all(parameter.requires_grad for parameter in pruned.parameters())
    assert prune.is_pruned(pruned)
    assert parametrize.is_parametrized(pruned[1])
    torch.testing.assert_close(pruned(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(dict(pruned.state_dict()), state, rtol=0, atol=0)


def test_a_module_without_masks_has_nothing_to_report() -> None:
    # a buffer that merely ends like one of prune's
    model = nn.Linear(2, 2)
    model.register_buffer("attention_mask", torch.ones(2))

    assert bake_masks(copy_for_inference(model)) == ()
    assert "attention_mask" in dict(model.named_buffers())


def test_a_layer_used_twice_is_baked_once() -> None:
    layer = nn.Linear(4, 4)
    prune.l1_unstructured(layer, "weight", amount=4)
    model = nn.Sequential(layer, nn.ReLU(), layer)

    copied = copy_for_inference(model)

    assert len(bake_masks(copied)) == 1
    assert copied[0] is copied[2]
