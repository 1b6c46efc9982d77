"""Files that are no models, damaged ones, and models that can't be right."""

from __future__ import annotations

import gzip
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import model_files
import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune.errors import ModelError
from onnxprune.model import structure
from onnxprune.model.io import load


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(path)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 600
    return message


def refused_proto(proto: onnx.ModelProto, folder: Path) -> str:
    return refused(model_files.write(proto, folder / "m.onnx"))


# ---- files


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "empty").touch()
    with (tmp_path / "huge").open("wb") as stream:
        stream.truncate(3 << 30)
    for name, complaint in (
        ("none", "the file is missing"),
        ("broken", "the file is missing"),
        (".", "not a regular file"),
        ("fifo", "not a regular file"),
        ("loop", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("/dev/null", "not a regular file"),
        ("empty", "the file is empty"),
        ("huge", "too many for one ONNX file"),
        ("x" * 300, "File name too long"),
    ):
        assert complaint in refused(tmp_path / name)


def test_control_characters_of_the_path_are_shown(tmp_path: Path) -> None:
    assert r"\x1b[2Jm\n.onnx: the file is missing" in refused(tmp_path / "\x1b[2Jm\n.onnx")


def test_other_formats_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"x")
    assert "zip archive; a .pt2 or TorchScript file goes through the importer" in refused(path)
    for content, complaint in (
        (gzip.compress(model_files.mlp().SerializeToString()), "gzip archive"),
        (pickle.dumps({"a": 1}), "Python pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>\r\n\t404 \xc3\xa4</html>", "a text file"),
        ("größe".encode("latin-1") * 200, "damaged, or no ONNX model"),
        ("ä".encode() * 500, "a text file"),
        (b"\x18\0\0\0ORTM" + bytes(50), "ONNX Runtime's own format"),
        (b"\x1c\0\0\0TFL3" + bytes(50), "TensorFlow Lite"),
        (b"\x10\0\0\0\0\0\0\0" + b'{"a":{}}' + bytes(9), "safetensors"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "PNG"),
        (bytes(1000), "damaged, or no ONNX model"),
        (b"\xff" * 1000, "damaged, or no ONNX model"),
    ):
        path.write_bytes(content)
        assert complaint in refused(path), content[:20]


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    small, large = (model_files.mlp(1, width).SerializeToString() for width in (4, 24))
    for data, length in [
        *((small, at) for at in range(1, len(small))),
        *((large, at) for at in range(1, 2400, 97)),
    ]:
        path.write_bytes(data[:length])
        refused(path)


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model_files.write(model_files.mlp(), tmp_path / "m.onnx")
    from onnxprune.model import parse

    real = parse.check_structure

    def touch(proto: onnx.ModelProto) -> structure.Found:
        path.write_bytes(path.read_bytes() + b"\0")
        return real(proto)

    monkeypatch.setattr(parse, "check_structure", touch)
    assert "changed while it was in use" in refused(path)


# ---- tensors


def weight(**changes: object) -> Callable[[TensorProto], None]:
    def change(one: TensorProto) -> None:
        for name, value in changes.items():
            if name in ("dims", "float_data", "int32_data", "string_data", "int64_data", "double_data"):
                one.ClearField(name)
                getattr(one, name).extend(value)
            elif value is None:
                one.ClearField(name)
            else:
                setattr(one, name, value)

    return change


@pytest.mark.parametrize("width", [4, 24], ids=["small", "large"])
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (weight(dims=[-1, -576]), "negative dimension"),
        (weight(dims=[2**32, 2**32]), "impossible dimensions"),
        (weight(dims=[0, 2**62]), "impossible dimensions"),
        (weight(dims=[2**31]), "has"),
        (weight(dims=[1] * 65), "65 axes"),
        (weight(raw_data=b"x" * 63), "has 63 bytes, but its type and shape need"),
        (weight(raw_data=b"x" * 4001), "has 4001 bytes, but its type and shape need"),
        (weight(raw_data=b""), "has 0 bytes"),
        (weight(raw_data=None), "has no data"),
        (weight(float_data=[1.0]), "two places"),
        (weight(float_data=[1.0] * 576), "two places"),
        (weight(raw_data=None, float_data=[1.0]), "has 1 values"),
        (weight(raw_data=None, float_data=[1.0] * 575), "5"),
        (weight(raw_data=None, int32_data=[1] * 576), "data of another type than FLOAT"),
        (weight(raw_data=None, double_data=[1] * 288), "data of another type than FLOAT"),
        (weight(raw_data=None, float_data=[1.0], double_data=[1.0] * 200), "two places"),
        (weight(data_type=0), "unknown element type 0"),
        (weight(data_type=99), "unknown element type 99"),
        (weight(data_type=-1), "unknown element type -1"),
        (weight(data_type=TensorProto.DOUBLE), "bytes, but its type and shape need"),
        (weight(data_type=TensorProto.INT4), "bytes, but its type and shape need"),
        (weight(data_type=TensorProto.STRING), "strings as raw bytes"),
        (weight(data_type=TensorProto.STRING, raw_data=None, string_data=[b"a"]), "has 1 values"),
        (
            weight(data_type=TensorProto.INT32, raw_data=None, float_data=[1.0] * 576),
            "another type than INT32",
        ),
    ],
)  # fmt: skip
def test_tensors_that_lie(
    change: Callable[[TensorProto], None], complaint: str, width: int, tmp_path: Path
) -> None:
    proto = model_files.mlp(1, width)
    change(proto.graph.initializer[0])
    message = refused_proto(proto, tmp_path)
    assert complaint in message
    assert "'w0'" in message


def test_a_segmented_tensor(tmp_path: Path) -> None:
    proto = model_files.mlp(1)
    proto.graph.initializer[0].segment.begin = 0
    assert "segments" in refused_proto(proto, tmp_path)


# ---- structure


def set_ir(version: int) -> Callable[[onnx.ModelProto], object]:
    return lambda proto: setattr(proto, "ir_version", version)


def set_opset(version: int, domain: str = "") -> Callable[[onnx.ModelProto], object]:
    return lambda proto: proto.opset_import.add(domain=domain, version=version)


def add_node(*arguments: object, **named: object) -> Callable[[onnx.ModelProto], object]:
    return lambda proto: proto.graph.node.append(helper.make_node(*arguments, **named))


def two_values(proto: onnx.ModelProto) -> None:
    attribute = proto.graph.node[0].attribute.add(name="a", type=onnx.AttributeProto.INT)
    attribute.s = b"text"


def untyped(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].attribute.add(name="a")


def nested(depth: int) -> onnx.GraphProto:
    graph = helper.make_graph([], "leaf", [], [helper.make_tensor_value_info("w", 1, [1])])
    graph.initializer.append(helper.make_tensor("w", 1, [1], [0.0]))
    for _ in range(depth):
        node = helper.make_node("Loop", ["", "", "w"], ["v"], body=graph)
        graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("w", 1, [1])])
        graph.initializer.append(helper.make_tensor("w", 1, [1], [0.0]))
    return graph


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda p: p.ClearField("graph"), "no graph"),
        (lambda p: p.graph.Clear(), "without outputs"),
        (lambda p: p.graph.ClearField("output"), "without outputs"),
        (lambda p: p.ClearField("ir_version"), "IR version 0"),
        (set_ir(-5), "IR version -5"),
        (set_ir(99), "IR version 99"),
        (lambda p: p.ClearField("opset_import"), "no opset"),
        (set_opset(20), "two versions"),
        (set_opset(20, "ai.onnx"), "two versions"),
        (set_opset(0, "x"), "opset 0 of 'x'"),
        (lambda p: setattr(p.opset_import[0], "version", 99), "opset 99"),
        (lambda p: p.graph.initializer.add().CopyFrom(p.graph.initializer[0]), "initializer 'w0' twice"),
        (lambda p: p.graph.initializer[0].ClearField("name"), "without a name"),
        (lambda p: p.graph.input.add().CopyFrom(p.graph.input[0]), "graph input 'x' twice"),
        (lambda p: p.graph.input[0].ClearField("type"), "no known type"),
        (lambda p: setattr(p.graph.input[0].type.tensor_type, "elem_type", 0), "no known type"),
        (lambda p: setattr(p.graph.input[0].type.tensor_type, "elem_type", 99), "no known type"),
        (lambda p: setattr(p.graph.output[0], "name", "other"), "output 'other' is produced by nothing"),
        (lambda p: p.graph.node[0].input.append("ghost"), "node 'fc0' uses 'ghost', which nothing produces"),
        (lambda p: p.graph.node[0].input.append("h0"), "cycle"),
        (lambda p: p.graph.node[0].output.append("x"), "redeclared"),
        (lambda p: p.graph.node[0].output.append("h0"), "redeclared"),
        (lambda p: p.graph.node[0].output.append("w0"), "redeclared"),
        (lambda p: p.graph.node[0].ClearField("op_type"), "no operator"),
        (add_node("Thing", [], ["t"], domain="else"), "operator domain 'else'"),
        (add_node("EPContext", [], ["t"]), "EPContext"),
        (two_values, "value of another type"),
        (untyped, "without a type"),
        (lambda p: [p.graph.node[0].attribute.add(name="a", type=2, i=1) for _ in "ab"], "'a' twice"),
        (lambda p: p.graph.CopyFrom(nested(31)), "subgraphs"),
        (lambda p: p.graph.output[0].type.map_type.SetInParent(), "[Mm]ap types are not supported"),
    ],
)
def test_models_that_cannot_be_right(
    change: Callable[[onnx.ModelProto], object], complaint: str, tmp_path: Path
) -> None:
    proto = model_files.mlp(1)
    change(proto)
    path = model_files.write(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=complaint):
        load(path)
    refused(path)


def test_subgraphs_as_deep_as_allowed(tmp_path: Path) -> None:
    proto = model_files.mlp(1)
    proto.graph.CopyFrom(nested(structure.DEEPEST_SUBGRAPH - 2))
    assert load(model_files.write(proto, tmp_path / "m.onnx"))


def test_names_that_are_not_text(tmp_path: Path) -> None:
    proto = model_files.mlp(1)
    proto.graph.node[0].op_type = "QQQQ"
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString().replace(b"QQQQ", b"Q\xff\xfeQ"))
    assert "not UTF-8" in refused(path)


def test_attributes_of_old_files_get_their_type(tmp_path: Path) -> None:
    proto = model_files.mlp(1)
    proto.graph.node[0].attribute.add(name="__a", i=7)
    model = load(model_files.write(proto, tmp_path / "m.onnx"))
    assert model.graph.node(0).attributes["__a"].as_int() == 7


def calling(*callees: str, name: str) -> onnx.FunctionProto:
    names = ["x", *(f"v{i}" for i in range(len(callees)))]
    nodes = [
        helper.make_node(callee, [names[i]], [names[i + 1]], domain="f" if callee.startswith("F") else "")
        for i, callee in enumerate(callees)
    ]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("f", 1)]
    return helper.make_function("f", name, ["x"], [names[-1]], nodes, opsets)


def with_functions(*functions: onnx.FunctionProto) -> onnx.ModelProto:
    proto = model_files.mlp(1)
    proto.functions.extend(functions)
    proto.opset_import.add(domain="f", version=1)
    proto.graph.node.append(helper.make_node("F0", ["x"], ["called"], domain="f"))
    return proto


def test_functions_that_call_themselves(tmp_path: Path) -> None:
    assert "circle" in refused_proto(with_functions(calling("F0", name="F0")), tmp_path)
    pair = calling("Relu", "F1", name="F0"), calling("F0", name="F1")
    assert "circle" in refused_proto(with_functions(*pair), tmp_path)


def test_a_call_within_a_subgraph_counts(tmp_path: Path) -> None:
    function = calling("Relu", name="F0")
    inner = helper.make_graph(
        [helper.make_node("F0", ["x"], ["y"], domain="f")],
        "inner",
        [],
        [helper.make_tensor_value_info("y", 1, [])],
    )
    function.node[0].attribute.append(helper.make_attribute("body", inner))
    assert "circle" in refused_proto(with_functions(function), tmp_path)


def test_functions_that_grow_without_bound(tmp_path: Path) -> None:
    levels = [calling(*[f"F{i + 1}"] * 10, name=f"F{i}") for i in range(6)]
    assert load(
        model_files.write(
            with_functions(*levels[1:], calling("Relu", name="F6"), calling(name="F0")), tmp_path / "m"
        )
    )
    message = refused_proto(with_functions(*levels, calling("Relu", "Relu", name="F6")), tmp_path)
    assert "grows to 2000001 nodes" in message
    chain = [calling(f"F{i + 1}", name=f"F{i}") for i in range(2000)]
    assert load(model_files.write(with_functions(*chain, calling("Relu", name="F2000")), tmp_path / "m"))


def test_a_function_that_is_defined_twice(tmp_path: Path) -> None:
    assert "twice" in refused_proto(
        with_functions(calling("Relu", name="F0"), calling("Relu", name="F0")), tmp_path
    )


def test_functions_see_nothing_from_outside(tmp_path: Path) -> None:
    function = calling("Relu", name="F0")
    function.node[0].input[0] = "w0"
    assert "'w0', which nothing produces" in refused_proto(with_functions(function), tmp_path)
