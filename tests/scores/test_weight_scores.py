from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.scores.weights import WEIGHT_SCORERS


def lamp(*pieces: Any) -> Any:
    score = WEIGHT_SCORERS.get("lamp").start("w", 0, lambda: iter(pieces))
    return np.concatenate([score(piece).reshape(-1) for piece in pieces])


def test_lamp_is_the_root_of_the_formula() -> None:
    weights = np.random.default_rng(0).normal(size=40).astype(np.float32)
    order = np.argsort(np.abs(weights))
    squares = np.square(weights[order].astype(np.float64))
    expected = np.empty(40)
    for place in range(40):
        expected[order[place]] = squares[place] / squares[place:].sum()
    np.testing.assert_allclose(lamp(weights[:16], weights[16:]) ** 2, expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_lamp_does_not_depend_on_the_scale(scale: float) -> None:
    weights = np.arange(1, 9, dtype=np.float32)
    np.testing.assert_allclose(lamp(weights * np.float32(scale)), lamp(weights), rtol=1e-5)
    assert lamp(weights)[-1] == 1


def test_lamp_of_zeros_and_of_equal_weights() -> None:
    assert lamp(np.zeros(3, np.float32)).tolist() == [0, 0, 0]
    np.testing.assert_allclose(lamp(np.ones(4, np.float32)), np.full(4, 0.5))
