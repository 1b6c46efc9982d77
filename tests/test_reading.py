"""What is not a regular file is never waited for, and JSON that Python would let through is refused."""

import json
import os
import threading

import numpy as np
import pytest

from onnxprune import load_data, machine, reading
from onnxprune.compression.folder import key_of, read_done
from onnxprune.errors import DataError, OnnxPruneError, PlanError, RecipeError
from onnxprune.plans import load_plan
from onnxprune.recipe.load import load_recipe
from onnxprune.record import read_record
from onnxprune.result_cache import ResultCache


def at_once(function, *args):
    """Call a function that must not wait for anything; return its error."""
    raised = []

    def call():
        try:
            function(*args)
        except OnnxPruneError as error:
            raised.append(str(error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits"
    assert len(raised) == 1
    assert "\n" not in raised[0]
    return raised[0]


def special(folder, kind, name):
    path = folder / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "terminal":
        path.symlink_to("/dev/tty")
    return path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "terminal"])
def test_every_reader_refuses_what_is_no_file(tmp_path, kind):
    (tmp_path / "p.plan").mkdir()
    (tmp_path / "g.plan").mkdir()
    readers = [
        (load_recipe, special(tmp_path, kind, "recipe.toml")),
        (load_recipe, special(tmp_path, kind, "recipe.json")),
        (read_record, special(tmp_path, kind, "record.json")),
        (load_plan, special(tmp_path / "p.plan", kind, "plan.json").parent),
    ]
    if kind != "folder":  # which may hold archives
        readers.append((load_data, special(tmp_path, kind, "data.npz")))
    for reader, path in readers:
        said = at_once(reader, path)
        assert path.name in said
        assert any(w in said for w in ("is no regular file", "cannot be read", "no such file")), said


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_folder_of_archives_with_a_pipe_in_it(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((2, 3), np.float32))
    os.mkfifo(tmp_path / "b.npz")
    assert "b.npz: is no regular file" in at_once(load_data, tmp_path)


def test_a_name_that_no_file_can_have():
    with pytest.raises(RecipeError, match="no file has such a name"):
        reading.contents("a\0b", RecipeError, 10, "is larger")


def test_no_more_is_read_than_is_allowed(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    assert reading.contents(path, DataError, 5, "is larger") == b"12345"
    with pytest.raises(DataError, match=r"f: is larger than this$"):
        reading.contents(path, DataError, 4, "is larger than this")
    with pytest.raises(DataError, match=r"g: cannot be read \(No such file or directory\)"):
        reading.contents(tmp_path / "g", DataError, 4, "")


class TestJson:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (b'{"a": NaN}', "NaN is no number"),
            (b"[-Infinity]", "-Infinity is no number"),
            (b"[1e999]", "1e999 is no finite number"),
            (b'{"a": {"b": 1, "c": 2, "b": 3}}', "'b' stands there twice"),
            (b"[" * 100_000, "nested too deeply"),
            (b'{"a":' * 200 + b"1" + b"}" * 200, "nested too deeply"),
            (b'[{"a":' * 150 + b"1" + b"}]" * 150, "nested too deeply"),
            (b'{"a": "\xff"}', "can't decode"),
            (b"", "Expecting value"),
            (b"{} {}", "Extra data"),
            (b"9" * 5000, "limit"),
        ],
    )
    def test_refused(self, text, words):
        with pytest.raises(ValueError, match=words):
            reading.parse_json(text)

    def test_brackets_in_texts_are_no_nests(self):
        values = {"a": "[" * 1000, "b": '\\"' + "{" * 1000, "c": [[], {}, ["]"] * 3, {"d": "]"}] * 500}
        assert reading.parse_json(json.dumps(values).encode()) == values
        assert reading.parse_json(b"[" * 100 + b"]" * 100)

    @pytest.mark.parametrize(
        "text", [b"[" * 10_000_000, b'["' * 5_000_000, b'"\\' * 5_000_000, b"[]" * 5_000_000]
    )
    def test_megabytes_of_brackets_take_no_time(self, text):
        with pytest.raises(ValueError, match=r"nested|Expecting|Unterminated|Extra|Invalid"):
            reading.parse_json(text)


class TestBombs:
    def test_an_archive_that_unpacks_to_far_more_than_it_is(self, tmp_path):
        path = tmp_path / "bomb.npz"
        np.savez_compressed(path, x=np.zeros((20 << 20,), np.float32))
        with pytest.raises(DataError, match=r"bomb\.npz: unpacks to 80 MiB, \d+ times its size"):
            load_data(path)

    def test_packed_samples_are_none(self, tmp_path):
        tokens = np.zeros((20_000, 128), np.int64)
        tokens[:, :20] = np.random.default_rng(0).integers(1, 30_000, (20_000, 20))
        np.savez_compressed(tmp_path / "tokens.npz", x=tokens)
        assert len(load_data(tmp_path / "tokens.npz")) == 20_000

    def test_a_folder_that_unpacks_to_more_than_memory(self, tmp_path, monkeypatch):
        for name in "abc":
            np.savez(tmp_path / f"{name}.npz", x=np.ones((4, 16), np.float32))
        monkeypatch.setattr(machine, "memory_bytes", lambda: 800)
        with pytest.raises(DataError, match=r"c\.npz: unpacks to .* more than this machine's memory"):
            load_data(tmp_path)


class TestStrangers:
    def test_a_figure_that_somebody_else_put_there(self, tmp_path, monkeypatch):
        cache = ResultCache(tmp_path / "cache", ("ms",))
        cache.store("ab", {"ms": 1.5}, {})
        assert cache.find("ab") == {"ms": 1.5}
        monkeypatch.setattr(reading, "is_ours", lambda *_: False)
        monkeypatch.setattr("onnxprune.result_cache.is_ours", lambda *_: False)
        assert cache.find("ab") is None
        assert len(cache.damaged) == 1

    def test_owners(self, tmp_path, monkeypatch):
        path = tmp_path / "f"
        path.write_bytes(b"")
        with path.open("rb") as stream:
            assert reading.is_ours(stream, tmp_path)
            monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
            assert reading.is_ours(stream, tmp_path)  # the folder's owner
            assert reading.is_ours(stream, path.parent.parent) is (
                tmp_path.parent.stat().st_uid == path.stat().st_uid
            )

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    def test_a_pipe_in_a_cache(self, tmp_path):
        cache = ResultCache(tmp_path / "cache", ("ms",))
        os.mkfifo(tmp_path / "cache" / "ab.json")
        assert cache.find("ab") is None
        assert cache.find("cd") is None
        assert len(cache.damaged) == 1

    def test_results_that_are_links(self, tmp_path):
        outside = tmp_path / "outside"
        outside.write_bytes(b"abc")
        for name in ("plain", "link"):
            folder = tmp_path / name
            folder.mkdir()
            (folder / "f").write_bytes(b"abc") if name == "plain" else (folder / "f").symlink_to(outside)
            digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
            done = {"key": "k", "files": {"f": digest}, "about": {}}
            (folder / "done.json").write_text(json.dumps({**done, "check": key_of(done)}))
        assert read_done(tmp_path / "plain", "k") == {}
        assert read_done(tmp_path / "link", "k") is None


class TestMasks:
    def test_a_file_that_is_larger_than_its_masks(self, tmp_path):
        from onnxprune.plans.files import _load_masks, _MaskEntry

        with (tmp_path / "masks.safetensors").open("wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(PlanError, match=r"larger than the masks that plan\.json names"):
            _load_masks(tmp_path, {"w": _MaskEntry(shape=[4, 4], kept=8)})
