"""Matrix products with weights in 8 or 4 bits, in place of those of floats; weights are made when written."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import onnx_ir as ir

from onnxprune.model.names import Names, add_constant
from onnxprune.model.stored import tensor_of
from onnxprune.quantization.stored_weights import add_rounded
from onnxprune.quantization.streamed_weights import in_int8, packed_in_four_bits

_CONTRIB = "com.microsoft"

#: A weight in fewer bits, and its scales.
Weight = tuple[ir.Value, ir.Value]


class Product(Protocol):
    """A form of matrix products."""

    def weight(self, graph: ir.Graph, value: ir.Value, names: Names, *, alone: bool) -> Weight:
        """Add a stored weight ``[summed, outputs]`` in fewer bits, and its scales.

        Args:
            graph: where they go.
            value: the weight.
            names: of the graph.
            alone: nothing else reads the floats, so that the weight may have their name.
        """

    def nodes(self, node: ir.Node, taken: ir.Value, weight: Weight, names: Names) -> list[ir.Node]:
        """Return what computes ``taken @ weight``; its result is the first output of the last node."""


def replace_products(graph: ir.Graph, layers: Collection[str], form: Product) -> None:
    """Replace products by name, in place; a weight that several share is stored once."""
    wanted = set(layers)
    chosen = {node for node in graph if str(node.name) in wanted}
    names = Names(graph)
    weights: dict[ir.Value, Weight] = {}
    for node in [node for node in graph if node in chosen]:
        taken, value = node.inputs
        if taken is None or value is None:
            continue
        if value not in weights:
            alone = all(user in chosen and index == 1 for user, index in value.uses())
            weights[value] = form.weight(graph, value, names, alone=alone)
        made = form.nodes(node, taken, weights[value], names)
        old, new = node.outputs[0], made[-1].outputs[0]
        new.name, new.type, new.shape = old.name, old.type, old.shape
        ir.convenience.replace_nodes_and_values(graph, node, [node], made, [old], [new])


class InFourBits:
    """Weights in 4 bits, in blocks of a column, computed in float: see `Product`.

    Args:
        block_size: weights that share a scale.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._sizes: dict[ir.Value, dict[str, int]] = {}

    def weight(self, graph: ir.Graph, value: ir.Value, names: Names, *, alone: bool) -> Weight:
        """See `Product`."""
        del alone  # packed numbers are no weight of that shape
        graph.opset_imports[_CONTRIB] = 1
        called = names.fresh(f"{value.name}_Q4"), names.fresh(f"{value.name}_scales")
        tensors = packed_in_four_bits(tensor_of(value), self._block_size, called)
        packed, scales = (add_constant(graph, t, n) for t, n in zip(tensors, called, strict=True))
        rows, columns = (int(size) for size in tensor_of(value).shape.numpy())
        self._sizes[packed] = {"K": rows, "N": columns, "bits": 4, "block_size": self._block_size}
        return packed, scales

    def nodes(self, node: ir.Node, taken: ir.Value, weight: Weight, names: Names) -> list[ir.Node]:
        """See `Product`."""
        del names
        sizes = self._sizes[weight[0]]
        return [ir.node("MatMulNBits", [taken, *weight], sizes, domain=_CONTRIB, name=f"{node.name}_Q4")]


class InIntegers:
    """Weights in 8 bits times numbers whose range is found in each run: see `Product`.

    The nodes are those that ONNX Runtime's optimizer makes one of. What several products read is rounded
    once.

    Args:
        per_channel: a scale for each column, not one for all.
    """

    def __init__(self, per_channel: bool) -> None:
        self._per_channel = per_channel
        self._rounded: dict[ir.Value, ir.Node] = {}

    def weight(self, graph: ir.Graph, value: ir.Value, names: Names, *, alone: bool) -> Weight:
        """See `Product`."""
        rounded, scale = in_int8(tensor_of(value), 1 if self._per_channel else None)
        stored = add_rounded(graph, value, rounded, names, alone=alone)
        called = names.fresh(f"{value.name}_scale")
        return stored, add_constant(
            graph, ir.Tensor(scale.reshape(-1 if self._per_channel else ()), name=called), called
        )

    def nodes(self, node: ir.Node, taken: ir.Value, weight: Weight, names: Names) -> list[ir.Node]:
        """See `Product`."""
        new = []
        if taken not in self._rounded:
            self._rounded[taken] = ir.node("DynamicQuantizeLinear", [taken], num_outputs=3)
            new.append(self._rounded[taken])
        numbers, scale, zero_point = self._rounded[taken].outputs
        stored, scales = weight
        product = ir.node("MatMulInteger", [numbers, stored, zero_point], name=f"{node.name}_quant")
        real = ir.node("Cast", [product.outputs[0]], {"to": ir.DataType.FLOAT.value})
        factor = ir.node("Mul", [scale, scales])
        result = ir.node("Mul", [real.outputs[0], factor.outputs[0]])
        new += [product, real, factor, result]
        for made in new[:-1]:
            for output in made.outputs:
                output.name = names.fresh(f"{node.name}_int8")
        return new
