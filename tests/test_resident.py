from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxprune.resident import drop_pages, pages_dropped, unchanged_mappings

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
SIZE = 8 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.data"
    path.write_bytes(np.arange(SIZE // 4, dtype=np.int32).tobytes())
    return path


def resident(path: Path) -> int:
    """Resident bytes of the mappings of a file."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


def test_dropped_pages_are_read_again(file: Path) -> None:
    values = np.memmap(file, np.int32, mode="r")
    expected = int(values.sum(dtype=np.int64))
    assert resident(file) == SIZE
    mappings = unchanged_mappings([str(file)])
    assert len(mappings) == 1
    drop_pages(mappings)
    assert resident(file) == 0
    assert int(values.sum(dtype=np.int64)) == expected


def test_pages_are_dropped_while_the_context_lasts_and_at_its_end(file: Path) -> None:
    values = np.memmap(file, np.int32, mode="r")
    with pages_dropped([file]):
        assert int(values[-1]) == SIZE // 4 - 1
    assert resident(file) == 0


def test_a_mapping_that_was_written_to_is_left_alone(file: Path) -> None:
    with file.open("r+b") as handle:
        mapping = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
    mapping[0:4] = b"\xff" * 4
    assert unchanged_mappings([str(file)]) == []
    assert mapping[0:4] == b"\xff" * 4


def test_other_files_are_left_alone(file: Path, tmp_path: Path) -> None:
    values = np.memmap(file, np.int32, mode="r")
    assert int(values.sum(dtype=np.int64)) > 0
    assert unchanged_mappings([str(tmp_path / "another.data")]) == []
    assert resident(file) == SIZE
