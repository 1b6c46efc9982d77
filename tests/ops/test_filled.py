"""Values that hold one number everywhere lose whatever positions the channels beside them lose."""

from __future__ import annotations

import numpy as np
import pytest
from cutting import Constant, check_cut, graph, group_of, open_groups

CONSTANTS: dict[str, Constant] = {
    "a_w": (6, 8), "c_w": (8, 3), "zero": [0], "eight": [8], "four": [4], "one": [1],
    "number": np.full((), 0.3, np.float32), "small": np.full((1, 1), 0.3, np.float32),
}  # fmt: skip
ROWS = "float[N,6] x"
BATCH = "i = Shape(x) n = Gather(i, zero) "


@pytest.mark.parametrize(
    "made",
    ["t = Concat<axis = 0>(n, eight) z = ConstantOfShape<value = float[1] {0.3}>(t)",
     "t = Concat<axis = 0>(n, eight) z = Expand(number, t)",
     "t = Concat<axis = 0>(n, eight) z = Expand(small, t)",
     "t = Concat<axis = 0>(one, eight) z = ConstantOfShape<value = float[1] {0.3}>(t)",
     "z = ConstantOfShape<value = float[1] {0.3}>(eight)",
     "z = Expand(number, eight)"],
)  # fmt: skip
def test_one_number_beside_channels(made: str) -> None:
    body = f"{BATCH} {made} h = MatMul(x, a_w) s = Add(h, z) r = Mul(s, h) y = MatMul(r, c_w)"
    assert open_groups(check_cut(graph(body, inputs=ROWS, constants=CONSTANTS))) == {"a_w": 8}


@pytest.mark.parametrize("made", ["z = ConstantOfShape<value = float[1] {0.5}>(t)", "z = Expand(number, t)"])
def test_numbers_that_are_channels_of_their_own(made: str) -> None:
    """Four more channels that are the same for all samples, joined to eight computed ones."""
    body = f"""
        {BATCH} t = Concat<axis = 0>(n, four) {made} h = MatMul(x, a_w) j = Concat<axis = 1>(h, z)
        r = Relu(j) y = MatMul(r, c_w)
    """
    analysis = check_cut(graph(body, inputs=ROWS, constants=CONSTANTS | {"c_w": (12, 3)}))
    assert sorted(open_groups(analysis).values()) == [4, 8]
    assert group_of(analysis, "a_w", 1).size == 8


def test_a_size_that_is_a_multiple_of_a_symbol_counts_no_channels() -> None:
    """N * 8 numbers, in rows of 8: which of them are channels is written nowhere."""
    body = f"""
        {BATCH} m = Mul(n, eight) z = ConstantOfShape<value = float[1] {{0.5}}>(m)
        rows = Concat<axis = 0>(n, eight) q = Reshape(z, rows) h = MatMul(x, a_w) s = Add(h, q)
        y = MatMul(s, c_w)
    """
    analysis = check_cut(graph(body, inputs=ROWS, constants=CONSTANTS))
    assert open_groups(analysis) == {}


def test_a_vector_that_is_expanded_is_no_single_number() -> None:
    body = f"""
        {BATCH} t = Concat<axis = 0>(n, eight) z = Expand(k, t) h = MatMul(x, a_w) s = Add(h, z)
        y = MatMul(s, c_w)
    """
    analysis = check_cut(graph(body, inputs=ROWS, constants=CONSTANTS | {"k": (1, 8)}))
    assert list(open_groups(analysis).values()) == [8]
    assert any((m.tensor, m.axis) == ("k", 1) for m in group_of(analysis, "a_w", 1).members)
