"""The weights of MatMulNBits, which lie packed in bytes: the first of them in the lowest bits."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.model.stored import stored_tensor

Array: TypeAlias = npt.NDArray[Any]


def is_packed_product(node: ir.Node) -> bool:
    """Return whether a node is a product with a packed weight."""
    return node.domain == "com.microsoft" and node.op_type == "MatMulNBits"


def unpacked_weight(node: ir.Node) -> Array | None:
    """Return the weight of a MatMulNBits less its zero points, without scales; None if it is not constant.

    Returns:
        float32 ``[outputs, blocks, block size]``; the last block may reach beyond what is summed over, with
        zeros there.
    """
    packed, bits = _constant(node, 1), node.attributes.get_int("bits", 4)
    if packed is None or packed.ndim != 3 or packed.dtype != np.uint8:
        return None
    block_size, length = node.attributes.get_int("block_size", 32), node.attributes.get_int("K")
    rows, blocks = packed.shape[:2]
    numbers = np.ascontiguousarray(_unpacked(packed, bits)[..., :block_size], dtype=np.float32)
    zeros = _constant(node, 3)
    if zeros is None:
        numbers -= 2 ** (bits - 1)
    else:
        table = zeros.reshape(rows, -1)
        table = _unpacked(table, bits)[:, :blocks] if zeros.dtype == np.uint8 else table
        numbers -= table.astype(np.float32)[:, :, None]
    numbers.reshape(rows, -1)[:, length:] = 0
    return numbers


def real_weight(node: ir.Node) -> Array | None:
    """Return the weight of a MatMulNBits with its scales, as `unpacked_weight` does."""
    numbers, scales = unpacked_weight(node), _constant(node, 2)
    if numbers is None or scales is None:
        return numbers
    return np.asarray(numbers * scales.reshape(*numbers.shape[:2], 1).astype(np.float32))


def nonzero_weight(node: ir.Node) -> npt.NDArray[np.bool_] | None:
    """Return where the weight of a MatMulNBits is not zero, bool ``[outputs, summed]``."""
    numbers = unpacked_weight(node)
    if numbers is None:
        return None
    return np.asarray(numbers.reshape(len(numbers), -1)[:, : node.attributes.get_int("K")] != 0)


def _unpacked(packed: Array, bits: int) -> Array:
    """Return the numbers in bytes: the last axis grows by 8 / bits, the lowest bits come first."""
    places = np.arange(0, 8, bits, dtype=np.uint8)
    parts = (packed[..., None] >> places) & np.uint8((1 << bits) - 1)
    return np.asarray(parts.reshape(*packed.shape[:-1], -1))


def _constant(node: ir.Node, index: int) -> Array | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = None if value is None else stored_tensor(value)
    return None if tensor is None else tensor.numpy()
