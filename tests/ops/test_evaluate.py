"""One node on arrays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.ops.evaluate import evaluate


def node(op: str, inputs: int = 1, outputs: int = 1, **attributes: int) -> ir.Node:
    values = [ir.Value(name=f"x{index}") for index in range(inputs)]
    return ir.node(op, values, attributes=attributes, num_outputs=outputs)


def test_arithmetic_is_that_of_the_arrays() -> None:
    x = np.array([-1.0, 1e-12, 3.0])
    (result,) = evaluate(node("Sigmoid"), [x], 17) or []
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, 1 / (1 + np.exp(-x)), rtol=1e-15)


def test_absent_inputs_and_several_outputs() -> None:
    (low,) = evaluate(node("Clip", 3), [np.array([-2.0, 5.0]), None, np.array(1.0)], 17) or []
    assert low.tolist() == [-2, 1]
    parts = evaluate(node("Split", 2, 2, axis=0), [np.arange(4.0), np.array([1, 3])], 17)
    assert parts is not None
    assert [part.tolist() for part in parts] == [[0], [1, 2, 3]]


@pytest.mark.parametrize("op", ["NoSuchOperator", "MatMul"])
def test_what_cannot_be_computed_is_none(op: str) -> None:
    assert evaluate(node(op), [np.zeros(2)], 17) is None
