"""The weights of MatMulNBits, which lie packed in bytes: the first of them in the lowest bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.model.stored import stored_tensor

Array: TypeAlias = npt.NDArray[Any]

#: Weights that are unpacked at a time where they are only looked at.
_PIECE_WEIGHTS = 1 << 20


def is_packed_product(node: ir.Node) -> bool:
    """Return whether a node is a product with a packed weight."""
    return node.domain == "com.microsoft" and node.op_type == "MatMulNBits"


def unpacked_weight(node: ir.Node) -> Array | None:
    """Return the weight of a MatMulNBits less its zero points, without scales; None if it is not constant.

    Returns:
        float32 ``[outputs, blocks, block size]``; the last block may reach beyond what is summed over, with
        zeros there.
    """
    packed = _packed(node)
    if packed is None:
        return None
    numbers = np.ascontiguousarray(packed.numbers(slice(None)), dtype=np.float32)
    numbers -= packed.zeros(slice(None))
    numbers.reshape(len(numbers), -1)[:, packed.length :] = 0
    return numbers


def real_weight(node: ir.Node) -> Array | None:
    """Return the weight of a MatMulNBits with its scales, as `unpacked_weight` does."""
    numbers, scales = unpacked_weight(node), _constant(node, 2)
    if numbers is None or scales is None:
        return numbers
    return np.asarray(numbers * scales.reshape(*numbers.shape[:2], 1).astype(np.float32))


def nonzero_weight(node: ir.Node) -> npt.NDArray[np.bool_] | None:
    """Return where the weight of a MatMulNBits is not zero, bool ``[outputs, summed]``."""
    packed = _packed(node)
    if packed is None:
        return None
    kept = np.empty((len(packed.bytes), packed.length), dtype=np.bool_)
    step = max(1, _PIECE_WEIGHTS // max(1, packed.length))
    for start in range(0, len(kept), step):
        part = slice(start, start + step)
        differs = packed.numbers(part) != packed.zeros(part)
        kept[part] = differs.reshape(len(differs), -1)[:, : packed.length]
    return kept


@dataclass(frozen=True, slots=True)
class _Packed:
    """The weight of a MatMulNBits as it is stored.

    Attributes:
        bytes: uint8 [outputs, blocks, bytes of a block].
        bits: of a number.
        block_size: numbers of a block.
        length: how many numbers an output sums over.
        zero_points: [outputs, blocks], or None where half of the range is zero.
    """

    bytes: Array
    bits: int
    block_size: int
    length: int
    zero_points: Array | None

    def numbers(self, outputs: slice) -> Array:
        """Return the numbers of some outputs, uint8 [outputs, blocks, block size]."""
        return _unpacked(self.bytes[outputs], self.bits)[..., : self.block_size]

    def zeros(self, outputs: slice) -> Array:
        """Return what stands for zero there; broadcasts against the numbers."""
        if self.zero_points is None:
            return np.asarray(1 << (self.bits - 1), dtype=np.uint8)
        return self.zero_points[outputs, :, None]


def _packed(node: ir.Node) -> _Packed | None:
    packed, bits = _constant(node, 1), node.attributes.get_int("bits", 4)
    if packed is None or packed.ndim != 3 or packed.dtype != np.uint8:
        return None
    rows, blocks = packed.shape[:2]
    table = _constant(node, 3)
    if table is not None:
        table = table.reshape(rows, -1)
        table = _unpacked(table, bits)[:, :blocks] if table.dtype == np.uint8 else table
    block_size, length = node.attributes.get_int("block_size", 32), node.attributes.get_int("K")
    return _Packed(packed, bits, block_size, length, table)


def _unpacked(packed: Array, bits: int) -> Array:
    """Return the numbers in bytes: the last axis grows by 8 / bits, the lowest bits come first."""
    each = 8 // bits
    numbers = np.empty((*packed.shape[:-1], packed.shape[-1] * each), dtype=np.uint8)
    for place in range(each):
        numbers[..., place::each] = (packed >> np.uint8(place * bits)) & np.uint8((1 << bits) - 1)
    return numbers


def _constant(node: ir.Node, index: int) -> Array | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = None if value is None else stored_tensor(value)
    return None if tensor is None else tensor.numpy()
