"""NaN and infinity in weights, found and named."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.model.nonfinite import describe_nonfinite, find_nonfinite, first_nonfinite

TYPES = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_the_first_odd_element_is_found(dtype: type, odd: float) -> None:
    piece = np.ones(1000, dtype)
    assert first_nonfinite(piece) is None
    piece[[700, 900]] = odd
    assert first_nonfinite(piece) == 700


def test_a_sum_that_overflows_is_not_odd() -> None:
    for dtype, largest in ((np.float32, 3e38), (np.float16, 6e4), (np.float64, 1e308)):
        assert first_nonfinite(np.full(100, largest, dtype)) is None
    both = np.array([np.inf, -np.inf], np.float32)
    assert first_nonfinite(both) == 0


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, np.bool_, ml_dtypes.int4])
def test_integers_are_finite(dtype: type) -> None:
    assert first_nonfinite(np.ones(8, dtype)) is None


def test_a_tensor_and_its_index_are_named() -> None:
    array = np.ones((3, 5), np.float32)
    array[2, 1] = np.nan
    assert describe_nonfinite("a\x1b[31m", (3, 5), 11, array[2, 1]) == (
        r"weight 'a\x1b[31m' at [2, 1] is nan; repair or re-export the model"
    )


def test_a_model_is_searched_piece_by_piece() -> None:
    large = np.ones((3 << 20,), np.float32)
    values = {"n": np.array([7]), "w": large}
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="g")
    for name, array in values.items():
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        graph.register_initializer(value)
    model = ir.Model(graph, ir_version=10)
    assert find_nonfinite(model) is None
    large[2_000_000] = -np.inf
    assert str(find_nonfinite(model)).startswith("weight 'w' at [2000000] is -inf")
