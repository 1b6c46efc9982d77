"""Tensors that no memory here holds are not cut; nothing of them is read to say so."""

from __future__ import annotations

from pathlib import Path

import model_files
import pytest

from onnxprune import load, prune
from onnxprune.errors import ModelError


def test_a_tensor_beyond_memory_is_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = model_files.mlp(2, 24)
    model_files.move_out(proto.graph.initializer[0], tmp_path, "w.bin")
    model = load(model_files.write(proto, tmp_path / "m.onnx"))
    monkeypatch.setattr("onnxprune.wishes.memory_bytes", lambda: 24 * 24 * 4)
    assert prune(model, amount=0.5)
    monkeypatch.setattr("onnxprune.wishes.memory_bytes", lambda: 24 * 24 * 4 - 1)
    assert prune(model, pattern="2:4")
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match="'w0' takes 2304 bytes, more than the memory here, 2303"):
        prune(model, amount=0.5)
