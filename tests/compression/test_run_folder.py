"""The run folder: a result is used only if everything it depends on, and every byte of it, is the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from onnxprune.compression import folder as module
from onnxprune.compression.folder import RunFolder, Work
from onnxprune.errors import OutputError


class Maker:
    """Makes results, and counts how often."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, work: Work) -> dict[str, object]:
        self.made += 1
        (work.place / "model.onnx").write_bytes(b"model")
        (work.place / "plan").mkdir()
        (work.place / "plan" / "plan.json").write_text("{}")
        return {"number": self.made}


@pytest.fixture
def make() -> Maker:
    return Maker()


def replace_text(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def once(
    path: Path, make: Maker, depends_on: dict[str, object] | None = None, **options: bool
) -> module.Result:
    with RunFolder(path, **options).locked() as folder:
        return folder.result(depends_on or {"a": 1}, make)


def test_a_result_is_made_once(tmp_path, make):
    first, second = once(tmp_path / "run", make), once(tmp_path / "run", make)
    assert (first.reused, second.reused, make.made) == (False, True, 1)
    assert second.about == {"number": 1}
    assert (second.folder / "model.onnx").read_bytes() == b"model"


def test_what_it_depends_on_makes_another(tmp_path, make):
    once(tmp_path / "run", make)
    assert not once(tmp_path / "run", make, {"a": 2}).reused


def test_other_code_makes_another(tmp_path, make, monkeypatch):
    once(tmp_path / "run", make)
    monkeypatch.setattr(module, "tool_digest", lambda: "another version")
    assert not once(tmp_path / "run", make).reused


def test_fresh_believes_nothing(tmp_path, make):
    once(tmp_path / "run", make)
    assert once(tmp_path / "run", make, fresh=True).about == {"number": 2}
    assert once(tmp_path / "run", make).about == {"number": 2}


def test_only_what_the_last_run_used_is_kept(tmp_path, make):
    once(tmp_path / "run", make)
    once(tmp_path / "run", make, {"a": 2})
    assert len(list((tmp_path / "run" / "results").iterdir())) == 1


def test_a_run_that_fails_forgets_nothing(tmp_path, make):
    once(tmp_path / "run", make)
    with pytest.raises(RuntimeError), RunFolder(tmp_path / "run").locked():
        raise RuntimeError
    assert once(tmp_path / "run", make).reused


@pytest.mark.parametrize(
    "damage",
    [
        lambda result: (result / "model.onnx").write_bytes(b"modeL"),
        lambda result: (result / "model.onnx").unlink(),
        lambda result: (result / "more").write_bytes(b""),
        lambda result: (result / "done.json").unlink(),
        lambda result: (result / "done.json").write_text("{}"),
        lambda result: (result / "done.json").write_text("[" * 100_000),
        lambda result: replace_text(result / "done.json", '"number": 1', '"number": 7'),
        lambda result: shutil.copytree(result, result.with_name("f" * 32)),
    ],
)  # fmt: skip
def test_a_damaged_result_is_made_anew(tmp_path, make, damage):
    result = once(tmp_path / "run", make).folder
    damage(result)
    if (result.with_name("f" * 32)).exists():  # another key's result in this one's place
        shutil.rmtree(result)
        result.with_name("f" * 32).rename(result)
        done = json.loads((result / "done.json").read_text())
        (result / "done.json").write_text(json.dumps({**done, "key": "f" * 32}))
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        again = folder.result({"a": 1}, make)
    assert not again.reused
    assert len(folder.damaged) == 1
    assert (again.folder / "model.onnx").read_bytes() == b"model"


def test_a_stage_that_breaks_off_leaves_no_result(tmp_path, make):
    def fail(work: Work) -> dict[str, object]:
        make(work)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        once(tmp_path / "run", fail)
    assert not list((tmp_path / "run" / "results").iterdir())
    assert not once(tmp_path / "run", make).reused


@pytest.mark.parametrize("resume", [True, False])
def test_a_checkpoint_is_there_again_only_where_it_is_asked_for(tmp_path, resume):
    seen = []

    def work_on(work: Work) -> dict[str, object]:
        seen.append(work.checkpoint.exists())
        work.checkpoint.mkdir(exist_ok=True)
        (work.place / "half").write_bytes(b"")
        if len(seen) == 1:
            raise RuntimeError
        return {"left": sorted(path.name for path in work.place.iterdir())}

    with pytest.raises(RuntimeError):
        once(tmp_path / "run", work_on)
    result = once(tmp_path / "run", work_on, resume=resume)
    assert seen == [False, resume]
    assert result.about["left"] == ["checkpoint", "half"]
    assert sorted(path.name for path in result.folder.iterdir()) == ["done.json", "half"]


def hold(path: Path, ready: object, done: object) -> None:
    with RunFolder(path).locked():
        ready.set()
        done.wait(60)


def test_two_runs_do_not_share_a_folder(tmp_path, make):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "run", ready, done))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(OutputError, match="another run uses it"):
            once(tmp_path / "run", make)
    finally:
        done.set()
        other.join()
    assert not once(tmp_path / "run", make).reused


def test_a_killed_run_leaves_no_lock(tmp_path, make):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "run", ready, done))
    other.start()
    assert ready.wait(60)
    other.kill()
    other.join()
    assert not once(tmp_path / "run", make).reused


def test_a_folder_of_the_users_own_is_left_alone(tmp_path, make):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="is no folder of a run"):
        once(tmp_path, make)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_temporary_files_lie_in_the_folder_while_a_run_works(tmp_path, make):
    usual, variable = tempfile.gettempdir(), os.environ.get("TMPDIR")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").touch()
    (tmp_path / "run" / "scratch").mkdir()
    (tmp_path / "run" / "scratch" / "of a killed run").touch()
    with RunFolder(tmp_path / "run").locked():
        here = Path(tempfile.mkdtemp())
        there = subprocess.run(
            [sys.executable, "-c", "import tempfile; print(tempfile.mkdtemp())"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        assert sorted((tmp_path / "run" / "scratch").iterdir()) == sorted([here, Path(there)])
    assert (tempfile.gettempdir(), os.environ.get("TMPDIR")) == (usual, variable)
    assert not (tmp_path / "run" / "scratch").exists()


def test_a_look_changes_nothing(tmp_path, make):
    assert RunFolder(tmp_path / "run").find({"a": 1}) is None
    assert not (tmp_path / "run").exists()
    once(tmp_path / "run", make)
    found = RunFolder(tmp_path / "run").find({"a": 1})
    assert found is not None
    assert found.about == {"number": 1}
    assert RunFolder(tmp_path / "run").find({"a": 2}) is None


def test_the_hash_of_our_code_sees_every_module(tmp_path):
    package = Path(module.__file__).parents[1]
    before = module.sources_of(package)
    assert {"compression/folder.py", "recover/solve.py", "pipeline.py"} <= before.keys()
    shutil.copytree(package, tmp_path / "copy")
    with (tmp_path / "copy" / "recover" / "solve.py").open("a") as stream:
        stream.write("#")
    after = module.sources_of(tmp_path / "copy")
    assert [name for name, digest in after.items() if before.get(name) != digest] == ["recover/solve.py"]
