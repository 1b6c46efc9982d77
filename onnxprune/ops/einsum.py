"""Einsum: sums of products along named axes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.ops.base import OpRule, ShapeOf, WeightInput, op_rule
from onnxprune.ops.channels import Channels, Ref, Use
from onnxprune.ops.labels import LabelArray

#: A letter, or the place of an axis under ``...`` counted from the last one: ``...1`` stands before ``...0``.
Name = str


@dataclass(frozen=True, slots=True)
class Equation:
    """An equation with the axes of all operands named.

    Attributes:
        operands: per operand, the name of each axis.
        output: the name of each axis of the result.
    """

    operands: tuple[tuple[Name, ...], ...]
    output: tuple[Name, ...]

    @property
    def names(self) -> tuple[Name, ...]:
        """All names, in the order in which they are first seen."""
        return tuple(dict.fromkeys(name for axes in self.operands for name in axes))

    def is_summed(self, name: Name) -> bool:
        """Return whether the result has no such axis."""
        return name not in self.output


def equation_of(node: ir.Node, rank_of: Callable[[ir.Value], int]) -> Equation:
    """Read the equation of an Einsum, spelled with or without a result, with or without ``...``.

    Without a result, ``...`` comes first and then, in the order of the alphabet, the letters seen once.

    Raises:
        ValueError: the equation does not fit the operands.
    """
    text = node.attributes.get_string("equation", "").replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    operands = []
    for term, value in zip(terms, node.inputs, strict=True):
        if value is None:
            raise ValueError(f"an operand of {node.name} is left out")
        operands.append(_named_axes(term, rank_of(value)))
    under_dots = max((sum(name.startswith(".") for name in axes) for axes in operands), default=0)
    dots = tuple(f"...{place}" for place in reversed(range(under_dots)))
    if arrow:
        before, found, after = right.partition("...")
        return Equation(tuple(operands), (*before, *(dots if found else ()), *after))
    seen = Counter(letter for term in terms for letter in term if letter.isalpha())
    once = sorted(letter for letter, times in seen.items() if times == 1)
    return Equation(tuple(operands), (*dots, *once))


def _named_axes(term: str, rank: int) -> tuple[Name, ...]:
    before, found, after = term.partition("...")
    hidden = rank - len(before) - len(after)
    if hidden < 0 or (hidden > 0 and not found):
        raise ValueError(f"the term {term!r} does not fit an operand of rank {rank}")
    return (*before, *(f"...{place}" for place in reversed(range(hidden))), *after)


@op_rule("Einsum")
class Einsum(OpRule):
    """y[kept letters] = sum over the other letters of a[...] * b[...] * ..."""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Axes with the same letter are the same channels; letters that the result lacks are summed over."""
        refs = [channels.ref(node, index) for index in range(len(node.inputs))]
        equation = equation_of(node, lambda value: channels.rank(value))
        y = node.outputs[0]
        for ref in refs:
            channels.separate_all(ref)
        for name in equation.names:
            # An operand with size 1 is repeated along the axis, and has no channels there.
            places = [
                (operand, axis)
                for operand, axes in enumerate(equation.operands)
                for axis, other in enumerate(axes)
                if other == name and channels.shape(refs[operand])[axis] > 1
            ]
            if not places:
                continue
            labels = _unify(node, channels, places, name)
            if equation.is_summed(name):
                channels.sums_over(node, *_zeroed(refs, places))
            else:
                channels.put(y, (equation.output.index(name),), labels)
        _tag_attention(channels, refs, equation)
        _tag_experts(channels, refs, equation)

    def macs(self, node: ir.Node, shape_of: ShapeOf) -> int:
        """The operands are multiplied from left to right, as ONNX Runtime does; a sum alone costs nothing."""
        shapes = [shape_of(value) for value in node.inputs if value is not None]
        equation = equation_of(node, lambda value: len(shape_of(value)))
        sizes: dict[Name, int] = {}
        for axes, shape in zip(equation.operands, shapes, strict=True):
            for name, size in zip(axes, shape, strict=True):
                sizes[name] = max(sizes.get(name, 1), size)
        total, so_far = 0, set(equation.operands[0])
        for number, axes in enumerate(equation.operands[1:], start=2):
            so_far |= set(axes)
            total += math.prod(sizes[name] for name in so_far)
            needed = {name for later in equation.operands[number:] for name in later}
            so_far &= needed | set(equation.output)
        return total

    def weight_inputs(self, node: ir.Node, rank_of: Callable[[ir.Value], int]) -> tuple[WeightInput, ...]:
        """Operands with an axis that is summed with another's, and one that is theirs alone in the result."""
        try:
            equation = equation_of(node, rank_of)
        except ValueError:  # the rank of an operand is not known
            return ()
        found = []
        for operand, axes in enumerate(equation.operands):
            others = {name for i, names in enumerate(equation.operands) if i != operand for name in names}
            summed = [a for a, name in enumerate(axes) if name in others and equation.is_summed(name)]
            own = [a for a, name in enumerate(axes) if name not in others and not equation.is_summed(name)]
            if summed and own:
                found.append(WeightInput(operand, summed_axis=summed[-1], output_axis=own[-1]))
        return tuple(sorted(found, key=lambda weight: -weight.index))


def _unify(node: ir.Node, channels: Channels, places: list[tuple[int, int]], name: Name) -> LabelArray | None:
    """Say that all axes of one letter are the same channels, and return their labels.

    A letter that stands twice in one operand takes a diagonal: the same position goes from both axes.
    """
    reason = f"an operand of {node.name} has no channels along the axis {name!r}"
    # Constants take over the labels of what is computed.
    ordered = sorted(places, key=lambda place: isinstance(channels.ref(node, place[0]), Use))
    first, *others = ordered
    labels = channels.alone(channels.ref(node, first[0]), first[1])
    for operand, axis in others:
        channels.meet(channels.ref(node, operand), axis, labels, reason)
    return labels


def _zeroed(refs: list[Ref], places: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the operand, and its axis, that is zeroed for the others too: the last weight, else the last."""
    weights = [place for place in places if isinstance(refs[place[0]], Use)]
    return (weights or places)[-1]


def _tag_attention(channels: Channels, refs: list[Ref], equation: Equation) -> None:
    """A product of two computed stacks is attention: letters of both that stay are heads.

    The others are places in a head: those that are summed, and those of the values alone.
    """
    if len(refs) != 2 or any(channels.is_constant(ref) for ref in refs):
        return
    a, b = (set(axes) for axes in equation.operands)
    if not a & b & set(equation.output):
        return
    for ref, axes in zip(refs, equation.operands, strict=True):
        for axis, name in enumerate(axes):
            if channels.block_at(ref, axis) is not None:
                stays = name in a & b and not equation.is_summed(name)
                channels.tag("heads" if stays else "head_dim", channels.alone(ref, axis))


def _tag_experts(channels: Channels, refs: list[Ref], equation: Equation) -> None:
    """A letter of weights that counts matrices, one per expert: others have it too, and it stays.

    Or it is summed together with a third operand, the router's choice, as in ``btef,efd,bte->btd``.
    """
    if all(channels.is_constant(ref) for ref in refs):
        return
    holders = Counter(name for axes in equation.operands for name in set(axes))
    for ref, axes in zip(refs, equation.operands, strict=True):
        is_matrix = any(equation.is_summed(name) for name in axes) and any(holders[n] == 1 for n in axes)
        if not channels.is_constant(ref) or not is_matrix:
            continue
        for axis, name in enumerate(axes):
            if holders[name] >= (3 if equation.is_summed(name) else 2):
                channels.tag("experts", channels.alone(ref, axis))
