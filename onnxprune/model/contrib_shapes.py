"""Output shapes of operators that ONNX does not tell: those that ONNX Runtime adds, and a few of its own.

A shape function gets the sizes of all inputs, symbols included, and returns those of the outputs. It uses the
`Dim` objects of the inputs wherever it can, so that equal names go on meaning equal sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import onnx
import onnx_ir as ir

from onnxprune.model.dims import Dim

#: Sizes of one value; None where an input is left out, or an output's sizes can't be told.
Dims: TypeAlias = tuple[Dim, ...] | None
ShapeFunction: TypeAlias = Callable[[ir.Node, Sequence[Dims]], Sequence[Dims]]

_FUNCTIONS: dict[tuple[str, str], ShapeFunction] = {}


def shape_function(*op_types: str, domain: str = "com.microsoft") -> Callable[[ShapeFunction], ShapeFunction]:
    """Return a decorator that files a function for operators."""

    def file(function: ShapeFunction) -> ShapeFunction:
        for op_type in op_types:
            _FUNCTIONS[domain, op_type] = function
        return function

    return file


def function_for(node: ir.Node) -> ShapeFunction | None:
    """Return the function that tells the output sizes of a node, None if there is none."""
    return _FUNCTIONS.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))


@shape_function("GroupNormalization", "MeanVarianceNormalization", domain="")
def _like_first(_: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    return [inputs[0]]


class _StandIn(NamedTuple):
    """A standard operator with the same output shape: its name, how many inputs, foreign attributes."""

    op_type: str
    inputs: int
    drops: frozenset[str]


_STAND_INS = {
    ("com.microsoft", "FusedConv"): _StandIn("Conv", 3, frozenset({"activation", "activation_params"})),
    ("com.microsoft", "FusedGemm"): _StandIn(
        "Gemm", 3, frozenset({"activation", "activation_alpha", "activation_beta", "activation_gamma"})
    ),
}


def as_standard(node: ir.Node) -> onnx.NodeProto:
    """Return a node for ONNX to infer: itself, or the standard operator that it is a fused form of."""
    proto = _serialize(node)
    stand_in = _STAND_INS.get((node.domain, node.op_type))
    if stand_in is not None:
        proto.op_type, proto.domain = stand_in.op_type, ""
        del proto.input[stand_in.inputs :]
        kept = [attribute for attribute in proto.attribute if attribute.name not in stand_in.drops]
        del proto.attribute[:]
        proto.attribute.extend(kept)
    return proto


def _serialize(node: ir.Node) -> onnx.NodeProto:
    """Return a node without its name and metadata, and missing outputs at its end."""
    outputs = [value.name or "" for value in node.outputs]
    while outputs and not outputs[-1]:
        outputs.pop()
    inputs = ["" if value is None else str(value.name) for value in node.inputs]
    proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain, input=inputs, output=outputs)
    for attribute in node.attributes.values():
        if attribute.is_ref():
            ir.serde.serialize_reference_attribute_into(proto.attribute.add(), attribute)
        elif attribute.type == ir.AttributeType.INTS:
            kind = onnx.AttributeProto.INTS
            proto.attribute.add(name=attribute.name, type=kind, ints=attribute.as_ints())
        elif attribute.type == ir.AttributeType.INT:
            kind = onnx.AttributeProto.INT
            proto.attribute.add(name=attribute.name, type=kind, i=attribute.as_int())
        else:
            ir.serde.serialize_attribute_into(proto.attribute.add(), attribute)
    return proto


def computed(size: int, output: ir.Value, axis: int, *parts: Dim) -> Dim:
    """Return a size that was computed from others: a number if they are, else a symbol of its own."""
    constant = all(part.is_constant for part in parts)
    return Dim(size) if constant else Dim(size, 1, (f"{output.name}.{axis}",))


def sum_of(output: ir.Value, axis: int, *parts: Dim) -> Dim:
    """Return the sum of sizes."""
    return computed(sum(part.size for part in parts), output, axis, *parts)
