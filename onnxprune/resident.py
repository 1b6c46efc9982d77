"""Keeps memory-mapped files from filling resident memory while something else reads them.

ONNX Runtime maps the external data of a large model instead of reading it. Its pages can be dropped at any
time, yet they count as resident memory of the process, and memory limits of containers count them too.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

_MADV_DONTNEED = 4
_INTERVAL_SECONDS = 0.002


@contextmanager
def pages_dropped(files: Collection[Path]) -> Iterator[None]:
    """Drop the resident pages of mapped files again and again, as long as the context lasts.

    Dropped pages are read again from the file when they are needed. Where the system is not Linux, or no
    files are given, nothing happens.
    """
    if not files or not sys.platform.startswith("linux"):
        yield
        return
    names = {str(path.resolve()) for path in files}
    done = threading.Event()

    def work() -> None:
        while not done.wait(_INTERVAL_SECONDS):
            drop_pages(names)

    worker = threading.Thread(target=work, name="drop pages", daemon=True)
    worker.start()
    try:
        yield
    finally:
        done.set()
        worker.join()
        drop_pages(names)


def drop_pages(names: Collection[str]) -> int:
    """Drop the resident pages of all unchanged mappings of the files named; return how many mappings."""
    libc = ctypes.CDLL(None, use_errno=True)
    mappings = list(_unchanged_mappings(names))
    for start, end in mappings:
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)
    return len(mappings)


def _unchanged_mappings(names: Collection[str]) -> Iterator[tuple[int, int]]:
    """Yield the bounds of mappings whose every page is as in the file: dropping one loses nothing."""
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
