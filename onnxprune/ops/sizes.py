"""Operators on sizes: their results are numbers about a shape, not channels."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.ops.base import OpRule, op_rule
from onnxprune.ops.channels import Channels


@op_rule("Constant", "ConstantOfShape", "EyeLike", "Range", "Shape", "Size")
class Sizes(OpRule):
    """y = numbers made from sizes; those that are constant were folded before"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """No input loses anything by being measured, and no output has channels."""
