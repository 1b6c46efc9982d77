"""Statistics of constants become constants: the norm in a weight normalisation, the sigma in a spectral one.

Such a weight is computed in the graph, ``g * v / norm(v)``. Elementwise operators and moves need no folding,
as channels are followed through them; but a norm over input channels must not change when some of these go.
Only what is smaller than what it is computed from is folded, so no weight is copied, and no layer of a
network that happens to have a constant input (a table of positions that is made by one) is lost. A weight
that a batch normalisation made whole (weight standardisation) is the exception: it takes the place of the
weight that it was made of.
"""

from __future__ import annotations

import logging
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from onnx import reference

from onnxprune.model.bounded import result_elements
from onnxprune.model.names import Names, add_constant

#: Products are statistics where a vector is left, as in ``u W v``; others may be weights, or layers.
_PRODUCTS = frozenset(("Einsum", "Gemm", "MatMul"))

#: Operators whose results depend on many positions of their inputs at once.
_STATISTICS = _PRODUCTS | frozenset((
    "ArgMax", "ArgMin", "GlobalAveragePool", "GlobalMaxPool", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
))  # fmt: skip

#: Operators that ONNX's reference computes element by element, in Python.
_SLOW = frozenset((
    "AffineGrid", "CenterCropPad", "Col2Im", "DeformConv", "DFT", "GridSample", "GRU", "LSTM",
    "MaxRoiPool", "MaxUnpool", "NonMaxSuppression", "RNN", "RegexFullMatch", "Resize", "RoiAlign", "STFT",
    "ScatterElements", "ScatterND", "StringSplit", "TfIdfVectorizer", "TopK", "Unique", "Upsample",
))  # fmt: skip

#: Types that ONNX's reference computes in.
_COMPUTED = frozenset({
    ir.DataType.BOOL, ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT32,
    ir.DataType.INT64,
})  # fmt: skip

#: Elements that may be computed for one statistic: so many, and so many for each that is stored.
_ROOM = 1 << 20
_TIMES_STORED = 16

_LOG = logging.getLogger(__name__)

Array: TypeAlias = np.ndarray[Any, Any]


def fold_statistics(graph: ir.Graph, opset: int) -> None:
    """Replace each statistic of constants in a graph by an initializer.

    Args:
        graph: changed in place. Nodes that only the folded ones needed stay, without users.
        opset: version of the standard operators.
    """
    constants = _constants(graph)
    names = Names(graph)
    made = []
    for node in list(graph):
        output = node.outputs[0]
        whole = node.op_type == "BatchNormalization"
        if not (whole or node.op_type in _STATISTICS) or output not in constants or output.is_graph_output():
            continue
        known: dict[ir.Value, Array] = {}
        contents = _evaluate(output, opset, known)
        if contents is None:
            continue
        largest = max(known[value].size for value in node.inputs if value is not None)
        if contents.size >= largest and not whole:
            continue
        if node.op_type in _PRODUCTS and sum(size > 1 for size in contents.shape) > 1:
            continue
        name = names.fresh(f"{output.name}_folded")
        folded = add_constant(graph, ir.tensor(contents, name=name), name)
        made.append(folded)
        output.replace_all_uses_with(folded)
        graph.remove(node, safe=True)
    for folded in made:
        if not folded.uses():  # another statistic was made of it
            graph.initializers.pop(str(folded.name))


def _constants(graph: ir.Graph) -> set[ir.Value]:
    """Return the values that are computed from initializers alone, the same ones each time."""
    found: set[ir.Value] = set()
    for node in graph:
        if not node.inputs or node.domain not in ("", "ai.onnx") or node.op_type in _SLOW:
            continue
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            continue
        graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        if node.op_type.startswith("Random") or any(a.type in graphs for a in node.attributes.values()):
            continue
        if all(value is None or value in found or _is_fixed(value) for value in node.inputs):
            found.add(node.outputs[0])
    return found


def _is_fixed(value: ir.Value) -> bool:
    """Return whether a value is an initializer that no caller can replace, of a type computed here."""
    tensor = value.const_value
    return (
        value.is_initializer()
        and not value.is_graph_input()
        and tensor is not None
        and tensor.dtype in _COMPUTED
    )


def _evaluate(value: ir.Value, opset: int, known: dict[ir.Value, Array]) -> Array | None:
    """Return the contents of a constant value, and keep them and those before it in ``known``.

    None where they can't be computed, or only by computing far more than is stored.
    """
    nodes = _nodes_before(value)
    for source in dict.fromkeys(source for node in nodes for source in node.inputs if source is not None):
        if source.producer() is None and source.const_value is not None:
            known[source] = np.asarray(source.const_value.numpy())
    room = _ROOM + _TIMES_STORED * sum(array.size for array in known.values())
    for node in nodes:
        inputs = [None if source is None else known.get(source) for source in node.inputs]
        elements = result_elements(node, inputs, opset)
        room -= room + 1 if elements is None else elements
        if room < 0:
            return None
        evaluator = reference.ReferenceEvaluator(ir.serde.serialize_node(node), opsets={"": opset})
        feeds = {str(source.name): known[source] for source in node.inputs if source is not None}
        try:
            with np.errstate(all="ignore"):
                result, *_ = evaluator.run(None, feeds)
        # The reference raises whatever numpy does where inputs make no sense (an index outside its table):
        # the node stays, and ONNX Runtime says what is wrong with it.
        except Exception as error:  # noqa: BLE001
            _LOG.debug("%s (%s) is not folded: %s", node.name, node.op_type, error)
            return None
        known[node.outputs[0]] = np.asarray(result)
    return known[value]


def _nodes_before(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that make a constant value, in the order in which they run."""
    found: dict[ir.Node, None] = {}
    pending: list[tuple[ir.Node | None, bool]] = [(value.producer(), False)]
    while pending:
        node, done = pending.pop()
        if node is None or node in found:
            continue
        if done:
            found[node] = None
            continue
        pending.append((node, True))
        pending += [(source.producer(), False) for source in node.inputs if source is not None]
    return list(found)
