"""Statistics of constants: which are folded, and that they are right."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
from cutting import graph

from onnxprune.model.constant_statistics import fold_statistics

PARTS = {"one": [1], "w": np.arange(6, dtype=np.float32)}
V = np.arange(24, dtype=np.float32).reshape(4, 6) - 7


def folded(body: str, **constants: object) -> ir.Model:
    model = graph(body, inputs="float[N,6] x", constants={"v": V} | constants)  # type: ignore[arg-type]
    fold_statistics(model.graph, 17)
    return model


def contents(model: ir.Model) -> dict[str, np.ndarray]:
    values = model.graph.initializers.values()
    return {str(v.name): v.const_value.numpy() for v in values if "folded" in str(v.name) and v.const_value}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("n = ReduceL2<axes = [1]>(v)", np.linalg.norm(V, axis=1, keepdims=True)),
        ("p = Mul(v, v) n = ReduceSum(p, one)", (V**2).sum(1, keepdims=True)),
        ("t = Transpose(v) n = ReduceMax<axes = [0], keepdims = 0>(t)", V.max(1)),
        ("n = ReduceMean(v)", V.mean().reshape(1, 1)),
        ("m = MatMul(v, w) n = ReduceSum<keepdims = 0>(m)", (V @ np.arange(6)).sum()),
    ],
)
def test_statistics_are_folded(lines: str, expected: np.ndarray) -> None:
    model = folded(f"{lines} y = Mul(x, n)", **{k: v for k, v in PARTS.items() if f" {k})" in lines})
    (result,) = contents(model).values()
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert all(value is None or value.name != "n" for node in model.graph for value in node.inputs)


@pytest.mark.parametrize(
    "lines",
    [
        "n = Mul(v, v)",  # elementwise: channels are followed through it
        "t = Transpose(v) n = MatMul(v, t)",  # as large as its parts together: a weight of its own
        "t = Slice(v, zero, two, one) n = MatMul(v, t)",  # a layer of a network whose input is constant
        "n = ReduceSum<keepdims = 0>(x, zero)",  # not constant
        "r = RandomNormal<shape = [6, 6]>() n = ReduceSum<keepdims = 0>(r, zero)",  # another one each time
    ],
)
def test_nothing_else_is_folded(lines: str) -> None:
    constants = {"v": np.ones((6, 6), np.float32), "zero": [0], "one": [1], "two": [2]}
    used = {name: value for name, value in constants.items() if re.search(rf"[ (]{name}[,)]", lines)}
    model = graph(f"{lines} y = MatMul(x, n)", inputs="float[6,6] x", constants=used)
    fold_statistics(model.graph, 17)
    assert contents(model) == {}


def test_a_constant_that_a_caller_may_replace_is_not_folded() -> None:
    model = graph("n = ReduceSum<keepdims = 0>(v) y = Mul(x, n)", inputs="float[N,6] x, float[4,6] v")
    value = next(v for v in model.graph.inputs if v.name == "v")
    value.const_value = ir.tensor(V, name="v")
    model.graph.register_initializer(value)
    fold_statistics(model.graph, 17)
    assert contents(model) == {}


def test_an_output_of_the_model_stays_computed() -> None:
    model = graph(
        "n = ReduceSum<keepdims = 0>(v) y = Mul(x, n)",
        inputs="float[N,6] x",
        outputs="y; n",
        constants={"v": V},
    )
    fold_statistics(model.graph, 17)
    assert contents(model) == {}
