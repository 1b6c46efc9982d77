"""What does not depend on the input: channels that hold the same number for every sample and at every place.

A channel whose weights are zero holds its bias; behind a normalisation and an activation it still holds one
number. One pass over the graph finds these numbers. It knows more than nothing of an operator only where that
is exact: at a zero-padded border a constant is no constant, and what can't be followed varies.

For each value there is a float64 array with as many axes as the value. An axis is there whole where its
positions are channels, and has size 1 where all positions hold the same. NaN stands for "varies".
Numbers that vary are taken to be finite: zero times them is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune.ops.channels import Channels
from onnxprune.ops.constant_arrays import Array, along, same_along, sum_rows, wide
from onnxprune.ops.elementwise import Broadcasting, Unary
from onnxprune.ops.evaluate import evaluate
from onnxprune.ops.pool import reduced_axes
from onnxprune.ops.registry import rule_for
from onnxprune.types import FloatArray

#: Operators that only move numbers (or put given ones beside them): they are carried out on whole arrays.
_MOVES = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Pad", "Reshape",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip

#: Elements of the largest value that is carried through a move; larger ones vary.
_LARGEST = 1 << 27


class Constants:
    """The constants of all values of a graph.

    Args:
        graph: the graph that was analysed.
        channels: its labels, solved.
    """

    def __init__(self, graph: ir.Graph, channels: Channels) -> None:
        self.channels = channels
        self._arrays: dict[ir.Value, FloatArray] = {}
        self._bordered: dict[ir.Value, FloatArray] = {}  # times one pattern in space that all channels share
        self._weights: set[ir.Value] = set()  # computed from stored ones alone
        self._sums_to_one: set[ir.Value] = set()  # along the last axis
        self._statistics = {statistic.node for statistic in channels.statistics}
        for node in graph:
            if node.domain in ("", "ai.onnx"):
                self._visit(node)

    def array(self, value: ir.Value | None) -> FloatArray | None:
        """Return the constants of a computed value, None if all of it varies."""
        return None if value is None else self._arrays.get(value)

    def bordered(self, value: ir.Value | None) -> FloatArray | None:
        """Return constants of a value that each stand before one factor, which depends on the place alone.

        A border of zeros makes such values: ``x[n, c, place] = constant[c] * factor[place]``.
        """
        return None if value is None else self._bordered.get(value)

    def contents(self, value: ir.Value | None) -> Array | None:
        """Return a weight as a node sees it: stored, or moved, cast or dequantized on its way, else None."""
        if value is None or value.is_graph_input():
            return None  # an initializer that is an input as well may be given anew at each run
        if value.is_initializer():
            return None if value.const_value is None else value.const_value.numpy()
        node = value.producer()
        if node is None or value not in self._weights:
            return None
        inputs = [self.contents(source) for source in node.inputs]
        results = evaluate(node, inputs, self.channels.shapes.opset)
        return None if results is None else results[0]

    # --- one node -------------------------------------------------------------------------------------------

    def _visit(self, node: ir.Node) -> None:
        if node in self._statistics:
            return  # its results change with the channels that it looks at together
        values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name]
        if any(self.channels.shapes.shape(value) is None for value in values):
            return
        if self._makes_weight(node):
            self._weights.add(node.outputs[0])
        elif node.op_type in _SUMS:
            self._put(node.outputs[0], _SUMS[node.op_type](self, node))
        elif node.op_type == "Mul" or any(source in self._arrays for source in node.inputs):
            if node.op_type in _PASSES:
                self._put(node.outputs[0], _PASSES[node.op_type](self, node))
            elif node.op_type in _MOVES:
                self._move(node)
            if node.op_type in ("AveragePool", "Pad"):
                self._border(node)
            elif self._is_elementwise(node):
                self._elementwise(node)
        self._note_sum(node)

    def _makes_weight(self, node: ir.Node) -> bool:
        if len(node.outputs) != 1 or not any(node.inputs):
            return False
        follows = node.op_type in _MOVES or node.op_type == "DequantizeLinear" or self._is_elementwise(node)
        return follows and all(source is None or self._is_weight(source) for source in node.inputs)

    def _is_weight(self, value: ir.Value) -> bool:
        return value in self._weights or (value.is_initializer() and not value.is_graph_input())

    @staticmethod
    def _is_elementwise(node: ir.Node) -> bool:
        trained = node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None
        return isinstance(rule_for(node), Unary | Broadcasting) and not trained

    def _note_sum(self, node: ir.Node) -> None:
        """Remember what sums to one along the last axis: a Softmax, also where a NaN of it would become 0."""
        source = node.inputs[-1] if node.inputs else None
        if node.op_type == "Softmax":
            rank = self.channels.rank(node.outputs[0])
            last = node.attributes.get_int("axis", -1) % rank == rank - 1
            if not last or self.channels.shapes.opset < 13:
                return
        elif node.op_type == "Where":
            test = node.inputs[0].producer() if node.inputs[0] is not None else None
            guards = test is not None and test.op_type == "IsNaN" and test.inputs[0] is source
            softmax = source.producer() if guards and source is not None else None
            # Where a mask may hide a whole row, the row becomes 0 and not 1.
            if softmax is None or source not in self._sums_to_one or not self._finite(softmax.inputs[0]):
                return
        elif node.op_type != "Cast" or source not in self._sums_to_one:
            return
        self._sums_to_one.add(node.outputs[0])

    def _finite(self, value: ir.Value | None) -> bool:
        """Return whether a value has no infinity as long as all products of matrices have none."""
        if value is None:
            return False
        if value.is_initializer():
            stored = self.contents(value)
            return stored is not None and bool(np.isfinite(stored.astype(np.float64)).all())
        node = value.producer()
        if node is None or node.op_type == "MatMul":
            return node is not None
        return node.op_type in ("Add", "Mul", "Div") and all(self._finite(source) for source in node.inputs)

    def _border(self, node: ir.Node) -> None:
        """A border of zeros around constants, or counted by a mean: a factor that all channels share."""
        x = self.array(node.inputs[0])
        if x is None:
            return
        if node.op_type == "Pad":
            fill = self.contents(node.inputs[2]) if self.channels.has(node, 2) else np.zeros(1)
            mode = node.attributes.get_string("mode", "constant")
            opaque = fill is None or fill.any() or node.attributes.get_float("value", 0.0) != 0
            if mode != "constant" or opaque:
                return
        for axis in {0, *range(2, x.ndim)}:
            x = same_along(x, axis)
        if self.channels.shape(node.outputs[0])[1] == self.channels.shape(self.channels.ref(node, 0))[1]:
            self._bordered[node.outputs[0]] = x

    def _put(self, value: ir.Value, array: Array | None) -> None:
        """Record the constants of a value: along axes without channels, only what is the same everywhere."""
        if array is None or array.size == 0:
            return
        labelled = {axis for block in self.channels.blocks.get(value, ()) for axis in block.axes}
        array = array.astype(np.float64)
        array = array.reshape((1,) * (self.channels.rank(value) - array.ndim) + array.shape)
        for axis in set(range(array.ndim)) - labelled:
            array = same_along(array, axis)
        array = np.where(np.isfinite(array), array, np.nan)
        if not np.isnan(array).all():
            self._arrays[value] = array

    def operand(self, node: ir.Node, index: int) -> FloatArray | None:
        """Return the numbers of an input, a weight or a computed value, None if all of it varies."""
        if not self.channels.has(node, index):
            return None
        value = node.inputs[index]
        known = self.array(value)
        if known is not None:
            return known
        stored = self.contents(value)
        return None if stored is None else stored.astype(np.float64)

    def _elementwise(self, node: ir.Node) -> None:
        """The operator itself, on the constants; what meets something that varies varies, unless times 0."""
        first_only = isinstance(rule_for(node), Unary)
        if node.op_type == "Mul":
            self._put(node.outputs[0], self._product(node))
            return
        arrays: list[Array | None] = []
        varies: Array = np.zeros((), dtype=np.bool_)
        for index, source in enumerate(node.inputs):
            if source is None:
                arrays.append(None)
                continue
            known = self.array(source) if not first_only or index == 0 else None
            if known is None:
                stored = self.contents(source)
                if stored is None:
                    return
                arrays.append(wide(stored))
                continue
            varies = varies | np.isnan(known)
            arrays.append(_as_typed(np.nan_to_num(known), source))
        results = evaluate(node, arrays, self.channels.shapes.opset)
        if results is not None:
            self._put(node.outputs[0], np.where(varies, np.nan, results[0].astype(np.float64)))

    def _product(self, node: ir.Node) -> FloatArray | None:
        a, b = (self.operand(node, index) for index in (0, 1))
        if a is None or b is None:
            known = a if b is None else b
            return None if known is None else np.where(known == 0, 0.0, np.nan)
        zero = (a == 0) | (b == 0)
        return np.where(zero, 0.0, a * b)

    def _move(self, node: ir.Node) -> None:
        """Carry out a move on whole arrays, NaN and all, then see what is still constant."""
        arrays: list[Array | None] = []
        for index, source in enumerate(node.inputs):
            if source is None:
                arrays.append(None)
                continue
            shape = self.channels.shapes.shape(source)
            known = self.array(source)
            if node.op_type in ("Reshape", "Expand") and index == 1:
                arrays.append(np.array(self.channels.shape(node.outputs[0]), dtype=np.int64))
                continue
            if known is None:
                known = self.contents(source)
            if known is None and index and node.op_type != "Concat":
                return  # a computed index or size
            if shape is None or np.prod(shape) > _LARGEST:
                return
            arrays.append(np.broadcast_to(np.float64("nan") if known is None else known, shape))
        results = evaluate(node, arrays, self.channels.shapes.opset)
        for output, result in zip(node.outputs, results or (), strict=results is not None):
            if output.name and result.shape == self.channels.shapes.shape(output):
                self._put(output, result)

    # --- sums over channels ---------------------------------------------------------------------------------

    def _conv(self, node: ir.Node) -> FloatArray | None:
        """bias[o] + sum_i w[o, i] * c[i], where every weight that is not zero meets a constant."""
        weight = self.contents(node.inputs[1])
        rank = self.channels.rank(node.outputs[0])
        if weight is None:
            return None
        groups = node.attributes.get_int("group", 1)
        x = along(self.array(node.inputs[0]), 1, weight.shape[1] * groups)
        if pads_input(node):
            x = np.where(x == 0, 0.0, np.nan)
        return self._rows(node, weight, x.reshape(groups, -1), self._bias(node, 2, weight.shape[0]), rank)

    def _conv_transpose(self, node: ir.Node) -> FloatArray | None:
        """As `_conv`; each place sums over taps of its own, so only zeros are constants."""
        weight = self.contents(node.inputs[1])
        groups = node.attributes.get_int("group", 1)
        if weight is None or groups > 1:
            return None
        x = along(self.array(node.inputs[0]), 1, weight.shape[0])
        x = np.where(x == 0, 0.0, np.nan)[None]
        bias = self._bias(node, 2, weight.shape[1])
        return self._rows(node, np.moveaxis(weight, 1, 0), x, bias, self.channels.rank(node.outputs[0]))

    def _rows(
        self, node: ir.Node, weight: Array, x: FloatArray, bias: FloatArray, rank: int
    ) -> FloatArray | None:
        """Return ``[1, outputs, 1, ...]`` for a kernel ``[outputs, inputs of a group, taps...]``."""
        row = sum_rows(weight, x, bias)
        return None if row is None else row.reshape(1, -1, *(1,) * (rank - 2))

    def _matmul(self, node: ir.Node) -> FloatArray | None:
        y = node.outputs[0]
        rank = self.channels.rank(y)
        for index in (1, 0):
            weight, other = self.contents(node.inputs[index]), self.array(node.inputs[1 - index])
            if weight is None:
                continue
            if weight.ndim != 2 or self.channels.rank(self.channels.ref(node, 1 - index)) < 2:
                return None
            x = along(other, -1 if index else -2, weight.shape[0 if index else 1])
            rows = weight.T if index else weight
            row = sum_rows(rows, x[None], np.zeros(len(rows)))
            if row is None:
                return None
            return row.reshape((1,) * (rank - 1) + (-1,) if index else (1,) * (rank - 2) + (-1, 1))
        return self._product_of_stacks(node)

    def _product_of_stacks(self, node: ir.Node) -> FloatArray | None:
        """Where all rows of b hold the same, y = b times the sums of a's rows; zero where b is zero."""
        a, b = node.inputs[0], self.array(node.inputs[1])
        if b is None or b.ndim < 2 or b.ndim < self.channels.rank(node.outputs[0]):
            return None
        b = same_along(b, -2)[..., :1, :]
        return b if a in self._sums_to_one else np.where(b == 0, 0.0, np.nan)

    def _gemm(self, node: ir.Node) -> FloatArray | None:
        weight = self.contents(node.inputs[1])
        if weight is None:
            return None
        rows = weight if node.attributes.get_int("transB", 0) else weight.T
        x = along(self.array(node.inputs[0]), 0 if node.attributes.get_int("transA", 0) else 1, rows.shape[1])
        row = sum_rows(rows, x[None], np.zeros(len(rows)))
        if row is None:
            return None
        alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
        return (alpha * row + beta * self._bias(node, 2, len(rows)))[None]

    def _bias(self, node: ir.Node, index: int, count: int) -> FloatArray:
        if not self.channels.has(node, index):
            return np.zeros(count)
        return along(self.operand(node, index), -1, count)

    # --- normalisation, pooling, reduction ------------------------------------------------------------------

    def _batch_norm(self, node: ir.Node) -> FloatArray | None:
        """(x - mean) / deviation * scale + bias: constant where x is, and where the scale is zero."""
        parameters = [self.contents(value) for value in node.inputs[1:5]]
        if any(p is None for p in parameters) or node.attributes.get_int("training_mode", 0) == 1:
            return None
        scale = parameters[0]
        rank = self.channels.rank(node.outputs[0])
        if scale is None or rank < 2:
            return None
        x = along(self.array(node.inputs[0]), 1, len(scale))
        varies = np.isnan(x) & (scale != 0)
        if varies.all():
            return None
        shape = (1, -1, *(1,) * (rank - 2))
        vectors = [wide(p) for p in parameters if p is not None]
        results = evaluate(node, [np.nan_to_num(x).reshape(shape), *vectors], self.channels.shapes.opset)
        return None if results is None else np.where(varies.reshape(shape), np.nan, results[0])

    def _instance_norm(self, node: ir.Node) -> FloatArray | None:
        """A constant is its own mean: what is left is the bias, where all places hold the same."""
        x = self.array(node.inputs[0])
        bias = self.operand(node, 2)
        if x is None or bias is None:
            return None
        for axis in range(2, x.ndim):
            x = same_along(x, axis)
        shape = (1, -1, *(1,) * (x.ndim - 2))
        return np.where(np.isnan(x), np.nan, bias.reshape(shape))

    def _pool(self, node: ir.Node) -> FloatArray | None:
        """Means and maxima of a constant are that constant; means that count padding, only of zeros."""
        x = self.array(node.inputs[0])
        exact = node.op_type in ("GlobalAveragePool", "GlobalMaxPool", "MaxPool") or (
            node.op_type == "AveragePool"
            and not (node.attributes.get_int("count_include_pad", 0) and pads_input(node))
        )
        return x if exact or x is None else np.where(x == 0, 0.0, np.nan)

    def _resize(self, node: ir.Node) -> FloatArray | None:
        """Weights of an interpolation sum to one, unless it looks outside."""
        outside = node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize"
        return None if outside else self.array(node.inputs[0])

    def _reduce(self, node: ir.Node) -> FloatArray | None:
        """A mean, maximum or minimum of equal numbers is that number; sums, only of zeros."""
        x = self.array(node.inputs[0])
        if x is None:
            return None
        axes = reduced_axes(node, self.channels, x.ndim)
        if axes is None:
            return None
        for axis in axes:
            x = same_along(x, axis)
        if node.op_type not in ("ReduceMax", "ReduceMean", "ReduceMin"):
            x = np.where(x == 0, 0.0, np.nan)
        keep = node.attributes.get_int("keepdims", 1) == 1
        return x if keep else np.squeeze(x, tuple(axes))


_Handler: TypeAlias = Callable[[Constants, ir.Node], "FloatArray | None"]

#: Operators that can make constants of what varies: sums with zero weights.
_SUMS: dict[str, _Handler] = {
    "BatchNormalization": Constants._batch_norm,
    "Conv": Constants._conv,
    "ConvTranspose": Constants._conv_transpose,
    "Gemm": Constants._gemm,
    "MatMul": Constants._matmul,
}

#: Operators through which constants pass.
_PASSES: dict[str, _Handler] = {
    "AveragePool": Constants._pool,
    "GlobalAveragePool": Constants._pool,
    "GlobalLpPool": Constants._pool,
    "GlobalMaxPool": Constants._pool,
    "InstanceNormalization": Constants._instance_norm,
    "LpPool": Constants._pool,
    "MaxPool": Constants._pool,
    "ReduceL1": Constants._reduce,
    "ReduceL2": Constants._reduce,
    "ReduceMax": Constants._reduce,
    "ReduceMean": Constants._reduce,
    "ReduceMin": Constants._reduce,
    "ReduceSum": Constants._reduce,
    "ReduceSumSquare": Constants._reduce,
    "Resize": Constants._resize,
    "Upsample": Constants._resize,
}


def pads_input(node: ir.Node) -> bool:
    """Return whether a convolution or pooling looks past the border of its input."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    ceil = node.attributes.get_int("ceil_mode", 0)
    return mode in ("SAME_UPPER", "SAME_LOWER") or any(node.attributes.get_ints("pads", ())) or bool(ceil)


def _as_typed(numbers: FloatArray, value: ir.Value) -> Array:
    """Return constants as the type of array that an operator expects: float64 for all floating points."""
    if value.dtype is None or value.dtype.is_floating_point():
        return numbers
    return numbers.astype(value.dtype.numpy())
