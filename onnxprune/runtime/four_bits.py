"""ONNX Runtime's own rounding of weights to 4 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.runtime.library import onnxruntime as _loaded  # noqa: F401 # tells it to be quiet first


def four_bits(
    columns: npt.NDArray[np.float32], block_size: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Return columns of a matrix in 4 bits, symmetric, in blocks of a column, as MatMulNBits reads them.

    Every column is rounded by itself.

    Args:
        columns: float32 [summed, outputs].
        block_size: weights that share a scale, along the axis that is summed over.

    Returns:
        uint8 [outputs, blocks, block_size / 2], and float32 scales [outputs, blocks].
    """
    from onnxruntime.capi._pybind_state import quantize_matmul_4bits

    rows, count = columns.shape
    blocks = -(-rows // block_size)
    padded: npt.NDArray[Any] = np.zeros((blocks * block_size, count), dtype=np.float32)
    padded[:rows] = columns
    packed = np.zeros((count, blocks, block_size // 2), dtype=np.uint8)
    scales = np.zeros((count, blocks), dtype=np.float32)
    unused = np.zeros((count, (blocks + 1) // 2), dtype=np.uint8)
    quantize_matmul_4bits(packed, padded, scales, unused, block_size, count, rows, True)
    return packed, scales
