"""Keeps files that are read or written from filling memory meanwhile.

ONNX Runtime maps the external data of a large model instead of reading it. Its pages can be dropped at any
time, yet they count as resident memory of the process, and memory limits of containers count them too.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_MADV_DONTNEED = 4
_INTERVAL_SECONDS = 0.002
_PAGE_BYTES = mmap.PAGESIZE

#: Pages of mapped files that may be resident.
_MOST_BYTES = 128 << 20
_SYNC_FILE_RANGE_WRITE = 2
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_KEPT_BYTES, _LARGE_BYTES = 1 << 28, 1 << 25

_C_LIBRARY = ctypes.CDLL(None, use_errno=True) if sys.platform != "win32" else None


@contextmanager
def pages_dropped(files: Collection[Path]) -> Iterator[None]:
    """Drop the resident pages of mapped files whenever there are many, as long as the context lasts.

    The files must be mapped when the context begins, and nothing may write to these mappings in it. Dropped
    pages are read again from the file when they are needed. Where the system is not Linux, or no
    files are given, nothing happens.
    """
    if not files or not sys.platform.startswith("linux"):
        yield
        return
    # Found once: looking takes longer than reading a hundred megabytes.
    mappings = unchanged_mappings({str(path.resolve()) for path in files})
    done = threading.Event()

    before = _file_pages()

    def work() -> None:
        while not done.wait(_INTERVAL_SECONDS):
            # Not at once: a product reads the pages of its weight several times.
            if (_file_pages() - before) * _PAGE_BYTES > _MOST_BYTES:
                drop_pages(mappings)

    worker = threading.Thread(target=work, name="drop pages", daemon=True)
    worker.start()
    try:
        yield
    finally:
        done.set()
        worker.join()
        drop_pages(mappings)


def keep_freed_memory() -> None:
    """Let the C library keep some memory that was freed for what comes next, as it does of itself (glibc).

    Dask starts its workers with ``MALLOC_TRIM_THRESHOLD_`` set, so that every array goes back to the system
    at once. A trial of ResNet-50 then took two to three times the CPU time, for pages that were made anew.
    """
    option = getattr(_C_LIBRARY, "mallopt", None)
    if option is not None:
        option(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        option(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def return_freed_memory() -> None:
    """Give memory that was freed back to the system, where the C library keeps it (glibc does).

    Large arrays of changing sizes leave holes in its heap: several times what is in use at once.
    """
    trim = getattr(_C_LIBRARY, "malloc_trim", None)
    if trim is not None:
        trim(0)


def start_writing(stream: IO[bytes], start: int, count: int) -> None:
    """Let the disk begin with bytes of a file that were written to it; waits for nothing, promises nothing.

    The system would let gigabytes pile up in memory, and the program wait for all of them at the end.
    """
    begin = getattr(_C_LIBRARY, "sync_file_range", None)
    if begin is not None:
        where = ctypes.c_int64(start), ctypes.c_int64(count)
        begin(ctypes.c_int(stream.fileno()), *where, ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))


def _file_pages() -> int:
    """Return how many resident pages of this process are those of files."""
    return int(Path("/proc/self/statm").read_bytes().split()[2])


def drop_pages(mappings: Collection[tuple[int, int]]) -> None:
    """Drop the resident pages between the bounds given."""
    libc = ctypes.CDLL(None, use_errno=True)
    for start, end in mappings:
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def unchanged_mappings(names: Collection[str]) -> list[tuple[int, int]]:
    """Return the bounds of this process's mappings of the files named whose every page is as in the file.

    Dropping such a page loses nothing; a mapping that was written to holds what its file does not.
    """
    return list(_mappings(names))


def _mappings(names: Collection[str]) -> Iterator[tuple[int, int]]:
    bounds: tuple[int, int] | None = None
    with Path("/proc/self/smaps").open(encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split(maxsplit=5)
            if "-" in fields[0]:
                known = len(fields) == 6 and fields[5].rstrip("\n") in names
                start, end = (int(part, 16) for part in fields[0].split("-"))
                bounds = (start, end) if known else None
            elif bounds is not None and fields[0] == "Anonymous:" and fields[1] == "0":
                yield bounds
