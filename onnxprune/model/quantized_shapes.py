"""Output shapes of ONNX Runtime's operators on quantized numbers."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir
from onnx import shape_inference

from onnxprune.model.contrib_shapes import Dims, shape_function
from onnxprune.model.dims import Dim

#: The input whose element type the outputs have; results of other operators are floats.
_TYPED_AS = {
    "QGemm": 8,
    "QLinearAdd": 0,
    "QLinearAveragePool": 0,
    "QLinearConcat": 1,
    "QLinearGlobalAveragePool": 0,
    "QLinearLeakyRelu": 0,
    "QLinearMul": 0,
    "QLinearReduceMean": 0,
    "QLinearSigmoid": 0,
    "QLinearSoftmax": 0,
    "QLinearWhere": 1,
    "QuantizeLinear": 2,
}


def typed_as(node: ir.Node) -> ir.Value | None:
    """Return the input whose element type the outputs of a node have, None where these are floats."""
    index = _TYPED_AS.get(node.op_type) if node.domain == "com.microsoft" else None
    return None if index is None or index >= len(node.inputs) else node.inputs[index]


@shape_function("DequantizeLinear", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", "QuantizeLinear")
def _like_first(_: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    return [inputs[0]]


@shape_function("QLinearAdd", "QLinearMul")
def _broadcast_pair(_: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    return [_broadcast([inputs[0], inputs[3]])]


@shape_function("QLinearWhere")
def _broadcast_three(_: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    return [_broadcast([inputs[0], inputs[1], inputs[4]])]


def _broadcast(operands: Sequence[Dims]) -> Dims:
    """Return the shape that operands are broadcast to, None if they don't fit each other."""
    if any(dims is None for dims in operands):
        return None
    known = [dims for dims in operands if dims is not None]
    rank = max(len(dims) for dims in known)
    result = []
    for axis in range(-rank, 0):
        wide = [dims[axis] for dims in known if len(dims) >= -axis and dims[axis] != Dim(1)]
        if len({dim.size for dim in wide}) > 1:
            return None
        result.append(next((dim for dim in wide if dim.is_constant), wide[0] if wide else Dim(1)))
    return tuple(result)


@shape_function("QLinearConcat")
def _joined(node: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    parts = [dims for dims in inputs[2::3] if dims is not None]
    if not parts:
        return [None]
    axis = node.attributes.get_int("axis", 0) % len(parts[0])
    along = [part[axis] for part in parts]
    total = Dim(sum(dim.size for dim in along))
    if not all(dim.is_constant for dim in along):
        total = along[0] if len(along) == 1 else Dim(total.size, 1, (f"{node.outputs[0].name}.{axis}",))
    return [(*parts[0][:axis], total, *parts[0][axis + 1 :])]


@shape_function("QLinearAveragePool")
def _pooled(node: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    """Ask ONNX about the float operator; axes in space that depend on a symbol stay symbols of their own."""
    x = inputs[0]
    if x is None or len(x) < 3:
        return [None]
    last = node.attributes.get_int("channels_last", 0) == 1
    order = [0, len(x) - 1, *range(1, len(x) - 1)] if last else list(range(len(x)))
    given = [x[axis] for axis in order]
    plain = onnx.helper.make_node("AveragePool", ["x"], ["y"])
    for attribute in node.attributes.values():
        if attribute.name != "channels_last":
            plain.attribute.append(ir.to_proto(attribute))
    schema = onnx.defs.get_schema("AveragePool", 19)
    asked = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [dim.size for dim in given])
    try:
        inferred = shape_inference.infer_node_outputs(
            schema, plain, {"x": asked}, opset_imports=[onnx.helper.make_opsetid("", 19)]
        )
    except (shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError):
        return [None]  # the sizes do not fit; reported as unknown
    sizes = [dim.dim_value for dim in inferred["y"].tensor_type.shape.dim]
    pooled = given[:2] + [
        Dim(size) if dim.is_constant else Dim(size, 1, (f"{node.outputs[0].name}.{axis}",))
        for axis, (size, dim) in enumerate(zip(sizes[2:], given[2:], strict=True), start=2)
    ]
    return [(pooled[0], *pooled[2:], pooled[1]) if last else tuple(pooled)]


@shape_function("QLinearGlobalAveragePool")
def _pooled_whole(node: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    x = inputs[0]
    if x is None:
        return [None]
    own = len(x) - 1 if node.attributes.get_int("channels_last", 0) else 1
    return [tuple(dim if axis in (0, own) else Dim(1) for axis, dim in enumerate(x))]


@shape_function("QLinearReduceMean")
def _reduced(node: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    x = inputs[0]
    if x is None:
        return [None]
    axes = {axis % len(x) for axis in node.attributes.get_ints("axes", ())} or set(range(len(x)))
    keep = node.attributes.get_int("keepdims", 1) == 1
    return [tuple(Dim(1) if a in axes else dim for a, dim in enumerate(x) if keep or a not in axes)]


@shape_function("QGemm")
def _general_product(node: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    a, b = inputs[0], inputs[3]
    if a is None or b is None:
        return [None]
    row, column = node.attributes.get_int("transA", 0), node.attributes.get_int("transB", 0)
    return [(a[1 if row else 0], b[0 if column else 1])]


@shape_function("DynamicQuantizeMatMul", "MatMulIntegerToFloat")
def _product(_: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    a, b = inputs[0], inputs[1]
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return [None]
    stack = _broadcast([a[:-2], b[:-2]])
    return [None if stack is None else (*stack, a[-2], b[-1])]


@shape_function("MatMulNBits")
def _packed_product(node: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    a = inputs[0]
    return [None if a is None else (*a[:-1], Dim(node.attributes.get_int("N")))]


@shape_function("GatherBlockQuantized")
def _gathered(node: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    """As Gather; a byte of uint8 holds several numbers of the last axis."""
    table, indices = inputs[0], inputs[1]
    stored = node.inputs[0]
    if table is None or indices is None or stored is None:
        return [None]
    axis = node.attributes.get_int("gather_axis", 0) % len(table)
    result = [*table[:axis], *indices, *table[axis + 1 :]]
    if stored.dtype == ir.DataType.UINT8:
        result[-1] = Dim(result[-1].size * (8 // node.attributes.get_int("bits", 4)))
    return [tuple(result)]


@shape_function("QAttention")
def _attention(node: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    x, w = inputs[0], inputs[1]
    if x is None or w is None:
        return [None, None]
    width, head_count = w[1].size // 3, node.attributes.get_int("num_heads", 1)
    past = inputs[8] if len(inputs) > 8 else None
    length = x[1] if past is None else Dim(past[3].size + x[1].size, 1, (f"{node.outputs[1].name}.3",))
    present = (Dim(2), x[0], Dim(head_count), length, Dim(width // head_count))
    return [(x[0], x[1], Dim(width)), present]


@shape_function("QEmbedLayerNormalization")
def _embedded(_: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    ids, table = inputs[0], inputs[2]
    if ids is None or table is None:
        return [None, None]
    return [(*ids, table[-1]), (ids[0],)]


@shape_function("DynamicQuantizeLSTM")
def _lstm(node: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    x = inputs[0]
    if x is None:
        return [None, None, None]
    directions = Dim(2 if node.attributes.get_string("direction", "forward") == "bidirectional" else 1)
    hidden = Dim(node.attributes.get_int("hidden_size"))
    state = (directions, x[1], hidden)
    return [(x[0], directions, x[1], hidden), state, state]
