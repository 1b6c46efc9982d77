"""Which weights of a file are zero, and whether they lie where a pattern wants them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.model.nonfinite import describe_nonfinite, first_nonfinite
from onnxprune.model.stored import all_nodes, consumer_name, tensor_of
from onnxprune.model.streaming import read_pieces
from onnxprune.ops.constant_views import ZeroPoint
from onnxprune.ops.packed import is_packed_product, nonzero_weight
from onnxprune.ops.weights import FoundWeight, locate_weights
from onnxprune.patterns import Pattern, count_bad_runs, parse_pattern
from onnxprune.types import BoolArray, Skipped

#: Looked for in files that declare nothing, the strictest first.
_KNOWN_RUNS = ("1:4", "2:4", "4:8")


@dataclass(frozen=True, slots=True)
class WeightZeros:
    """How many zeros one weight use has, and in which pattern.

    Attributes:
        weight: the weight.
        zeros: number of weights that are zero (for quantized ones: equal to the zero point).
        problem: which of them is NaN or infinite, None if all are finite.
        pattern: an N:M pattern that the zeros keep to, "dense", "all zero" or "unstructured".
    """

    weight: FoundWeight
    zeros: int
    pattern: str
    problem: str | None = None

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.weight.shape)


def nonzero(
    tensor: ir.TensorProtocol, zero_point: ZeroPoint | None = None, problems: list[str] | None = None
) -> BoolArray:
    """Return where a stored tensor is not zero, bool in its shape; zero is what the zero point says.

    Args:
        tensor: is read once.
        zero_point: of a quantized tensor.
        problems: is told if an element is NaN or infinite; these are not looked for without it.

    Raises:
        ModelError: the zero point does not fit the tensor, or a file can't be read.
    """
    shape = tuple(int(size) for size in tensor.shape.numpy())
    if zero_point is not None:
        return np.asarray(np.asarray(tensor.numpy()) != _zeros_like(tensor, zero_point, shape))
    kept = np.empty(math.prod(shape), dtype=np.bool_)
    start = 0
    for piece in read_pieces(tensor):
        kept[start : start + piece.size] = piece != 0
        position = None if problems is None or problems else first_nonfinite(piece)
        if problems is not None and position is not None:
            problems.append(describe_nonfinite(tensor.name, shape, start + position, piece[position]))
        start += piece.size
    return kept.reshape(shape)


def _zeros_like(tensor: ir.TensorProtocol, zero_point: ZeroPoint, shape: tuple[int, ...]) -> np.ndarray:
    """Return the zero point in a shape that broadcasts against the stored tensor."""
    zero = np.asarray(tensor_of(zero_point.value).numpy())
    if zero_point.axis is None:
        return zero.reshape(())
    if zero_point.block_size:
        spread = np.repeat(zero, zero_point.block_size, axis=zero_point.axis)
        fitting = tuple(slice(size) for size in shape)
        spread = spread[fitting]
    else:
        along = [1] * len(shape)
        along[zero_point.axis] = zero.size
        spread = zero.reshape(along)
    try:
        return np.broadcast_to(spread, shape)
    except ValueError:
        raise ModelError(
            f"the zero point of {tensor.name!r} has shape {list(zero.shape)}, the weight {list(shape)}"
        ) from None


def share_of_zeros(model: ir.Model) -> tuple[float, tuple[Skipped, ...]]:
    """Return the share of zeros among all weights, and the weights that can't be told.

    Weights are what is multiplied and summed, packed ones too; a stored tensor counts once, whoever reads it.
    The share is 0 where there are none.
    """
    weights, skipped = locate_weights(model)
    stored = {id(weight.stored): weight for weight in weights}
    masks = ((weight.use.tensor, nonzero(weight.tensor, weight.zero_point)) for weight in stored.values())
    products = {id(node.inputs[1]): node for node in all_nodes(model) if is_packed_product(node)}
    packed = [(consumer_name(node), nonzero_weight(node)) for node in products.values()]
    kept = size = 0
    for name, mask in itertools.chain(masks, packed):
        if mask is None:
            skipped.append(Skipped(name, "its packed weight is computed"))
        else:
            kept += int(np.count_nonzero(mask))
            size += mask.size
    return (1 - kept / size if size else 0.0), tuple(skipped)


def count_zeros(
    weights: Sequence[FoundWeight],
    declared: Pattern | None,
    seen: Callable[[FoundWeight, BoolArray], None] = lambda _weight, _kept: None,
) -> list[WeightZeros]:
    """Return zeros and pattern of every weight; a declared N:M pattern is tried before the usual ones.

    Args:
        weights: each is read once.
        declared: a pattern that is expected.
        seen: is told where each weight is not zero, so that nobody has to read it again for that.
    """
    patterns = [parse_pattern(name) for name in _KNOWN_RUNS]
    if declared is not None and declared.kind == "N:M":
        patterns = [declared, *(pattern for pattern in patterns if pattern != declared)]
    counted = []
    before: FoundWeight | None = None
    for weight in weights:
        if before is None or weight.stored is not before.stored or weight.zero_point != before.zero_point:
            problems: list[str] = []
            kept = nonzero(weight.tensor, weight.zero_point, problems)
        before = weight  # many nodes in a row may read one weight
        seen(weight, kept)
        zeros = kept.size - int(np.count_nonzero(kept))
        pattern = _pattern_of(kept, zeros, weight, patterns)
        counted.append(WeightZeros(weight, zeros, pattern, next(iter(problems), None)))
    return counted


def _pattern_of(kept: BoolArray, zeros: int, weight: FoundWeight, patterns: Sequence[Pattern]) -> str:
    if zeros == 0:
        return "dense"
    if zeros == kept.size:
        return "all zero"
    for pattern in patterns:
        if (
            zeros * pattern.run < kept.size * (pattern.run - pattern.keep)
            or weight.summed_length % pattern.run
        ):
            continue  # too few zeros in total: no need to look at each run
        if count_bad_runs(kept, pattern, weight.use.summed_axis, weight.groups) == 0:
            return str(pattern)
    return "unstructured"
