"""Constants added to what a node computes: in a bias that it has, in the Add behind it, or in a new one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.model.names import Names, add_constant
from onnxprune.types import FloatArray


class BiasWriter:
    """Changes stored tensors of a graph without touching other users of the old ones.

    Args:
        graph: changed in place.

    Attributes:
        added: how many numbers the graph holds more than before.
        added_bytes: their bytes.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.added = self.added_bytes = 0
        self._names = Names(graph)

    def add_to_result(
        self, node: ir.Node, delta: FloatArray, *, rank: int | None = None, dtype: ir.DataType | None = None
    ) -> None:
        """Add constants to the result of a node of this graph, wherever its bias is kept.

        Args:
            node: its first output is what counts.
            delta: float64, of a shape that broadcasts to the output's: ``[channels, 1, 1]`` for that of a
                convolution of images, ``[columns]`` for that of a product.
            rank: of the output, if the graph does not declare it.
            dtype: of the output, if the graph does not declare it.
        """
        output = node.outputs[0]
        if output.shape is not None:
            rank = output.shape.rank()
        dtype = (
            output.dtype or dtype or next((v.dtype for v in node.inputs if v is not None and v.dtype), None)
        )
        if dtype is None:
            raise ValueError(f"the type of {output.name} is not known")
        self._add(node, delta, rank, dtype)

    def _add(self, node: ir.Node, delta: FloatArray, rank: int | None, dtype: ir.DataType) -> None:
        if node.op_type in ("Conv", "FusedConv") and self._add_to_input(node, 2, delta.reshape(-1), dtype):
            return
        if node.op_type in ("Gemm", "FusedGemm"):
            beta = node.attributes.get_float("beta", 1.0)
            if beta != 0 and self._add_to_input(node, 2, delta / beta, dtype):
                return
        if not self._add_to_next(node.outputs[0], delta, rank):
            self._insert_add(node, delta, dtype)

    def store(self, node: ir.Node, index: int, array: FloatArray) -> None:
        """Replace a stored input of one node, in its own type.

        Raises:
            ValueError: the input is not stored.
        """
        value = node.inputs[index]
        old = None if value is None else value.const_value
        if value is None or old is None:
            raise ValueError(f"input {index} of {node.name} is not stored")
        alone = len(value.uses()) == 1 and not value.is_graph_output()
        name = str(value.name) if alone else self._names.fresh(str(value.name))
        tensor = ir.Tensor(array.astype(old.dtype.numpy()), dtype=old.dtype, name=name)
        if alone:
            self._count(tensor.size - old.size, tensor.nbytes - old.nbytes)
            value.const_value, value.shape = tensor, ir.Shape(array.shape)
        else:
            self._count(tensor.size, tensor.nbytes)
            node.replace_input_with(index, add_constant(self.graph, tensor, name))

    def _add_to_input(self, node: ir.Node, index: int, delta: FloatArray, dtype: ir.DataType) -> bool:
        """Add to a bias that the operator has as an input; False where that is computed."""
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and not is_fixed(value):
            return False
        if value is None:
            if index >= len(node.inputs):
                node.resize_inputs(index + 1)
            node.replace_input_with(index, self._constant(f"{node.outputs[0].name}_bias", delta, dtype))
            return True
        self.store(node, index, numbers_of(value) + delta)
        return True

    def _add_to_next(self, output: ir.Value, delta: FloatArray, rank: int | None) -> bool:
        """Add to the stored operand of the only node behind, if that is an Add."""
        uses = output.uses()
        if len(uses) != 1 or output.is_graph_output():
            return False
        (use,) = uses
        is_add = use.node.op_type == "Add" and use.node.domain in ("", "ai.onnx")
        if not is_add or use.node.graph is not self.graph:
            return False
        bias = use.node.inputs[1 - use.idx]
        if bias is None or not is_fixed(bias) or rank is None or numbers_of(bias).ndim > rank:
            return False
        if numbers_of(bias).size < delta.size:
            return False
        self.store(use.node, 1 - use.idx, numbers_of(bias) + delta)
        return True

    def _insert_add(self, node: ir.Node, delta: FloatArray, dtype: ir.DataType) -> None:
        """Put an Add behind a node; its result has the old name."""
        before = node.outputs[0]
        uses = list(before.uses())
        name = str(before.name)
        before.name = self._names.fresh(f"{name}_without_constants")
        constant = self._constant(f"{name}_constants", delta, dtype)
        add = ir.node("Add", [before, constant], name=self._names.fresh(f"{name}_add_constants"))
        after = add.outputs[0]
        after.name, after.shape, after.type = name, before.shape, before.type
        for user, index in uses:
            user.replace_input_with(index, after)
        for position, value in enumerate(self.graph.outputs):
            if value is before:
                self.graph.outputs[position] = after
        self.graph.insert_after(node, add)

    def _constant(self, wanted: str, array: FloatArray, dtype: ir.DataType) -> ir.Value:
        """Register numbers."""
        name = self._names.fresh(wanted)
        tensor = ir.Tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)
        self._count(tensor.size, tensor.nbytes)
        return add_constant(self.graph, tensor, name)

    def _count(self, numbers: int, size_bytes: int) -> None:
        self.added += numbers
        self.added_bytes += size_bytes


def is_fixed(value: ir.Value) -> bool:
    """Return whether a value is a floating-point weight that no run gives anew."""
    tensor = value.const_value
    fixed = value.is_initializer() and not value.is_graph_input()
    return fixed and tensor is not None and tensor.dtype.is_floating_point()


def numbers_of(value: ir.Value) -> FloatArray:
    """Return the contents of a stored value in float64.

    Raises:
        ValueError: the value is not stored.
    """
    if value.const_value is None:
        raise ValueError(f"{value.name} is not stored")
    return value.const_value.numpy().astype(np.float64)
