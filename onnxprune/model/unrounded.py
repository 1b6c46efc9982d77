"""A copy of a quantized model that computes the same without rounding: what two models are compared in.

Sums of floats differ in the last bit when their order changes, and a quantizer behind them may then round to
the next step, which is one part in 255. So two models that compute the same can differ by far more than
float arithmetic does, and a comparison that lets this pass would let errors pass. Here a quantizer saturates
as it did, but does not round: its result is the real number that was meant. Weights are dequantized as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.model.names import Names, add_constant
from onnxprune.model.nodes import nodes_in
from onnxprune.model.stored import stored_tensor

#: Operators that move the numbers of input 0, or pick the largest, whatever these stand for.
_MOVES = frozenset(
    {
        "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice",
        "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip


_LARGEST = float(np.finfo(np.float32).max)
_QUANTIZERS = ("QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul")


class _NotFollowed(Exception):
    """The model can't be written without rounding. Never leaves this module."""


@dataclass(frozen=True, slots=True)
class _Step:
    """What one integer step of a quantized value meant; no scale where it was taken from the data."""

    scale: ir.Value | None
    zero_point: ir.Value | None


def without_rounding(model: ir.Model) -> ir.Model | None:
    """Return a copy in which activations are not rounded; None where nothing rounds, or it can't be told.

    It can't where an operator computes with quantized numbers that is not one of those that quantizers write.

    Args:
        model: in float32; not changed.
    """
    if not any(node.op_type in _QUANTIZERS for node in nodes_in(model.graph)):
        return None
    copy = model.clone()
    rewriter = _Rewriter(copy.graph)
    try:
        for node in list(nodes_in(copy.graph)):
            rewriter.visit(node)
    except _NotFollowed:
        return None
    return copy if rewriter.quantizers else None


class _Rewriter:
    """One walk over the nodes, those of bodies too; values that held integers hold real numbers behind it."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.names = Names(graph)
        self.quantizers = 0
        self.real: dict[ir.Value, _Step] = {}

    def visit(self, node: ir.Node) -> None:
        rewrite = _REWRITES.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))
        if rewrite is not None:
            rewrite(self, node)
        elif any(value in self.real for value in node.inputs if value is not None):
            raise _NotFollowed

    # --- writing --------------------------------------------------------------------------------------------

    def constant(self, numbers: np.ndarray, wanted: str) -> ir.Value:
        """Register a constant."""
        name = self.names.fresh(wanted)
        return add_constant(self.graph, ir.tensor(numbers, name=name), name)

    def before(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Sequence[ir.Attr] = (),
    ) -> ir.Value:
        """Insert a node before another; return its output, a float32 value."""
        new = ir.node(op_type, inputs, {attribute.name: attribute for attribute in attributes})
        output = new.outputs[0]
        output.name = new.name = self.names.fresh(f"{node.outputs[0].name}_{op_type.lower()}")
        output.dtype = ir.DataType.FLOAT
        (node.graph or self.graph).insert_before(node, new)
        return output

    def replace(self, node: ir.Node, output: int, value: ir.Value) -> None:
        """Let ``value`` stand for an output of a node, under its name where it leaves the graph."""
        old = node.outputs[output]
        if old.is_graph_output():
            if old.dtype is None or not old.dtype.is_floating_point():
                raise _NotFollowed
            wanted, old.name = old.name, self.names.fresh(f"{old.name}_rounded")
            copy = self.before(node, "Identity", [value])
            copy.name, copy.type, copy.shape = wanted, old.type, old.shape
            value = copy
        old.replace_all_uses_with(value, replace_graph_outputs=True)

    def drop(self, node: ir.Node) -> None:
        """Remove a node whose outputs nobody needs."""
        (node.graph or self.graph).remove(node, safe=True)

    # --- reading --------------------------------------------------------------------------------------------

    def numbers(
        self, node: ir.Node, index: int, scale: ir.Value | None, zero_point: ir.Value | None, axis: int
    ) -> ir.Value:
        """Return an operand as real numbers: what was not rounded, or a DequantizeLinear of it."""
        value = node.inputs[index]
        if value is None:
            raise _NotFollowed
        if value in self.real:
            return value
        if scale is None:
            known = None if zero_point is None else stored_tensor(zero_point)
            if zero_point is not None and known is None:
                raise _NotFollowed
            scale = self.constant(np.ones(() if known is None else known.shape.numpy(), np.float32), "one")
        attributes = [] if axis == 1 else [ir.AttrInt64("axis", axis)]
        return self.before(node, "DequantizeLinear", [value, scale, zero_point], attributes)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _quantize(rewriter: _Rewriter, node: ir.Node) -> None:
    """The input between the least and the greatest number that the integers can say."""
    x, scale, zero_point = (_input(node, index) for index in range(3))
    if x is None or scale is None or stored_tensor(x) is not None:
        return
    _finish(rewriter, node, x, scale, zero_point, node.attributes.get_int("axis", 1))


def _finish(
    rewriter: _Rewriter,
    node: ir.Node,
    x: ir.Value,
    scale: ir.Value,
    zero_point: ir.Value | None,
    axis: int = 0,
) -> None:
    """Let ``x`` stand for the output of a node that quantizes it, within what its integers can say."""
    step, zero = stored_tensor(scale), None if zero_point is None else stored_tensor(zero_point)
    if step is None or (zero_point is not None and zero is None):
        raise _NotFollowed
    dtype = ir.DataType.UINT8 if zero is None else zero.dtype
    offset = np.zeros((), np.int64) if zero is None else np.asarray(zero.numpy()).astype(np.int64)
    if not dtype.is_integer() or np.asarray(step.numpy()).ndim > 1 or dtype.bitwidth > 16:
        raise _NotFollowed
    least = -(2 ** (dtype.bitwidth - 1)) if dtype.is_signed() else 0
    limited = x
    for op_type, limit in (("Max", least), ("Min", least + 2**dtype.bitwidth - 1)):
        with np.errstate(all="ignore"):
            bound = np.asarray((limit - offset) * step.numpy(), np.float32)
        # A scale that is no number limits nothing.
        bound = np.nan_to_num(bound, nan=-_LARGEST if op_type == "Max" else _LARGEST)
        if bound.size > 1:
            if x.shape is None:
                raise _NotFollowed
            rank = len(x.shape)
            bound = bound.reshape([-1 if place == axis % rank else 1 for place in range(rank)])
        bound = bound.reshape(()) if bound.size == 1 else bound
        limited = rewriter.before(node, op_type, [limited, rewriter.constant(bound, "bound")])
    rewriter.real[limited] = _Step(scale, zero_point)
    rewriter.replace(node, 0, limited)
    rewriter.quantizers += 1
    rewriter.drop(node)


def _dequantize(rewriter: _Rewriter, node: ir.Node) -> None:
    """What was not rounded, if the steps are those that it would have been rounded to."""
    x = _input(node, 0)
    if x is None or x not in rewriter.real:
        return
    _check_step(rewriter.real[x], _input(node, 1), _input(node, 2))
    rewriter.replace(node, 0, rewriter.before(node, "Identity", [x]))
    rewriter.drop(node)


def _check_step(step: _Step, scale: ir.Value | None, zero_point: ir.Value | None) -> None:
    for ours, theirs in ((step.scale, scale), (step.zero_point, zero_point)):
        if ours is theirs:
            continue
        a, b = (None if value is None else stored_tensor(value) for value in (ours, theirs))
        if a is None or b is None or not np.array_equal(a.numpy(), b.numpy()):
            raise _NotFollowed


def _quantize_dynamically(rewriter: _Rewriter, node: ir.Node) -> None:
    """The input itself, in steps of one from zero."""
    x = _input(node, 0)
    if x is None:
        raise _NotFollowed
    scale = rewriter.constant(np.ones((), np.float32), "one")
    zero_point = rewriter.constant(np.zeros((), np.uint8), "nothing")
    same = rewriter.before(node, "Identity", [x])
    rewriter.real[same] = _Step(scale, zero_point)
    for number, value in enumerate((same, scale, zero_point)):
        rewriter.replace(node, number, value)
    rewriter.quantizers += 1
    rewriter.drop(node)


def _multiply(rewriter: _Rewriter, node: ir.Node) -> None:
    """The float operator on what its operands mean; the result counts as integers until it is cast."""
    operands = []
    kernel = node.op_type == "ConvInteger"
    for index, axis in ((0, 1), (1, 0 if kernel else -1)):
        value, zero_point = _input(node, index), _input(node, index + 2)
        if value in rewriter.real:
            _check_step(rewriter.real[value], rewriter.real[value].scale, zero_point)
        operands.append(rewriter.numbers(node, index, None, zero_point, axis))
    attributes = list(node.attributes.values())
    product = rewriter.before(node, "Conv" if kernel else "MatMul", operands, attributes)
    rewriter.replace(node, 0, product)
    rewriter.real[product] = _Step(None, None)
    rewriter.drop(node)


def _multiply_to_float(rewriter: _Rewriter, node: ir.Node) -> None:
    """MatMulIntegerToFloat and DynamicQuantizeMatMul as a product and a sum of floats."""
    dynamic = node.op_type == "DynamicQuantizeMatMul"
    scale_at, zero_at, bias_at = (2, 3, 4) if dynamic else (3, 5, 6)
    if dynamic:
        left = _input(node, 0)
        rewriter.quantizers += 1
    else:
        left = rewriter.numbers(node, 0, _input(node, 2), _input(node, 4), -2)
    right = rewriter.numbers(node, 1, _input(node, scale_at), _input(node, zero_at), -1)
    product = rewriter.before(node, "MatMul", [left, right])
    bias = _input(node, bias_at)
    if bias is not None:
        product = rewriter.before(node, "Add", [product, bias])
    rewriter.replace(node, 0, product)
    rewriter.drop(node)


def _bias(rewriter: _Rewriter, node: ir.Node, index: int, scales: tuple[int, int]) -> ir.Value | None:
    """Return an int32 bias as real numbers: its scale is the product of two others."""
    bias = _input(node, index)
    if bias is None:
        return None
    scale = rewriter.before(node, "Mul", [_input(node, place) for place in scales])
    return rewriter.before(node, "DequantizeLinear", [bias, scale], [ir.AttrInt64("axis", 0)])


def _compute(rewriter: _Rewriter, node: ir.Node) -> None:
    """The float operator on what the operands of a QLinear operator mean, within what its result can say."""
    float_type, operands, result = _COMPUTED[node.op_type]
    attributes = [a for a in node.attributes.values() if a.name not in ("channels_last", "opset")]
    scaled = node.op_type == "QGemm" and node.attributes.get_float("alpha", 1.0) != 1
    if scaled or node.attributes.get_int("channels_last", 0) == 1:
        raise _NotFollowed
    if node.op_type == "QLinearConcat":
        operands = tuple((index, -1) for index in range(2, len(node.inputs), 3))
    inputs: list[ir.Value | None] = []
    for index, axis in operands:
        if node.op_type == "QGemm" and index == 3:
            axis = 0 if node.attributes.get_int("transB", 0) else 1
        scale, zero_point = _input(node, index + 1), _input(node, index + 2)
        if node.inputs[index] in rewriter.real:
            _check_step(rewriter.real[node.inputs[index]], scale, zero_point)  # type: ignore[index]
        inputs.append(rewriter.numbers(node, index, scale, zero_point, axis))
    if node.op_type in ("QGemm", "QLinearConv"):
        inputs.append(_bias(rewriter, node, 6 if node.op_type == "QGemm" else 8, (1, 4)))
    if node.op_type == "QLinearWhere":
        inputs.insert(0, _input(node, 0))
    computed = rewriter.before(node, float_type, inputs, attributes)
    scale = _input(node, result)
    if scale is None:  # a QGemm whose result is float
        rewriter.replace(node, 0, computed)
        rewriter.drop(node)
        return
    _finish(rewriter, node, computed, scale, _input(node, result + 1))


#: The float operator, the operands with the axes that vectors of scales go along, the scale of the result.
_COMPUTED: dict[str, tuple[str, tuple[tuple[int, int], ...], int]] = {
    "QGemm": ("Gemm", ((0, -1), (3, -1)), 7),
    "QLinearAdd": ("Add", ((0, -1), (3, -1)), 6),
    "QLinearAveragePool": ("AveragePool", ((0, -1),), 3),
    "QLinearConcat": ("Concat", (), 0),
    "QLinearConv": ("Conv", ((0, -1), (3, 0)), 6),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", ((0, -1),), 3),
    "QLinearLeakyRelu": ("LeakyRelu", ((0, -1),), 3),
    "QLinearMatMul": ("MatMul", ((0, -2), (3, -1)), 6),
    "QLinearMul": ("Mul", ((0, -1), (3, -1)), 6),
    "QLinearSigmoid": ("Sigmoid", ((0, -1),), 3),
    "QLinearSoftmax": ("Softmax", ((0, -1),), 3),
    "QLinearWhere": ("Where", ((1, -1), (4, -1)), 7),
}


def _cast(rewriter: _Rewriter, node: ir.Node) -> None:
    """Sums of products become floats, which they are already."""
    x = _input(node, 0)
    if x in rewriter.real:
        if rewriter.real[x].scale is not None or node.attributes.get_int("to", 0) != ir.DataType.FLOAT:
            raise _NotFollowed
        rewriter.replace(node, 0, rewriter.before(node, "Identity", [x]))
        rewriter.drop(node)


def _move(rewriter: _Rewriter, node: ir.Node) -> None:
    """Moved numbers mean what they meant."""
    moved = [value for value in node.inputs if value in rewriter.real]
    if not moved:
        return
    every = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    if len(moved) != len(every) or any(value not in rewriter.real for value in every):
        raise _NotFollowed
    step = rewriter.real[moved[0]]
    for value in moved[1:]:
        _check_step(step, rewriter.real[value].scale, rewriter.real[value].zero_point)
    for output in node.outputs:
        if output.is_graph_output():
            raise _NotFollowed
        output.type = ir.TensorType(ir.DataType.FLOAT)
        rewriter.real[output] = step


_REWRITES: dict[tuple[str, str], Callable[[_Rewriter, ir.Node], None]] = {
    ("", "Cast"): _cast,
    ("", "Concat"): _move,
    ("", "ConvInteger"): _multiply,
    ("", "DequantizeLinear"): _dequantize,
    ("", "DynamicQuantizeLinear"): _quantize_dynamically,
    ("", "MatMulInteger"): _multiply,
    ("", "QuantizeLinear"): _quantize,
    ("com.microsoft", "DequantizeLinear"): _dequantize,
    ("com.microsoft", "DynamicQuantizeMatMul"): _multiply_to_float,
    ("com.microsoft", "MatMulIntegerToFloat"): _multiply_to_float,
    ("com.microsoft", "QuantizeLinear"): _quantize,
    **{("", op_type): _move for op_type in _MOVES},
    **{(domain, op_type): _compute for op_type in _COMPUTED for domain in ("", "com.microsoft")},
}
