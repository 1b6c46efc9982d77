"""What fuzzing found, each as a model of its own."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import onnx
import pytest
import small_models
from model_files import info, model, random, tensor
from onnx import TensorProto, helper

from onnxprune import load_data
from onnxprune.analyze import analyze
from onnxprune.errors import DataError, ModelError
from onnxprune.inspection import inspect_model
from onnxprune.model.io import load
from onnxprune.model.prepare import prepare
from onnxprune.ops.constant_arrays import along
from onnxprune.ops.sums import Sums


def saved(proto: onnx.ModelProto, folder):
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def graph(nodes, outputs, tensors=(), inputs=None):
    return helper.make_graph(nodes, "g", inputs or [info("x", 2, 4)], outputs, list(tensors))


def test_a_constant_of_text_that_is_no_ascii(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["one"], value_string="größe"),
        helper.make_node("Constant", [], ["many"], value_strings=["日本", "x"]),
        helper.make_node("Equal", ["one", "many"], ["same"]),
        helper.make_node("Where", ["same", "a", "b"], ["chosen"]),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Mul", ["h", "chosen"], ["y"]),
    ]
    tensors = [
        tensor("w", random(4, 2)), tensor("a", np.ones(2, np.float32)), tensor("b", np.zeros(2, np.float32)),
    ]  # fmt: skip
    proto = helper.make_model(
        graph(nodes, [info("y", 2, 2)], tensors), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    analysis = analyze(load(saved(proto, tmp_path)))
    texts = {
        value.name: value.const_value.string_data()
        for value in analysis.model.graph.initializers.values()
        if value.const_value.dtype.name == "STRING"
    }
    assert texts in ({}, {"one": ["größe".encode()], "many": ["日本".encode(), b"x"]})


def test_branches_with_fewer_outputs_than_their_node(tmp_path):
    then = helper.make_graph([helper.make_node("Relu", ["x"], ["t"])], "then", [], [info("t", 2, 4)])
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["e"])], "else", [], [info("e", 2, 4)])
    nodes = [
        helper.make_node("Cast", ["x0"], ["yes"], to=TensorProto.BOOL),
        helper.make_node("If", ["yes"], ["y", "z"], then_branch=then, else_branch=other),
    ]
    inputs = [info("x", 2, 4), info("x0")]
    proto = model(graph(nodes, [info("y", 2, 4), info("z", 2, 4)], inputs=inputs))
    with pytest.raises(ModelError):
        inspect_model(saved(proto, tmp_path))
    analyze(load(saved(proto, tmp_path)))  # without asking ONNX Runtime: nothing is known, nothing breaks


def test_a_convolution_that_gets_more_channels_than_it_takes(tmp_path):
    proto = small_models.residual_net(width=4)
    wide = np.ones((4, 6, 3, 3), np.float32)
    for weight in proto.graph.initializer:
        if list(weight.dims) == [4, 4, 3, 3]:
            weight.CopyFrom(tensor(weight.name, wide))
            break
    analysis = analyze(load(saved(proto, tmp_path)))
    assert any("takes 6 channels and gets 4" in entry.reason for entry in analysis.unknown)
    Sums(analysis.model.graph, analysis.channels)


def test_a_name_of_an_attribute_that_is_no_text(tmp_path):
    proto = small_models.mlp(width=4)
    node = next(node for node in proto.graph.node if node.attribute)
    name = node.attribute[0].name.encode()
    contents = proto.SerializeToString().replace(name, b"\xe7" + name[1:])
    path = tmp_path / "model.onnx"
    path.write_bytes(contents)
    with pytest.raises(ModelError, match="not UTF-8"):
        load(path)


@pytest.mark.parametrize(
    "header",
    ["{'descr': '<f4', 'fortran_order': False, 'shape': (", "(" * 200, "{" * 500, "[]", "{'descr': 1}"],
)
def test_headers_of_arrays_that_are_no_python(tmp_path, header):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        size = len(header).to_bytes(2, "little")
        archive.writestr("x.npy", b"\x93NUMPY\1\0" + size + header.encode() + bytes(64))
    (tmp_path / "x.npz").write_bytes(stream.getvalue())
    with pytest.raises(DataError, match=r"x\.npz: 'x\.npy'"):
        load_data(tmp_path / "x.npz")


def test_a_split_into_more_parts_than_it_has_outputs(tmp_path):
    node = helper.make_node("Split", ["x"], ["y", "z"], axis=1, num_outputs=2**40)
    proto = helper.make_model(
        graph([node], [info("y", 2, 2), info("z", 2, 2)]),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    analyze(load(saved(proto, tmp_path)))


def test_any_number_but_zero_transposes(tmp_path):
    """As ONNX Runtime has it; sums that are looked at one way here and another there would not fit."""
    proto = small_models.depthwise_net(width=4)
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.name == "transB":
                attribute.i = 1 << 31
    analysis = analyze(load(saved(proto, tmp_path)))
    Sums(analysis.model.graph, analysis.channels)


def test_a_configuration_of_devices_that_is_not_there(tmp_path):
    proto = small_models.mlp(width=4)
    node = proto.graph.node[0]
    if not hasattr(node, "device_configurations"):
        pytest.skip("this onnx knows no devices")
    node.device_configurations.add()
    with pytest.raises(ModelError, match="a configuration of devices"):
        load(saved(proto, tmp_path))


#: Of nobody: where a model has one, ONNX Runtime is not asked whether it takes the rest.
FOREIGN = helper.make_node("Custom", ["x"], ["q"], domain="other")


def foreign(proto_graph):
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("other", 1)]
    return helper.make_model(proto_graph, opset_imports=opsets, ir_version=10)


def test_a_body_that_reads_what_is_made_from_it(tmp_path):
    then = helper.make_graph([helper.make_node("Relu", ["y"], ["t"])], "then", [], [info("t", 2, 4)])
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["e"])], "else", [], [info("e", 2, 4)])
    nodes = [FOREIGN, helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)]
    proto = foreign(graph(nodes, [info("y", 2, 4), info("q", 2, 4)], [tensor("c", np.array(True))]))
    with pytest.raises(ModelError, match="reads what is made from that body"):
        inspect_model(saved(proto, tmp_path))


def test_a_loop_whose_body_returns_nothing(tmp_path):
    inputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        info("state", 2, 4),
    ]
    body = helper.make_graph([helper.make_node("MatMul", ["state", "w"], ["next"])], "body", inputs, [])
    nodes = [FOREIGN, helper.make_node("Loop", ["n", "", "x"], ["r"], body=body)]
    tensors = [tensor("n", np.array(3)), tensor("w", random(4, 4))]
    proto = foreign(graph(nodes, [info("r", 2, 4), info("q", 2, 4)], tensors))
    inspect_model(saved(proto, tmp_path))


def test_what_a_product_adds_has_other_channels_than_it(tmp_path):
    nodes = [
        helper.make_node("Gemm", ["x", "v"], ["wide"], name="first"),
        helper.make_node("Gemm", ["x", "w", "wide"], ["y"], name="second"),
    ]
    tensors = [tensor("w", random(4, 4)), tensor("v", random(4, 6))]
    inputs = [info("x", "n", 4)]
    proto = helper.make_model(
        graph(nodes, [info("y", "n", 4)], tensors, inputs),
        opset_imports=[helper.make_opsetid("", 21)], ir_version=10,
    )  # fmt: skip
    analysis = analyze(load(saved(proto, tmp_path)))
    assert any("make no sense" in note.reason for note in analysis.unknown)


def test_a_name_of_a_body_that_is_no_text(tmp_path):
    then = helper.make_graph([helper.make_node("Relu", ["x"], ["t"])], "bo_y", [], [info("t", 2, 4)])
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["e"])], "else", [], [info("e", 2, 4)])
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)]
    path = saved(foreign(graph(nodes, [info("y", 2, 4)], [tensor("c", np.array(True))])), tmp_path)
    path.write_bytes(path.read_bytes().replace(b"bo_y", b"bo\xffy"))
    with pytest.raises(ModelError, match="can't be written again: 'utf-8' codec"):
        inspect_model(path)


@pytest.mark.parametrize(
    "given", [{"value_string": "text"}, {"value_float": 1.0}, {"value": tensor("", random(2))}]
)
def test_a_constant_whose_output_has_no_name(given, tmp_path):
    nodes = [FOREIGN, helper.make_node("Constant", [], [""], **given), helper.make_node("Relu", ["x"], ["y"])]
    proto = foreign(graph(nodes, [info("y", 2, 4), info("q", 2, 4)]))
    assert len(prepare(load(saved(proto, tmp_path)))[0].graph) == 2


def test_a_product_of_what_has_no_known_shape(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    tensors, inputs = [tensor("w", random(4, 4))], [info("x", "n")]
    proto = helper.make_model(
        graph(nodes, [info("y", 3, 4)], tensors, inputs),
        opset_imports=[helper.make_opsetid("", 21)], ir_version=10,
    )  # fmt: skip
    analysis = analyze(load(saved(proto, tmp_path)))
    assert any("the shape of h is not known" in note.reason for note in analysis.unknown)


def test_a_bias_of_another_length_than_there_are_channels(tmp_path):
    proto = small_models.residual_net()
    conv = next(node for node in proto.graph.node if node.op_type == "Conv")
    proto.graph.initializer.append(tensor("short", random(3)))
    conv.input[2] = "short"
    analysis = analyze(load(saved(proto, tmp_path)))
    (note,) = (note for note in analysis.unknown if note.name == conv.name)
    assert "3 numbers meet" in note.reason


def test_fewer_constants_than_channels_are_none():
    assert np.isnan(along(np.zeros(4), -1, 8)).all()
    assert (along(np.zeros(1), -1, 8) == 0).all()


def test_an_output_of_a_function_whose_name_is_no_text(tmp_path):
    function = helper.make_function(
        "own", "f", ["a"], ["resultant"], [helper.make_node("Relu", ["a"], ["resultant"])],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    proto = helper.make_model(
        graph([helper.make_node("f", ["x"], ["y"], domain="own")], [info("y", 2, 4)]),
        functions=[function], opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("own", 1)],
        ir_version=10,
    )  # fmt: skip
    path = saved(proto, tmp_path)
    path.write_bytes(path.read_bytes().replace(b"resultant", b"result\xfe\xff\xfd", 1))  # declared, not made
    with pytest.raises(ModelError, match="not UTF-8"):
        load(path)
