"""Constants added to a result: where they go, in which type, and who else must not notice."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from cutting import graph

from onnxprune.model.biases import BiasWriter, is_fixed, numbers_of
from onnxprune.runtime import open_session

IMAGE = "float[N,3,4,4] x"
VECTOR = np.array([1.0, -2.0, 3.0])


def run(model: ir.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    return open_session(model).run({"x": x})


def added(
    model: ir.Model, node: str, delta: np.ndarray, x_shape: tuple[int, ...], **options: Any
) -> BiasWriter:
    """Add, and compare the output, which is the node's result, with that of before."""
    x = np.random.default_rng(0).standard_normal(x_shape).astype(np.float32)
    before = run(model, x)["y"]
    writer = BiasWriter(model.graph)
    (found,) = (n for n in model.graph if n.name == node)
    writer.add_to_result(found, delta, **options)
    np.testing.assert_allclose(run(model, x)["y"], before + delta, rtol=1e-5, atol=1e-5)
    return writer


@pytest.mark.parametrize(("inputs", "numbers"), [("x, w, b", 0), ("x, w", 3)])
def test_a_convolution_has_its_bias_as_an_input(inputs: str, numbers: int) -> None:
    model = graph(f"y = Conv({inputs})", constants={"w": (3, 3, 1, 1), "b": (3,)}, inputs=IMAGE)
    writer = added(model, "n0", VECTOR.reshape(3, 1, 1), (2, 3, 4, 4))
    assert writer.added == numbers
    assert writer.added_bytes == 4 * numbers
    assert [node.op_type for node in model.graph] == ["Conv"]


def test_beta_of_a_product_is_divided_out() -> None:
    model = graph("y = Gemm<beta = 0.5>(x, w, b)", constants={"w": (5, 3), "b": (3,)}, inputs="float[N,5] x")
    assert added(model, "n0", VECTOR, (4, 5)).added == 0


def test_with_a_beta_of_zero_an_add_is_put_behind() -> None:
    model = graph("y = Gemm<beta = 0.0>(x, w, b)", constants={"w": (5, 3), "b": (3,)}, inputs="float[N,5] x")
    assert added(model, "n0", VECTOR, (4, 5)).added == 3
    assert [node.op_type for node in model.graph] == ["Gemm", "Add"]


def test_the_add_behind_a_product_takes_it() -> None:
    model = graph(
        "m = MatMul(x, w) y = Add(b, m)", constants={"w": (5, 3), "b": (3,)}, inputs="float[N,2,5] x"
    )
    assert added(model, "n0", VECTOR, (4, 2, 5)).added == 0
    assert [node.op_type for node in model.graph] == ["MatMul", "Add"]


def test_the_add_behind_is_found_where_no_shape_is_declared() -> None:
    model = graph(
        "m = MatMul(x, w) y = Add(b, m)", constants={"w": (5, 3), "b": (3,)}, inputs="float[N,2,5] x"
    )
    product = next(iter(model.graph)).outputs[0]
    product.shape = None
    added(model, "n0", VECTOR, (4, 2, 5), rank=3)
    assert [node.op_type for node in model.graph] == ["MatMul", "Add"]


def test_an_add_that_others_read_beside_is_not_touched() -> None:
    model = graph(
        "m = MatMul(x, w) a = Add(m, b) r = Relu(m) y = Add(a, r)",
        constants={"w": (5, 3), "b": (3,)},
        inputs="float[N,5] x",
    )
    x = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    weight, bias = (numbers_of(model.graph.initializers[name]) for name in ("w", "b"))
    product = x @ weight + VECTOR
    BiasWriter(model.graph).add_to_result(next(iter(model.graph)), VECTOR)
    np.testing.assert_allclose(
        run(model, x)["y"], product + bias + np.maximum(product, 0), rtol=1e-4, atol=1e-5
    )


def test_a_new_add_takes_the_name_and_all_readers() -> None:
    model = graph("y = MatMul(x, w)", constants={"w": (5, 3)}, inputs="float[N,5] x")
    added(model, "n0", VECTOR, (4, 5))
    assert [node.op_type for node in model.graph] == ["MatMul", "Add"]
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert next(iter(model.graph)).outputs[0].name == "y_without_constants"


def test_the_type_is_that_of_the_result_or_the_one_that_is_said() -> None:
    model = graph("y = MatMul(x, w)", constants={"w": (5, 3)}, inputs="float[N,5] x")
    node = next(iter(model.graph))
    node.outputs[0].type = None
    for value in node.inputs:
        assert value is not None
        value.type = None
    with pytest.raises(ValueError, match="type of y is not known"):
        BiasWriter(model.graph).add_to_result(node, VECTOR)
    BiasWriter(model.graph).add_to_result(node, VECTOR, dtype=ir.DataType.FLOAT16)
    (constant,) = (v for v in model.graph.initializers.values() if "constants" in str(v.name))
    assert constant.dtype == ir.DataType.FLOAT16


def test_a_tensor_that_others_read_is_copied() -> None:
    model = graph(
        "a = Conv(x, w, b) c = Conv(x, w, b) y = Add(a, c)",
        constants={"w": (3, 3, 1, 1), "b": (3,)},
        inputs=IMAGE,
    )
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    before = run(model, x)["y"]
    writer = BiasWriter(model.graph)
    writer.add_to_result(next(iter(model.graph)), VECTOR.reshape(3, 1, 1))
    np.testing.assert_allclose(run(model, x)["y"], before + VECTOR.reshape(3, 1, 1), rtol=1e-5, atol=1e-5)
    assert writer.added == 3


def test_a_bias_that_is_an_input_is_not_fixed() -> None:
    model = graph("y = Conv(x, w, b)", constants={"w": (3, 3, 1, 1)}, inputs="float[N,3,4,4] x, float[3] b")
    assert is_fixed(model.graph.initializers["w"])
    assert not is_fixed(model.graph.inputs[1])
    BiasWriter(model.graph).add_to_result(next(iter(model.graph)), VECTOR.reshape(3, 1, 1))
    assert [node.op_type for node in model.graph] == ["Conv", "Add"]
    with pytest.raises(ValueError, match="b is not stored"):
        numbers_of(model.graph.inputs[1])
    with pytest.raises(ValueError, match="is not stored"):
        BiasWriter(model.graph).store(next(iter(model.graph)), 0, VECTOR)
