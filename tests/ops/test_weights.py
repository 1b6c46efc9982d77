from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.ops.weights import find_weights, locate_weights, other_readers
from onnxprune.types import Skipped, WeightUse


def constant(name: str, *shape: int, dtype: Any = np.float32) -> onnx.TensorProto:
    values = np.arange(1, int(np.prod(shape)) + 1).astype(dtype).reshape(shape)
    return numpy_helper.from_array(values, name)


def shape_tensor(name: str, *entries: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(entries, dtype=np.int64), name)


def model_of(
    nodes: list[onnx.NodeProto],
    initializers: list[onnx.TensorProto],
    *,
    functions: list[onnx.FunctionProto] | None = None,
    x_shape: tuple[int, ...] = (2, 8),
    opset: int = 18,
) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializer=initializers,
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    imports.append(helper.make_opsetid("com.microsoft", 1))
    return ir.from_proto(helper.make_model(graph, opset_imports=imports, functions=functions or []))


def node(
    op: str, inputs: list[str], outputs: list[str], name: str = "n", **attributes: Any
) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, name=name, **attributes)


def only_use(model: ir.Model) -> WeightUse:
    uses, skipped = find_weights(model)
    assert not skipped
    assert len(uses) == 1
    return uses[0]


def only_reason(model: ir.Model) -> Skipped:
    uses, skipped = find_weights(model)
    assert not uses
    assert len(skipped) == 1
    return skipped[0]


# --- operators --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "inputs", "shape", "attributes", "axes"),
    [
        ("MatMul", ["x", "w"], (8, 4), {}, (0, 1)),
        ("MatMul", ["w", "x"], (4, 2), {}, (1, 0)),
        ("MatMul", ["x", "w"], (3, 8, 4), {}, (1, 2)),
        ("Gemm", ["x", "w"], (8, 4), {}, (0, 1)),
        ("Gemm", ["x", "w"], (4, 8), {"transB": 1}, (1, 0)),
        ("Conv", ["x", "w"], (4, 8, 3, 3), {}, (1, 0)),
        ("ConvTranspose", ["x", "w"], (8, 4, 3, 3), {}, (0, 1)),
    ],
)
def test_each_operator_says_which_axis_it_sums_over(
    op: str, inputs: list[str], shape: tuple[int, ...], attributes: dict[str, int], axes: tuple[int, int]
) -> None:
    model = model_of([node(op, inputs, ["y"], "layer", **attributes)], [constant("w", *shape)])
    assert only_use(model) == WeightUse("w", "layer", op, *axes)


def test_a_node_without_a_name_is_called_by_its_output() -> None:
    model = model_of([node("MatMul", ["x", "w"], ["y"], "")], [constant("w", 8, 4)])
    assert only_use(model).consumer == "y"


def test_activations_vectors_and_elementwise_constants_are_no_weights() -> None:
    nodes = [
        node("MatMul", ["x", "xt"], ["a"]),
        node("Transpose", ["x"], ["xt"]),
        node("Add", ["a", "bias"], ["b"]),
        node("MatMul", ["b", "v"], ["y"]),
    ]
    uses, skipped = find_weights(model_of(nodes, [constant("bias", 2, 2), constant("v", 2)]))
    assert (uses, skipped) == ([], [])


def test_fused_and_integer_operators_of_the_runtime_are_read_too() -> None:
    quantized = node("MatMulInteger", ["q", "w", "za", "zb"], ["y"], "layer")
    initializers = [
        constant("w", 8, 4, dtype=np.uint8),
        constant("za", dtype=np.uint8),
        constant("zb", dtype=np.uint8),
    ]
    model = model_of([node("Cast", ["x"], ["q"], to=TensorProto.UINT8), quantized], initializers)
    (found,), skipped = locate_weights(model)
    assert not skipped
    assert (found.use.summed_axis, found.use.output_axis) == (0, 1)
    assert found.quantized
    assert found.zero_point is not None
    assert found.zero_point.value.name == "zb"

    fused = node("FusedMatMul", ["x", "w"], ["y"], "layer", domain="com.microsoft", transB=1)
    assert only_use(model_of([fused], [constant("w", 4, 8)])) == WeightUse("w", "layer", "FusedMatMul", 1, 0)


# --- where the weight is kept -----------------------------------------------------------------------------


def test_constant_nodes_and_chains_of_identity() -> None:
    chain = [node("Identity", [f"i{k}"], [f"i{k + 1}"]) for k in range(50)]
    stored = node("Constant", [], ["i0"], value=constant("", 8, 4))
    model = model_of([stored, *chain, node("MatMul", ["x", "i50"], ["y"], "layer")], [])
    assert only_use(model) == WeightUse("i0", "layer", "MatMul", 0, 1)


def test_transposes_map_axes_back_to_the_stored_tensor() -> None:
    nodes = [
        node("Transpose", ["w"], ["w1"], perm=[2, 0, 3, 1]),
        node("Transpose", ["w1"], ["w2"]),  # reverses
        node("Conv", ["x", "w2"], ["y"], "layer"),
    ]
    stored = np.zeros((3, 4, 5, 6))  # seen as [5, 3, 6, 4], then as [4, 6, 3, 5]
    use = only_use(model_of(nodes, [constant("w", *stored.shape)]))
    seen = stored.transpose(2, 0, 3, 1).transpose()
    assert stored.shape[use.summed_axis] == seen.shape[1]
    assert stored.shape[use.output_axis] == seen.shape[0]
    assert (use.summed_axis, use.output_axis) == (3, 1)


@pytest.mark.parametrize(
    ("shape", "target", "axes"),
    [
        ((8, 4), (8, 4), (0, 1)),
        ((1, 8, 4), (8, 4), (1, 2)),
        ((8, 4), (1, 8, -1), (0, 1)),
        ((8, 4, 1), (0, -1), (0, 1)),
        ((8, 1, 1, 4), (8, 4), (0, 3)),
    ],
)
def test_reshape_is_followed_where_the_axes_stay_whole(
    shape: tuple[int, ...], target: tuple[int, ...], axes: tuple[int, int]
) -> None:
    nodes = [node("Reshape", ["w", "s"], ["w1"]), node("MatMul", ["x", "w1"], ["y"], "layer")]
    use = only_use(model_of(nodes, [constant("w", *shape), shape_tensor("s", *target)]))
    assert (use.summed_axis, use.output_axis) == axes


@pytest.mark.parametrize(("shape", "target"), [((2, 4, 4), (8, 4)), ((32,), (8, 4)), ((4, 8), (8, 4))])
def test_reshape_that_merges_or_splits_the_summed_axis_is_skipped(
    shape: tuple[int, ...], target: tuple[int, ...]
) -> None:
    nodes = [node("Reshape", ["w", "s"], ["w1"]), node("MatMul", ["x", "w1"], ["y"], "layer")]
    skipped = only_reason(model_of(nodes, [constant("w", *shape), shape_tensor("s", *target)]))
    assert skipped.name == "w"
    assert "not an axis of the stored tensor" in skipped.reason
    assert "layer" in skipped.reason


def test_squeeze_unsqueeze_flatten_and_cast() -> None:
    nodes = [
        node("Unsqueeze", ["w", "a"], ["w1"]),  # [1, 8, 4, 1]
        node("Squeeze", ["w1", "b"], ["w2"]),  # [8, 4, 1]
        node("Cast", ["w2"], ["w3"], to=TensorProto.FLOAT),
        node("Flatten", ["w3"], ["w4"], axis=1),  # [8, 4]
        node("Transpose", ["w4"], ["w5"], perm=[1, 0]),
        node("Gemm", ["x", "w5"], ["y"], "layer", transB=1),
    ]
    initializers = [constant("w", 8, 4, dtype=np.float16), shape_tensor("a", 0, -1), shape_tensor("b", 0)]
    assert only_use(model_of(nodes, initializers)) == WeightUse("w", "layer", "Gemm", 0, 1)


def test_axes_as_attributes_before_opset_13() -> None:
    nodes = [
        node("Unsqueeze", ["w"], ["w1"], axes=[0]),
        node("Squeeze", ["w1"], ["w2"], axes=[0]),
        node("MatMul", ["x", "w2"], ["y"], "layer"),
    ]
    assert only_use(model_of(nodes, [constant("w", 8, 4)], opset=11)).summed_axis == 0


def test_dequantize_linear_with_a_zero_point_for_each_output() -> None:
    nodes = [
        node("Transpose", ["w"], ["w1"], perm=[1, 0]),  # stored [4, 8], seen [8, 4]
        node("DequantizeLinear", ["w1", "s", "z"], ["w2"], axis=1),
        node("MatMul", ["x", "w2"], ["y"], "layer"),
    ]
    initializers = [constant("w", 4, 8, dtype=np.int8), constant("s", 4), constant("z", 4, dtype=np.int8)]
    (found,), skipped = locate_weights(model_of(nodes, initializers))
    assert not skipped
    assert found.use == WeightUse("w", "layer", "MatMul", 1, 0)
    assert found.quantized
    assert found.zero_point is not None
    assert found.zero_point.axis == 0  # of the stored tensor


def test_constants_that_are_computed_are_skipped_with_the_reason() -> None:
    nodes = [node("Mul", ["w", "mask"], ["w1"], "scale"), node("MatMul", ["x", "w1"], ["y"], "layer")]
    skipped = only_reason(model_of(nodes, [constant("w", 8, 4), constant("mask", 8, 4)]))
    assert skipped.name == "w1"
    assert "computed by Mul scale" in skipped.reason
    assert "layer" in skipped.reason


def test_operators_that_are_not_known_are_reported() -> None:
    skipped = only_reason(
        model_of([node("Mystery", ["x", "w"], ["y"], domain="local")], [constant("w", 8, 4)])
    )
    assert skipped == Skipped("w", "used by Mystery n, an operator whose sums are not known")


def test_functions_are_searched_and_calls_with_weights_reported() -> None:
    body = [
        node("Constant", [], ["inner"], value=constant("", 8, 4)),
        node("MatMul", ["a", "inner"], ["m"], "in_function"),
        node("MatMul", ["m", "b"], ["c"], "formal"),
    ]
    function = helper.make_function("local", "Block", ["a", "b"], ["c"], body, [helper.make_opsetid("", 18)])
    call = node("Block", ["x", "w"], ["y"], "call", domain="local")
    uses, skipped = find_weights(model_of([call], [constant("w", 4, 4)], functions=[function]))
    assert [use.consumer for use in uses] == ["in_function"]
    assert skipped == [Skipped("w", "used by Block call, a function: inline functions first")]


# --- subgraphs --------------------------------------------------------------------------------------------


def branch(name: str, weight: str, *, constants: bool = True) -> onnx.GraphProto:
    output = f"{name}_out"
    nodes = [node("Constant", [], [weight], value=constant("", 8, 4))] if constants else []
    nodes.append(node("MatMul", ["x", weight], [output], f"{name}_layer"))
    return helper.make_graph(
        nodes, name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    )


def if_model(
    then_branch: onnx.GraphProto, else_branch: onnx.GraphProto, **more: onnx.TensorProto
) -> ir.Model:
    condition = numpy_helper.from_array(np.array(True), "c")
    nodes = [node("If", ["c"], ["y"], then_branch=then_branch, else_branch=else_branch)]
    return model_of(nodes, [condition, *more.values()])


def test_weights_inside_branches_and_captured_from_outside() -> None:
    model = if_model(branch("t", "v"), branch("e", "w", constants=False), w=constant("w", 8, 4))
    uses, skipped = find_weights(model)
    assert not skipped
    assert {(use.tensor, use.consumer) for use in uses} == {("v", "t_layer"), ("w", "e_layer")}


def test_equal_names_in_two_branches_are_not_confused() -> None:
    skipped = only_reason(if_model(branch("t", "v"), branch("e", "v")))
    assert skipped.name == "v"
    assert "several tensors have this name" in skipped.reason


def test_a_weight_that_enters_a_loop_as_state_is_reported() -> None:
    body = helper.make_graph(
        [
            node("MatMul", ["s", "wi"], ["so"], "inside"),
            node("Identity", ["wi"], ["wo"]),
            node("Identity", ["ci"], ["co"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("ci", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, [2, 8]),
            helper.make_tensor_value_info("wi", TensorProto.FLOAT, [8, 8]),
        ],
        [
            helper.make_tensor_value_info("co", TensorProto.BOOL, []),
            helper.make_tensor_value_info("so", TensorProto.FLOAT, [2, 8]),
            helper.make_tensor_value_info("wo", TensorProto.FLOAT, [8, 8]),
        ],
    )
    count = numpy_helper.from_array(np.array(2), "n")
    condition = numpy_helper.from_array(np.array(True), "c")
    loop = node("Loop", ["n", "c", "x", "w"], ["y", "unused"], "loop", body=body)
    skipped = only_reason(model_of([loop], [count, condition, constant("w", 8, 8)]))
    assert "enters the body of Loop loop as a state" in skipped.reason


# --- ties -------------------------------------------------------------------------------------------------


def test_a_tied_weight_has_one_entry_for_each_use() -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"], "first"), node("Gemm", ["h", "w"], ["y"], "second", transB=1)]
    uses, _ = find_weights(model_of(nodes, [constant("w", 8, 8)]))
    assert uses == [WeightUse("w", "first", "MatMul", 0, 1), WeightUse("w", "second", "Gemm", 1, 0)]


def test_other_readers_are_found_behind_identity() -> None:
    nodes = [
        node("Identity", ["w"], ["w1"]),
        node("MatMul", ["x", "w1"], ["y"], "layer"),
        node("Gather", ["w1", "ids"], ["rows"], "embedding"),
        node("Shape", ["w1"], ["size"]),
    ]
    model = model_of(nodes, [constant("w", 8, 4), shape_tensor("ids", 0, 1)])
    found, _ = locate_weights(model)
    assert other_readers(found[0].stored, found) == ["Gather embedding"]
