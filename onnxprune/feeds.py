"""Random arrays that a model accepts as inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.machine import memory_bytes
from onnxprune.messages import quoted
from onnxprune.model.inputs import graph_inputs
from onnxprune.model.shapes import Shapes, concretise
from onnxprune.model.stored import stored_tensor

#: Numbers are drawn as float64, then turned into what the input takes.
_DRAWN_BYTES = 8

#: Taken for the memory of a machine that does not tell.
_USUAL_MEMORY_BYTES = 16 << 30


def random_feeds(model: ir.Model, shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Draw one array for every input of ``model``.

    Floats are standard normal; integers lie in [0, 100), or below the number of rows of the table that they
    index, and a single one that is compared with constants is one of these; booleans and inputs with "mask"
    in their name are 0 or 1, the first position along the last axis being 1 (a mask that hides everything
    makes softmax return NaN).

    Args:
        model: the model; not changed.
        shapes: by input name, as from `onnxprune.model.shapes.input_shapes`.
        seed: the same seed gives the same arrays.

    Raises:
        UsageError: an input has no entry in ``shapes``, holds neither numbers nor truth values, or would take
            a large part of this machine's memory.
    """
    generator = np.random.default_rng(seed)
    sizes = _Sizes(model, shapes)
    feeds = {}
    for value in graph_inputs(model):
        name = str(value.name)
        if name not in shapes:
            raise UsageError(f"no shape given for input {name!r}")
        if value.dtype is None or value.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
            raise UsageError(f"input {name!r} takes no numbers; give an array for it")
        _check_room(name, value.dtype, shapes[name])
        feeds[name] = _random_array(value, value.dtype, shapes[name], generator, sizes)
    return feeds


class _Sizes:
    """Sizes of values, inferred when the first is asked for that the file does not declare."""

    def __init__(self, model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._model, self._given = model, shapes
        self._inferred: Shapes | None = None

    def of(self, value: ir.Value) -> Sequence[object] | None:
        """Return the sizes of a value; None if they are not known."""
        if value.shape is not None:
            return tuple(value.shape)
        if self._inferred is None:
            try:
                self._inferred = concretise(self._model, self._given)
            except OnnxPruneError:  # sizes that don't fit each other, which who runs the model will say
                self._inferred = Shapes({}, 0)
        return self._inferred.shape(value)


def _check_room(name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> None:
    """Refuse to draw an array that memory can't hold, before anything is allocated."""
    needed = math.prod(shape) * max(dtype.bitwidth / 8, _DRAWN_BYTES)
    there = memory_bytes() or _USUAL_MEMORY_BYTES
    if needed > there / 4:
        raise UsageError(
            f"input {quoted(name)} of shape {'x'.join(map(str, shape))} takes too much memory on this "
            "machine; give other sizes (input_shapes), or export the model with smaller ones"
        )


def _random_array(
    value: ir.Value,
    data_type: ir.DataType,
    shape: tuple[int, ...],
    generator: np.random.Generator,
    sizes: _Sizes,
) -> np.ndarray:
    dtype = data_type.numpy()
    if data_type == ir.DataType.BOOL or "mask" in str(value.name).lower():
        mask = np.asarray(generator.integers(0, 2, shape))
        if mask.ndim:
            mask[..., 0:1] = 1
        return mask.astype(dtype)
    if data_type.is_floating_point():
        return np.asarray(generator.standard_normal(shape)).astype(dtype)
    known = _compared_with(value) if math.prod(shape) == 1 else []
    if known:  # a switch, such as a sampling rate: other numbers may make no sense
        return np.full(shape, generator.choice(known)).astype(dtype)
    return np.asarray(generator.integers(0, _index_limit(value, sizes), shape)).astype(dtype)


def _compared_with(value: ir.Value) -> list[int]:
    """Return the constant integers that an input is compared with for equality."""
    found = set()
    pending, seen = [value], {value}
    while pending:
        for node, position in pending.pop().uses():
            if node.op_type == "Equal":
                other = node.inputs[1 - position]
                tensor = None if other is None else stored_tensor(other)
                if tensor is not None and tensor.size == 1 and tensor.dtype.is_integer():
                    found.add(int(tensor.numpy().item()))
            elif node.op_type in _PASSING:
                fresh = [output for output in node.outputs if output not in seen]
                seen.update(fresh)
                pending.extend(fresh)
    return sorted(found)


#: Operators that hand on numbers as they are.
_PASSING = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten")


#: Inputs that index a table: operator and number of the input -> the input that holds the table.
_TABLES = {
    ("", "Gather", 1): 0,
    ("", "RotaryEmbedding", 3): 1,
    ("com.microsoft", "GatherBlockQuantized", 1): 0,
    ("com.microsoft", "QEmbedLayerNormalization", 0): 2,
    ("com.microsoft", "QEmbedLayerNormalization", 1): 4,
    ("com.microsoft", "EmbedLayerNormalization", 0): 2,
    ("com.microsoft", "EmbedLayerNormalization", 1): 4,
    ("com.microsoft", "EmbedLayerNormalization", 8): 3,
    ("com.microsoft", "GroupQueryAttention", 9): 7,
    ("com.microsoft", "RotaryEmbedding", 1): 2,
}


def _index_limit(value: ir.Value, sizes: _Sizes) -> int:
    """Return 100, or the rows of the smallest table that ``value`` is an index into."""
    limit = 100
    pending, seen = [value], {value}
    while pending:
        for node, position in pending.pop().uses():
            place = _TABLES.get((node.domain, node.op_type, position))
            if place is not None:
                axis = node.attributes.get_int("gather_axis", node.attributes.get_int("axis", 0))
                table = node.inputs[place] if place < len(node.inputs) else None
                limit = min(limit, _rows(table, axis, sizes) or limit)
            elif node.op_type in _PASSING:
                fresh = [output for output in node.outputs if output not in seen]
                seen.update(fresh)
                pending.extend(fresh)
    return limit


def _rows(table: ir.Value | None, axis: int, sizes: _Sizes) -> int | None:
    """Return the length of a table, which may be dequantized first; None if it is not known."""
    producer = None if table is None else table.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        table = producer.inputs[0]
    shape = None if table is None else sizes.of(table)
    if shape is None:
        return None
    rows = shape[axis]
    return rows if isinstance(rows, int) and rows > 0 else None
