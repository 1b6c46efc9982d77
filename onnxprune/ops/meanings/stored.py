"""Stored tensors as torch tensors, sharing the memory where both know the type."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune.ops.meanings.base import Array, torch_dtype


def as_torch(tensor: ir.TensorProtocol, floats: Mapping[torch.dtype, torch.dtype] | None = None) -> Tensor:
    """Return a stored tensor in main memory; it may share the memory of the model, and is not to be written.

    Args:
        tensor: of any type but strings.
        floats: element types that stand for another one.

    Raises:
        NoMeaning: torch has no such type.
    """
    dtype = torch_dtype(tensor.dtype)
    found = _shared(tensor.numpy(), dtype)
    return found.to((floats or {}).get(dtype, dtype))


def _shared(array: Array, dtype: torch.dtype) -> Tensor:
    shape = array.shape
    if array.dtype.newbyteorder("=").isbuiltin != 1:  # of ml_dtypes: by their bits
        if dtype.itemsize == 1 and not dtype.is_floating_point:
            array = array.astype(np.int8 if dtype == torch.int8 else np.uint8)  # below 8 bits
        else:
            array = array.view(f"u{dtype.itemsize}")
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        # of a file that is mapped for reading: nobody writes to it
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        found = torch.from_numpy(np.ascontiguousarray(array)).reshape(shape)
    return found if found.dtype == dtype else found.view(dtype)


def as_stored(value: Tensor, dtype: ir.DataType) -> Array:
    """Return numbers of a module as an array of the type that a file stores, in memory of its own."""
    plain = value.detach().to("cpu", torch_dtype(dtype), copy=True).contiguous()
    wanted = dtype.numpy()
    if plain.dtype in (torch.float16, torch.float32, torch.float64):
        return plain.numpy()
    return plain.view(getattr(torch, f"uint{8 * plain.dtype.itemsize}")).numpy().view(wanted)
