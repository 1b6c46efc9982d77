"""Outputs that appear together, or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnxprune.containment import placing, temporary
from onnxprune.errors import OutputError
from onnxprune.model import together
from onnxprune.model.atomic import NewFile, NewFolder, write_whole
from onnxprune.model.together import Together

#: How what was replaced is kept: by a hard link and an exchange, a link and a rename, a copy and a rename.
WAYS = ["links and exchange", "links", "neither"]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    def no_links(*_arguments: object, **_named: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if request.param == "links and exchange" and sys.platform != "linux":
        pytest.skip("names are exchanged in one step on Linux")
    if request.param != "links and exchange":
        for module in (together, placing):
            monkeypatch.setattr(module, "swap", lambda *_names: False)
    if request.param == "neither":
        monkeypatch.setattr(os, "link", no_links)
    return str(request.param)


def anything(target: Path) -> None:
    """Let a folder take the name of whatever has it."""


def place(group: Together, target: Path, contents: str) -> None:
    """Place a file, or a folder where the name ends in .plan."""
    if target.suffix == ".plan":
        with NewFolder(target, anything) as folder:
            (folder.temporary / "plan.json").write_text(contents)
            folder.finish()
            group.place(folder)
        return
    with NewFile(target) as file:
        file.stream.write(contents.encode())
        file.finish()
        group.place(file)


def state(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fail_after_placing(target: Path) -> None:
    try:
        with Together() as group:
            place(group, target, "new")
            raise OutputError("no")
    except OutputError:
        pass


@pytest.mark.parametrize("old", [False, True])
def test_all_are_placed_or_none(tmp_path: Path, way: str, old: bool) -> None:
    names = ["a.html", "m.plan", "m.onnx"]
    if old:
        with Together() as group:
            for name in names:
                place(group, tmp_path / name, f"old {name}")
    before = state(tmp_path)
    assert len(before) == (3 if old else 0)

    def fail() -> None:
        with Together() as group:
            for name in names:
                place(group, tmp_path / name, f"new {name}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert state(tmp_path) == before
    with Together() as group:
        for name in names:
            place(group, tmp_path / name, f"new {name}")
    assert state(tmp_path) == {
        "a.html": "new a.html",
        "m.onnx": "new m.onnx",
        "m.plan/plan.json": "new m.plan",
    }


def test_what_another_run_placed_meanwhile_stays(tmp_path: Path, way: str) -> None:
    write_whole(tmp_path / "m.onnx", b"old")

    def fail() -> None:
        with Together() as group:
            place(group, tmp_path / "m.onnx", "first")
            write_whole(tmp_path / "m.onnx", b"second")
            raise OutputError("too late")

    with pytest.raises(OutputError):
        fail()
    assert state(tmp_path) == {"m.onnx": "second"}


def test_a_large_file_is_not_copied_to_be_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(together, "_MOST_COPIED_BYTES", 2)
    write_whole(tmp_path / "m.onnx", b"old")
    fail_after_placing(tmp_path / "m.onnx")
    assert state(tmp_path) == {"m.onnx": "new"}, "whole, at least"


def test_a_link_that_is_replaced_comes_back(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").symlink_to("elsewhere")
    fail_after_placing(tmp_path / "m.onnx")
    assert os.readlink(tmp_path / "m.onnx") == "elsewhere"  # noqa: PTH115
    assert len(list(tmp_path.iterdir())) == 1


def test_a_disk_that_lets_nothing_be_taken_back_holds_new_things_that_go_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "m.onnx", b"old")

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fail() -> None:
        with Together() as group:
            place(group, tmp_path / "m.data", "new data")
            place(group, tmp_path / "m.onnx", "new model")
            monkeypatch.setattr(os, "replace", full)
            raise OutputError("the folder can't be flushed")

    with pytest.raises(OutputError):
        fail()
    assert state(tmp_path) == {"m.data": "new data", "m.onnx": "new model"}


#: Places a file, says so, waits for a line, and then takes it back or keeps it.
FIRST = """
import sys
from pathlib import Path
from onnxprune.errors import OutputError
from onnxprune.model.atomic import NewFile
from onnxprune.model.together import Together

try:
    with Together() as group:
        with NewFile(Path(sys.argv[1])) as file:
            file.stream.write(b"data")
            file.finish()
            group.place(file)
        print("placed", flush=True)
        if sys.stdin.readline() == "fail\\n":
            raise OutputError("no")
except OutputError:
    pass
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
@pytest.mark.parametrize("ending", ["keep", "fail"])
def test_what_another_run_takes_back_is_not_adopted(tmp_path: Path, ending: str) -> None:
    data = tmp_path / "m.data"
    with subprocess.Popen(
        [sys.executable, "-c", FIRST, str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == "placed\n"
        first.stdin.write(f"{ending}\n")
        first.stdin.flush()
        with Together() as group:
            adopted = group.adopt(data)  # waits until the other run has ended
            assert (adopted is not None) == (ending == "keep") == data.exists()
    assert first.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_writer_whose_number_means_nothing_here_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """As in another container that shares the folder."""
    monkeypatch.setattr(temporary, "alive", lambda _process: False)
    target = tmp_path / "out"
    with NewFile(target) if kind == "file" else NewFolder(target) as first:
        temporary.remove_stale(target)
        assert first.temporary.exists()
    first.temporary.mkdir() if kind == "folder" else first.temporary.write_bytes(b"killed")
    temporary.remove_stale(target)
    assert list(tmp_path.iterdir()) == []


def test_a_group_adopts_what_it_has_placed_itself(tmp_path: Path) -> None:
    with Together() as group:
        place(group, tmp_path / "m.data", "data")
        assert group.adopt(tmp_path / "m.data") is not None


#: Places a new file and one in place of another, and dies; its supervisor says what the folder holds then.
DIES = """
import os, sys
from pathlib import Path
from onnxprune import containment
from onnxprune.model.atomic import NewFile, NewFolder
from onnxprune.model.together import Together

folder = Path(sys.argv[1])

def work():
    with Together() as group:
        for name in ("m.data", "m.onnx"):
            with NewFile(folder / name) as file:
                file.stream.write(b"new")
                file.finish()
                group.place(file)
        with NewFolder(folder / "m.plan", lambda target: None) as new:
            (new.temporary / "plan.json").write_text("new")
            group.place(new)
        if sys.argv[2] == "within":
            os.kill(os.getpid(), 9)
    if sys.argv[2] == "after":
        os.kill(os.getpid(), 9)
    return 0

os._exit(containment.supervise(work).status or 0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no supervisor there")
@pytest.mark.parametrize("dies", ["within", "after", "never"])
def test_a_supervisor_takes_back_what_a_dead_worker_placed(tmp_path: Path, dies: str) -> None:
    write_whole(tmp_path / "m.onnx", b"old")
    (tmp_path / "m.plan").mkdir()
    (tmp_path / "m.plan" / "plan.json").write_text("old")
    subprocess.run([sys.executable, "-c", DIES, str(tmp_path), dies], check=True)
    kept = {"m.data": "new", "m.onnx": "new", "m.plan/plan.json": "new"}
    assert state(tmp_path) == ({"m.onnx": "old", "m.plan/plan.json": "old"} if dies == "within" else kept)


def test_a_copy_that_does_not_fit_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    def half(source: Path, target: Path, **_named: object) -> None:
        target.write_bytes(b"o")
        raise OSError(errno.ENOSPC, "No space left on device")

    write_whole(tmp_path / "m.onnx", b"old")
    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(together.shutil, "copy2", half)
    with pytest.raises(OutputError, match="No space left"), Together() as group:
        place(group, tmp_path / "m.onnx", "new")
    assert state(tmp_path) == {"m.onnx": "old"}


def test_too_few_descriptors_leave_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def few(path: object, flags: int, *more: object, **named: object) -> int:
        if str(path).endswith("onnxprune-tmp"):
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path, flags, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", few)
    with pytest.raises(OutputError, match="Too many open files"), NewFolder(tmp_path / "m.plan"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_a_plan_is_replaced(tmp_path: Path, way: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "plan.json").write_text("old")
    (tmp_path / "m.plan").symlink_to("real")
    with Together() as group:
        place(group, tmp_path / "m.plan", "new")
    assert not (tmp_path / "m.plan").is_symlink()
    assert (tmp_path / "m.plan" / "plan.json").read_text() == "new"
    assert (tmp_path / "real" / "plan.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.plan", "real"]
