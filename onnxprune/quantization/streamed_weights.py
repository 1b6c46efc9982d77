"""Weights in fewer bits that are made when they are written, from weights that stay in their file.

So a model larger than memory can be quantized. What is in memory anyway is rounded at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.model.streaming import in_bands, made, read_pieces
from onnxprune.runtime.four_bits import four_bits

#: The largest number of a symmetric int8 weight.
LARGEST_INT8 = 127

#: The largest and the smallest magnitude of float16; the converter of ONNX Runtime lets no number leave them.
LARGEST_HALF = 65504.0
_SMALLEST_HALF = 5.96e-08

#: Columns that are packed at a time.
_COLUMN_BYTES = 1 << 23

Array = npt.NDArray[Any]


def in_halves(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a float32 tensor in float16: beyond it lies its largest number, below it its least."""
    return made(partial(_halves, tensor), tensor, dtype=ir.DataType.FLOAT16)


def _halves(tensor: ir.TensorProtocol) -> Iterator[Array]:
    for piece in read_pieces(tensor):
        size = np.abs(piece)
        fitted = piece.astype(np.float32)
        for wrong, limit in (
            ((size > 0) & (size < np.float32(_SMALLEST_HALF)), _SMALLEST_HALF),
            ((size > LARGEST_HALF) & np.isfinite(size), LARGEST_HALF),
        ):
            if wrong.any():
                fitted[wrong] = np.copysign(np.float32(limit), fitted[wrong])
        yield fitted.astype(np.float16)


def packed_in_four_bits(
    tensor: ir.TensorProtocol, block_size: int, names: tuple[str, str]
) -> tuple[ir.TensorProtocol, ir.TensorProtocol]:
    """Return a matrix [summed, outputs] as MatMulNBits reads it, and its scales, under these names."""
    rows, columns = (int(size) for size in tensor.shape.numpy())
    blocks = -(-rows // block_size)
    shapes = (columns, blocks, block_size // 2), (columns, blocks)
    types = ir.DataType.UINT8, ir.DataType.FLOAT
    packed, scales = (
        made(partial(_columns, tensor, block_size, part), tensor, dtype=dtype, shape=shape, name=name)
        for part, (dtype, shape, name) in enumerate(zip(types, shapes, names, strict=True))
    )
    return packed, scales


def _columns(tensor: ir.TensorProtocol, block_size: int, part: int) -> Iterator[Array]:
    """Yield the packed numbers (0) or the scales (1) of a matrix, some columns at a time."""
    matrix = np.asarray(tensor.numpy())
    step = max(8, _COLUMN_BYTES // max(1, 32 * len(matrix)) * 8)
    for start in range(0, matrix.shape[1], step):
        yield four_bits(matrix[:, start : start + step], block_size)[part].reshape(-1)


def in_int8(tensor: ir.TensorProtocol, axis: int | None) -> tuple[ir.TensorProtocol, npt.NDArray[np.float32]]:
    """Return ``q`` and ``scale``: ``q = round(W / scale)``, the largest of each output channel becoming 127.

    Zeros stay zeros, whatever the scale.

    Args:
        tensor: float weights.
        axis: of the output channels; None for one scale for all.

    Returns:
        int8 numbers in the shape of the weight, and float32 scales that broadcast against it.
    """
    shape = tuple(int(size) for size in tensor.shape.numpy())
    axis = None if axis is None else axis % len(shape)
    others = tuple(a for a in range(len(shape)) if a != axis)
    parts = [np.abs(rows).max(axis=others, keepdims=True) for rows in _rows(tensor, shape)]
    largest = np.concatenate(parts) if axis == 0 else np.maximum.reduce(parts)
    scale = np.where(largest > 0, largest / LARGEST_INT8, 1).astype(np.float32)
    rounded = made(partial(_rounded, tensor, shape, scale), tensor, dtype=ir.DataType.INT8)
    return rounded, scale if axis is not None else scale.reshape(())


def _rounded(tensor: ir.TensorProtocol, shape: tuple[int, ...], scale: Array) -> Iterator[Array]:
    start = 0
    for rows in _rows(tensor, shape):
        mine = scale if len(scale) == 1 else scale[start : start + len(rows)]
        numbers = np.rint(np.divide(rows, mine))
        yield np.clip(numbers, -LARGEST_INT8, LARGEST_INT8, out=numbers).astype(np.int8).reshape(-1)
        start += len(rows)


def _rows(tensor: ir.TensorProtocol, shape: tuple[int, ...]) -> Iterator[Array]:
    """Yield a tensor some rows at a time."""
    itemsize = tensor.dtype.numpy().itemsize
    unit = max(1, int(np.prod(shape[1:], dtype=np.int64)))
    for band in in_bands(read_pieces(tensor), unit, itemsize):
        yield band.reshape(-1, *shape[1:])
