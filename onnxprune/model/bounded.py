"""How large a result would be, asked before it is computed: a few numbers may ask for 2^60 elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from onnx import shape_inference

Array: TypeAlias = "np.ndarray[Any, Any]"

#: Operators whose results hold no more elements than their largest input.
_NO_LARGER = frozenset((
    "Abs", "ArgMax", "ArgMin", "Cast", "CastLike", "Ceil", "Clip", "CumSum", "Erf", "Exp", "Flatten", "Floor",
    "Identity", "LayerNormalization", "Log", "LogSoftmax", "Neg", "Not", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Relu", "Reshape", "Round", "Shape", "Sigmoid", "Sign", "Size", "Slice", "Softmax",
    "Split", "Sqrt", "Squeeze", "Tanh", "Transpose", "Unsqueeze",
))  # fmt: skip

#: What ONNX raises about nodes that it does not know, or that make no sense.
_NOT_TOLD = (
    onnx.checker.ValidationError, onnx.defs.SchemaError, shape_inference.InferenceError, RuntimeError,
    ValueError,
)  # fmt: skip

#: Inputs of up to so many elements may be sizes, and are shown to ONNX.
_SIZES = 64


def result_elements(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> int | None:
    """Return the elements of the largest output of a node of the standard operators, None if nobody tells.

    Args:
        node: not changed.
        inputs: an array for each input, None where an optional input is absent.
        opset: version of the standard operators.
    """
    given = [array for array in inputs if array is not None]
    largest = max((array.size for array in given), default=0)
    if node.op_type in _NO_LARGER:
        return largest
    proto = ir.to_proto(node)
    names = [f"i{index}" if array is not None else "" for index, array in enumerate(inputs)]
    del proto.input[:], proto.output[:]
    proto.input.extend(names)
    proto.output.extend(f"o{index}" for index in range(len(node.outputs)))
    types, contents = {}, {}
    for name, array in zip(names, inputs, strict=True):
        if array is not None:
            kind = onnx.TensorProto.FLOAT if array.dtype.kind == "f" else _kind(array)
            types[name] = onnx.helper.make_tensor_type_proto(kind, array.shape)
            if array.size <= _SIZES:
                alike = array.astype(np.float32) if array.dtype.kind == "f" else array
                contents[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(alike), name)
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
        told = shape_inference.infer_node_outputs(
            schema, proto, types, contents, opset_imports=[onnx.helper.make_opsetid("", opset)]
        )
    except _NOT_TOLD:
        return None
    counts = [_elements(kind) for kind in told.values()]
    return None if not counts or None in counts else max(count for count in counts if count is not None)


def _kind(array: Array) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))


def _elements(kind: onnx.TypeProto) -> int | None:
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.tensor_type.shape.dim]
    return None if any(size < 0 for size in sizes) else math.prod(sizes)
