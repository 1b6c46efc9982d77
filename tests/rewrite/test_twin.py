"""The exact twin: the original with zeros wherever a sum runs over a removed position."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from cutting import graph, group_of, open_groups

from onnxprune.analyze import Analysis, analyze
from onnxprune.rewrite.twin import make_twin
from onnxprune.runtime import open_session

ROWS = "float[N,6] x"
BODY = "h = MatMul(x, a_w) s = Add(h, a_b) y = MatMul(s, c_w)"
CONSTANTS = {"a_w": (6, 8), "a_b": (8,), "c_w": (8, 3)}


def twin_of(analysis: Analysis, **numbers: list[int]) -> ir.Model:
    gone = analysis.removed_labels({name: np.array(n, np.int32) for name, n in numbers.items()})
    return make_twin(analysis.model, analysis.channels, gone)


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    (result,) = open_session(model, threads=1, label="twin").run({"x": x}).values()
    return result


def test_a_twin_is_the_formula() -> None:
    """y = sum over kept k of (x a + b)[k] * c[k], by numpy."""
    model = graph(BODY, inputs=ROWS, constants=CONSTANTS)
    analysis = analyze(model)
    a, b, c = (model.graph.initializers[n].const_value.numpy() for n in ("a_w", "a_b", "c_w"))  # type: ignore[union-attr]
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    keep = [0, 1, 2, 4, 7]
    expected = ((x @ a) + b)[:, keep] @ c[keep]
    np.testing.assert_allclose(run(twin_of(analysis, a_w=[3, 5, 6]), x), expected, rtol=1e-5)


def test_no_shape_changes_and_only_summed_weights_do() -> None:
    analysis = analyze(graph(BODY, inputs=ROWS, constants=CONSTANTS))
    twin = twin_of(analysis, a_w=[3])
    for name in ("a_w", "a_b"):
        assert (
            twin.graph.initializers[name].const_value is analysis.model.graph.initializers[name].const_value
        )
    (zeroed,) = (v for v in twin.graph.initializers.values() if v.name not in ("a_w", "a_b"))
    array = zeroed.const_value.numpy()  # type: ignore[union-attr]
    assert array.shape == (8, 3)
    assert (array[3] == 0).all()
    assert (np.delete(array, 3, axis=0) != 0).all()


def test_nothing_removed_is_the_model_itself() -> None:
    analysis = analyze(graph(BODY, inputs=ROWS, constants=CONSTANTS))
    twin = twin_of(analysis)
    assert sorted(twin.graph.initializers) == sorted(analysis.model.graph.initializers)
    assert len(twin.graph) == len(analysis.model.graph)


def test_a_sum_over_a_computed_value_is_masked() -> None:
    body = "h = MatMul(x, a_w) r = Sigmoid(h) y = ReduceSum<keepdims = 0>(r, one)"
    model = graph(body, inputs=ROWS, constants={"a_w": (6, 8), "one": [1]})
    analysis = analyze(model)
    twin = twin_of(analysis, a_w=[0, 7])
    assert [node.op_type for node in twin.graph] == ["MatMul", "Sigmoid", "Mul", "ReduceSum"]
    a = model.graph.initializers["a_w"].const_value.numpy()  # type: ignore[union-attr]
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    expected = (1 / (1 + np.exp(-(x @ a))))[:, 1:7].sum(axis=1)
    np.testing.assert_allclose(run(twin, x), expected, rtol=1e-5)


def test_a_tied_weight_is_zeroed_for_one_of_its_users_alone() -> None:
    body = "h = MatMul(x, a_w) r = Relu(h) g = MatMul(r, a_w) t = Relu(g) y = MatMul(t, c_w)"
    model = graph(body, inputs="float[N,8] x", constants={"a_w": (8, 8), "c_w": (8, 3)})
    analysis = analyze(model)
    first = next(iter(open_groups(analysis)))
    twin = twin_of(analysis, **{first: [2]})
    arrays = [v.const_value.numpy() for v in twin.graph.initializers.values()]  # type: ignore[union-attr]
    assert sorted(int((a == 0).all(axis=1).sum()) for a in arrays) == [0, 0, 1]


def test_grouped_kernels_are_zeroed_along_what_they_sum() -> None:
    constants = {"a_w": (8, 3, 1, 1), "g_w": (8, 4, 1, 1), "c_w": (4, 8, 1, 1)}
    body = "h = Conv(x, a_w) g = Conv<group = 2>(h, g_w) y = Conv(g, c_w)"
    analysis = analyze(graph(body, constants=constants))
    contracted = [(m.tensor, m.axis) for g in analysis.groups for m in g.members if m.contracted]
    assert ("g_w", 1) in contracted
    assert ("c_w", 1) in contracted
    assert group_of(analysis, "g_w", 1).size == 4
