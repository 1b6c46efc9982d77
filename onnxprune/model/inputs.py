"""What a caller must feed a model, and the sizes that may be tried for its symbolic axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import onnx_ir as ir

from onnxprune.errors import ModelError, UsageError
from onnxprune.messages import quoted, visible
from onnxprune.model.stored import stored_tensor

#: Sizes tried for symbolic axes, in this order.
_BATCHES = (2, 1)
_SPATIAL = (64, 224, 32, 96, 48)
_SEQUENCES = (16, 8, 12, 32, 64, 128, 10, 4, 256)


def graph_inputs(model: ir.Model) -> list[ir.Value]:
    """Return the inputs that a caller must feed: those that are not initializers as well."""
    return [value for value in model.graph.inputs if not value.is_initializer()]


def trial_shapes(model: ir.Model, first: Mapping[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    """Return input shapes to try a model at: the given ones, and another batch where that is symbolic.

    What was written for one batch by mistake shows at another.
    """
    inputs = {str(value.name): value for value in graph_inputs(model)}
    symbols = {
        name: [symbol_of(inputs[name], axis) for axis in range(len(shape))] for name, shape in first.items()
    }
    # A symbol has one size wherever it stands, as the batch of one input and behind the time of another.
    changed = {
        symbols[name][0]: 2 if shape[0] == 1 else 1
        for name, shape in first.items()
        if shape and symbols[name][0] is not None
    }
    other = {
        name: tuple(changed.get(symbol, size) for symbol, size in zip(symbols[name], shape, strict=True))
        for name, shape in first.items()
    }
    return [dict(first)] if other == dict(first) else [dict(first), other]


def candidate_shapes(
    model: ir.Model, overrides: Mapping[str, Sequence[int]]
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield shapes by input name, the likeliest first: symbolic axes get sizes that networks often have.

    Raises:
        UsageError: an override names no input, has the wrong rank, or contradicts a static axis.
        ModelError: an input has no rank and no override, and no layer that reads it tells.
    """
    inputs = graph_inputs(model)
    names = [value.name for value in inputs]
    for name in overrides:
        if name not in names:
            raise UsageError(
                f"input shape given for {name!r}, which is no input; inputs: {', '.join(map(str, names))}"
            )
    seen = set()
    for sequence, batch, spatial in product(_SEQUENCES, _BATCHES, _SPATIAL):
        sizes = _channels(inputs)  # the same symbol has the same size everywhere
        for _ in range(2):  # a sum of symbols may stand before them: a mask before the cache it covers
            chosen = {
                str(value.name): _concrete_shape(
                    value, overrides.get(str(value.name)), (batch, spatial, sequence), sizes
                )
                for value in inputs
            }
        key = tuple(chosen.items())
        if key not in seen:
            seen.add(key)
            yield chosen


def _concrete_shape(
    value: ir.Value, override: Sequence[int] | None, trial: tuple[int, int, int], sizes: dict[str, int]
) -> tuple[int, ...]:
    """Return the shape of an input; ``trial`` is what is tried for batch, space and sequence."""
    batch, spatial, sequence = trial
    if value.shape is None:
        if override is not None:
            return tuple(override)
        guessed = _taken_shape(value, batch, spatial)
        if guessed is None:
            raise ModelError(
                f"input {quoted(value.name)} has no rank; give its shape: "
                f"--input-shape {visible(str(value.name))}=1,3,224,224"
            )
        return guessed
    if override is not None and len(override) != len(value.shape):
        raise UsageError(
            f"input {value.name!r} has rank {len(value.shape)}, but its shape was given as {list(override)}"
        )
    shape = []
    for axis, dim in enumerate(value.shape):
        static = isinstance(dim, int) and dim > 0  # some exporters write -1 for "any"
        if override is not None:
            if static and dim != override[axis]:
                raise UsageError(
                    f"axis {axis} of input {value.name!r} is {dim} in the model, not {override[axis]}"
                )
            size = int(override[axis])
        elif static:
            size = int(dim)  # type: ignore[arg-type]
        elif axis == 0:
            size = batch
        else:
            size = spatial if len(value.shape) >= 4 else sequence
        symbol = symbol_of(value, axis)
        if symbol is not None and override is None:
            summed = _sum(symbol, sizes)
            size = sizes.setdefault(symbol, size) if summed is None else summed
        shape.append(size)
    return tuple(shape)


def _taken_shape(value: ir.Value, batch: int, spatial: int) -> tuple[int, ...] | None:
    """Return a shape that a layer with a stored weight takes, None where no such layer reads the value."""
    for node, position in value.uses():
        weight = node.inputs[1] if position == 0 and len(node.inputs) > 1 else None
        tensor = None if weight is None else stored_tensor(weight)
        if tensor is None or node.domain not in ("", "ai.onnx"):
            continue
        sizes = tensor.shape.numpy()
        if node.op_type == "Conv" and len(sizes) > 2:
            return (batch, sizes[1] * node.attributes.get_int("group", 1), *[spatial] * (len(sizes) - 2))
        if node.op_type == "MatMul" and len(sizes) == 2:
            return (batch, sizes[0])
        if node.op_type == "Gemm" and not node.attributes.get_int("transA", 0):
            return (batch, sizes[1] if node.attributes.get_int("transB", 0) else sizes[0])
    return None


def _sum(symbol: str, sizes: Mapping[str, int]) -> int | None:
    """Return the size of an axis that is named as a sum, such as ``past + new``; None if it is not."""
    parts = [part.strip() for part in symbol.split("+")]
    terms = [int(part) if part.isdecimal() else sizes.get(part) for part in parts]
    if len(parts) == 1 or None in terms:
        return None
    return sum(term for term in terms if term is not None)


def _channels(inputs: Sequence[ir.Value]) -> dict[str, int]:
    """Return the sizes of symbolic channel axes that convolutions of stored weights take, by symbol."""
    sizes = {}
    for value in inputs:
        for node, position in value.uses():
            if node.op_type != "Conv" or node.domain not in ("", "ai.onnx") or position != 0:
                continue
            weight = node.inputs[1]
            tensor = None if weight is None else stored_tensor(weight)
            symbol = symbol_of(value, 1) if value.shape is not None and len(value.shape) > 1 else None
            if tensor is not None and symbol is not None:
                sizes[symbol] = tensor.shape.numpy()[1] * node.attributes.get_int("group", 1)
    return sizes


def symbol_of(value: ir.Value, axis: int) -> str | None:
    """Return the name of a symbolic axis of a graph input, None if it is static."""
    dim = None if value.shape is None else value.shape[axis]
    if isinstance(dim, int) and dim > 0:
        return None
    named = None if dim is None or isinstance(dim, int) else dim.value
    return named if named and named not in ("?", "-1") else f"{value.name}.{axis}"
