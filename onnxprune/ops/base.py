"""What the tool must know about an operator, and the table of all that it knows.

A rule is a small object with one method for each question. Only ``link`` must be answered; the rest have
answers that are right for operators that hold no weights and carry no sizes. An operator without a rule is
opaque: everything that it touches is frozen, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

if TYPE_CHECKING:
    from onnxprune.ops.channels import Channels
    from onnxprune.ops.kept import Kept

#: Shape of a value, with every axis a concrete size.
ShapeOf = Callable[[ir.Value], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class WeightInput:
    """An input that is multiplied and summed: candidates for masks and N:M patterns.

    Attributes:
        index: which input of the node.
        summed_axis: the axis of that input that the node sums over (non-negative).
        output_axis: the axis of that input that indexes outputs (non-negative).
        zero_point: the input that holds what stands for zero; None unless the numbers are quantized.
    """

    index: int
    summed_axis: int
    output_axis: int
    zero_point: int | None = None


class OpRule:
    """All knowledge of one operator. The class docstring of a rule states its algebra.

    Attributes:
        needs_shapes: ``link`` is called only where the shapes of all inputs and outputs are known.
        scale_input: which input scales every channel of what was normalised; None for other operators.
    """

    needs_shapes: ClassVar[bool] = True
    scale_input: ClassVar[int | None] = None

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Say which positions of the inputs and outputs are the same channel. Never changes the node."""
        raise NotImplementedError

    def fix(self, node: ir.Node, kept: Kept) -> None:
        """Repair sizes written in attributes and shape inputs, after the tensors were cut."""

    def macs(self, node: ir.Node, shape_of: ShapeOf) -> int:
        """Return the multiply-accumulate operations of one run, from the shapes alone."""
        return 0

    def weight_inputs(self, node: ir.Node, rank_of: Callable[[ir.Value], int]) -> tuple[WeightInput, ...]:
        """Return the inputs that the node multiplies and sums over, whether or not they are constant."""
        return ()


_RULES: dict[tuple[str, str], OpRule] = {}


def op_rule(*op_types: str, domain: str = "") -> Callable[[type[OpRule]], type[OpRule]]:
    """Return a class decorator that files one instance of a rule for every named operator."""

    def file(rule: type[OpRule]) -> type[OpRule]:
        instance = rule()
        for op_type in op_types:
            if (domain, op_type) in _RULES:
                raise ValueError(f"two rules for {domain}:{op_type}")
            _RULES[domain, op_type] = instance
        return rule

    return file


def rule_for(node: ir.Node) -> OpRule | None:
    """Return the rule for a node's operator, or None where nothing is known of it."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return _RULES.get((domain, node.op_type))
