"""Rows of zeros, and numbers that are the same along an axis."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.ops.constant_arrays import along, same_along, sum_rows, zero_positions, zero_rows

NAN = np.nan


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(5, 40), (7, 9, 2), (3, 1), (4, 6, 3, 3)])
def test_zero_rows_are_those_that_numpy_finds(shape: tuple[int, ...], seed: int) -> None:
    random = np.random.default_rng(seed)
    weight = np.where(random.random(shape) < 0.5 / np.prod(shape[1:]), 1.0, 0.0)
    for axis in range(len(shape)):
        others = tuple(a for a in range(len(shape)) if a != axis)
        np.testing.assert_array_equal(zero_positions(weight, axis), ~weight.any(axis=others))
    columns = np.flatnonzero(random.random(shape[1]) < 0.5)
    expected = np.flatnonzero(~weight[:, columns].any(axis=tuple(range(1, len(shape)))))
    np.testing.assert_array_equal(zero_rows(weight, columns), expected)


def test_vectors_have_positions_too() -> None:
    assert zero_positions(np.array([0.0, 2, 0]), 0).tolist() == [True, False, True]


def test_same_along_an_axis() -> None:
    array = np.array([[1, 2, 3], [1, NAN, 4]])
    np.testing.assert_array_equal(same_along(array, 0), [[1, NAN, NAN]])
    np.testing.assert_array_equal(along(np.array([[[5.0], [NAN]]]), 1, 2), [5, NAN])
    np.testing.assert_array_equal(along(np.array([[[5.0]]]), 1, 3), [5, 5, 5])
    assert np.isnan(along(None, 0, 2)).all()


def test_sums_by_group() -> None:
    weight = np.array([[0.0, 2], [1, 2], [0, 0], [3, 0]])[..., None]  # two groups of two inputs
    x = np.array([[NAN, 10], [7, NAN]])
    result = sum_rows(weight, x, np.array([1.0, 1, 5, 5]))
    np.testing.assert_array_equal(result, [21, NAN, 5, 26])
    assert sum_rows(weight[1:2], x[:1], np.zeros(1)) is None
