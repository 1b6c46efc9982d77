"""What a model costs: parameters, multiply-accumulates, bytes; now, and after a cut that is only planned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set

import numpy as np
import onnx_ir as ir

from onnxprune.model.body_shapes import branches, has_bodies
from onnxprune.model.prepare import prepare
from onnxprune.ops.channels import Channels, Use
from onnxprune.ops.control import body_runs
from onnxprune.ops.kept import Kept
from onnxprune.ops.registry import rule_for
from onnxprune.types import Cost


def cost_of(
    graph: ir.Graph, channels: Channels, kept: Kept | None = None, gone: Set[ir.Node] = frozenset()
) -> Cost:
    """Return the cost of a graph, or that of the graph after a cut. MACs are those of one sample.

    Of an If the dearer branch counts; of a Loop or Scan, every iteration at the sizes of the analysis (one,
    where a Loop ends by what it computes).

    Args:
        graph: the analysed graph, whose bodies keep their constants in it.
        channels: its labels.
        kept: what a plan would leave; None for the graph as it is.
        gone: nodes that a plan would remove, with the weights that only they read.
    """
    kept = kept or nothing_cut(channels)
    params, size_bytes = _weights(graph, kept, gone)
    return Cost(params, _macs(graph, channels, kept, gone), size_bytes)


def cost_of_model(
    model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None = None, *, in_place: bool = False
) -> Cost:
    """Count a model as it is, for which its channels need not be known.

    Args:
        model: not changed, unless ``in_place``.
        input_shapes: concrete shapes by input name for symbolic axes; sensible sizes are tried otherwise.
        in_place: nobody needs the model afterwards: it is changed, not copied.

    Raises:
        UsageError, ModelError: an input shape is missing or does not fit.
    """
    work, shapes = prepare(model, input_shapes, in_place=in_place)
    return cost_of(work.graph, Channels(shapes))


def nothing_cut(channels: Channels) -> Kept:
    """Return what is left where nothing is removed."""
    return Kept(channels, np.zeros(channels.labels.count, dtype=np.bool_))


def counts_as_parameters(tensor: ir.TensorProtocol) -> bool:
    """True for floating-point and quantized weights, False for sizes and indices."""
    return tensor.dtype.is_floating_point() or tensor.dtype in _QUANTIZED


def _macs(graph: ir.Graph, channels: Channels, kept: Kept, gone: Set[ir.Node]) -> int:
    total = sum(macs for node, macs in macs_by_node(graph, channels, kept) if node not in gone)
    return round(total / channels.shapes.samples)


def macs_by_node(graph: ir.Graph, channels: Channels, kept: Kept) -> Iterator[tuple[ir.Node, int]]:
    """Yield the multiply-accumulates of every node of which they are known, for all samples of the batch.

    Those of a body are those of the node that holds it.
    """
    for node in graph:
        macs = node_macs(node, channels, kept)
        if macs is not None:
            yield node, macs


def node_macs(node: ir.Node, channels: Channels, kept: Kept) -> int | None:
    """Return the multiply-accumulates of a node for all samples of the batch, None if they are not known."""
    if has_bodies(node):
        return _body_macs(node, channels, kept)
    rule = rule_for(node)
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name]
    if rule is None or any(value not in channels.shapes.dims for value in values):
        return None  # nothing is known of it, so nothing is counted: the report lists such operators

    def shape_of(value: ir.Value) -> tuple[int, ...]:
        if value.is_initializer():
            return kept.shape(Use(node, list(node.inputs).index(value)))
        return kept.shape(value)

    return rule.macs(node, shape_of)


def _body_macs(node: ir.Node, channels: Channels, kept: Kept) -> int:
    """Count control flow: the dearer branch of an If, every iteration of a Loop or Scan.

    A Loop whose number of iterations depends on what it computes counts as one iteration.
    """
    if node.op_type == "If":
        return max(_graph_macs(branch, channels, kept) for branch in branches(node))
    body = node.attributes["body"].as_graph()
    return body_runs(node, channels.shapes) * _graph_macs(body, channels, kept)


def _graph_macs(graph: ir.Graph, channels: Channels, kept: Kept) -> int:
    return sum(macs for _, macs in macs_by_node(graph, channels, kept))


def _weights(graph: ir.Graph, kept: Kept, gone: Set[ir.Node]) -> tuple[int, int]:
    """Return elements and bytes of all weights."""
    params = size_bytes = 0
    for value in graph.initializers.values():
        elements, stored = weight_cost(value, kept, gone)
        params += elements
        size_bytes += stored
    return params, size_bytes


def weight_cost(value: ir.Value, kept: Kept, gone: Set[ir.Node] = frozenset()) -> tuple[int, int]:
    """Return the parameters and the bytes of a weight; a tied one that is cut in two ways counts twice."""
    tensor = value.const_value
    if tensor is None or (gone and value.uses() and all(node in gone for node, _ in value.uses())):
        return 0, 0
    versions: dict[tuple[object, ...], int] = {}
    for node, index in value.uses() if kept.cuts else ():
        if node in gone:
            continue
        use = Use(node, index)
        masks = kept.masks(use)
        key = tuple((axis, mask.tobytes()) for axis, mask in sorted(masks.items()))
        versions[key] = math.prod(kept.shape(use)) if masks else tensor.size
    elements = sum(versions.values()) if versions else tensor.size
    if tensor.dtype == ir.DataType.STRING:
        return 0, tensor.nbytes  # labels or words: nothing that is multiplied
    stored = math.ceil(elements * tensor.dtype.itemsize)
    return (elements if counts_as_parameters(tensor) else 0), stored


_QUANTIZED = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4})
