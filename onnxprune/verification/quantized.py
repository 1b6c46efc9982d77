"""Are the zeros of a model still there after it was quantized, whatever form its weights have now?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxprune.messages import quoted
from onnxprune.model.stored import all_nodes, consumer_name, stored_tensor
from onnxprune.ops.packed import is_packed_product, nonzero_weight
from onnxprune.ops.weights import FoundWeight, locate_weights
from onnxprune.patterns import Pattern, count_bad_runs, parse_pattern
from onnxprune.types import BoolArray, Check
from onnxprune.verification.optimized import canonical
from onnxprune.verification.zeros import count_zeros, nonzero

#: Weights that are compared at a time, and the outputs that they are of.
_TILE, _TILE_OUTPUTS = 1 << 17, 64


@dataclass(frozen=True, slots=True)
class _Seen:
    """One weight as a node uses it: which outputs and inputs it connects.

    Attributes:
        name: of the stored tensor.
        consumer: name of the node.
        convolution: it is read by a convolution.
        kept: reads where it is not zero, bool [output, summed, rest].
    """

    name: str
    consumer: str
    convolution: bool
    kept: Callable[[], BoolArray]


def check_zeros_kept(model: ir.Model, original: ir.Model) -> Check:
    """Check that every weight is zero where it was; rounding may have made more zeros.

    Weights are paired by the node that reads them or, where names have changed, by their order.
    """
    name = "zeros kept"
    before, after = list(_weights(original)), list(_weights(model))
    partners = _pairs(before, after)
    zeros = 0
    for number, weight in enumerate(before):
        kept = weight.kept()
        count = kept.size - int(np.count_nonzero(kept))
        if not count:
            continue
        found = partners.get(number)
        now = None if found is None else found.kept()
        if now is None or now.shape != kept.shape:
            detail = f"{quoted(weight.name)} has {count} zeros, and there is no such weight any more"
            return Check(name, False, detail)
        lost = _lost(now, kept)
        if lost:
            detail = f"{quoted(weight.name)}, used by {weight.consumer}: {lost} of {count} zeros are lost"
            return Check(name, False, detail)
        zeros += count
    return Check(name, True, f"all {zeros} zeros of {len(before)} weights are there")


def _lost(now: BoolArray, before: BoolArray) -> int:
    """Count what is kept now and was not before, bool [output, summed, rest] both.

    In tiles: the arrays may be large, and lie in memory in different orders.
    """
    width = _TILE // max(1, before[:1, :1].size)
    return sum(
        int(np.count_nonzero(now[part, along] > before[part, along]))
        for part in _slices(len(before), _TILE_OUTPUTS)
        for along in _slices(before.shape[1], max(1, width // _TILE_OUTPUTS))
    )


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, length, step))


def check_patterns_kept(model: ir.Model, original: ir.Model) -> Check | None:
    """Check that a weight that keeps to an N:M pattern does so still, along what its consumer sums over."""
    located, _ = locate_weights(original)
    patterns = [
        (counted.weight, parse_pattern(counted.pattern))
        for counted in count_zeros(located, None)
        if ":" in counted.pattern
    ]
    if not patterns:
        return None
    after = {weight.consumer: weight for weight in _weights(model)}
    for weight, pattern in patterns:
        found = after.get(weight.use.consumer)
        if found is None:
            continue  # its consumer has another name now: its zeros were compared, place by place
        bad = _bad_runs(found.kept(), pattern)
        if bad:
            detail = f"{quoted(weight.use.tensor)}: {bad} runs keep more than {pattern.keep}"
            return Check(f"pattern {pattern}", False, detail)
    kinds = ", ".join(sorted({str(pattern) for _, pattern in patterns}))
    return Check(
        "patterns kept", True, f"{kinds} in {len(patterns)} weights, along the axis that is summed over"
    )


def _bad_runs(kept: BoolArray, pattern: Pattern) -> int:
    return count_bad_runs(kept, pattern, 1, 1) if kept.shape[1] % pattern.run == 0 else 0


def _weights(model: ir.Model) -> Iterator[_Seen]:
    by_node: dict[ir.Node, list[FoundWeight]] = {}
    for weight in locate_weights(model)[0]:
        by_node.setdefault(weight.node, []).append(weight)
    for node in all_nodes(model):
        for weight in by_node.get(node, ()):
            convolution = "Conv" in weight.use.op_type
            yield _Seen(weight.use.tensor, weight.use.consumer, convolution, partial(_kept, weight))
        stored = node.inputs[1] if is_packed_product(node) else None
        if stored is not None and stored_tensor(stored) is not None:
            yield _Seen(str(stored.name), consumer_name(node), False, partial(_packed, node))


def _kept(weight: FoundWeight) -> BoolArray:
    return canonical(weight, nonzero(weight.tensor, weight.zero_point))


def _packed(node: ir.Node) -> BoolArray:
    """Return where the weight of a packed product is not zero; empty if its form is not known."""
    packed = nonzero_weight(node)
    return np.zeros((0, 0, 0), dtype=np.bool_) if packed is None else packed[:, :, None]


def _pairs(before: list[_Seen], after: list[_Seen]) -> dict[int, _Seen]:
    """Return the weight of today for each weight of before, by its number."""
    pairs: dict[int, _Seen] = {}
    for convolution in (True, False):
        old = [number for number, weight in enumerate(before) if weight.convolution == convolution]
        new = [weight for weight in after if weight.convolution == convolution]
        if len(old) == len(new):
            pairs |= dict(zip(old, new, strict=True))
    by_consumer = {weight.consumer: weight for weight in after}
    for number, weight in enumerate(before):
        if number not in pairs and weight.consumer in by_consumer:
            pairs[number] = by_consumer[weight.consumer]
    return pairs
