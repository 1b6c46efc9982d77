"""Which zeros are left in what ONNX Runtime's own optimizer makes of a model.

The optimizer renames, transposes, scales, joins and requantizes weights. So a weight is not looked for by
name but by where its zeros are, seen as [output, summed, everything else]: scaling a channel keeps them,
whatever the tensor is called and however it is stored. A weight whose zeros are nowhere is compared with the
one at the same place in the order of consumers, which tells how many of them were lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.model.external import FileTensor
from onnxprune.model.stored import all_nodes, stored_values, tensor_of
from onnxprune.ops.packed import is_packed_product, nonzero_weight
from onnxprune.ops.weights import FoundWeight, locate_weights
from onnxprune.types import BoolArray, Check
from onnxprune.verification.zeros import WeightZeros, nonzero


@dataclass(frozen=True, slots=True)
class Survival:
    """What became of the zeros of one weight.

    Attributes:
        zeros: zeros in the file.
        left: of these, zeros in the optimized graph; None where the weight was not found there.
    """

    zeros: int
    left: int | None


def trace_zeros(weights: Sequence[WeightZeros], optimized: ir.Model) -> list[Survival | None]:
    """Return the survival of the zeros of each weight in order; None for weights without zeros."""
    places = {_place_of(tensor_of(v)) for values in stored_values(optimized).values() for v in values}
    search: _Search | None = None
    partners: dict[int, FoundWeight] = {}
    files = [weight.weight for weight in weights]
    results: list[Survival | None] = []
    for counted, weight in zip(weights, files, strict=True):
        if counted.zeros == 0:
            results.append(None)
            continue
        place = _place_of(weight.tensor)
        if place is not None and place in places:  # the very bytes of the file
            results.append(Survival(counted.zeros, counted.zeros))
            continue
        if search is None:
            search = _Search(optimized)
            partners = _by_order(files, search.located)
        left = counted.zeros if search.has(weight) else search.compare(weight, partners.get(id(weight)))
        results.append(Survival(counted.zeros, left))
    return results


def _place_of(tensor: ir.TensorProtocol) -> tuple[object, ...] | None:
    """Return where in a file a tensor lies, None if it does not."""
    if not isinstance(tensor, FileTensor):
        return None
    return tensor.file, tensor.offset, tensor.dtype, tuple(tensor.shape.numpy())


def check_survival(
    weights: Sequence[WeightZeros], survivals: Sequence[Survival | None], how: str = "optimized graph"
) -> Check:
    """Check that the optimizer kept every zero of every weight; ``how`` says in what it was looked for."""
    traced = [(w, s) for w, s in zip(weights, survivals, strict=True) if s is not None]
    for weight, survival in traced:
        use = weight.weight.use
        if survival.left is None:
            detail = f"{use.tensor!r}: no weight of the optimized graph has its zeros"
            return Check("zeros survive ONNX Runtime", False, detail)
        if survival.left < survival.zeros:
            lost = survival.zeros - survival.left
            detail = f"{use.tensor!r}, used by {use.consumer}: {lost} of {survival.zeros} zeros are lost"
            return Check("zeros survive ONNX Runtime", False, detail)
    if not traced:
        return Check("zeros survive ONNX Runtime", True, "no weight has zeros")
    total = sum(survival.zeros for _, survival in traced)
    return Check("zeros survive ONNX Runtime", True, f"all {total} zeros of {len(traced)} weights, {how}")


class _Search:
    """The constants of an optimized graph, by where their zeros are."""

    def __init__(self, model: ir.Model) -> None:
        self.located, _ = locate_weights(model)
        self._known: dict[tuple[object, ...], bytes] = {}
        self.digests: set[bytes] = set()
        packed = (nonzero_weight(node) for node in all_nodes(model) if is_packed_product(node))
        self.digests |= {_digest(matrix[:, :, None]) for matrix in packed if matrix is not None}
        known = set()
        for weight in self.located:
            known.add(weight.stored)
            self.digests.add(self._digest(weight))
        for values in stored_values(model).values():
            for value in values:
                if value not in known and len(tensor_of(value).shape) == 2:
                    matrix = nonzero(
                        tensor_of(value)
                    )  # read by an operator that is not known: either way round
                    self.digests |= {_digest(matrix[:, :, None]), _digest(matrix.T[:, :, None])}

    def has(self, weight: FoundWeight) -> bool:
        """Tell whether a constant has its zeros where a weight has them."""
        return self._digest(weight) in self.digests

    def _digest(self, weight: FoundWeight) -> bytes:
        """Return a digest of where a weight is not zero, made once for all nodes that read it alike."""
        use = weight.use
        key = weight.stored, weight.zero_point, use.output_axis, use.summed_axis
        if key not in self._known:
            self._known[key] = _digest(_canonical(weight))
        return self._known[key]

    def compare(self, weight: FoundWeight, partner: FoundWeight | None) -> int | None:
        """Return how many zeros are left in the weight at the same place, or in one that has it as a part."""
        kept = _canonical(weight)
        if partner is not None:
            other = _canonical(partner)
            if other.shape == kept.shape:
                return int(np.count_nonzero(~kept & ~other))
        outputs = kept.shape[0]
        for other_weight in self.located:
            shape = _canonical_shape(other_weight)
            if shape[0] <= outputs or shape[1:] != kept.shape[1:]:
                continue
            joined = _canonical(other_weight)
            for start in range(0, shape[0] - outputs + 1, outputs):  # query, key and value side by side
                if np.array_equal(joined[start : start + outputs], kept):
                    return int(kept.size - np.count_nonzero(kept))
        return None


def _by_order(ours: Sequence[FoundWeight], theirs: Sequence[FoundWeight]) -> dict[int, FoundWeight]:
    """Pair weights of convolutions, and of matrix products, in graph order where there are as many."""
    pairs: dict[int, FoundWeight] = {}
    for convolutions in (True, False):
        before = [w for w in ours if ("Conv" in w.use.op_type) == convolutions]
        after = [w for w in theirs if ("Conv" in w.use.op_type) == convolutions]
        if len(before) == len(after):
            pairs |= {id(old): new for old, new in zip(before, after, strict=True)}
    return pairs


def _canonical(weight: FoundWeight) -> BoolArray:
    return canonical(weight, nonzero(weight.tensor, weight.zero_point))


def canonical(weight: FoundWeight, kept: BoolArray) -> BoolArray:
    """Return where a weight is not zero, as it is stored, as bool [output, summed, rest]."""
    moved = np.moveaxis(kept, (weight.use.output_axis, weight.use.summed_axis), (0, 1))
    return moved.reshape(*moved.shape[:2], -1)


def _canonical_shape(weight: FoundWeight) -> tuple[int, int, int]:
    outputs, summed = weight.shape[weight.use.output_axis], weight.shape[weight.use.summed_axis]
    return outputs, summed, int(np.prod(weight.shape, dtype=np.int64)) // max(1, outputs * summed)


def _digest(kept: BoolArray) -> bytes:
    digest = hashlib.blake2b(repr(kept.shape).encode(), digest_size=16)
    digest.update(np.packbits(np.ascontiguousarray(kept)).tobytes())
    return digest.digest()
