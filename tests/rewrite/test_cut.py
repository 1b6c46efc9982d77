"""The rewriter: tied weights, declared shapes, interfaces, and what it leaves alone."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from cutting import check_cut, graph, open_groups, proved_cut, trial_shapes

from onnxprune.analyze import Analysis, analyze
from onnxprune.rewrite.cut import compress, cut

ROWS = "float[N,6] x"
SIMPLE = "h = MatMul(x, a_w) r = Relu(h) y = MatMul(r, c_w)"
SIMPLE_CONSTANTS = {"a_w": (6, 8), "c_w": (8, 3)}


def removed(analysis: Analysis, **numbers: list[int]) -> np.ndarray:
    return analysis.removed_labels({name: np.array(n, np.int32) for name, n in numbers.items()})


def weight(model: ir.Model, name: str) -> np.ndarray:
    return model.graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]


def test_compress() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    masks = {1: np.array([True, False, True]), 2: np.array([False, True, True, False])}
    result = compress(array, masks)
    np.testing.assert_array_equal(result, array[:, [0, 2]][:, :, [1, 2]])
    assert result.flags.c_contiguous


def test_the_right_rows_and_columns_go() -> None:
    model = graph(SIMPLE, inputs=ROWS, constants=SIMPLE_CONSTANTS)
    analysis = analyze(model)
    pruned = cut(analysis.model, analysis.channels, removed(analysis, a_w=[1, 6]))
    keep = [0, 2, 3, 4, 5, 7]
    np.testing.assert_array_equal(weight(pruned, "a_w"), weight(model, "a_w")[:, keep])
    np.testing.assert_array_equal(weight(pruned, "c_w"), weight(model, "c_w")[keep])


def test_the_analysed_model_is_not_changed() -> None:
    analysis = analyze(graph(SIMPLE, inputs=ROWS, constants=SIMPLE_CONSTANTS))
    before = ir.to_proto(analysis.model).SerializeToString(deterministic=True)
    cut(analysis.model, analysis.channels, removed(analysis, a_w=[1, 6]))
    assert ir.to_proto(analysis.model).SerializeToString(deterministic=True) == before


def test_declared_shapes_follow() -> None:
    analysis = analyze(graph(SIMPLE, inputs=ROWS, constants=SIMPLE_CONSTANTS))
    pruned = cut(analysis.model, analysis.channels, removed(analysis, a_w=[0]))
    shapes = {str(v.name): v.shape for node in pruned.graph for v in node.outputs}
    assert [str(shapes[name]) for name in "hry"] == ["[N,7]", "[N,7]", "[N,3]"]


# --- tied weights ---


def test_tied_weights_that_are_cut_alike_stay_one() -> None:
    """Both users meet in a sum, so they lose the same channels."""
    body = "h = MatMul(x, a_w) g = MatMul(z, a_w) s = Add(h, g) y = MatMul(s, c_w)"
    model = graph(body, inputs="float[N,6] x, float[N,6] z", constants=SIMPLE_CONSTANTS)
    analysis = check_cut(model)
    pruned = cut(analysis.model, analysis.channels, removed(analysis, a_w=[0, 3]))
    assert sorted(pruned.graph.initializers) == ["a_w", "c_w"]
    assert pruned.graph[0].inputs[1] is pruned.graph[1].inputs[1]


def test_tied_weights_that_are_cut_differently_are_unshared() -> None:
    """The same matrix, once as it is and once transposed into a branch of its own."""
    body = "h = MatMul(x, a_w) r = Relu(h) g = MatMul(r, a_w) t = Relu(g) y = MatMul(t, c_w)"
    model = graph(body, inputs="float[N,8] x", constants={"a_w": (8, 8), "c_w": (8, 3)})
    analysis = check_cut(model)
    assert sorted(open_groups(analysis).values()) == [8, 8]
    first, second = open_groups(analysis)
    pruned = cut(analysis.model, analysis.channels, removed(analysis, **{first: [0, 1], second: [5]}))
    shapes = sorted(v.const_value.shape.numpy() for v in pruned.graph.initializers.values())  # type: ignore[union-attr]
    assert shapes == [(6, 7), (7, 3), (8, 6)]


def test_a_tied_weight_that_one_user_keeps_whole() -> None:
    """An embedding and the head that reads it transposed: the head's classes are the output."""
    body = """
        h = Gather(e_w, i) a = MatMul(h, a_w) r = Relu(a) b = MatMul(r, b_w) t = Transpose<perm = [1, 0]>(e_w)
        y = MatMul(b, t)
    """
    constants = {"e_w": (10, 6), "a_w": (6, 8), "b_w": (8, 6), "i": np.array([[1, 2], [9, 0]])}
    model = graph(body + " z = Add(y, x)", inputs="float[N,1,1,1] x", outputs="z", constants=constants)
    analysis = check_cut(model)
    sizes = open_groups(analysis)
    assert 8 in sizes.values()
    assert len(sizes) >= 2


def test_a_shared_bias_is_unshared() -> None:
    body = "h = MatMul(x, a_w) s = Add(h, b) g = MatMul(s, b_w) t = Add(g, b) y = MatMul(t, c_w)"
    constants = {"a_w": (6, 8), "b_w": (8, 8), "c_w": (8, 3), "b": (8,)}
    analysis = check_cut(graph(body, inputs=ROWS, constants=constants))
    assert sorted(open_groups(analysis).values()) == [8, 8]


# --- interfaces ---


def test_a_weight_that_is_an_output_stays_whole() -> None:
    model = graph(SIMPLE, inputs=ROWS, outputs="y; float[6,8] a_w", constants=SIMPLE_CONSTANTS)
    analysis = check_cut(model)
    (name,) = open_groups(analysis)
    pruned = proved_cut(analysis, removed(analysis, **{name: [0]}), trial_shapes(analysis))
    assert [v.name for v in pruned.graph.outputs] == ["y", "a_w"]
    assert pruned.graph.outputs[1].const_value.shape.numpy() == (6, 8)  # type: ignore[union-attr]


def test_a_weight_that_is_an_input_as_well_keeps_the_interface() -> None:
    """A caller may override such a weight, so its declared shape must go on to be true."""
    model = graph(SIMPLE, inputs=ROWS + ", float[6,8] a_w", constants=SIMPLE_CONSTANTS)
    analysis = analyze(model)
    gone = removed(analysis, **{name: [0] for name in open_groups(analysis)})
    pruned = cut(analysis.model, analysis.channels, gone)
    for value in pruned.graph.inputs:
        if value.is_initializer():
            assert tuple(value.shape.numpy()) == tuple(value.const_value.shape.numpy())  # type: ignore[union-attr]
    (first, *_) = pruned.graph.inputs
    assert first.name == "x"


def test_metadata_survives() -> None:
    model = graph(SIMPLE, inputs=ROWS, constants=SIMPLE_CONSTANTS)
    model.metadata_props["author"] = "somebody"
    model.graph.initializers["a_w"].metadata_props["note"] = "kept"
    analysis = analyze(model)
    pruned = cut(analysis.model, analysis.channels, removed(analysis, a_w=[0]))
    assert pruned.metadata_props["author"] == "somebody"
    assert pruned.graph.initializers["a_w"].metadata_props["note"] == "kept"
    assert [v.name for v in (*pruned.graph.inputs, *pruned.graph.outputs)] == ["x", "y"]


def test_numbers_of_before_are_dropped() -> None:
    body = (
        "h = MatMul(x, a_w) u, v = Split<axis = 1>(h, sizes) s = Sigmoid(u) r = Mul(s, v) y = MatMul(r, c_w)"
    )
    constants = {"a_w": (6, 8), "c_w": (4, 3), "sizes": [4, 4]}
    analysis = analyze(graph(body, inputs=ROWS, constants=constants))
    pruned = cut(analysis.model, analysis.channels, removed(analysis, a_w=[0]))
    assert "sizes" not in pruned.graph.initializers
    integers = [v for v in pruned.graph.initializers.values() if v.dtype == ir.DataType.INT64]
    assert [v.const_value.numpy().tolist() for v in integers] == [[3, 3]]  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_float_types(dtype: type) -> None:
    constants = {
        name: np.random.default_rng(1).standard_normal(shape).astype(dtype)
        for name, shape in SIMPLE_CONSTANTS.items()
    }
    kind = {np.float16: "float16", np.float64: "double", ml_dtypes.bfloat16: "bfloat16"}[dtype]
    model = graph(SIMPLE, inputs=f"{kind}[N,6] x", outputs=f"{kind} y", constants=constants)
    analysis = analyze(model)
    pruned = proved_cut(analysis, removed(analysis, a_w=[2, 3]), trial_shapes(analysis))
    assert weight(pruned, "a_w").dtype == dtype
    assert weight(pruned, "a_w").shape == (6, 6)


def test_nodes_of_unknown_shapes_need_no_repair() -> None:
    """What follows an operator that nobody knows is left alone, whatever its own rule would repair."""
    body = f"""
        {SIMPLE} u = com.microsoft.NobodyKnows(x) v = Slice(u, zero, one, zero)
        a, b = Split<axis = 0>(u, ones) e = Expand(u, ones) g = Gather(u, zero)
    """
    constants = SIMPLE_CONSTANTS | {"zero": [0], "one": [1], "ones": [1, 1]}
    outputs = "y; float[M,6] v; float[1,6] a; float[M,6] e; float[1,M,6] g"
    analysis = analyze(graph(body, inputs=ROWS, outputs=outputs, constants=constants))
    pruned = cut(analysis.model, analysis.channels, removed(analysis, a_w=[1, 6]))
    assert weight(pruned, "a_w").shape == (6, 6)
