"""Figures on disk: whole or ignored, readable, and shared by processes."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from onnxprune.errors import OutputError
from onnxprune.result_cache import ResultCache

KEY = "ab" * 32


def stored(folder) -> ResultCache:
    cache = ResultCache(folder, ("milliseconds", "how"))
    cache.store(KEY, {"milliseconds": 0.5, "how": "kernels"}, {"part": "Conv w 8x3x3x3"})
    return cache


def test_there_and_back_in_one_readable_line(tmp_path):
    stored(tmp_path / "new" / "folder")
    again = ResultCache(tmp_path / "new" / "folder", ("milliseconds", "how"))
    assert again.find(KEY) == {"milliseconds": 0.5, "how": "kernels"}
    assert again.find("cd" * 32) is None
    (file,) = (tmp_path / "new" / "folder").iterdir()
    assert file.read_text().count("\n") == 1
    assert json.loads(file.read_text())["part"] == "Conv w 8x3x3x3"
    assert again.damaged == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda _: "",
        lambda _: "[1, 2]",
        lambda text: text.replace("0.5", "0.4"),
        lambda text: text.replace("0.5", "NaN"),
        lambda text: text.replace("0.5", "true"),
        lambda text: text.replace("kernels", "walls"),
        lambda text: text.replace(KEY, "cd" * 32),
        lambda text: text + " " * 5000,
        lambda _: "[" * 4000,
    ],
)
def test_damage_is_seen(tmp_path, damage):
    cache = stored(tmp_path)
    file = tmp_path / f"{KEY}.json"
    file.write_text(damage(file.read_text()))
    assert cache.find(KEY) is None
    assert cache.damaged == [str(file)]


def test_other_figures_are_none_of_ours(tmp_path):
    stored(tmp_path)
    assert ResultCache(tmp_path, ("milliseconds",)).find(KEY) is None


@pytest.mark.parametrize(
    "found",
    [
        {"milliseconds": 1.0},
        {"milliseconds": float("inf"), "how": "x"},
        {"milliseconds": 1.0, "how": "x", "more": 2.0},
        {"milliseconds": True, "how": "x"},
    ],
)
def test_only_whole_entries_are_written(tmp_path, found):
    cache = ResultCache(tmp_path, ("milliseconds", "how"))
    with pytest.raises(ValueError, match="an entry holds milliseconds, how"):
        cache.store(KEY, found, {})
    assert list(tmp_path.iterdir()) == []


def test_many_at_once(tmp_path):
    """Writers of one entry and its readers: each reader finds nothing or all of it."""
    cache = ResultCache(tmp_path, ("milliseconds",))

    def work(number: int) -> object:
        if number % 2:
            cache.store(KEY, {"milliseconds": float(number)}, {"writer": number})
        return cache.find(KEY)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(64)))
    assert all(entry is None or entry["milliseconds"] in range(64) for entry in found)
    assert cache.damaged == []
    assert [file.name for file in tmp_path.iterdir()] == [f"{KEY}.json"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="no folder for a cache"):
        ResultCache(tmp_path / "file", ())
