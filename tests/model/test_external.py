"""Hostile and broken external data: nothing outside the model's folder is ever opened."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import model_files
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune.errors import ModelError
from onnxprune.model.external import FileTensor
from onnxprune.model.io import load

SIZE = 4 * 24 * 24


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder; what lies beside it must not be read."""
    (tmp_path / "secret.bin").write_bytes(bytes(SIZE))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w.bin").write_bytes(model_files.random(24, 24).tobytes())
    return tmp_path / "model"


def pointing_to(folder: Path, **entries: object) -> Path:
    proto = model_files.mlp(1)
    proto.graph.initializer[0].ClearField("raw_data")
    model_files.refer(proto.graph.initializer[0], **entries)
    return model_files.write(proto, folder / "m.onnx")


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    return message


@pytest.mark.parametrize(
    ("location", "complaint"),
    [
        ("../secret.bin", "'..'"),
        ("a/../../secret.bin", "'..'"),
        ("./.././secret.bin", "'..'"),
        ("/etc/passwd", "an absolute path"),
        ("//etc/passwd", "an absolute path"),
        ("..\\secret.bin", "a path of another system"),
        ("C:\\secret.bin", "a path of another system"),
        ("C:secret.bin", "a path of another system"),
        ("http://localhost/w.bin", "a path of another system"),
        ("file:///etc/passwd", "a path of another system"),
        ("*/_ORT_MEM_ADDR_/*", "a memory address"),
        ("w.bin\0.png", "control characters"),
        ("w.bin\n", "control characters"),
        ("\x1b[2J", "control characters"),
        ("", "names no file"),
        (".", "leads out of"),
        ("none.bin", "is missing"),
        ("~/w.bin", "is missing"),
        ("$HOME/w.bin", "is missing"),
        ("a" * 5000, "File name too long"),
    ],
)
def test_locations(folder: Path, location: str, complaint: str) -> None:
    assert complaint in refused(pointing_to(folder, location=location))


def test_a_plain_location_works(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "w.bin").rename(folder / "sub" / "größe w.bin")
    model = load(pointing_to(folder, location="./sub/größe w.bin"))
    tensor = model.graph.initializers["w0"].const_value
    assert isinstance(tensor, FileTensor)
    assert np.array_equal(tensor.numpy(), model_files.random(24, 24))
    assert np.array_equal(np.asarray(tensor), model_files.random(24, 24))
    assert not tensor.numpy().flags.writeable
    assert Path(tensor.path) == folder / "sub" / "größe w.bin"
    assert (tensor.offset, tensor.length) == (0, SIZE)


@pytest.mark.parametrize(
    ("prepare", "complaint"),
    [
        (lambda link, out: link.symlink_to(out), "leads out of"),
        (lambda link, _: link.symlink_to("../secret.bin"), "leads out of"),
        (lambda link, out: link.hardlink_to(out), "has 2 names"),
        (lambda link, _: link.symlink_to(link.name), "not a regular file"),
        (lambda link, _: link.symlink_to("/dev/zero"), "leads out of"),
        (lambda link, _: os.mkfifo(link), "not a regular file"),
        (lambda link, _: link.mkdir(), "not a regular file"),
    ],
)
def test_links_and_special_files(
    folder: Path, prepare: Callable[[Path, Path], object], complaint: str
) -> None:
    (folder / "w.bin").unlink()
    prepare(folder / "w.bin", folder.parent / "secret.bin")
    assert complaint in refused(pointing_to(folder, location="w.bin"))


def test_a_folder_that_is_a_link_out(folder: Path) -> None:
    (folder / "sub").symlink_to(folder.parent)
    assert "leads out of" in refused(pointing_to(folder, location="sub/secret.bin"))


def test_a_folder_whose_name_starts_alike(folder: Path) -> None:
    (folder.parent / "model2").mkdir()
    (folder.parent / "model2" / "x.bin").write_bytes(bytes(SIZE))
    (folder / "x.bin").symlink_to("../model2/x.bin")
    assert "leads out of" in refused(pointing_to(folder, location="x.bin"))


def test_links_into_the_cache_that_holds_the_model(folder: Path) -> None:
    """The layout of the Hugging Face cache: everything in ``snapshots`` is a link into ``blobs``."""
    snapshot = folder.parent / "snapshots"
    snapshot.mkdir()
    pointing_to(folder, location="w.bin").rename(folder / "abc")
    (folder / "w.bin").rename(folder / "def")
    (snapshot / "m.onnx").symlink_to(folder / "abc")
    (snapshot / "w.bin").symlink_to(folder / "def")
    tensor = load(snapshot / "m.onnx").graph.initializers["w0"].const_value
    assert tensor is not None
    assert np.array_equal(tensor.numpy(), model_files.random(24, 24))


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"offset": 4, "length": SIZE}, "ends at byte"),
        ({"offset": 10**6}, "ends at byte"),
        ({"offset": 2**63 - 1}, "ends at byte"),
        ({"offset": 2**64}, "no number of bytes"),
        ({"offset": -4}, "no number of bytes"),
        ({"offset": "abc"}, "no number of bytes"),
        ({"offset": "1e3"}, "no number of bytes"),
        ({"offset": " 0"}, "no number of bytes"),
        ({"offset": "٣"}, "no number of bytes"),
        ({"offset": ""}, "no number of bytes"),
        ({"length": "2_304"}, "no number of bytes"),
        ({"length": SIZE + 4}, f"claims {SIZE + 4} bytes, but its type and shape need {SIZE}"),
        ({"length": SIZE - 4}, f"claims {SIZE - 4} bytes"),
        ({"length": 0}, "claims 0 bytes"),
        ({"checksum": "0" * 40}, "SHA-1"),
    ],
)
def test_entries(folder: Path, entries: dict[str, object], complaint: str) -> None:
    assert complaint in refused(pointing_to(folder, location="w.bin", **entries))


def test_a_truncated_file(folder: Path) -> None:
    data = folder / "w.bin"
    data.write_bytes(data.read_bytes()[:-1])
    assert "truncated" in refused(pointing_to(folder, location="w.bin"))


def test_a_checksum_that_is_right(folder: Path) -> None:
    digest = hashlib.sha1((folder / "w.bin").read_bytes(), usedforsecurity=False).hexdigest()
    assert load(pointing_to(folder, location="w.bin", checksum=digest.upper()))


def test_an_entry_that_is_given_twice(folder: Path) -> None:
    path = pointing_to(folder, location="w.bin")
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].external_data.add(key="location", value="../secret.bin")
    assert "twice" in refused(model_files.write(proto, path))


def test_data_in_two_places(folder: Path) -> None:
    proto = model_files.mlp(1)
    model_files.refer(proto.graph.initializer[0], location="w.bin")
    assert "two places" in refused(model_files.write(proto, folder / "m.onnx"))


def test_entries_without_effect_are_not_followed(folder: Path) -> None:
    proto = model_files.mlp(1)
    proto.graph.initializer[0].external_data.add(key="location", value="../secret.bin")
    assert load(model_files.write(proto, folder / "m.onnx"))


def test_strings_cannot_be_external(folder: Path) -> None:
    proto = model_files.mlp(1)
    one = proto.graph.initializer.add(name="s", data_type=TensorProto.STRING, dims=[2])
    model_files.refer(one, location="w.bin")
    assert "strings" in refused(model_files.write(proto, folder / "m.onnx"))


def hidden() -> list[tuple[str, Callable[[onnx.ModelProto, TensorProto], None]]]:
    """Every place besides the main graph's initializers in which a tensor can hide."""

    def constant(proto: onnx.ModelProto, one: TensorProto) -> None:
        proto.graph.node.append(helper.make_node("Constant", [], ["c"]))
        proto.graph.node[-1].attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(one)

    def several(proto: onnx.ModelProto, one: TensorProto) -> None:
        proto.graph.node[0].attribute.add(name="x", type=onnx.AttributeProto.TENSORS).tensors.append(one)

    def subgraph(proto: onnx.ModelProto, one: TensorProto) -> None:
        inner = helper.make_graph([], "inner", [], [helper.make_tensor_value_info("bad", 1, [24, 24])])
        inner.initializer.append(one)
        proto.graph.node[0].attribute.append(helper.make_attribute("body", inner))

    def function(proto: onnx.ModelProto, one: TensorProto) -> None:
        node = helper.make_node("Constant", [], ["c"])
        node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(one)
        proto.functions.append(
            helper.make_function("f", "F", [], ["c"], [node], [helper.make_opsetid("", 21)])
        )

    def default(proto: onnx.ModelProto, one: TensorProto) -> None:
        function(proto, model_files.tensor("", model_files.random(2)))
        given = proto.functions[0].attribute_proto.add(name="d", type=onnx.AttributeProto.TENSOR)
        given.t.CopyFrom(one)

    def sparse(part: str) -> Callable[[onnx.ModelProto, TensorProto], None]:
        def add(proto: onnx.ModelProto, one: TensorProto) -> None:
            entry = proto.graph.sparse_initializer.add(dims=[9])
            entry.values.CopyFrom(model_files.tensor("v", model_files.random(1)))
            entry.indices.CopyFrom(model_files.tensor("", np.zeros(1, np.int64)))
            getattr(entry, part).CopyFrom(one)

        return add

    def sparse_constant(proto: onnx.ModelProto, one: TensorProto) -> None:
        proto.graph.node.append(helper.make_node("Constant", [], ["c"]))
        given = proto.graph.node[-1].attribute.add(
            name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR
        )
        given.sparse_tensor.values.CopyFrom(one)

    def training(proto: onnx.ModelProto, one: TensorProto) -> None:
        proto.training_info.add().initialization.initializer.append(one)

    places = (constant, several, subgraph, function, default, sparse_constant, training)
    found = [(place.__name__, place) for place in places]
    return [*found, ("sparse values", sparse("values")), ("sparse indices", sparse("indices"))]


@pytest.mark.parametrize("place", [place for _, place in hidden()], ids=[name for name, _ in hidden()])
@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "*/_ORT_MEM_ADDR_/*"])
def test_hidden_places(
    folder: Path, place: Callable[[onnx.ModelProto, TensorProto], None], location: str
) -> None:
    proto = model_files.mlp(1)
    bad = TensorProto(name="bad", data_type=model_files.FLOAT, dims=[24, 24])
    model_files.refer(bad, location=location)
    place(proto, bad)
    assert "external tensor 'bad' points to" in refused(model_files.write(proto, folder / "m.onnx"))


def test_many_files_need_few_descriptors(folder: Path) -> None:
    proto = model_files.mlp(300, 17)
    for index, one in enumerate(proto.graph.initializer):
        model_files.move_out(one, folder, f"{index}.bin")
    path = model_files.write(proto, folder / "m.onnx")
    model = load(path)
    arrays = [value.const_value.numpy() for value in model.graph.initializers.values() if value.const_value]
    assert len(arrays) == 300
    if Path("/proc/self/fd").exists():
        opened = [one.resolve() for one in Path("/proc/self/fd").iterdir()]
        assert not [one for one in opened if folder in one.parents]


def test_tensors_may_share_bytes_and_be_empty(folder: Path) -> None:
    proto = model_files.mlp(2)
    for one, offset in zip(proto.graph.initializer, (0, 4), strict=True):
        one.ClearField("raw_data")
        del one.dims[:]
        one.dims.extend([24, 12])
        model_files.refer(one, location="w.bin", offset=offset)
    empty = proto.graph.initializer.add(name="empty", data_type=model_files.FLOAT, dims=[0, 4])
    model_files.refer(empty, location="w.bin", offset=SIZE, length=0)
    model = load(model_files.write(proto, folder / "m.onnx"))
    flat = model_files.random(24, 24).ravel()
    for name, start in (("w0", 0), ("w1", 1)):
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        assert np.array_equal(tensor.numpy().ravel(), flat[start : start + 288])
    nothing = model.graph.initializers["empty"].const_value
    assert nothing is not None
    assert nothing.numpy().shape == (0, 4)
    assert nothing.tobytes() == b""
