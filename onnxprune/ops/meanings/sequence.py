"""Sequences of tensors, as lists; optional values, which may be missing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onnxprune.ops.meanings.base import Run, Static, meaning


@meaning("SequenceConstruct")
def sequence_construct(node: Static) -> Run:
    """Gives all inputs in order"""
    return lambda *parts: list(parts)


@meaning("SequenceEmpty")
def sequence_empty(node: Static) -> Run:
    """Gives no elements"""
    return list


@meaning("SequenceInsert", host=(2,))
def sequence_insert(node: Static) -> Run:
    """Gives a sequence with one more element, at its end or at a position"""

    def run(sequence: list[Tensor], new: Tensor, position: Tensor | None = None) -> list[Tensor]:
        place = len(sequence) if position is None else int(position)
        place += len(sequence) if place < 0 else 0
        return [*sequence[:place], new, *sequence[place:]]

    return run


@meaning("SequenceErase", host=(1,))
def sequence_erase(node: Static) -> Run:
    """Gives a sequence without one element, the last one or that at a position"""

    def run(sequence: list[Tensor], position: Tensor | None = None) -> list[Tensor]:
        place = (-1 if position is None else int(position)) % len(sequence)
        return sequence[:place] + sequence[place + 1 :]

    return run


@meaning("SequenceAt", host=(1,))
def sequence_at(node: Static) -> Run:
    """Gives one element"""
    return lambda sequence, position: sequence[int(position)]


@meaning("SequenceLength")
def sequence_length(node: Static) -> Run:
    """Gives number of elements"""
    return lambda sequence: torch.tensor(len(sequence))


@meaning("ConcatFromSequence")
def concat_from_sequence(node: Static) -> Run:
    """Gives all elements, joined along an axis or stacked along a new one"""
    axis, join = node.int("axis"), torch.stack if node.int("new_axis") else torch.cat
    return lambda sequence: join(sequence, dim=axis)


@meaning("SplitToSequence", host=(1,))
def split_to_sequence(node: Static) -> Run:
    """Gives parts of x along an axis: of one size, of the sizes given, or single positions"""
    axis, keeps = node.int("axis"), node.int("keepdims", 1) == 1

    def run(x: Tensor, sizes: Tensor | None = None) -> list[Tensor]:
        if sizes is None:
            return list(torch.split(x, 1, axis) if keeps else x.unbind(axis))
        return list(torch.split(x, int(sizes) if sizes.dim() == 0 else sizes.tolist(), axis))

    return run


@meaning("SequenceMap", folds=False)
def sequence_map(node: Static) -> Run:
    """Gives what a body makes of each element of a sequence, and of the same element of others, or tensors"""
    body = node.body("body")

    def run(sequence: list[Tensor], *others: Any) -> tuple[list[Tensor], ...]:
        found = [
            body(part, *(one[place] if isinstance(one, list) else one for one in others))
            for place, part in enumerate(sequence)
        ]
        return tuple([results[place] for results in found] for place in range(len(node.node.outputs)))

    return run


@meaning("Optional", "OptionalGetElement")
def optional(node: Static) -> Run:
    """Gives x, or nothing"""

    def run(x: Any = None) -> Any:
        return x

    return run


@meaning("OptionalHasElement")
def optional_has_element(node: Static) -> Run:
    """Gives whether there is a value"""
    return lambda x=None: torch.tensor(x is not None)
