from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.errors import ModelError
from onnxprune.model.io import load, save
from onnxprune.model.stored import stored_values, tensor_of
from onnxprune.model.streaming import PIECE_BYTES, ahead, read_pieces


def saved(folder: Path, array: Any, *, external: bool) -> ir.TensorProtocol:
    value = ir.Value(name="w", const_value=ir.tensor(array, name="w"))
    value.shape, value.dtype = ir.Shape(array.shape), value.const_value.dtype if value.const_value else None
    output = ir.Value(name="y")
    node = ir.Node("", "Identity", [value], outputs=[output], name="n")
    graph = ir.Graph([], [output], nodes=[node], initializers=[value], opset_imports={"": 18}, name="g")
    save(ir.Model(graph, ir_version=10), folder / "m.onnx", external_data=external)
    (stored,) = stored_values(load(folder / "m.onnx"))["w"]
    return tensor_of(stored)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.int8])
def test_pieces_are_alike_in_files_and_in_memory(tmp_path: Path, dtype: Any) -> None:
    array = (np.arange(3_000_001) % 100).astype(dtype).reshape(-1, 1)
    in_file = [piece.copy() for piece in read_pieces(saved(tmp_path, array, external=True))]
    in_memory = list(read_pieces(ir.tensor(array)))
    assert [piece.size for piece in in_file] == [piece.size for piece in in_memory]
    assert all(piece.size % 8 == 0 for piece in in_file[:-1])
    np.testing.assert_array_equal(np.concatenate(in_file), array.reshape(-1))
    np.testing.assert_array_equal(np.concatenate(in_memory), array.reshape(-1))


def test_a_file_that_changes_while_it_is_used_is_noticed(tmp_path: Path) -> None:
    tensor = saved(tmp_path, np.ones(1000, np.float32), external=True)
    (data,) = tmp_path.glob("m.onnx.*")
    data.write_bytes(bytes(100))
    with pytest.raises(ModelError, match="changed"):
        list(read_pieces(tensor))


def test_a_piece_in_a_file_is_valid_until_the_next_but_one(tmp_path: Path) -> None:
    array = np.repeat(np.arange(4, dtype=np.float32), PIECE_BYTES // 4)
    before: Any = None
    for number, piece in enumerate(read_pieces(saved(tmp_path, array, external=True))):
        assert before is None or (before == number - 1).all()
        assert (piece == number).all()
        before = piece


def numbers(count: int, *, fails: bool = False) -> Iterator[int]:
    yield from range(count)
    if fails:
        raise ModelError("the disk fails")


@pytest.mark.parametrize("size", [1, 10 * PIECE_BYTES])
def test_reading_ahead_gives_the_same_pieces_and_errors(size: int) -> None:
    assert list(ahead(numbers(9), size)) == list(range(9))
    failing = ahead(numbers(3, fails=True), size)
    assert [next(failing) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ModelError, match="the disk fails"):
        next(failing)


def test_the_next_piece_is_made_while_the_caller_works_with_one() -> None:
    second = threading.Event()

    def pieces() -> Iterator[int]:
        yield 0
        second.set()
        yield 1

    read = ahead(pieces(), 10 * PIECE_BYTES)
    assert next(read) == 0
    assert second.wait(30)
    assert list(read) == [1]


def test_where_no_thread_starts_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert list(ahead(numbers(9), 10 * PIECE_BYTES)) == list(range(9))
