from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.model.stored import (
    all_nodes,
    consumer_name,
    replace_stored,
    stored_tensor,
    stored_values,
    tensor_of,
)


def model() -> ir.Model:
    def branch(name: str) -> object:
        nodes = [helper.make_node("Constant", [], ["v"], value=numpy_helper.from_array(np.ones(2), "v"))]
        return helper.make_graph(
            nodes, name, [], [helper.make_tensor_value_info("v", TensorProto.DOUBLE, [2])]
        )

    nodes = [
        helper.make_node("If", ["c"], ["a"], name="choice", then_branch=branch("t"), else_branch=branch("e")),
        helper.make_node("Add", ["a", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, [2])],
        [numpy_helper.from_array(np.zeros(2), "w")],
    )
    return ir.from_proto(helper.make_model(graph))


def test_values_of_all_bodies_are_listed_by_name() -> None:
    assert {name: len(values) for name, values in stored_values(model()).items()} == {"w": 1, "v": 2}


def test_nodes_without_a_name_go_by_their_output() -> None:
    assert [consumer_name(node) for node in all_nodes(model())] == ["choice", "v", "v", "y"]


@pytest.mark.parametrize("name", ["w", "v"])
def test_what_is_replaced_is_read_and_serialized(name: str) -> None:
    changed = model()
    value = stored_values(changed)[name][-1]
    replace_stored(value, ir.tensor(np.array([3.0, 4.0]), name=name))
    np.testing.assert_array_equal(tensor_of(value).numpy(), [3, 4])
    again = ir.from_proto(ir.to_proto(changed))
    found = [np.asarray(tensor_of(value).numpy()).tolist() for value in stored_values(again)[name]]
    assert found[-1] == [3, 4]
    assert found[:-1] == [[1, 1]] * (len(found) - 1)


def test_computed_values_hold_no_tensor() -> None:
    (output,) = model().graph.outputs
    assert stored_tensor(output) is None
    with pytest.raises(ValueError, match="'y' holds no stored tensor"):
        tensor_of(output)
    with pytest.raises(ValueError, match="'y' holds no stored tensor"):
        replace_stored(output, ir.tensor(np.zeros(2)))
