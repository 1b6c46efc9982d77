import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxprune.errors import UsageError
from onnxprune.measure.inputs import batch_shapes, random_inputs


def model_of(**inputs) -> ir.Model:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    outputs = [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None) for name in inputs]
    nodes = [helper.make_node("Relu", [name], [f"{name}_out"]) for name in inputs]
    graph = helper.make_graph(nodes, "g", infos, outputs)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))


def test_the_first_axis_is_the_batch():
    model = model_of(x=["n", 3, 8, 8], y=["n", 5])
    assert batch_shapes(model, None, {}) == {"x": (1, 3, 8, 8), "y": (1, 5)}
    assert batch_shapes(model, 7, {}) == {"x": (7, 3, 8, 8), "y": (7, 5)}


def test_the_same_symbol_elsewhere_follows():
    assert batch_shapes(model_of(x=["n", 3], y=[2, "n"]), None, {})["y"] == (2, 1)
    with pytest.raises(UsageError, match="'y' has a fixed batch of 2, not 4"):
        batch_shapes(model_of(x=["n", 3], y=[2, "n"]), 4, {})


def test_an_override_wins():
    model = model_of(x=["n", "t"], y=["n", 5])
    assert batch_shapes(model, 4, {"x": (9, 2)}) == {"x": (9, 2), "y": (4, 5)}


def test_a_fixed_batch_stays():
    model = model_of(x=[6, 3])
    assert batch_shapes(model, None, {}) == {"x": (6, 3)}
    assert batch_shapes(model, 6, {}) == {"x": (6, 3)}
    with pytest.raises(UsageError, match="fixed batch of 6, not 1"):
        batch_shapes(model, 1, {})


def test_axes_that_exporters_left_open():
    assert batch_shapes(model_of(x=[-1, 3]), 5, {}) == {"x": (5, 3)}
    assert batch_shapes(model_of(x=[None, 3]), 5, {}) == {"x": (5, 3)}


def test_random_inputs():
    feeds = random_inputs(model_of(x=["n", 3]), batch=2, input_shapes=None, seed=0)
    assert feeds["x"].shape == (2, 3)
