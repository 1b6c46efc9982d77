"""The law ``targets(y) == rows(x) @ matrix(W)^T + b``, with ONNX Runtime's own x and y."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.ops.linear import Linear, find_linear
from onnxprune.runtime import open_session

RANDOM = np.random.default_rng(5)


def numbers(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(dtype)


def model_of(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], x_shape: tuple[int, ...], opset: int = 17
) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializer=[numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=8))


def one(
    op: str,
    weight: tuple[int, ...],
    x: tuple[int, ...],
    *,
    inputs: tuple[str, ...] = ("x", "w"),
    bias: np.ndarray | None = None,
    domain: str = "",
    **attributes: Any,
) -> ir.Model:
    """Return a model of one node."""
    names = [*inputs, *(["b"] if bias is not None else [])]
    node = helper.make_node(op, names, ["y"], name="n", domain=domain, **attributes)
    return model_of([node], {"w": numbers(*weight), **({} if bias is None else {"b": bias})}, x)


def only(model: ir.Model) -> Linear:
    found, skipped = find_linear(model)
    assert len(found) == 1, skipped
    assert not skipped
    return found[0]


def reason(model: ir.Model) -> str:
    found, skipped = find_linear(model)
    assert not found
    assert len(skipped) == 1
    return skipped[0].reason


def check_law(model: ir.Model, bias: np.ndarray | None = None) -> Linear:
    """Compare with what ONNX Runtime computes; ``bias`` [groups, 1, outputs]."""
    linear = only(model)
    shape = model.graph.inputs[0].shape
    assert shape is not None
    x = RANDOM.normal(size=tuple(shape.numpy())).astype(np.float32)
    y = open_session(model, optimize="none").run({"x": x})["y"]
    stored = linear.found.tensor.numpy()
    matrix, rows, targets = linear.matrix(stored), linear.rows(x), linear.targets(y)
    assert matrix.shape == (linear.groups, linear.outputs, linear.inputs)
    assert rows.dtype == np.float32
    assert rows.shape == (linear.groups, linear.windows(x).count, linear.inputs)
    assert targets.shape == (*rows.shape[:2], linear.outputs)
    computed = rows @ matrix.swapaxes(1, 2) + (0 if bias is None else bias)
    np.testing.assert_allclose(computed, targets, rtol=1e-4, atol=1e-4)
    again = linear.stored_like(matrix)
    assert again.dtype == stored.dtype
    np.testing.assert_allclose(again, stored, rtol=0 if not linear.node.attributes else 1e-6)
    mask = RANDOM.random(stored.shape) < 0.5
    np.testing.assert_array_equal(linear.stored_like(linear.matrix(mask)), mask)
    np.testing.assert_array_equal(linear.matrix(stored * mask) != 0, linear.matrix(mask))
    return linear


# --- convolutions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "x", "attributes"),
    [
        ((4, 3, 5), (2, 3, 17), {}),
        ((4, 3, 5), (2, 3, 17), {"strides": [3], "dilations": [2], "pads": [2, 5]}),
        ((4, 3, 3, 3), (2, 3, 8, 7), {"pads": [1, 1, 1, 1]}),
        ((4, 3, 3, 2), (2, 3, 9, 7), {"pads": [2, 0, 1, 3], "strides": [2, 1], "dilations": [1, 3]}),
        ((4, 3, 1, 1), (2, 3, 5, 4), {}),
        ((4, 3, 3, 3), (2, 3, 8, 7), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
        ((4, 3, 4, 2), (2, 3, 8, 7), {"auto_pad": "SAME_UPPER"}),
        ((4, 3, 4, 2), (2, 3, 8, 7), {"auto_pad": "SAME_LOWER", "strides": [2, 1]}),
        ((4, 3, 3, 3), (2, 3, 8, 7), {"auto_pad": "VALID", "strides": [1, 2]}),
        ((6, 2, 3, 3), (2, 4, 8, 7), {"group": 2, "pads": [1, 0, 1, 0]}),
        ((8, 1, 3, 3), (2, 4, 8, 7), {"group": 4, "strides": [2, 2]}),
        ((4, 1, 3, 3), (2, 4, 8, 7), {"group": 4}),
        ((4, 3, 2, 3, 2), (2, 3, 5, 6, 4), {"pads": [1, 0, 1, 0, 2, 0], "strides": [1, 2, 1]}),
        ((4, 2, 2, 3, 2), (2, 4, 5, 6, 4), {"group": 2, "dilations": [2, 1, 1]}),
    ],
)
def test_convolutions(weight: tuple[int, ...], x: tuple[int, ...], attributes: dict[str, Any]) -> None:
    groups = attributes.get("group", 1)
    bias = numbers(weight[0])
    linear = check_law(one("Conv", weight, x, bias=bias, **attributes), bias.reshape(groups, 1, -1))
    assert (linear.operand, linear.bias, linear.taps) == (0, 2, int(np.prod(weight[2:])))
    assert linear.groups == groups


@pytest.mark.parametrize(
    ("weight", "x", "attributes"),
    [
        ((3, 4, 5), (2, 3, 7), {}),
        ((3, 4, 5), (2, 3, 7), {"strides": [3], "output_padding": [1], "dilations": [2]}),
        ((3, 4, 3, 2), (2, 3, 5, 4), {"strides": [2, 1], "pads": [1, 0, 0, 1]}),
        ((3, 4, 2, 2), (2, 3, 5, 4), {"pads": [1, 1, 1, 1]}),
        ((3, 4, 1, 1), (2, 3, 5, 4), {"strides": [2, 2], "pads": [1, 1, 0, 0]}),
        ((4, 3, 3, 3), (2, 4, 5, 4), {"group": 2, "strides": [2, 2], "output_padding": [1, 0]}),
        ((4, 1, 3, 3), (2, 4, 5, 4), {"group": 4, "auto_pad": "VALID"}),
        ((3, 4, 2, 3, 2), (2, 3, 3, 4, 2), {"strides": [1, 2, 1], "pads": [0, 1, 0, 0, 1, 1]}),
    ],
)
def test_transposed_convolutions(
    weight: tuple[int, ...], x: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    groups = attributes.get("group", 1)
    bias = numbers(weight[1] * groups)
    check_law(one("ConvTranspose", weight, x, bias=bias, **attributes), bias.reshape(groups, 1, -1))


def test_a_transposed_convolution_that_takes_its_padding_from_the_result_is_skipped() -> None:
    by_size = one("ConvTranspose", (3, 4, 5), (2, 3, 7), output_shape=[13], strides=[2])
    same = one("ConvTranspose", (3, 4, 5), (2, 3, 7), auto_pad="SAME_UPPER", strides=[2])
    assert reason(by_size) == reason(same) == (
        "used by ConvTranspose n: its padding follows from the size of its result"
    )  # fmt: skip


def test_a_column_is_a_channel_and_a_tap_of_it() -> None:
    linear = only(one("Conv", (4, 3, 2, 3), (1, 3, 2, 3)))
    x = np.arange(18, dtype=np.float32).reshape(1, 3, 2, 3)
    np.testing.assert_array_equal(linear.rows(x)[0, 0], np.arange(18))
    assert linear.taps == 6


def test_rows_by_number_are_those_of_the_whole() -> None:
    linear = only(one("Conv", (4, 2, 3, 3), (3, 4, 6, 5), group=2, pads=[1, 1, 1, 1], strides=[2, 1]))
    x = numbers(3, 4, 6, 5)
    some = np.array([0, 7, 44, 13, 13])
    windows = linear.windows(x)
    np.testing.assert_array_equal(windows.rows(some), linear.rows(x)[:, some])
    np.testing.assert_array_equal(windows.packed(some), windows.rows(some)[..., windows.columns])


@pytest.mark.parametrize("most", [1, 2, 7, 15, 16, 44, 45, 1000])
def test_pieces_are_the_rows_in_order(most: int) -> None:
    linear = only(one("Conv", (4, 2, 3, 3), (3, 4, 6, 5), group=2, pads=[1, 1, 1, 1], strides=[2, 1]))
    x = numbers(3, 4, 6, 5)
    parts = [piece.rows() for piece in linear.windows(x).pieces(most)]
    assert max(part.shape[1] for part in parts) <= most
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), linear.rows(x))


def test_equal_keys_are_equal_rows() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["a"], name="a"),
        helper.make_node("MatMul", ["x", "w"], ["b"], name="b"),
        helper.make_node("Gemm", ["x", "w"], ["c"], name="c"),
        helper.make_node("Gemm", ["x", "w"], ["d"], name="d", transA=1),
        helper.make_node("MatMul", ["w", "x"], ["e"], name="e"),
    ]
    weights = {"v": numbers(1, 6, 4), "w": numbers(6, 6)}
    found, _ = find_linear(model_of(nodes, weights, (6, 6)))
    keys = {each.node.name: each.row_key for each in found}
    assert keys["a"] == keys["b"] == keys["c"]
    assert len({keys["a"], keys["d"], keys["e"]}) == 3


# --- products ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "x"),
    [
        ((6, 4), (6,)),
        ((6, 4), (5, 6)),
        ((6, 4), (2, 5, 6)),
        ((6, 4), (2, 3, 5, 6)),
        ((1, 6, 4), (2, 5, 6)),
        ((3, 6, 4), (6,)),
        ((3, 6, 4), (5, 6)),
        ((3, 6, 4), (3, 5, 6)),
        ((3, 6, 4), (1, 5, 6)),
        ((3, 6, 4), (2, 3, 5, 6)),
        ((2, 1, 6, 4), (2, 3, 5, 6)),
        ((2, 3, 6, 4), (3, 5, 6)),
        ((2, 3, 6, 4), (2, 1, 5, 6)),
    ],
)
def test_matmul_with_the_weight_on_the_right(weight: tuple[int, ...], x: tuple[int, ...]) -> None:
    linear = check_law(one("MatMul", weight, x))
    assert (linear.groups, linear.outputs, linear.inputs) == (int(np.prod(weight[:-2])), 4, 6)
    assert (linear.operand, linear.bias, linear.taps) == (0, None, 1)


@pytest.mark.parametrize(
    ("weight", "x"),
    [
        ((4, 6), (6,)),
        ((4, 6), (6, 5)),
        ((4, 6), (2, 6, 5)),
        ((4, 6), (2, 3, 6, 5)),
        ((3, 4, 6), (6,)),
        ((3, 4, 6), (6, 5)),
        ((3, 4, 6), (2, 3, 6, 5)),
        ((2, 1, 4, 6), (2, 3, 6, 5)),
    ],
)
def test_matmul_with_the_weight_on_the_left(weight: tuple[int, ...], x: tuple[int, ...]) -> None:
    linear = check_law(one("MatMul", weight, x, inputs=("w", "x")))
    assert (linear.operand, linear.outputs, linear.inputs) == (1, 4, 6)


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("weight_right", [True, False])
def test_gemm(trans_a: int, trans_b: int, weight_right: bool) -> None:
    a, b = ((6, 5) if trans_a else (5, 6)), ((4, 6) if trans_b else (6, 4))
    weight, x, inputs = (b, a, ("x", "w")) if weight_right else (a, b, ("w", "x"))
    bias = numbers(4) if weight_right else numbers(5, 1)
    model = one(
        "Gemm", weight, x, inputs=inputs, bias=bias, transA=trans_a, transB=trans_b, alpha=0.5, beta=2.0
    )
    linear = check_law(model, 2 * bias.reshape(1, 1, -1))
    assert linear.bias_scale == 2


def test_fused_matmul() -> None:
    for attributes, weight, x in (
        ({"alpha": 0.5}, (6, 4), (2, 5, 6)),
        ({"transB": 1}, (4, 6), (2, 5, 6)),
        ({"transA": 1, "alpha": -3.0}, (6, 4), (2, 6, 5)),
        ({"transA": 1, "transB": 1}, (3, 4, 6), (3, 6, 5)),
        ({"transBatchA": 1, "transA": 1}, (3, 6, 4), (6, 3, 5)),
        ({"transBatchB": 1}, (6, 3, 4), (3, 5, 6)),
    ):
        check_law(one("FusedMatMul", weight, x, domain="com.microsoft", **attributes))
    check_law(
        one("FusedMatMul", (6, 4), (6, 5), inputs=("w", "x"), domain="com.microsoft", transA=1, alpha=2.0)
    )


# --- what follows the sum ---------------------------------------------------------------------------------


def test_a_fused_activation_leaves_rows_and_no_targets() -> None:
    model = one("FusedConv", (4, 3, 3), (2, 3, 9), domain="com.microsoft", activation="Relu")
    linear = only(model)
    assert linear.tail == "its result has gone through Relu"
    x = numbers(2, 3, 9)
    y = open_session(model).run({"x": x})["y"]
    computed = linear.rows(x) @ linear.matrix(linear.found.tensor.numpy()).swapaxes(1, 2)
    np.testing.assert_allclose(np.maximum(computed, 0).reshape(2, 7, 4).swapaxes(1, 2), y, atol=1e-4)
    with pytest.raises(ValueError, match="no targets at n: its result has gone through Relu"):
        linear.targets(y)


def test_a_fused_convolution_without_activation_is_a_convolution() -> None:
    check_law(one("FusedConv", (4, 3, 3), (2, 3, 9), domain="com.microsoft"))


def test_a_fused_sum_has_no_targets() -> None:
    nodes = [helper.make_node("FusedConv", ["x", "w", "", "x"], ["y"], name="n", domain="com.microsoft")]
    linear = only(model_of(nodes, {"w": numbers(3, 3, 1)}, (2, 3, 9)))
    assert linear.tail == "its result has another value added"


def test_a_fused_general_product_with_activation() -> None:
    linear = only(one("FusedGemm", (6, 4), (5, 6), domain="com.microsoft", activation="Relu"))
    assert linear.tail == "its result has gone through Relu"


def test_inputs_of_recurrent_layers() -> None:
    weights = {"w": numbers(2, 12, 5), "r": numbers(2, 12, 3)}
    node = helper.make_node("GRU", ["x", "w", "r"], ["y"], name="n", hidden_size=3, direction="bidirectional")
    (linear,), skipped = find_linear(model_of([node], weights, (4, 2, 5)))
    assert [(each.name, each.reason) for each in skipped] == [
        ("r", "used by GRU n: it is multiplied with the state inside the node, which can't be watched")
    ]
    assert linear.tail == "its gates go on into the recurrence"
    x = numbers(4, 2, 5)
    np.testing.assert_array_equal(linear.rows(x), np.stack([x.reshape(8, 5)] * 2))
    np.testing.assert_array_equal(linear.matrix(weights["w"]), weights["w"])


# --- on the way from the store ------------------------------------------------------------------------------


def chain(weight: np.ndarray, *steps: tuple[str, dict[str, Any]], constant: bool = False) -> ir.Model:
    """Return ``MatMul(x [5, 6], w)`` with nodes between a stored tensor and w."""
    nodes, weights = [], {"w": weight}
    if constant:
        nodes = [helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight, "w"))]
        weights = {}
    name = "w"
    for number, (op, attributes) in enumerate(steps):
        shape = attributes.pop("shape", None)
        more = []
        if shape is not None:
            weights[f"shape_{number}"] = np.array(shape, np.int64)
            more = [f"shape_{number}"]
        nodes.append(helper.make_node(op, [name, *more], [f"w{number}"], **attributes))
        name = f"w{number}"
    nodes.append(helper.make_node("MatMul", ["x", name], ["y"], name="n"))
    return model_of(nodes, weights, (5, 6))


@pytest.mark.parametrize("constant", [False, True])
def test_a_weight_behind_other_nodes(constant: bool) -> None:
    transpose = ("Transpose", {"perm": [1, 0]})
    for weight, steps in (
        (numbers(4, 6), [transpose]),
        (numbers(4, 6), [("Identity", {}), ("Transpose", {}), ("Identity", {})]),
        (numbers(4, 6, dtype=np.float16), [("Cast", {"to": TensorProto.FLOAT}), transpose]),
        (numbers(4, 6, dtype=np.float64), [transpose, ("Cast", {"to": TensorProto.FLOAT})]),
        (numbers(4, 1, 6), [("Reshape", {"shape": [4, 6]}), transpose]),
        (numbers(6, 4, 1), [("Flatten", {"axis": 1})]),
        (numbers(1, 4, 6), [("Squeeze", {"shape": [0]}), transpose]),
        (numbers(6, 4), [("Unsqueeze", {"shape": [0]}), ("Squeeze", {"shape": [0]})]),
    ):
        linear = check_law(chain(weight, *((op, dict(more)) for op, more in steps), constant=constant))
        assert linear.found.use.tensor == "w"


def test_types_of_matrices() -> None:
    for dtype, working in (
        (np.float16, np.float32),
        (ml_dtypes.bfloat16, np.float32),
        (np.float32, np.float32),
        (np.float64, np.float64),
    ):
        tensor = ir.tensor(numbers(4, 6).astype(dtype), name="w")
        model = chain(numbers(4, 6), ("Transpose", {}))
        model.graph.initializers["w"].const_value = tensor
        linear = only(model)
        matrix = linear.matrix(tensor.numpy())
        assert matrix.dtype == working
        again = linear.stored_like(matrix)
        assert again.dtype == dtype
        np.testing.assert_array_equal(again, tensor.numpy())


def test_random_layouts_there_and_back() -> None:
    """`stored_like` undoes `matrix` for drawn shapes, orders, groups and kernels."""
    for _ in range(200):
        rank = int(RANDOM.integers(0, 4))
        if rank:
            groups, outputs, inputs = (int(size) for size in RANDOM.integers(1, 4, 3))
            kernel = tuple(int(size) for size in RANDOM.integers(1, 4, rank))
            transposed = bool(RANDOM.integers(2))
            shape = (groups * inputs, outputs) if transposed else (groups * outputs, inputs)
            op = "ConvTranspose" if transposed else "Conv"
            model = one(op, (*shape, *kernel), (1, groups * inputs, *[5] * rank), group=groups)
        else:
            sizes = tuple(int(size) for size in RANDOM.integers(1, 4, int(RANDOM.integers(2, 5))))
            order = [int(axis) for axis in RANDOM.permutation(len(sizes))]
            node = helper.make_node("Transpose", ["w"], ["t"], perm=order)
            x = (2, sizes[order[-2]])
            product = helper.make_node("MatMul", ["x", "t"], ["y"], name="n")
            model = model_of([node, product], {"w": numbers(*sizes)}, x)
        linear = only(model)
        stored = linear.found.tensor.numpy()
        np.testing.assert_array_equal(linear.stored_like(linear.matrix(stored)), stored)


def test_shapes_that_do_not_fit_are_refused() -> None:
    linear = only(one("MatMul", (6, 4), (5, 6)))
    with pytest.raises(ValueError, match=r"has shape \(6, 4\), not \(4, 6\)"):
        linear.matrix(numbers(4, 6))
    with pytest.raises(ValueError, match=r"expected \(1, 4, 6\), not \(1, 6, 4\)"):
        linear.stored_like(numbers(1, 6, 4))


# --- what is left out ---------------------------------------------------------------------------------------


def test_tied_weights_have_one_entry_for_each_use() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Gemm", ["h", "w"], ["y"], name="second", transB=1),
    ]
    found, skipped = find_linear(model_of(nodes, {"w": numbers(6, 6)}, (5, 6)))
    assert [each.node.name for each in found] == ["first", "second"]
    assert not skipped


def test_quantized_weights_are_skipped() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["d"]),
        helper.make_node("MatMul", ["x", "d"], ["y"], name="n"),
    ]
    weights = {"w": np.ones((6, 4), np.int8), "scale": np.float32(0.1)}
    assert reason(model_of(nodes, weights, (5, 6))) == (
        "used by MatMul n: it is quantized, or stored as integers"
    )
    cast = chain(np.ones((6, 4), np.int32), ("Cast", {"to": TensorProto.FLOAT}))
    assert "stored as integers" in reason(cast)


def test_weights_that_are_computed_are_skipped() -> None:
    nodes = [
        helper.make_node("Mul", ["w", "w"], ["computed"], name="m"),
        helper.make_node("MatMul", ["x", "computed"], ["y"], name="n"),
    ]
    why = reason(model_of(nodes, {"w": numbers(6, 4)}, (5, 6)))
    assert why == "used by MatMul n: it is computed by Mul m from constants; fold constants first"


def test_a_product_of_two_inputs_is_no_linear_node() -> None:
    node = helper.make_node("MatMul", ["x", "x"], ["y"], name="n")
    assert find_linear(model_of([node], {}, (5, 5))) == ([], [])


def test_products_of_constants_are_skipped() -> None:
    nodes = [
        helper.make_node("MatMul", ["v", "w"], ["c"], name="n"),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    found, skipped = find_linear(model_of(nodes, {"v": numbers(5, 6), "w": numbers(6, 4)}, (5, 4)))
    assert not found
    assert {each.name: each.reason for each in skipped} == dict.fromkeys(
        ("v", "w"), "used by MatMul n: what it is multiplied with is constant too"
    )


def test_bodies_are_skipped() -> None:
    then = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"], name="inner")],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["e"])],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)],
    )
    nodes = [helper.make_node("If", ["choice"], ["y"], then_branch=then, else_branch=other)]
    model = model_of(nodes, {"w": numbers(6, 6), "choice": np.bool_(True)}, (5, 6))
    assert reason(model) == (
        "used by MatMul inner: it is in a body or a function, whose values can't be watched"
    )


def test_other_operators_are_skipped() -> None:
    node = helper.make_node("DeformConv", ["x", "w", "offset"], ["y"], name="n")
    model = model_of([node], {"w": numbers(4, 3, 1, 1), "offset": numbers(1, 2, 4, 4)}, (1, 3, 4, 4), 19)
    assert reason(model) == "used by DeformConv n: the products of DeformConv have no rows of their own"


def test_a_product_times_nothing_is_skipped() -> None:
    assert reason(one("Gemm", (6, 4), (5, 6), alpha=0.0)) == (
        "used by Gemm n: its products are multiplied by 0.0"
    )


def test_equal_names_in_bodies_are_skipped_as_for_masks() -> None:
    def body(name: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], [name], name=f"n_{name}")],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
            initializer=[numpy_helper.from_array(numbers(6, 6), "w")],
        )

    nodes = [helper.make_node("If", ["choice"], ["y"], then_branch=body("t"), else_branch=body("e"))]
    found, skipped = find_linear(model_of(nodes, {"choice": np.bool_(True)}, (5, 6)))
    assert not found
    assert [each.reason for each in skipped] == ["several tensors have this name; rename those in subgraphs"]


def test_a_linear_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        only(one("MatMul", (6, 4), (5, 6))).groups = 2  # type: ignore[misc]
