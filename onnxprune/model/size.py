"""How much room a model takes: its tensors, and its files as zstd would store them."""

from __future__ import annotations

import os
from pathlib import Path

import onnx_ir as ir
import zstandard

from onnxprune.errors import ModelError
from onnxprune.messages import visible
from onnxprune.model.io import model_files
from onnxprune.model.places import places

_READ_BYTES = 1 << 20


def tensor_bytes(model: ir.Model) -> int:
    """Return the bytes of all stored tensors, dense, everywhere in the model; strings by their length."""
    return sum(_bytes(place.tensor) for place in places(model))


def _bytes(tensor: ir.TensorProtocol) -> int:
    if isinstance(tensor, ir.StringTensor):
        return sum(len(text) for text in tensor.string_data())
    return tensor.nbytes


def files_bytes(path: str | os.PathLike[str]) -> int:
    """Return the bytes of a model file and of its data files.

    Raises:
        ModelError: the model can't be read.
    """
    return sum(file.stat().st_size for file in model_files(path))


def zstd_size_bytes(path: str | os.PathLike[str], level: int = 3) -> int:
    """Return the bytes that zstd would store for a model file and its data files, each compressed by itself.

    This is the honest size of a model with zeros: any archive, container layer or download gets there.

    Raises:
        ModelError: the model can't be read.
    """
    return sum(_compressed_bytes(file, level) for file in model_files(path))


def _compressed_bytes(path: Path, level: int) -> int:
    compressor = zstandard.ZstdCompressor(level=level).compressobj()
    size = 0
    try:
        with path.open("rb") as stream:
            while piece := stream.read(_READ_BYTES):
                size += len(compressor.compress(piece))
    except OSError as error:
        raise ModelError(f"{visible(path)}: can't be read: {error.strerror}; check the disk") from error
    return size + len(compressor.flush())
