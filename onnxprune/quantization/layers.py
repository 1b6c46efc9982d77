"""The layers of a model that can be quantized, and the nodes between them that then work on integers too."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.model.stored import stored_tensor, tensor_of
from onnxprune.ops.constant_views import passes_through
from onnxprune.types import Skipped

#: Operators whose products take int8 weights.
LAYER_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

#: Operators that ONNX Runtime has for integers, which pay off only between quantized layers.
FOLLOWERS = frozenset(
    (
        "Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Mul",
        "Pad", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
    )
)  # fmt: skip

#: Operators that speak of integers already.
_INTEGER_OPS = ("QLinear", "MatMulInteger", "ConvInteger", "MatMulNBits", "DynamicQuantize")


@dataclass(frozen=True, slots=True)
class Layer:
    """A node that multiplies with a stored weight.

    Attributes:
        name: of the node.
        op_type: of the node.
        weight: name of the stored weight.
        shape: of the weight.
        output: name of the value that it computes.
    """

    name: str
    op_type: str
    weight: str
    shape: tuple[int, ...]
    output: str

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


def is_quantized(model: ir.Model) -> bool:
    """Return whether a model computes in integers, or keeps its weights so, already."""
    return any(
        "QuantizeLinear" in node.op_type or "DequantizeLinear" in node.op_type
        or node.op_type.startswith(_INTEGER_OPS) or _restores_float(node)
        for node in model.graph.all_nodes()
    )  # fmt: skip


def _restores_float(node: ir.Node) -> bool:
    """Return whether a node gives integers that are stored in place of weights their scale."""
    return node.op_type == "Mul" and passes_through(node)


def find_layers(model: ir.Model) -> tuple[list[Layer], list[Skipped]]:
    """Return the layers of the main graph with float32 weights, and why others have none that can be taken.

    Args:
        model: from `onnxprune.quantization.preparing.prepared`.
    """
    layers, skipped = [], []
    for node in model.graph.all_nodes():
        if node.op_type not in LAYER_OPS or node.domain not in ("", "ai.onnx"):
            continue
        reason = _why_not(model, node)
        if reason is not None:
            skipped.append(Skipped(str(node.name), reason))
            continue
        layers.append(_layer(node))
    return layers, skipped


def _layer(node: ir.Node) -> Layer:
    weight, output = node.inputs[1], node.outputs[0]
    shape = () if weight is None else tuple(int(size) for size in tensor_of(weight).shape.numpy())
    return Layer(str(node.name), node.op_type, str(weight and weight.name), shape, str(output.name))


def _why_not(model: ir.Model, node: ir.Node) -> str | None:
    if node.graph is not model.graph:
        return "it is inside the body of an If, Loop or Scan"
    weight = node.inputs[1]
    tensor = None if weight is None else stored_tensor(weight)
    if weight is None or tensor is None or not weight.is_initializer():
        return "both factors are computed: there is no stored weight"
    if tensor.dtype != ir.DataType.FLOAT:
        return f"its weight is {tensor.dtype.name.lower()}, not float32"
    if weight.is_graph_output() or weight.is_graph_input():
        return "its weight is an input or an output of the model"
    if node.op_type == "Gemm" and (
        node.attributes.get_float("alpha", 1.0) != 1.0 or node.attributes.get_float("beta", 1.0) != 1.0
    ):
        return "a Gemm with alpha or beta has no form in integers"
    return None


def with_followers(model: ir.Model, layers: Collection[str]) -> list[str]:
    """Return the names of layers and of the nodes between them that can hand on integers, in graph order.

    A node between them takes all that it reads from quantized nodes, and something quantized reads it.

    Args:
        model: in which the layers are.
        layers: names of the nodes that are quantized.
    """
    chosen = set(layers)
    candidates: set[str] = set()
    for node in model.graph:
        fits = node.op_type in FOLLOWERS and node.domain in ("", "ai.onnx")
        if fits and _reads_only(node, chosen | candidates):
            candidates.add(str(node.name))
    for node in reversed(list(model.graph)):
        name = str(node.name)
        if name in candidates and not _is_read_by(node, chosen | candidates):
            candidates.discard(name)
    return [str(node.name) for node in model.graph if str(node.name) in chosen | candidates]


def _reads_only(node: ir.Node, names: Collection[str]) -> bool:
    read = False
    for value in node.inputs:
        if value is None or stored_tensor(value) is not None:
            continue
        producer = value.producer()
        if producer is None or str(producer.name) not in names:
            return False
        read = True
    return read


def _is_read_by(node: ir.Node, names: Collection[str]) -> bool:
    users = [user for output in node.outputs for user, _ in output.uses()]
    leaves = any(output.is_graph_output() for output in node.outputs)
    return bool(users) and not leaves and all(str(user.name) in names for user in users)


def is_product(layer: Layer) -> bool:
    """Return whether a layer is a MatMul with one matrix, as transformers have them."""
    return layer.op_type == "MatMul" and len(layer.shape) == 2


def channels_of(layer: Layer) -> int:
    """Return the number of scales of a weight with one for each output channel."""
    return layer.shape[1 if layer.op_type == "ConvTranspose" else 0]


def matching(layers: Sequence[Layer], globs: Sequence[str]) -> dict[str, str]:
    """Return the layers whose name, or whose weight's name, one of the globs matches: name -> glob."""
    from fnmatch import fnmatchcase

    found = {}
    for layer in layers:
        glob = next((g for g in globs if fnmatchcase(layer.name, g) or fnmatchcase(layer.weight, g)), None)
        if glob is not None:
            found[layer.name] = glob
    return found
