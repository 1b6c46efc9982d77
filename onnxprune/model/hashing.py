"""SHA-256 of what passes by, by a thread of its own: it takes as long as all the rest together."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor

#: Smaller pieces are not worth handing over.
_LEAST_BYTES = 1 << 16


class Hashing:
    """A digest that is fed while its caller goes on; close it, or use it as a context."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._under_way: Future[None] | None = None
        self._alone = False

    def __enter__(self) -> Hashing:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def begin(self, data: bytes | memoryview) -> None:
        """Begin with a piece, which must not change before `wait` returns, or the next has begun."""
        self.wait()
        if self._alone or len(data) < _LEAST_BYTES:
            self._digest.update(data)
            return
        try:
            self._under_way = self._thread.submit(self._digest.update, data)
        except RuntimeError:  # there is no room for another thread; what was handed over is never begun
            self._alone = True
            self._digest.update(data)

    def wait(self) -> None:
        """Wait until the last piece is done with."""
        if self._under_way is not None:
            self._under_way.result()
            self._under_way = None

    def hexdigest(self) -> str:
        """Return the digest of all pieces, in hexadecimal."""
        self.wait()
        return self._digest.hexdigest()
