from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import UsageError
from onnxprune.patterns import (
    Pattern,
    block_sums,
    count_bad_blocks,
    count_bad_runs,
    parse_pattern,
    spread_blocks,
)


@pytest.mark.parametrize("text", ["unstructured", "2:4", "1:16", "block:4x8", "block:1x1"])
def test_names_are_read_back(text: str) -> None:
    assert str(parse_pattern(text)) == text


def test_unknown_names_say_what_is_known() -> None:
    known = "unknown pattern 'half'; known: channels, heads, head_dim, experts, layers, dead, unstructured"
    with pytest.raises(UsageError, match=known):
        parse_pattern("half")


@given(st.integers(2, 5), st.integers(1, 3), st.integers(1, 2), st.integers(0, 10**6), st.data())
def test_bad_runs_are_counted_one_by_one(
    run: int, runs: int, groups: int, seed: int, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, run - 1))
    axis = data.draw(st.integers(0, 2))
    shape = [2, 3, 2]
    shape[axis] = run * runs * groups
    kept = np.random.default_rng(seed).random(shape) < 0.6
    along = np.moveaxis(kept, axis, -1).reshape(-1, run)
    expected = sum(int(row.sum() > keep) for row in along)
    assert count_bad_runs(kept, Pattern("N:M", keep=keep, run=run), axis, groups) == expected


def test_one_weight_too_many_is_a_bad_run() -> None:
    kept = np.tile([True, True, False, False], (3, 2))
    pattern = parse_pattern("2:4")
    assert count_bad_runs(kept, pattern, 1) == 0
    kept[1, 6] = True
    assert count_bad_runs(kept, pattern, 1) == 1


def test_runs_do_not_reach_into_the_next_group() -> None:
    kept = np.ones((12, 1), bool)
    with pytest.raises(ValueError, match="in 2 parts is no multiple of 4"):
        count_bad_runs(kept, parse_pattern("2:4"), 0, groups=2)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 7), st.integers(1, 7), st.permutations([0, 1, 2]))
def test_blocks_are_summed_and_spread_in_the_same_places(
    rows: int, columns: int, outputs: int, inputs: int, order: list[int]
) -> None:
    output_axis, summed_axis, other_axis = order
    shape = [0, 0, 0]
    shape[output_axis], shape[summed_axis], shape[other_axis] = outputs, inputs, 2
    pattern = Pattern("block", rows=rows, columns=columns)
    values = np.random.default_rng(0).random(shape)
    sums, sizes = block_sums(values, pattern, output_axis, summed_axis)
    assert sizes.sum() == values.size
    np.testing.assert_allclose(sums.sum(), values.sum())
    chosen = sums > np.median(sums)
    spread = spread_blocks(chosen, pattern, tuple(shape), output_axis, summed_axis)
    assert spread.shape == tuple(shape)
    np.testing.assert_allclose(values[spread].sum(), sums[chosen].sum())
    assert count_bad_blocks(spread, pattern, output_axis, summed_axis) == 0


def test_a_hole_in_a_block_is_counted() -> None:
    kept = np.ones((4, 4), bool)
    kept[0:2, 2:4] = False
    assert count_bad_blocks(kept, parse_pattern("block:2x2"), 0, 1) == 0
    kept[3, 3] = False
    assert count_bad_blocks(kept, parse_pattern("block:2x2"), 0, 1) == 1
