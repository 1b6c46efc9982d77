"""A copy of a model in which the channels that are scored have masks: ones that an importance is taken at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.model.float32 import in_float32
from onnxprune.model.inputs import graph_inputs
from onnxprune.model.names import Names
from onnxprune.ops.channels import Contraction
from onnxprune.ops.labels import LabelArray
from onnxprune.scores.subject import Subject, has_numbers, measurable_values, owners_of, sides_of
from onnxprune.types import ChannelGroup


@dataclass(frozen=True, slots=True)
class Mask:
    """An input that one operand of a sum is multiplied with.

    Attributes:
        name: of the input.
        shape: of ones, but for the axis that is summed over.
        labels: int32 [dim, k] of that axis.
        by_sample: the operand's first axis is that of the samples, so that each can have ones of its own.
    """

    name: str
    shape: tuple[int, ...]
    labels: LabelArray
    by_sample: bool = False


@dataclass(frozen=True, slots=True)
class Masked:
    """A copy of the model in which every sum over the groups' channels has a mask as an input.

    Attributes:
        model: the copy, in float32.
        masks: the masks.
        groups: the groups whose every sum could be given one.
        outputs: names of the outputs that hold floats.
    """

    model: ir.Model
    masks: Sequence[Mask]
    groups: Sequence[ChannelGroup]
    outputs: Sequence[str]

    @classmethod
    def of(cls, subject: Subject) -> Masked:
        """Put the masks into a copy."""
        copy = in_float32(subject.model).clone()
        nodes = {node.name: node for node in copy.graph}
        names = Names(copy.graph)
        masks: list[Mask] = []
        unmasked: set[str] = set()
        measurable = measurable_values(subject.model)
        for contraction, touched in _contractions(subject):
            operand = _operand(subject, contraction, measurable)
            if operand is None or contraction.node.graph is not subject.model.graph:
                unmasked |= {group.name for group in touched}
                continue
            index, axis, labels = operand
            value = subject.channels.ref(contraction.node, index)
            rank = subject.channels.rank(value)
            shape = tuple(len(labels) if place == axis else 1 for place in range(rank))
            by_sample = axis > 0 and _starts_with_samples(subject, contraction.node.inputs[index])
            mask = Mask(names.fresh(f"mask_{len(masks)}"), shape, labels, by_sample)
            multiply(copy.graph, nodes[contraction.node.name], index, mask, names)
            masks.append(mask)
        outputs = [str(value.name) for value in copy.graph.outputs if has_numbers(value)]
        groups = [group for group in subject.groups if group.name not in unmasked]
        return cls(copy, masks, groups, outputs)


def _starts_with_samples(subject: Subject, value: ir.Value | None) -> bool:
    """Tell whether the first axis of a value has the symbol that the first axes of all inputs have."""
    known = subject.channels.shapes.dims
    firsts = {known[given][0] if known.get(given) else None for given in graph_inputs(subject.model)}
    (first,) = firsts if len(firsts) == 1 else (None,)
    mine = known.get(value) if value is not None else None
    return first is not None and not first.is_constant and mine is not None and mine[:1] == (first,)


def _contractions(subject: Subject) -> Iterator[tuple[Contraction, list[ChannelGroup]]]:
    """Yield every sum that runs over channels of some of the groups, and these groups."""
    owners = owners_of(subject)
    for contraction in subject.channels.contractions:
        sides = sides_of(subject.channels, contraction)
        numbers = sorted({number for side in sides for number, _ in owners.of(side.labels)})
        if numbers:
            yield contraction, [subject.groups[number] for number in numbers]


def _operand(
    subject: Subject, contraction: Contraction, measurable: set[ir.Value]
) -> tuple[int, int, LabelArray] | None:
    """Return what to mask: an operand that depends on the inputs rather than a weight, if it holds floats."""
    sides = sides_of(subject.channels, contraction)
    values = [(side, contraction.node.inputs[side.operand]) for side in sides]
    fitting = [(side, value) for side, value in values if value is not None and has_numbers(value)]
    fitting.sort(key=lambda pair: pair[1] not in measurable)
    return next(((side.operand, side.axis, side.labels) for side, _ in fitting), None)


def multiply(graph: ir.Graph, node: ir.Node, index: int, mask: Mask, names: Names) -> None:
    """Give a node the product of one of its inputs and a mask, which becomes an input of the graph."""
    value = node.inputs[index]
    name = mask.name
    given = ir.Value(name=name, shape=ir.Shape(mask.shape), type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(given)
    product = ir.node("Mul", [value, given], name=names.fresh(f"{name}_product"))
    product.outputs[0].name = names.fresh(f"{name}_masked")
    product.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(node, product)
    node.replace_input_with(index, product.outputs[0])
