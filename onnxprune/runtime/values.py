"""Arrays as ONNX Runtime's values, and back, without a copy where that is possible."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from onnxprune.runtime.library import onnxruntime


class TensorInfo(NamedTuple):
    """Shape (None for a symbolic axis) and numpy type of an input or output."""

    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


# "tensor(float)" -> type; names are ONNX Runtime's
_ELEMENT_TYPES: Mapping[str, ir.DataType] = {
    "float": ir.DataType.FLOAT,
    "double": ir.DataType.DOUBLE,
    **{data_type.name.lower(): data_type for data_type in ir.DataType},
}

#: Types that numpy lacks and ONNX Runtime only takes as raw bytes: their raw form.
RAW: Mapping[int, type[np.unsignedinteger[Any]]] = {
    int(ir.DataType.BFLOAT16): np.uint16,
    int(ir.DataType.FLOAT8E4M3FN): np.uint8,
    int(ir.DataType.FLOAT8E4M3FNUZ): np.uint8,
    int(ir.DataType.FLOAT8E5M2): np.uint8,
    int(ir.DataType.FLOAT8E5M2FNUZ): np.uint8,
}


class Borrowed:
    """What numpy asks an owner of memory for: it keeps the owner as long as arrays look at the memory."""

    def __init__(self, value: onnxruntime.OrtValue, dtype: np.dtype[Any]) -> None:
        self._value = value
        shape = tuple(value.shape())
        # an empty tensor may have no address
        address = value.data_ptr() if math.prod(shape) else ctypes.addressof(_NOTHING)
        self.__array_interface__ = {
            "data": (address, True), "shape": shape, "typestr": dtype.str, "version": 3
        }  # fmt: skip


_NOTHING = ctypes.c_byte()


def to_ort(array: np.ndarray, element_type: int) -> onnxruntime.OrtValue:
    """Wrap an array without a copy (non-contiguous ones are copied)."""
    array = np.asarray(array, order="C")
    raw = RAW.get(element_type)
    if raw is None:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(raw), element_type)


def from_ort(value: onnxruntime.OrtValue) -> np.ndarray:
    """Return the array; of a type that numpy lacks, as a copy."""
    element_type = value.element_type()
    if element_type not in RAW:
        return np.asarray(value.numpy())
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(raw, ir.DataType(element_type).numpy()).reshape(value.shape())


def element_type_of(ort_type: str) -> ir.DataType | None:
    """Return the type that ONNX Runtime calls ``tensor(...)``; None for what is no tensor."""
    if not ort_type.startswith("tensor("):
        return None
    return _ELEMENT_TYPES.get(ort_type[len("tensor(") : -1])


def tensor_info(node: onnxruntime.NodeArg) -> TensorInfo:
    """Return shape and type of an input or output."""
    element_type = element_type_of(node.type)
    dtype = np.dtype(object) if element_type is None else np.dtype(element_type.numpy())
    # some exporters write -1 or 0 for "any"
    shape = tuple(size if isinstance(size, int) and size > 0 else None for size in node.shape)
    return TensorInfo(shape, dtype)
