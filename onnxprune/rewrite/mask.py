"""Set weights to zero, or to new numbers.

Zeros are set tensor by tensor as they are written: the model is never in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.errors import PlanError
from onnxprune.model.stored import put_numbers, replace_stored, stored_values, tensor_of
from onnxprune.model.streaming import MadeTensor, read_pieces
from onnxprune.spill import Spilled, SpilledArrays
from onnxprune.types import Mask

_MASKED_TYPES = frozenset((ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE))


def apply_masks(model: ir.Model, masks: Mapping[str, Mask]) -> None:
    """Replace each masked weight by one that is zero where its mask says so.

    The zeros are +0 and every other weight keeps its bits. The products are formed when a tensor is read, and
    again at each reading. Nothing is changed unless every mask fits.

    Args:
        model: a working copy; its weights are replaced, wherever they are stored.
        masks: by tensor name.

    Raises:
        PlanError: a mask names no tensor, or several, or does not fit its shape or type.
    """
    values = stored_values(model)
    for name, mask in masks.items():
        _check_fits(name, mask, values.get(name, []))
    for name, mask in masks.items():
        (value,) = values[name]
        tensor = tensor_of(value)
        masked = MadeTensor(partial(_masked, tensor, mask), tensor)
        replace_stored(value, masked)


def replace_weights(model: ir.Model, weights: Mapping[str, npt.NDArray[Any]]) -> None:
    """Put other numbers into stored weights.

    Args:
        model: a working copy.
        weights: by tensor name; each of the shape and type that is stored.

    Raises:
        PlanError: a name stands for no tensor, or several, or shape or type differ.
    """
    values = stored_values(model)
    spilled = weights.place if isinstance(weights, SpilledArrays) else None
    for name in weights:
        given = weights[name] if spilled is None else spilled(name)
        _check_fits(name, Mask(given.shape, np.empty(0, np.uint8)), values.get(name, []))
        tensor = tensor_of(values[name][0])
        if given.dtype != tensor.dtype.numpy():
            raise PlanError(
                f"new weights for {name!r} are {given.dtype}, the tensor {tensor.dtype.name.lower()}"
            )
    for name in weights:
        if spilled is None or (waiting := spilled(name)).held is not None:
            put_numbers(values[name][0], weights[name])
        else:
            _put_waiting(values[name][0], waiting)


def _put_waiting(value: ir.Value, waiting: Spilled) -> None:
    """Give a stored tensor numbers that are read from disk when they are needed."""
    old = tensor_of(value)
    new = ir.LazyTensor(
        lambda: ir.Tensor(waiting.array(), dtype=old.dtype, name=old.name),
        dtype=old.dtype,
        shape=ir.Shape(waiting.shape),
        name=old.name,
        doc_string=old.doc_string,
        metadata_props=dict(old.metadata_props),
    )
    replace_stored(value, new)


def _check_fits(name: str, mask: Mask, values: list[ir.Value]) -> None:
    if len(values) != 1:
        what = "no tensor of that name" if not values else f"{len(values)} tensors of that name"
        raise PlanError(f"mask for {name!r}: the model has {what}; make the plan again from this model")
    tensor = tensor_of(values[0])
    shape = tuple(int(size) for size in tensor.shape.numpy())
    if shape != mask.shape:
        raise PlanError(
            f"mask for {name!r} has shape {list(mask.shape)}, the tensor {list(shape)}; make the plan again"
        )
    if tensor.dtype not in _MASKED_TYPES:
        raise PlanError(
            f"mask for {name!r}: the tensor holds {tensor.dtype.name.lower()}; prune before quantizing"
        )


def _masked(tensor: ir.TensorProtocol, mask: Mask) -> Iterator[npt.NDArray[Any]]:
    """Yield the pieces of a tensor, zero where a mask says so."""
    integers = np.dtype(f"u{tensor.dtype.numpy().itemsize}")
    start, bits = 0, mask.bits
    for piece in read_pieces(tensor):
        mine = bits[start // 8 : (start + piece.size + 7) // 8]  # pieces begin at whole bytes
        kept = np.unpackbits(mine, count=piece.size)
        masked = np.multiply(piece.view(integers), kept, dtype=integers)  # 1 keeps all bits, 0 gives +0
        yield masked.view(piece.dtype)
        start += piece.size
