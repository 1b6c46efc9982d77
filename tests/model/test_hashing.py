"""The thread's digest is that of all pieces in order, and no thread is needed."""

from __future__ import annotations

import hashlib
import threading

import numpy as np
import pytest

from onnxprune.model.hashing import Hashing

PIECES = [
    np.random.default_rng(n).bytes(size) for n, size in enumerate((10, 1 << 20, 0, 1 << 17, 3, 1 << 16))
]


def digest() -> str:
    buffer = bytearray(1 << 20)
    with Hashing() as hashing:
        for piece in PIECES:
            view = memoryview(buffer)[: len(piece)]
            view[:] = piece
            hashing.begin(view)
            hashing.wait()
        return hashing.hexdigest()


def test_the_digest_is_that_of_all_pieces_in_order() -> None:
    assert digest() == hashlib.sha256(b"".join(PIECES)).hexdigest()


def test_where_no_thread_starts_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert digest() == hashlib.sha256(b"".join(PIECES)).hexdigest()
