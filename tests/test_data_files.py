"""Data that another process reads is the data that was given, of any type that models take."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from onnxprune.data import Dataset
from onnxprune.data_files import store


@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16, "int64", "bool", "uint8"])
def test_a_data_set_comes_back(tmp_path, dtype):
    x = np.arange(24).reshape(4, 6).astype(dtype)
    given = Dataset.from_arrays(
        {
            "x": x,
            "y": np.ones((4, 1)),
            "label": np.array([0, 1, 1, 2]),
            "segment": np.array(["é", "b", "b", "c"]),
        }
    )
    found = store(given, tmp_path).read(tmp_path)
    assert list(found.arrays) == ["x", "y"]
    for name, array in given.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)
    np.testing.assert_array_equal(found.labels, given.labels)
    np.testing.assert_array_equal(found.segments, given.segments)
    assert (found.source, found.digest, found.noise) == (given.source, given.digest, given.noise)


def test_what_is_not_there_stays_away(tmp_path):
    found = store(Dataset.from_arrays({"x": np.ones((2, 3))}), tmp_path).read(tmp_path)
    assert found.labels is None
    assert found.segments is None
    assert len(found) == 2
