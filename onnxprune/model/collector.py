"""Python's garbage collector, paused where many objects are made and none of them dies."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Leave the collector of reference cycles off while the block runs, then as it was.

    It looks at all young objects each time some hundreds were made; a graph that is being built is all young
    objects, and none of them is garbage.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
