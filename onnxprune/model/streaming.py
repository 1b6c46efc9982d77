"""Read stored tensors a piece at a time: models larger than memory can be scored, masked and compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.model.external import PIECE_BYTES, FileTensor

Array: TypeAlias = npt.NDArray[Any]


def read_pieces(tensor: ir.TensorProtocol) -> Iterator[Array]:
    """Yield the flattened tensor in order, in pieces of 4 MiB (the last one may be smaller).

    Pieces are for reading, and valid until the next one. They have a multiple of 8 elements, the same for
    every tensor of a type. Tensors in files are never in memory at once; tensors that are computed when read
    are computed once.

    Raises:
        ModelError: the file of a tensor is missing or has changed.
    """
    if isinstance(tensor, FileTensor) and tensor.dtype.bitwidth >= 8:
        dtype = np.dtype(tensor.dtype.numpy()).newbyteorder("<")  # files are little endian on every machine
        for stored in tensor.pieces():
            yield np.frombuffer(stored, dtype=dtype)
        return
    flat = np.asarray(tensor.numpy()).reshape(-1)
    elements = PIECE_BYTES // max(1, flat.itemsize)
    for start in range(0, flat.size, elements):
        yield flat[start : start + elements]
