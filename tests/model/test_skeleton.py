import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import UsageError
from onnxprune.model.skeleton import LARGE_BYTES, hollow, skeleton
from onnxprune.runtime import open_session


def linear_model() -> ir.Model:
    """y = relu(x @ large) + small, the arrays being the test's own."""
    generator = np.random.default_rng(0)
    large = generator.standard_normal((32, 32)).astype(np.float32)
    small = generator.standard_normal(32).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "large"], ["product"]),
            helper.make_node("Relu", ["product"], ["active"]),
            helper.make_node("Add", ["active", "small"], ["y"]),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))
    for name, array in (("large", large), ("small", small)):
        value = next(v for node in model.graph for v in node.inputs if v is not None and v.name == name)
        value.const_value = ir.Tensor(array, name=name)
        model.graph.register_initializer(value)
    return model


def test_large_tensors_are_views_and_small_ones_stay():
    model = linear_model()
    parts = skeleton(model)
    assert list(parts.tensors) == ["large"]
    assert np.shares_memory(parts.tensors["large"], model.graph.initializers["large"].const_value.numpy())
    stored = {tensor.name: tensor for tensor in parts.proto.graph.initializer}
    assert stored["large"].data_location == TensorProto.EXTERNAL
    assert {entry.key: entry.value for entry in stored["large"].external_data}["length"] == "4096"
    assert stored["small"].raw_data == model.graph.initializers["small"].const_value.tobytes()
    assert parts.proto.ByteSize() < 1000


def test_tensors_that_nobody_reads_are_left_out():
    model = linear_model()
    unread = ir.Value(name="unread", const_value=ir.Tensor(np.ones((64, 64), np.float32), name="unread"))
    model.graph.register_initializer(unread)
    parts = skeleton(model)
    assert list(parts.tensors) == ["large"]
    assert "unread" not in {tensor.name for tensor in parts.proto.graph.initializer}
    assert "unread" in model.graph.initializers


def test_the_model_is_not_changed():
    model = linear_model()
    before = ir.to_proto(model).SerializeToString()
    tensors = [value.const_value for value in model.graph.initializers.values()]
    skeleton(model, ["product"])
    assert ir.to_proto(model).SerializeToString() == before
    assert all(a is v.const_value for a, v in zip(tensors, model.graph.initializers.values(), strict=True))
    assert [value.name for value in model.graph.outputs] == ["y"]


@pytest.mark.parametrize("dtype", ["INT4", "UINT4", "STRING", "COMPLEX64"])
def test_types_without_a_plain_array_stay_in_the_proto(dtype):
    model = linear_model()
    data_type = ir.DataType[dtype]
    if data_type == ir.DataType.STRING:
        tensor = ir.StringTensor([b"x" * 8] * 512, shape=ir.Shape([512]))
    else:
        tensor = ir.Tensor(np.ones(4096).astype(data_type.numpy()), dtype=data_type)
    value = ir.val("odd", const_value=tensor)
    model.graph.register_initializer(value)
    parts = skeleton(model)
    assert "odd" not in parts.tensors
    (stored,) = (tensor for tensor in parts.proto.graph.initializer if tensor.name == "odd")
    np.testing.assert_array_equal(ir.serde.deserialize_tensor(stored).numpy(), tensor.numpy())


def test_extra_outputs():
    parts = skeleton(linear_model(), ["product", "y", "product"])
    assert [value.name for value in parts.proto.graph.output] == ["y", "product"]
    with pytest.raises(UsageError, match="no value 'nothing'"):
        skeleton(linear_model(), ["nothing"])


def test_small_external_tensors_are_read_from_their_own_folder(tmp_path):
    array = np.arange(8, dtype=np.float32)
    (tmp_path / "weights.bin").write_bytes(array.tobytes())
    model = linear_model()
    tensor = ir.ExternalTensor(
        "weights.bin", 0, array.nbytes, ir.DataType.FLOAT, shape=ir.Shape([8]), name="z", base_dir=tmp_path
    )
    assert tensor.nbytes < LARGE_BYTES
    model.graph.register_initializer(ir.val("z", const_value=tensor))
    (stored,) = (entry for entry in skeleton(model).proto.graph.initializer if entry.name == "z")
    np.testing.assert_array_equal(numpy_helper.to_array(stored), array)


def test_external_tensors_of_subgraphs_and_attributes_are_read_from_their_own_folder(tmp_path):
    def external(name, array):
        (tmp_path / f"{name}.bin").write_bytes(array.tobytes())
        tensor = numpy_helper.from_array(array, name)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in (("location", f"{name}.bin"), ("length", str(array.nbytes))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, text
        return tensor

    inside = np.arange(400, dtype=np.float32)
    constant = inside + 1
    info = helper.make_tensor_value_info("out", TensorProto.FLOAT, [400])
    then = helper.make_graph(
        [helper.make_node("Identity", ["inside"], ["out"])], "then", [], [info], [external("inside", inside)]
    )
    other = helper.make_graph(
        [helper.make_node("Constant", [], ["out"], value=external("constant", constant))], "else", [], [info]
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [400])],
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()
    )
    model = ir.load(path)
    branches = {a.name: a.g for a in skeleton(model).proto.graph.node[0].attribute}
    np.testing.assert_array_equal(numpy_helper.to_array(branches["then_branch"].initializer[0]), inside)
    np.testing.assert_array_equal(
        numpy_helper.to_array(branches["else_branch"].node[0].attribute[0].t), constant
    )
    kept = next(graph for graph in model.graphs() if graph.name == "then").initializers["inside"].const_value
    assert isinstance(kept, ir.ExternalTensor)  # the caller's model still points at the file


def test_a_hollow_model_has_inputs_where_the_large_weights_are() -> None:
    model = linear_model()
    proto = hollow(model)
    assert [value.name for value in proto.graph.input] == ["x", "large"]
    assert [tensor.name for tensor in proto.graph.initializer] == ["small"]
    assert [dim.dim_value for dim in proto.graph.input[1].type.tensor_type.shape.dim] == [32, 32]
    assert proto.ByteSize() < 1024
    assert set(model.graph.initializers) == {"large", "small"}


def test_weights_of_old_models_are_no_inputs() -> None:
    model = linear_model()
    for value in model.graph.initializers.values():
        model.graph.inputs.append(value)
    model.ir_version = 3
    x = np.ones((2, 32), np.float32)
    expected = open_session(linear_model()).run({"x": x})["y"]
    session = open_session(model)
    assert session.input_names == ("x",)
    np.testing.assert_array_equal(session.run({"x": x})["y"], expected)


@pytest.mark.parametrize("size", [0, -1])
def test_an_input_of_no_size_takes_any(size: int) -> None:
    model = linear_model()
    model.graph.inputs[0].shape = ir.Shape([size, 32])
    assert open_session(model).run({"x": np.ones((3, 32), np.float32)})["y"].shape == (3, 32)
