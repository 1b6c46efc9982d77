"""NaN and infinity among stored weights: they have no rank, and nothing they take part in can be compared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.messages import quoted
from onnxprune.model.streaming import read_pieces

Array: TypeAlias = npt.NDArray[Any]


def first_nonfinite(piece: Array) -> int | None:
    """Return where the first element stands that is NaN or infinite, None if all are finite.

    Args:
        piece: flat; floats of any kind, or integers, which are always finite.
    """
    if piece.dtype.kind == "f":
        with np.errstate(all="ignore"):
            # a sum is finite only if all summands are, and is found several times as fast
            if np.isfinite(piece.sum(dtype=np.float64 if piece.dtype.itemsize > 4 else np.float32)):
                return None
    elif piece.dtype.kind != "V" and not np.issubdtype(piece.dtype, np.inexact):
        return None
    try:
        odd = ~np.isfinite(piece)
    except TypeError:  # a type of ml_dtypes without infinities
        return None
    return int(odd.argmax()) if odd.any() else None


def describe_nonfinite(name: str | None, shape: tuple[int, ...], position: int, value: object) -> str:
    """Return what is wrong with a tensor whose element at ``position``, counted flat, is not finite."""
    index = [int(number) for number in np.unravel_index(position, shape)]
    return f"weight {quoted(name)} at {index} is {float(value)}; repair or re-export the model"  # type: ignore[arg-type]


def find_nonfinite(model: ir.Model) -> str | None:
    """Return what is wrong with the first initializer that is not finite, None if there is none."""
    values = model.graph.initializers.values()
    return find_nonfinite_among(value.const_value for value in values if value.const_value is not None)


def find_nonfinite_among(tensors: Iterable[ir.TensorProtocol]) -> str | None:
    """Return what is wrong with the first tensor that is not finite, None if there is none."""
    for tensor in tensors:
        if not tensor.dtype.is_floating_point():
            continue
        start = 0
        for piece in read_pieces(tensor):
            position = first_nonfinite(piece)
            if position is not None:
                place = start + position
                return describe_nonfinite(tensor.name, tuple(tensor.shape.numpy()), place, piece[position])
            start += piece.size
    return None
