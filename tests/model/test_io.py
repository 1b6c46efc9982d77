"""The law of the round trip, and what ``save`` leaves behind when something goes wrong."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import model_files
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxprune.errors import ModelError, OutputError
from onnxprune.model import io
from onnxprune.model.external import FileTensor
from onnxprune.model.places import places


def saved(proto: onnx.ModelProto, folder: Path, **options: bool) -> onnx.ModelProto:
    source = model_files.write(proto, folder / "in.onnx")
    (target, *data) = io.save(io.load(source), folder / "out.onnx", **options)
    assert target == folder / "out.onnx"
    assert len(data) <= 1
    return onnx.load(target)


# ---- the law


def test_everything_comes_back(tmp_path: Path) -> None:
    proto = model_files.everything()
    assert model_files.normalized(saved(proto, tmp_path)) == model_files.normalized(proto)


@pytest.mark.parametrize("given", list(model_files.tensors_of_every_type()), ids=lambda given: given.name)
def test_every_element_type_comes_back(given: TensorProto, tmp_path: Path) -> None:
    proto = model_files.everything([given])
    assert model_files.normalized(saved(proto, tmp_path)) == model_files.normalized(proto)


def test_a_second_round_trip_changes_no_byte(tmp_path: Path) -> None:
    proto = model_files.everything(list(model_files.tensors_of_every_type()))
    first = io.save(io.load(model_files.write(proto, tmp_path / "in.onnx")), tmp_path / "1.onnx")[0]
    second = io.save(io.load(first), tmp_path / "2.onnx")[0]
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() == onnx.load(first).SerializeToString(), "fields stand in canonical order"


def test_external_data_comes_back_and_stays_external(tmp_path: Path) -> None:
    tensors = [one for one in model_files.tensors_of_every_type() if one.data_type != TensorProto.STRING]
    proto = model_files.everything(tensors)
    result = saved(proto, tmp_path, external_data=True)
    data = [path for path in tmp_path.iterdir() if path.suffix == ".data"]
    assert len(data) == 1
    stored = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    large = [one for one in proto.graph.initializer if len(one.raw_data) >= 1024]
    assert large
    outside = {one.name: one for one in all_tensors(stored) if one.data_location == TensorProto.EXTERNAL}
    for one in large:
        place = {entry.key: entry.value for entry in outside[one.name].external_data}
        assert place["location"] == data[0].name
        assert int(place["length"]) == len(one.raw_data)
    assert stored.functions[0].node[0].attribute[0].t.data_location == TensorProto.EXTERNAL
    assert model_files.normalized(result) == model_files.normalized(proto)
    again = io.save(io.load(tmp_path / "out.onnx"), tmp_path / "again.onnx")
    assert len(again) == 2, "a model that had external data has it again"
    assert again[1].read_bytes() == data[0].read_bytes()


def all_tensors(proto: onnx.ModelProto) -> list[TensorProto]:
    found: list[TensorProto] = []

    def walk(message: object) -> None:
        if isinstance(message, TensorProto):
            found.append(message)
        for field, value in message.ListFields():  # type: ignore[attr-defined]
            if field.message_type is not None:
                for inner in [value] if hasattr(value, "ListFields") else value:
                    walk(inner)

    walk(proto)
    return found


def test_shards_with_gaps_and_without_lengths(tmp_path: Path) -> None:
    proto = model_files.mlp(4)
    expected = [bytes(one.raw_data) for one in proto.graph.initializer]
    for index, one in enumerate(proto.graph.initializer):
        model_files.move_out(one, tmp_path, f"shards/part{index % 2}.bin", before=b"xyz")
    del proto.graph.initializer[3].external_data[2:]  # no length
    loaded = io.load(model_files.write(proto, tmp_path / "m.onnx"))
    tensors = [place.tensor for place in places(loaded)]
    assert all(isinstance(one, FileTensor) for one in tensors)
    assert [one.tobytes() for one in tensors] == expected
    assert [one.numpy().tobytes() for one in tensors] == expected
    inline = onnx.load(io.save(loaded, tmp_path / "inline.onnx", external_data=False)[0])
    assert [bytes(one.raw_data) for one in inline.graph.initializer] == expected
    files = io.model_files(tmp_path / "m.onnx")
    assert [path.name for path in files] == ["m.onnx", "part0.bin", "part1.bin"]


def test_training_information_stays_with_unchanged_shapes(tmp_path: Path) -> None:
    proto = model_files.mlp()
    training = proto.training_info.add()
    training.algorithm.CopyFrom(proto.graph)
    model_files.move_out(training.algorithm.initializer[0], tmp_path, "t.bin")
    source = model_files.write(proto, tmp_path / "m.onnx")
    loaded = io.load(source)
    result = onnx.load(io.save(loaded, tmp_path / "out.onnx")[0])
    assert result.training_info[0].algorithm.initializer[0].raw_data == proto.graph.initializer[0].raw_data
    assert result.training_info[0].algorithm.initializer[1] == proto.graph.initializer[1]
    loaded.graph.initializers["w0"].const_value = ir.tensor(np.zeros((24, 12), np.float32))
    assert not onnx.load(io.save(loaded, tmp_path / "cut.onnx")[0]).training_info


def test_nodes_before_their_inputs_are_put_in_order(tmp_path: Path) -> None:
    proto = model_files.mlp(3)
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    assert list(saved(proto, tmp_path).graph.node) == nodes


def test_saving_changes_nothing_in_the_model(tmp_path: Path) -> None:
    loaded = io.load(model_files.write(model_files.everything(), tmp_path / "m.onnx"))
    before = [(place.name, place.tensor) for place in places(loaded)]
    types = [(value.name, value.type, value.shape) for value in loaded.graph.initializers.values()]
    io.save(loaded, tmp_path / "out.onnx", sparse_storage=True, external_data=True)
    after = [(place.name, place.tensor) for place in places(loaded)]
    assert [name for name, _ in before] == [name for name, _ in after]
    assert all(a is b for (_, a), (_, b) in zip(before, after, strict=True))
    assert types == [(value.name, value.type, value.shape) for value in loaded.graph.initializers.values()]


def test_notes_survive_a_clone(tmp_path: Path) -> None:
    source = model_files.write(model_files.mlp(), tmp_path / "m.onnx")
    with pytest.raises(OutputError, match="is an input of this model"):
        io.save(io.load(source).clone(), source)


def test_arrays_are_aligned_and_read_only(tmp_path: Path) -> None:
    proto = model_files.mlp()
    proto.producer_name = "odd"  # shifts the payloads in the file
    loaded = io.load(model_files.write(proto, tmp_path / "m.onnx"))
    for place in places(loaded):
        array = place.tensor.numpy()
        assert array.flags.aligned
        assert not array.flags.writeable
        assert place.tensor.numpy() is array, "an inline tensor is not copied at each look"


# ---- lazy tensors


def test_lazy_tensors_are_computed_once_when_their_turn_comes(tmp_path: Path) -> None:
    loaded = io.load(model_files.write(model_files.mlp(3), tmp_path / "m.onnx"))
    order: list[str] = []
    for name, value in loaded.graph.initializers.items():

        def double(name: str = name, old: ir.TensorProtocol | None = value.const_value) -> ir.TensorProtocol:
            assert old is not None
            order.append(name)
            return ir.tensor(old.numpy() * 2)

        assert value.const_value is not None
        value.const_value = ir.LazyTensor(double, ir.DataType.FLOAT, ir.Shape([24, 24]))
    for external in (False, True):
        order.clear()
        path = io.save(loaded, tmp_path / f"{external}.onnx", external_data=external)[0]
        assert order == ["w0", "w1", "w2"]
        weights = [onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer]
        assert all(np.array_equal(w, 2 * model_files.random(24, 24, seed=i)) for i, w in enumerate(weights))


def test_a_lazy_tensor_of_the_wrong_size_is_refused(tmp_path: Path) -> None:
    loaded = io.load(model_files.write(model_files.mlp(), tmp_path / "m.onnx"))
    loaded.graph.initializers["w0"].const_value = ir.LazyTensor(
        lambda: ir.tensor(np.zeros((24, 23), np.float32)), ir.DataType.FLOAT, ir.Shape([24, 24]), name="w0"
    )
    with pytest.raises(ModelError, match="'w0' gave 2208 bytes, but its type and shape need 2304"):
        io.save(loaded, tmp_path / "out.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx"]


# ---- what save refuses, and what it leaves behind


@pytest.fixture
def loaded(tmp_path: Path) -> ir.Model:
    (tmp_path / "in").mkdir()
    return io.load(model_files.write(model_files.mlp(), tmp_path / "in" / "m.onnx"))


def test_outputs_that_are_inputs(tmp_path: Path) -> None:
    proto = model_files.mlp()
    model_files.move_out(proto.graph.initializer[0], tmp_path, "m.bin")
    source = model_files.write(proto, tmp_path / "m.onnx")
    before = {path: path.read_bytes() for path in (source, tmp_path / "m.bin")}
    model = io.load(source)
    (tmp_path / "link.onnx").symlink_to(source)
    (tmp_path / "hard.onnx").hardlink_to(source)
    for name in ("m.onnx", "m.bin", "link.onnx", "hard.onnx", "../" + tmp_path.name + "/m.onnx"):
        with pytest.raises(OutputError, match="is an input of this model"):
            io.save(model, tmp_path / name)
    assert before == {path: path.read_bytes() for path in before}


def test_paths_that_cannot_be_written(loaded: ir.Model, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for target, complaint in (
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "out.onnx", "there is no folder"),
        (tmp_path / "fifo", "is not a regular file"),
        (Path("/dev/null"), "is not a regular file"),
        (tmp_path / ("x" * 300), "can't be written: File name too long"),
    ):
        with pytest.raises(OutputError, match=complaint):
            io.save(loaded, target)
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


@pytest.mark.parametrize("external", [False, True])
def test_the_callback_sees_a_complete_model_and_may_refuse(
    loaded: ir.Model, tmp_path: Path, external: bool
) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(b"old")
    seen: list[list[bytes]] = []

    def look(path: Path) -> None:
        assert path.parent == tmp_path
        assert path != target
        assert target.read_bytes() == b"old"
        seen.append([place.tensor.tobytes() for place in places(io.load(path))])
        raise OutputError("not good enough")

    with pytest.raises(OutputError, match="not good enough"):
        io.save(loaded, target, external_data=external, before_commit=look)
    assert seen == [[place.tensor.tobytes() for place in places(loaded)]]
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.onnx"]


def test_a_data_file_that_was_there_before_is_used_and_stays(loaded: ir.Model, tmp_path: Path) -> None:
    _, data = io.save(loaded, tmp_path / "out.onnx", external_data=True)
    identity = data.stat().st_ino

    def refuse(path: Path) -> None:
        raise OutputError("no")

    with pytest.raises(OutputError, match="no"):
        io.save(loaded, tmp_path / "out.onnx", external_data=True, before_commit=refuse)
    assert data.stat().st_ino == identity
    assert io.save(loaded, tmp_path / "out.onnx", external_data=True)[1] == data
    assert data.stat().st_ino == identity
    good = data.read_bytes()
    data.write_bytes(b"x" * len(good))
    other = io.save(loaded, tmp_path / "out.onnx", external_data=True)[1]
    assert other != data
    assert other.read_bytes() == good
    assert data.read_bytes() == b"x" * len(good), "not overwritten: another model may point to it"
    assert len(other.name) > len(data.name), "the same contents, more digits of their name"


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("call", ["write", "fsync", "replace", "link", "open"])
def test_failing_system_calls_leave_nothing_behind(
    loaded: ir.Model, tmp_path: Path, external: bool, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail every single call of one kind in turn; the last round has none left to fail, and succeeds."""
    target = tmp_path / "out.onnx"
    target.write_bytes(b"old")
    for chosen in range(50):
        with monkeypatch.context() as patch:
            broken = break_call(patch, call, chosen)
            try:
                io.save(loaded, target, external_data=external)
                error = None
            except OutputError as caught:
                error = caught
        if error is None:
            assert not broken(), "an error was swallowed"
            assert chosen > 0
            break
        assert "No space left on device" in str(error)
        assert "\n" not in str(error)
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left == ["in", "out.onnx"], f"{call} {chosen}"
        assert target.read_bytes() == b"old"
    else:
        pytest.fail("never succeeded")


def break_call(patch: pytest.MonkeyPatch, call: str, chosen: int) -> Callable[[], bool]:
    """Make the ``chosen``-th write, fsync, replace or open for writing fail; tell whether it has."""
    made: list[str] = []

    def failing(real: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: object, **named: object) -> object:
            if call != "open" or writes(arguments):
                made.append(call)
                if len(made) == chosen + 1:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **named)

        return wrapped

    def writes(arguments: tuple[object, ...]) -> bool:
        return bool(int(arguments[1]) & os.O_CREAT) if len(arguments) > 1 else False  # type: ignore[call-overload]

    if call == "write":
        real_open = os.fdopen

        class Stream:
            def __init__(self, stream: object) -> None:
                self.stream = stream
                self.write = failing(stream.write)  # type: ignore[attr-defined]

            def __getattr__(self, name: str) -> object:
                return getattr(self.stream, name)

        def fdopen(descriptor: int, mode: str, buffering: int = -1) -> object:
            stream = real_open(descriptor, mode, buffering=buffering)
            return Stream(stream) if "w" in mode else stream

        patch.setattr(os, "fdopen", fdopen)
    else:
        patch.setattr(os, call, failing(getattr(os, call)))
    return lambda: len(made) > chosen


def test_a_full_disk_is_seen_before_writing(
    loaded: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(OutputError, match="needs 4608 bytes, but its disk has 100 left"):
        io.save(loaded, tmp_path / "out.onnx")


def test_a_model_too_large_for_one_file(
    loaded: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io, "MOST_MODEL_BYTES", 4000)
    with pytest.raises(OutputError, match="too many for one ONNX file"):
        io.save(loaded, tmp_path / "out.onnx", external_data=False)
    monkeypatch.setattr(io, "INLINE_BYTES", 4000)
    assert len(io.save(loaded, tmp_path / "out.onnx")) == 2, "goes external by itself"


def test_input_data_that_changes_meanwhile(tmp_path: Path) -> None:
    proto = model_files.mlp()
    model_files.move_out(proto.graph.initializer[0], tmp_path, "m.bin")
    model = io.load(model_files.write(proto, tmp_path / "m.onnx"))
    data = tmp_path / "m.bin"
    content = data.read_bytes()
    for spoil, complaint in (
        (lambda: data.write_bytes(content[:100]), "changed while it was in use"),
        (lambda: data.write_bytes(bytes(len(content))), "changed while it was in use"),
        (data.unlink, "can't be opened"),
    ):
        spoil()
        with pytest.raises(ModelError, match=complaint):
            io.save(model, tmp_path / "out.onnx")
        with pytest.raises(ModelError, match=complaint):
            model.graph.initializers["w0"].const_value.numpy()  # type: ignore[union-attr]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx"]


def test_awkward_file_names(loaded: ir.Model, tmp_path: Path) -> None:
    for name in ("a b.onnx", "größe.onnx", "line\nbreak.onnx", "back\\slash.onnx", "C:x.onnx", "\udcff.onnx"):
        target = tmp_path / name
        files = io.save(loaded, target, external_data=True)
        assert len(files) == 2
        assert [place.tensor.tobytes() for place in places(io.load(target))] == [
            place.tensor.tobytes() for place in places(loaded)
        ]


def test_permissions_follow_the_umask(loaded: ir.Model, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        files = io.save(loaded, tmp_path / "out.onnx", external_data=True)
    finally:
        os.umask(old)
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o640, 0o640]


def test_an_initializer_without_a_value(loaded: ir.Model, tmp_path: Path) -> None:
    loaded.graph.initializers["w0"].const_value = None
    with pytest.raises(ModelError, match=r"out\.onnx: initializer 'w0' has no value"):
        io.save(loaded, tmp_path / "out.onnx")


def test_declarations_of_initializers_are_as_in_the_file(tmp_path: Path) -> None:
    proto = model_files.mlp()
    proto.graph.value_info.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, [24, 24]))
    result = saved(proto, tmp_path)
    assert [value.name for value in result.graph.value_info] == ["w1"]


def test_a_file_is_checked_again_only_once_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = model_files.mlp()
    model_files.move_out(proto.graph.initializer[0], tmp_path, "w.bin")
    path = model_files.write(proto, tmp_path / "m.onnx")
    parsed: list[Path] = []
    real = io.parse
    monkeypatch.setattr(io, "parse", lambda at: parsed.append(at) or real(at))
    io.check(path)
    io.check(path)
    assert len(parsed) == 1
    assert io.checked_bytes(path) == path.stat().st_size + (tmp_path / "w.bin").stat().st_size
    (tmp_path / "w.bin").write_bytes(bytes(24 * 24 * 4 + 1))  # of another size: what was checked is gone
    io.check(path)
    assert len(parsed) == 2
    os.link(tmp_path / "w.bin", tmp_path / "other.bin")
    (tmp_path / "w.bin").touch()
    with pytest.raises(ModelError, match="2 names"):
        io.check(path)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match="is missing"):
        io.check(path)


def test_what_is_loaded_need_not_be_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model_files.write(model_files.mlp(), tmp_path / "m.onnx")
    io.load(path)
    monkeypatch.setattr("onnxprune.model.io.parse", None)
    io.check(path)


def test_a_check_sees_what_operators_do_not_allow(tmp_path: Path) -> None:
    proto = model_files.mlp()
    proto.graph.node[0].op_type = "Nope"
    with pytest.raises(ModelError, match="does not have"):
        io.check(model_files.write(proto, tmp_path / "m.onnx"))


def test_another_process_takes_over_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model_files.write(model_files.mlp(), tmp_path / "m.onnx")
    found = io.pass_on(path)
    monkeypatch.setattr("onnxprune.model.io._CHECKED", {})
    io.take_over(path, found)
    monkeypatch.setattr("onnxprune.model.io.parse", None)
    io.check(path)
    path.touch()
    with pytest.raises(TypeError):  # it would be read again
        io.check(path)


def test_a_single_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    onnx.save(model_files.mlp(1), path)
    parsed = []
    monkeypatch.setattr(io, "parse", lambda *given, real=io.parse: parsed.append(given) or real(*given))
    assert io.model_files(path) == io.model_files(path) == (path,)
    assert len(parsed) == 1
    misused = model_files.mlp(1)
    misused.graph.node[0].attribute.append(onnx.helper.make_attribute("nonsense", 1))
    onnx.save(misused, path)
    assert io.model_files(path) == (path,)
    with pytest.raises(ModelError, match="nonsense"):
        io.check(path)


def test_the_files_of_a_model_are_looked_for_again_once_one_of_them_has_changed(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    onnx.save(model_files.mlp(1), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    io.load(path)
    parsed = []
    monkeypatch.setattr(io, "parse", lambda *given, real=io.parse: parsed.append(given) or real(*given))
    assert io.model_files(path) == (path, tmp_path / "w.bin")
    assert not parsed
    (tmp_path / "w.bin").rename(tmp_path / "v.bin")
    (tmp_path / "w.bin").symlink_to(tmp_path / "v.bin")
    assert io.model_files(path) == (path, tmp_path / "v.bin")  # a link within the folder
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"w\.bin"):
        io.model_files(path)
    onnx.save(model_files.mlp(1), path, save_as_external_data=True, location="u.bin", size_threshold=0)
    assert io.model_files(path) == (path, tmp_path / "u.bin")
