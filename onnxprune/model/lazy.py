"""Tensors that are computed from others when they are read: a large model is never in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array: TypeAlias = npt.NDArray[Any]

#: Smaller ones are computed at once: they cost less than to compute them again at each reading.
_LEAST_BYTES = 1 << 20


def derived(
    source: ir.TensorProtocol,
    make: Callable[[Array], Array],
    shape: Sequence[int],
    dtype: ir.DataType,
    name: str | None,
) -> ir.TensorProtocol:
    """Return a tensor that is made of another one.

    Large tensors of files, and those made of them, are made when they are read, and again at each reading;
    all others are made now.

    Args:
        source: is read.
        make: returns the contents, from those of the source.
        shape: of the result.
        dtype: of the result.
        name: of the result.
    """
    waits = isinstance(source, ir.ExternalTensor) or (isinstance(source, ir.LazyTensor) and not source.cache)
    if not waits or source.nbytes < _LEAST_BYTES:
        return ir.Tensor(make(source.numpy()), dtype=dtype, name=name)

    def read() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(make(source.numpy())), dtype=dtype, name=name)

    return ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(shape), name=name)
