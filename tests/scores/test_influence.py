"""Importance of branches: the cosine by its definition, sizes of weights, noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from cutting import graph

from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.scores.influence import BRANCH_SCORERS
from onnxprune.types import Branch

X = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32)
DATA = Dataset.from_arrays({"x": X})
WEIGHT = np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32)


def model(body: str = "f = MatMul(x, w) y = Add(x, f)", **constants: np.ndarray) -> ir.Model:
    return graph(body, inputs="float[N,3,4] x", constants={"w": WEIGHT, **constants})


def branch(axis: int = 2) -> Branch:
    return Branch("b", "feed_forward", "n1", 1, "f", "y", axis, ("w",))


def influence(of: ir.Model, *branches: Branch, data: Dataset = DATA) -> list[float]:
    return [float(value) for value in BRANCH_SCORERS.get("influence")(of, branches, data, 0)]


@pytest.mark.parametrize("axis", [1, 2])
def test_influence_is_one_minus_the_mean_cosine(axis):
    y = X + X @ WEIGHT
    cosines = (X * y).sum(axis) / np.linalg.norm(X, axis=axis) / np.linalg.norm(y, axis=axis)
    assert influence(model(), branch(axis)) == pytest.approx([1 - cosines.mean()], rel=1e-5)


def test_batches_count_by_their_samples():
    """The mean is over samples, whatever the batches: 33 samples are one of 32 and one of 1."""
    x = np.concatenate([np.repeat(X[:1], 32, axis=0), -3 * X[1:2]])
    y = x + x @ WEIGHT
    cosines = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    data = Dataset.from_arrays({"x": x})
    assert influence(model(), branch(), data=data) == pytest.approx([1 - cosines.mean()], rel=1e-5)


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 0.0), (1.0, 0.0), (-2.0, 2.0), (-1.0, 1.0)])
def test_what_only_stretches_has_no_influence(scale, expected):
    """y = (1 + scale) x: the same direction, the opposite one, or none."""
    of = model(w=scale * np.eye(4, dtype=np.float32))
    assert influence(of, branch()) == pytest.approx([expected], abs=1e-6)


def test_zeros_beside_zeros_are_alike():
    data = Dataset.from_arrays({"x": np.zeros((2, 3, 4), np.float32)})
    assert influence(model(), branch(), data=data) == [0.0]


def test_a_term_of_a_longer_sum_is_left_out_alone():
    body = "f = MatMul(x, w) t = Add(x, f) g = MatMul(x, v) y = Add(t, g)"
    of = model(body, v=2 * WEIGHT.T.copy())
    y = X + X @ WEIGHT + X @ (2 * WEIGHT.T)
    rest = y - X @ WEIGHT
    cosines = (rest * y).sum(-1) / np.linalg.norm(rest, axis=-1) / np.linalg.norm(y, axis=-1)
    assert influence(of, branch()) == pytest.approx([1 - cosines.mean()], rel=1e-4)


def test_influence_needs_data():
    with pytest.raises(UsageError, match="--data"):
        BRANCH_SCORERS.get("influence")(model(), [branch()], None, 0)


def test_l2_is_the_mean_size_of_the_weights():
    of = model(v=np.full((2, 8), 3.0, np.float32), body="f = MatMul(x, w) y = Add(x, f)")
    both = replace(branch(), weights=("w", "v"))
    energy = (WEIGHT.astype(np.float64) ** 2).sum() + 9 * 16
    scores = BRANCH_SCORERS.get("l2")(of, [branch(), both], None, 0)
    assert scores == pytest.approx([np.sqrt((WEIGHT**2).mean()), np.sqrt(energy / 32)])


def test_noise_depends_on_the_seed_alone():
    first, again, other = (
        BRANCH_SCORERS.get("random")(model(), [branch()] * 4, None, seed).tolist() for seed in (1, 1, 2)
    )
    assert first == again != other
