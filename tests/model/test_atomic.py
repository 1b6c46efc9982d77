from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onnxprune.errors import OutputError
from onnxprune.model.atomic import NewFile, check_room, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"old")
    with NewFile(target) as file:
        file.stream.write(b"new")
        file.finish()
        assert file.temporary.read_bytes() == b"new"
        assert target.read_bytes() == b"old"
        file.commit()
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["out"]


def test_leaving_early_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with NewFile(tmp_path / "out") as file:
            file.stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []


def test_a_killed_writer_is_cleaned_up_after_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "out"
    script = (
        "import os, signal, sys; from pathlib import Path; from onnxprune.model.atomic import NewFile\n"
        "with NewFile(Path(sys.argv[1])) as file:\n"
        "    file.stream.write(b'x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    (stale,) = names(tmp_path)
    assert stale.startswith(".out.")
    with NewFile(target) as first:
        write_whole(tmp_path / "another", b"another")
        assert first.temporary.exists()
        write_whole(target, b"second")
        assert first.temporary.exists(), "its writer is alive"
        assert names(tmp_path) == sorted([first.temporary.name, "another", "out"])
    assert names(tmp_path) == ["another", "out"]


def test_names_close_to_the_limit(tmp_path: Path) -> None:
    for name in ("x" * 255, "ä" * 127, "a\nb"):
        write_whole(tmp_path / name, b"content")
        assert (tmp_path / name).read_bytes() == b"content"
    assert len(names(tmp_path)) == 3


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("precious")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert not (tmp_path / "link").is_symlink()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(OutputError, match="Permission denied"):
            write_whole(tmp_path / "out", b"x")
    finally:
        tmp_path.chmod(0o755)


def test_the_disk_has_the_contents_before_the_name_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, _n=name, _r=real: (calls.append(_n), _r(*a))[1])
    write_whole(tmp_path / "out", b"x")
    assert calls == ["fsync", "replace", "fsync"]


def test_room_is_asked_for_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    check_room(tmp_path / "out", 1000)
    with pytest.raises(OutputError, match="needs 4611686018427387904 bytes, but its disk has"):
        check_room(tmp_path / "out", 1 << 62)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (999, 999))
    with pytest.raises(OutputError, match=r"may write files of 999 \(ulimit -f\)"):
        check_room(tmp_path / "out", 1000)
    check_room(tmp_path / "out", 999)
