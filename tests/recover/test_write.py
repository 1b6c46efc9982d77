"""Where a repair is written: weights, supports, intercepts, and both copies of a model in 16 bits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from cutting import graph
from repairing import stored

from onnxprune.ops.linear import find_linear
from onnxprune.recover.write import Writer, spread

RANDOM = np.random.default_rng(6)


def test_zeros_outside_of_the_support_hold_whatever_the_change_says() -> None:
    model = graph("y = MatMul(x, w)", constants={"w": (5, 3)}, inputs="float[N,5] x")
    (linear,), _ = find_linear(model)
    before = stored(model)["w"].copy()
    support = RANDOM.random((1, 5, 3)) < 0.5
    writer = Writer(model)
    writer.know([linear])
    writer.know_shape(linear, (2, 3))
    writer.write(linear, np.ones((1, 5, 3)), np.array([[1.0, 2.0, 3.0]]), support)
    np.testing.assert_allclose(stored(model)["w"], np.where(support[0], before + 1, 0), rtol=1e-6)
    np.testing.assert_allclose(stored(model)["y_constants"], [1, 2, 3])


def test_both_copies_hold_what_the_model_can_hold() -> None:
    weight = RANDOM.standard_normal((5, 3)).astype(np.float16)
    model = graph("y = MatMul(x, w)", constants={"w": weight}, inputs="float16[N,5] x", outputs="float16 y")
    writer = Writer(model)
    assert writer.working is not model
    (linear,), _ = find_linear(writer.working)
    writer.know([linear])
    writer.know_shape(linear, (2, 3))
    change = RANDOM.standard_normal((1, 5, 3)) * 1e-3
    writer.write(linear, change, np.array([[0.1, 0.2, 0.3]]), None)
    own, working = stored(model), stored(writer.working)
    assert own["w"].dtype == np.float16
    assert working["w"].dtype == np.float32
    np.testing.assert_array_equal(own["w"], working["w"])
    np.testing.assert_array_equal(own["w"], (weight.astype(np.float64) + change[0]).astype(np.float16))
    assert [node.op_type for node in model.graph] == [node.op_type for node in writer.working.graph]


def test_an_intercept_takes_the_shape_that_broadcasts() -> None:
    def shape_of(body: str, weight: tuple[int, ...], x: str, result: tuple[int, ...]) -> tuple[int, ...]:
        model: ir.Model = graph(body, constants={"w": weight}, inputs=x)
        (linear,), _ = find_linear(model)
        numbers = np.arange(linear.groups * linear.outputs, dtype=float).reshape(linear.groups, -1)
        found = spread(linear, numbers, result)
        whole = np.broadcast_to(found, result)
        assert (linear.targets(whole) == numbers[:, None]).all()
        return found.shape

    assert shape_of("y = Conv(x, w)", (4, 3, 1, 1), "float[N,3,5,5] x", (2, 4, 5, 5)) == (4, 1, 1)
    assert shape_of("y = MatMul(x, w)", (6, 4), "float[N,5,6] x", (2, 5, 4)) == (4,)
    assert shape_of("y = MatMul(w, x)", (4, 6), "float[N,6,5] x", (2, 4, 5)) == (4, 1)
    assert shape_of("y = MatMul(x, w)", (3, 6, 4), "float[N,3,5,6] x", (2, 3, 5, 4)) == (3, 1, 4)
    assert shape_of("y = Conv<group=2>(x, w)", (4, 1, 1), "float[N,2,7] x", (2, 4, 7)) == (4, 1)
