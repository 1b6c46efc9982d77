from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.errors import ModelError
from onnxprune.model.io import load, save
from onnxprune.model.stored import stored_values, tensor_of
from onnxprune.model.streaming import read_pieces


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
