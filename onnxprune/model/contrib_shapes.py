"""Output shapes of operators that ONNX does not tell: those that ONNX Runtime adds, and a few of its own.

A shape function gets the sizes of all inputs, symbols included, and returns those of the outputs. It uses the
`Dim` objects of the inputs wherever it can, so that equal names go on meaning equal sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import onnx_ir as ir

from onnxprune.model.shape_values import Dim

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


@shape_function("BiasGelu", "FastGelu", "Gelu", "QuickGelu")
@shape_function("GroupNormalization", "MeanVarianceNormalization", domain="")
def _like_first(_: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    return [inputs[0]]
