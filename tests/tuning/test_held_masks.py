"""Masks never leak: over optimizers, momentum, weight decay, accumulation and precision."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from onnxprune.errors import PlanError  # noqa: E402
from onnxprune.tuning.masks import HeldMasks  # noqa: E402
from onnxprune.tuning.optimizers import build_optimizer, set_learning_rate  # noqa: E402
from onnxprune.tuning.settings import Tuning  # noqa: E402
from onnxprune.types import Mask  # noqa: E402

SHAPES = {"w": (6, 8), "b": (6,)}


@st.composite
def tunings(draw):
    optimizer = draw(st.sampled_from(["adam", "adamw", "sgd"]))
    momentum = draw(st.sampled_from([0.0, 0.5, 0.9]))
    return Tuning(
        optimizer=optimizer,
        momentum=momentum,
        nesterov=optimizer == "sgd" and momentum > 0 and draw(st.booleans()),
        weight_decay=draw(st.sampled_from([0.0, 0.01, 0.5])),
        learning_rate=draw(st.sampled_from([1e-3, 0.1, 3.0])),
        clip=draw(st.sampled_from([None, 0.1])),
        accumulate=draw(st.integers(1, 3)),
        precision=draw(st.sampled_from(["float32", "bfloat16"])),
    )


def bits(tensor):
    return tensor.detach().numpy().view(np.int32)


def check_zero(parameters, optimizer, masks):
    for name, mask in masks.items():
        gone = ~mask.unpack()
        assert (bits(parameters[name])[gone] == 0).all(), "a masked weight is +0.0, bit for bit"
        for moment in optimizer.state[parameters[name]].values():
            if moment.shape == parameters[name].shape:
                assert (moment.numpy()[gone] == 0).all(), "nothing is remembered of a masked weight"


@settings(max_examples=150, deadline=None)
@given(tunings(), st.integers(0, 2**31), st.data())
def test_a_masked_weight_stays_zero_whatever_the_optimizer_does(tuning, seed, data):
    generator = torch.Generator().manual_seed(seed)
    parameters = {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()
    }
    optimizer = build_optimizer(parameters.values(), tuning)
    held = HeldMasks(parameters)
    held.attach(optimizer)
    random = np.random.default_rng(seed)
    for _ in range(5):
        if data.draw(st.booleans(), label="narrow"):
            held.narrow({name: random.random(shape) > 0.3 for name, shape in SHAPES.items()})
            check_zero(parameters, optimizer, held.masks)
        optimizer.zero_grad()
        for _ in range(tuning.accumulate):
            x = torch.randn((4, 8), generator=generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=tuning.precision == "bfloat16"):
                loss = torch.nn.functional.linear(x, parameters["w"], parameters["b"]).float().square().mean()
            (loss / tuning.accumulate).backward()
        held.mask_gradients()
        if tuning.clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters.values(), tuning.clip)
        set_learning_rate(optimizer, tuning.rate)
        optimizer.step()
        held.hold()
        check_zero(parameters, optimizer, held.masks)


def with_masks(**masks):
    parameters = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in SHAPES.items()}
    held = HeldMasks(parameters)
    held.narrow({name: np.asarray(mask) for name, mask in masks.items()})
    return parameters, held


def test_what_is_gone_never_comes_back():
    first, second = np.ones((6, 8), bool), np.ones((6, 8), bool)
    first[0], second[1] = False, False
    parameters, held = with_masks(w=first)
    held.narrow({"w": Mask.pack(second)})
    assert (parameters["w"][:2] == 0).all()
    assert (parameters["w"][2:] == 1).all()
    assert held.masks["w"].unpack().tolist() == (first & second).tolist()
    assert held.sparsity == 16 / 54
    assert held.changes == 2


def test_masked_gradients_do_not_count_even_where_they_are_no_numbers():
    kept = np.ones((6, 8), bool)
    kept[2, 3] = False
    parameters, held = with_masks(w=kept)
    parameters["w"].grad = torch.ones(6, 8)
    parameters["w"].grad[2, 3] = float("nan")
    held.mask_gradients()
    assert float(torch.nn.utils.clip_grad_norm_(parameters.values(), 100.0)) == pytest.approx(47**0.5)


def test_a_mask_that_begins_forgets_what_the_optimizer_remembers():
    parameters, held = with_masks()
    optimizer = build_optimizer(parameters.values(), Tuning(optimizer="adamw"))
    held.attach(optimizer)
    parameters["w"].square().sum().backward()
    optimizer.step()
    assert (optimizer.state[parameters["w"]]["exp_avg"] != 0).all()
    kept = np.ones((6, 8), bool)
    kept[:, 0] = False
    held.narrow({"w": kept})
    for moment in ("exp_avg", "exp_avg_sq"):
        remembered = optimizer.state[parameters["w"]][moment]
        assert (remembered[:, 0] == 0).all()
        assert (remembered[:, 1:] != 0).all()


def test_biases_and_scales_have_no_weight_decay():
    parameters, _ = with_masks()
    optimizer = build_optimizer(parameters.values(), Tuning(optimizer="sgd", weight_decay=0.1))
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert (parameters["w"] < 1).all()
    assert (parameters["b"] == 1).all()


@pytest.mark.parametrize(
    ("masks", "named"),
    [
        ({"v": np.ones((6, 8), bool)}, "'v'"),
        ({"w": np.ones((8, 6), bool)}, "shape"),
        ({"w": np.ones((6, 8), np.int8)}, "int8"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_and_nothing_is_changed(masks, named):
    parameters, held = with_masks()
    with pytest.raises(PlanError, match=named):
        held.narrow({"b": np.zeros(6, bool), **masks})
    assert (parameters["b"] == 1).all()
