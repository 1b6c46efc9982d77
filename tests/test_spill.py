"""Arrays that wait in memory or in a file without a name: they come back, and nothing is left."""

from __future__ import annotations

import errno
import gc
import os
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from onnxprune.errors import OutputError
from onnxprune.spill import Spill, SpilledArrays

ARRAYS = [
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.array(7, np.int64),
    np.zeros((2, 0, 3), np.float16),
    np.array([True, False]),
    np.arange(6, dtype=ml_dtypes.bfloat16),
    np.arange(24, dtype=np.float64).reshape(2, 3, 4).transpose(2, 0, 1),
]


def descriptors() -> int:
    """Return how many files are open, 0 where the system does not tell."""
    listed = Path("/proc/self/fd")
    return len(list(listed.iterdir())) if listed.exists() else 0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("limit_bytes", [0, 60, 1 << 20])
def test_arrays_come_back_as_they_were(folder: Path, limit_bytes: int) -> None:
    with Spill(limit_bytes) as spill:
        places = [spill.put(array) for array in ARRAYS]
        assert spill.held_bytes <= limit_bytes
        assert (spill.file_bytes == 0) == (limit_bytes == 1 << 20)
        for array, place in zip(ARRAYS, places, strict=True):
            assert place.nbytes == array.nbytes
            assert place.array().dtype == array.dtype
            np.testing.assert_array_equal(place.array(), array)
        assert not list(folder.iterdir())  # the file has no name


def test_what_is_kept_is_a_copy() -> None:
    array = np.ones(3)
    with Spill(1 << 10) as spill:
        place = spill.put(array)
        array[:] = 0
        assert place.array().sum() == 3


def test_room_of_arrays_that_are_gone_is_used_again(folder: Path) -> None:
    with Spill(0) as spill:
        for number in range(20):
            first, second = spill.put(np.full(1000, number)), spill.put(np.full(10, number))
            assert first.array()[0] == second.array()[0] == number
            first.drop()
            second.drop()
        assert spill.file_bytes == 8080


def test_memory_of_arrays_that_are_gone_is_free() -> None:
    with Spill(8000) as spill:
        first = spill.put(np.zeros(1000))
        assert spill.held_bytes == 8000
        first.drop()
        assert spill.held_bytes == 0
        assert spill.put(np.ones(1000)).held is not None


def test_a_full_disk_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with Spill(0) as spill, pytest.raises(OutputError, match=r"No space left on device.*set TMPDIR to"):
        spill.put(np.ones(3))
    assert not list(folder.iterdir())


def test_a_folder_that_is_missing_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "missing"))
    with Spill(0) as spill, pytest.raises(OutputError, match=r"missing: .*can't be written.*set TMPDIR to"):
        spill.put(np.ones(3))


def test_short_writes_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: write(file, data[:5], offset))
    with Spill(0) as spill:
        np.testing.assert_array_equal(spill.put(ARRAYS[0]).array(), ARRAYS[0])


def test_arrays_by_name_close_their_file_with_the_last_of_them(folder: Path) -> None:
    before = descriptors()
    arrays = SpilledArrays(0)
    arrays.add("a", ARRAYS[0])
    assert list(arrays) == ["a"]
    assert len(arrays) == 1
    place = arrays.place("a")
    del arrays
    gc.collect()
    np.testing.assert_array_equal(place.array(), ARRAYS[0])
    del place
    gc.collect()
    assert descriptors() == before
