"""Random inputs are drawn for those who ask by name, by the rules of random feeds, and never otherwise."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import small_models
from cutting import graph

import onnxprune
from onnxprune.calibration.noise import draw_noise, is_noise, notes_on_noise
from onnxprune.data import Dataset
from onnxprune.errors import UsageError


def mlp() -> ir.Model:
    return ir.from_proto(small_models.mlp())


def test_names_of_noise() -> None:
    assert is_noise("random")
    assert is_noise("random:3")
    assert not is_noise("./random")
    assert not is_noise("random.npz")
    assert not is_noise("randomly:3")


@pytest.mark.parametrize(("source", "count"), [("random", 128), ("random:1", 1), ("random:30", 30)])
def test_as_many_samples_as_asked_for(source: str, count: int) -> None:
    data = draw_noise(mlp(), source, seed=0)
    assert data.arrays["x"].shape == (count, 16)
    assert data.arrays["x"].dtype == np.float32
    assert data.noise
    assert data.source == f"random:{count}"
    assert len(np.unique(data.arrays["x"])) == count * 16


def test_a_seed_decides() -> None:
    digests = [draw_noise(mlp(), "random:4", seed).digest for seed in (1, 1, 100)]
    assert digests[0] == digests[1] != digests[2]


def test_fixed_batches_are_filled() -> None:
    model = mlp()
    model.graph.inputs[0].shape = ir.Shape([8, 16])
    assert draw_noise(model, "random:20", 0).arrays["x"].shape == (24, 16)


def test_the_rules_of_random_feeds_hold_for_every_sample() -> None:
    model = graph("y = Mul(x, attention_mask)", inputs="float[N,4] x, float[N,4] attention_mask")
    mask = draw_noise(model, "random:50", 0).arrays["attention_mask"]
    assert set(np.unique(mask)) == {0, 1}
    assert (mask[:, 0] == 1).all()


@pytest.mark.parametrize("source", ["random:", "random:0", "random:-1", "random:x", "random:1.5"])
def test_a_count_that_is_none(source: str) -> None:
    with pytest.raises(UsageError, match=r"expected random or random:N with a number of samples"):
        draw_noise(mlp(), source, 0)


def test_the_report_says_what_was_noise() -> None:
    note = (
        "random:32",
        "calibration was random noise, not real inputs: what depends on it is not to be trusted",
    )
    result = onnxprune.prune(mlp(), amount=0.5, score="activation", data="random:32")
    assert note in [(each.name, each.reason) for each in result.report.skipped]
    assert note in [(each.name, each.reason) for each in result.plan.skipped]
    assert result.plan.recipe["data"] == "random:32"
    same = onnxprune.plan(mlp(), amount=0.5, score="activation", data="random:32")
    assert note in [(each.name, each.reason) for each in same.skipped]
    real = Dataset.from_arrays({"x": np.ones((32, 16), np.float32)})
    assert not notes_on_noise(real)
    result = onnxprune.prune(mlp(), amount=0.5, score="activation", data=real)
    assert note[1] not in [each.reason for each in result.report.skipped]


def test_without_the_name_nothing_random_is_used() -> None:
    with pytest.raises(UsageError, match="is measured on samples: give --data"):
        onnxprune.prune(mlp(), amount=0.5, score="activation")


def test_how_models_are_run_is_no_part_of_the_plan() -> None:
    usual = onnxprune.plan(mlp(), amount=0.5, score="activation", data="random:32")
    other = onnxprune.plan(
        mlp(), amount=0.5, score="activation", data="random:32", batch=5, memory_limit=1 << 20, threads=2
    )
    assert usual.recipe == other.recipe
    assert [g.removed.tolist() for g in usual.groups] == [g.removed.tolist() for g in other.groups]
    for option in ({"batch": 0}, {"memory_limit": 0}, {"threads": -1}):
        with pytest.raises(UsageError, match="must be at least"):
            onnxprune.prune(mlp(), amount=0.5, **option)  # type: ignore[arg-type]
