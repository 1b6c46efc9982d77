"""Where a nonlinearity bends the result of a layer: behind it is what the next layers see."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from onnxprune.model.biases import is_fixed

#: Operators that bend number by number, and rise.
_BENDING = frozenset(
    ("Celu", "Clip", "Elu", "Erf", "FastGelu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish",
     "QuickGelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Swish", "Tanh")
)  # fmt: skip

#: Operators of which nonlinearities are put together: x * sigmoid(x), x / 2 * (1 + erf(x / sqrt(2))).
_COMBINING = frozenset(("Add", "Div", "Identity", "Mul", "Sub"))


def find_bends(graph: ir.Graph, names: Sequence[str], original: Collection[str]) -> list[str | None]:
    """Say behind which value a result is bent: one that depends on it alone, number by number.

    Nodes that read the result or each other, and constants, form a region. Its last value is meant, if
    nothing else of the region is read outside of it, and if one of its nodes does more than scale and shift.

    Args:
        graph: of a model, sorted.
        names: of the results.
        original: names of the values that the original has.

    Returns:
        The name of the value behind the nonlinearity for each result; None where there is none.
    """
    order = {node: number for number, node in enumerate(graph)}
    results = {str(o.name): o for node in graph for o in node.outputs}
    return [_bend(results[name], order, original) for name in names]


def _bend(result: ir.Value, order: Mapping[ir.Node, int], original: Collection[str]) -> str | None:
    region = {result}
    waiting = set(_readers(result, order))
    bends, found = False, None
    while waiting:
        node = min(waiting, key=order.__getitem__)
        waiting.remove(node)
        reads = [value for value in node.inputs if value is not None]
        inside = sum(value in region for value in reads)
        if not _is_pointwise(node) or any(value not in region and not is_fixed(value) for value in reads):
            continue
        bends = bends or node.op_type in _BENDING or inside > 1
        after = node.outputs[0]
        region.add(after)
        waiting.update(_readers(after, order))
        seen = all(_only_read_in(value, region) for value in region if value is not after)
        if seen and bends and after.name in original:
            found = str(after.name)
    return found


def _is_pointwise(node: ir.Node) -> bool:
    known = node.op_type in _BENDING or node.op_type in _COMBINING
    return known and node.domain in ("", "ai.onnx", "com.microsoft") and len(node.outputs) == 1


def _only_read_in(value: ir.Value, region: Collection[ir.Value]) -> bool:
    return not value.is_graph_output() and all(
        use.node.outputs[0] in region and len(use.node.outputs) == 1 for use in value.uses()
    )


def _readers(value: ir.Value, order: Mapping[ir.Node, int]) -> list[ir.Node]:
    """Return the nodes of the graph, not of a body in it, that read a value."""
    return [use.node for use in value.uses() if use.node in order]
