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

from onnxprune.model.external import PIECE_BYTES
from onnxprune.model.streaming import in_bands, made, read_pieces
from onnxprune.runtime.four_bits import four_bits

#: The largest number of a symmetric int8 weight.
LARGEST_INT8 = 127

#: The largest and the smallest magnitude of float16; the converter of ONNX Runtime lets no number leave them.
LARGEST_HALF = 65504.0
_SMALLEST_HALF = 5.96e-08

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
    packing = _Packing(tensor, block_size)
    packed = made(
        packing.packed,
        tensor,
        dtype=ir.DataType.UINT8,
        shape=(columns, blocks, block_size // 2),
        name=names[0],
    )
    scales = made(packing.scales, tensor, dtype=ir.DataType.FLOAT, shape=(columns, blocks), name=names[1])
    return packed, scales


class _Packing:
    """Rounds a matrix to 4 bits, some rows at a time.

    The result, an eighth of it, is made as a whole: its order is that of the columns. Numbers and scales come
    of the same work. Who reads the numbers, and then the scales, has it done once.
    """

    def __init__(self, tensor: ir.TensorProtocol, block_size: int) -> None:
        self._tensor, self._block_size = tensor, block_size
        self._scales: Array | None = None

    def packed(self) -> Iterator[Array]:
        """Yield the numbers."""
        numbers, self._scales = self._rounded()
        yield from _pieces(numbers)

    def scales(self) -> Iterator[Array]:
        """Yield the scales, which are not kept any longer."""
        known, self._scales = self._scales, None
        yield from _pieces(self._rounded()[1] if known is None else known)

    def _rounded(self) -> tuple[Array, Array]:
        size = self._block_size
        rows, columns = (int(length) for length in self._tensor.shape.numpy())
        blocks = -(-rows // size)
        numbers = np.empty((columns, blocks, size // 2), dtype=np.uint8)
        scales = np.empty((columns, blocks), dtype=np.float32)
        start = 0
        for band in in_bands(read_pieces(self._tensor), columns * size, 4):
            part = four_bits(band.reshape(-1, columns), size)
            stop = start + part[0].shape[1]
            numbers[:, start:stop], scales[:, start:stop] = part
            start = stop
        return numbers, scales


def _pieces(array: Array) -> Iterator[Array]:
    flat = array.reshape(-1)
    step = PIECE_BYTES // array.itemsize
    return (flat[start : start + step] for start in range(0, flat.size, step))


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
