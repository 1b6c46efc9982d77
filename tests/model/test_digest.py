from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import model_files
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.model import digest
from onnxprune.model.digest import files_digest, structure_digest, weights_digest
from onnxprune.model.io import load, save
from onnxprune.model.size import tensor_bytes, zstd_size_bytes

Proto = onnx.ModelProto


def digests(proto: Proto, folder: Path) -> tuple[str, str]:
    model = load(model_files.write(proto, folder / "m.onnx"))
    return structure_digest(model), weights_digest(model)


def shapes_model(heads: int = 4) -> Proto:
    """A model with a Reshape target, a float Constant and a renamed chain."""
    proto = model_files.everything()
    proto.graph.initializer.append(model_files.tensor("target", np.array([-1, heads, 20 // heads])))
    proto.graph.node.append(helper.make_node("Reshape", ["h", "target"], ["r"]))
    return proto


def custom_table(proto: Proto) -> onnx.TensorProto:
    return next(attribute.t for attribute in proto.graph.node[9].attribute if attribute.name == "table")


def retrained(proto: Proto) -> None:
    for one in proto.graph.initializer:
        array = numpy_helper.to_array(one)
        if array.dtype == np.float32:
            one.raw_data = (array + 1).tobytes()
    table = custom_table(proto)
    table.raw_data = (numpy_helper.to_array(table) * 2).tobytes()
    proto.graph.node[7].attribute[0].floats[0] = 17.0  # a Constant written as numbers


def other_names(proto: Proto) -> None:
    text = {"h": "hidden", "s": "scaled", "w": "weight", "r": "reshaped"}
    for node in proto.graph.node:
        node.input[:] = [text.get(name, name) for name in node.input]
        node.output[:] = [text.get(name, name) for name in node.output]
        node.name = ""
        node.doc_string = ""
    for one in proto.graph.initializer:
        one.name = text.get(one.name, one.name)
    for branch in (attribute.g for attribute in proto.graph.node[4].attribute):
        for node in branch.node:
            node.input[:] = [text.get(name, name) for name in node.input]
    proto.graph.ClearField("value_info")
    proto.ClearField("metadata_props")


def other_order(proto: Proto) -> None:
    tensors = [one.SerializeToString() for one in proto.graph.initializer]
    proto.graph.ClearField("initializer")
    for data in reversed(tensors):
        proto.graph.initializer.add().ParseFromString(data)


@pytest.mark.parametrize(
    ("change", "same_structure", "same_weights"),
    [
        (retrained, True, False),
        (other_order, True, True),
        (other_names, True, False),
        (lambda p: setattr(p, "producer_name", "x"), True, True),
        (lambda p: setattr(p.graph.node[0], "op_type", "Gemm"), False, True),
        (lambda p: setattr(p.graph.node[1], "domain", ""), False, True),
        (lambda p: setattr(p.graph.node[1].attribute[0], "f", 0.5), False, True),
        (lambda p: p.graph.node[0].input.__setitem__(0, "w"), False, True),
        (lambda p: p.graph.node[0].input.reverse(), False, True),
        (lambda p: setattr(p.graph.node[4].attribute[0].g.node[1], "op_type", "Add"), False, True),
        (lambda p: setattr(p.functions[0].node[1], "op_type", "Add"), False, True),
        (lambda p: setattr(p.opset_import[0], "version", 20), False, True),
        (lambda p: setattr(p.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 21), False, True),
        (lambda p: setattr(p.graph.output[0].type.tensor_type, "elem_type", 10), False, True),
    ],
)
def test_what_each_digest_sees(
    change: Callable[[Proto], object], same_structure: bool, same_weights: bool, tmp_path: Path
) -> None:
    proto = shapes_model()
    before = digests(proto, tmp_path)
    change(proto)
    after = digests(proto, tmp_path)
    assert (before[0] == after[0]) == same_structure
    assert (before[1] == after[1]) == same_weights


def test_shapes_stored_as_tensors_belong_to_the_structure(tmp_path: Path) -> None:
    assert digests(shapes_model(4), tmp_path)[0] != digests(shapes_model(5), tmp_path)[0]


def test_weights_of_another_shape_change_the_structure(tmp_path: Path) -> None:
    proto = shapes_model()
    before = digests(proto, tmp_path)
    weight = custom_table(proto)
    weight.dims[:] = [10, 40]
    after = digests(proto, tmp_path)
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_one_bit_changes_the_weights(tmp_path: Path) -> None:
    proto = model_files.mlp(2)
    before = digests(proto, tmp_path)
    data = bytearray(proto.graph.initializer[1].raw_data)
    data[-1] ^= 1
    proto.graph.initializer[1].raw_data = bytes(data)
    assert digests(proto, tmp_path)[1] != before[1]
    swapped = model_files.mlp(2)
    first, second = (bytes(one.raw_data) for one in swapped.graph.initializer)
    swapped.graph.initializer[0].raw_data, swapped.graph.initializer[1].raw_data = second, first
    assert digests(swapped, tmp_path)[1] not in (before[1], digests(proto, tmp_path)[1])


def test_where_and_how_weights_are_stored_does_not_matter(tmp_path: Path) -> None:
    proto = model_files.everything(list(model_files.tensors_of_every_type()))
    model = load(model_files.write(proto, tmp_path / "m.onnx"))
    expected = structure_digest(model), weights_digest(model)
    for name, external, sparse in (("a", False, None), ("b", True, None), ("c", True, True)):
        path = save(model, tmp_path / name, external_data=external, sparse_storage=sparse)[0]
        again = load(path)
        assert (structure_digest(again), weights_digest(again)) == expected
    weight = model.graph.initializers["w"]
    old = weight.const_value
    assert old is not None
    weight.const_value = ir.LazyTensor(lambda: old, old.dtype, ir.Shape([20, 20]), name="w")
    assert weights_digest(model) == expected[1]


def test_a_constant_and_an_initializer_of_the_same_name(tmp_path: Path) -> None:
    as_initializer = model_files.mlp(1)
    as_constant = model_files.mlp(1)
    weight = as_constant.graph.initializer.pop()
    as_constant.graph.node.insert(0, helper.make_node("Constant", [], ["w0"], value=weight))
    assert digests(as_initializer, tmp_path)[1] == digests(as_constant, tmp_path)[1]


def test_sizes(tmp_path: Path) -> None:
    proto = model_files.mlp(3)
    model = load(model_files.write(proto, tmp_path / "m.onnx"))
    assert tensor_bytes(model) == 3 * 24 * 24 * 4
    zeros = load(tmp_path / "m.onnx")
    for value in zeros.graph.initializers.values():
        value.const_value = ir.tensor(np.zeros((24, 24), np.float32), name=value.name)
    assert tensor_bytes(zeros) == tensor_bytes(model)
    dense = zstd_size_bytes(tmp_path / "m.onnx")
    for external in (False, True):
        path = save(model, tmp_path / "again.onnx", external_data=external)[0]
        assert abs(zstd_size_bytes(path) - dense) < 300
        path = save(zeros, tmp_path / "zeros.onnx", external_data=external)[0]
        assert zstd_size_bytes(path) < 600 < dense
    every = load(
        model_files.write(model_files.everything(list(model_files.tensors_of_every_type())), tmp_path / "e")
    )
    stored = sum(len(place.tobytes()) for place in tensors_with_bytes(every))
    strings = [
        v.const_value for v in every.graph.initializers.values() if isinstance(v.const_value, ir.StringTensor)
    ]
    text = sum(len(one) for tensor in strings for one in tensor.string_data())
    assert tensor_bytes(every) == stored + text


def tensors_with_bytes(model: ir.Model) -> list[ir.TensorProtocol]:
    from onnxprune.model.places import places

    return [place.tensor for place in places(model) if place.tensor.dtype != ir.DataType.STRING]


@pytest.mark.parametrize(
    ("number", "said"), [(0, "m.onnx: can't be read"), (1, "m.onnx: its data in .*w.bin can't be read")]
)
def test_a_file_that_cannot_be_read_is_named_with_its_model(number, said, tmp_path, monkeypatch):
    proto = model_files.everything()
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)

    def denied(*files):
        raise PermissionError(13, "Permission denied", str(files[number]))

    monkeypatch.setattr(digest, "sha256_of", denied)
    with pytest.raises(ModelError, match=said):
        files_digest(path)
