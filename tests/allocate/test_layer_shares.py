from __future__ import annotations

import numpy as np
import pytest

from onnxprune.allocate.layer_shares import owl_shares, shares_below_one_threshold


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.9])
def test_one_threshold_over_all_layers(amount: float) -> None:
    random = np.random.default_rng(0)
    scores = {name: random.random(size, np.float32) * scale for name, size, scale in
              (("a", 100, 1.0), ("b", 400, 0.2), ("c", 50, 3.0))}  # fmt: skip
    streams = {name: (lambda each=each: iter([(each[:30], None), (each[30:], None)]))
               for name, each in scores.items()}  # fmt: skip
    found = shares_below_one_threshold(streams, {name: len(each) for name, each in scores.items()}, amount)
    threshold = np.sort(np.concatenate(list(scores.values())))[round(amount * 550)]
    for name, each in scores.items():
        assert found[name] == pytest.approx(np.mean(each < threshold))
    assert sum(found[name] * len(each) for name, each in scores.items()) == pytest.approx(amount * 550)


def test_something_always_stays() -> None:
    zeros = np.zeros(10, np.float32)
    found = shares_below_one_threshold({"a": lambda: iter([(zeros, None)])}, {"a": 10}, 0.99)
    assert found == {"a": 0.9}


def test_owl_takes_less_where_outliers_are() -> None:
    """Equal sizes: the formula of the paper's code, written out."""
    ratios = {"a": 0.02, "b": 0.10, "c": 0.05}
    found = owl_shares(ratios, dict.fromkeys(ratios, 7), 0.7, width=0.08)
    values = np.array(list(ratios.values()))
    scaled = (values - values.min()) / (values.max() - values.min()) * 0.08 * 2
    keeps = scaled - scaled.mean() + (1 - 0.7)
    np.testing.assert_allclose(list(found.values()), 1 - keeps)
    assert found["a"] > found["c"] > found["b"]


@pytest.mark.parametrize("amount", [0.01, 0.5, 0.98])
def test_owl_keeps_the_amount_over_all_weights(amount: float) -> None:
    sizes = {"a": 10, "b": 1000, "c": 300}
    found = owl_shares({"a": 0.0, "b": 0.2, "c": 0.01}, sizes, amount)
    assert sum(found[name] * sizes[name] for name in sizes) == pytest.approx(amount * 1310)
    assert all(0 <= share <= 1 for share in found.values())


def test_equal_layers_give_equal_shares() -> None:
    assert owl_shares({"a": 0.1, "b": 0.1}, {"a": 1, "b": 2}, 0.5) == {"a": 0.5, "b": 0.5}
