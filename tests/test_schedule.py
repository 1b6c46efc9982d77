"""How much is removed by which round."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.schedule import cubic


def test_the_formula() -> None:
    assert cubic(0.8, 4) == pytest.approx((0.8 * (1 - 0.75**3), 0.8 * (1 - 0.5**3), 0.8 * (1 - 0.25**3), 0.8))
    assert cubic(0.8, 2, initial=0.4) == pytest.approx((0.8 - 0.4 / 8, 0.8))


@given(st.floats(0.01, 1), st.integers(1, 30))
def test_it_grows_and_ends_where_it_should(final: float, rounds: int) -> None:
    shares = cubic(final, rounds)
    assert len(shares) == rounds
    assert shares[-1] == final
    assert all(a < b for a, b in pairwise((0.0, *shares)))
    steps = [b - a for a, b in pairwise((0.0, *shares))]
    assert all(a >= b - 1e-12 for a, b in pairwise(steps)), "fast at first, slowly at the end"


def test_there_must_be_a_round() -> None:
    with pytest.raises(ValueError, match="at least one round"):
        cubic(0.5, 0)
