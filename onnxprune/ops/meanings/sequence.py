"""Sequences of tensors, as lists; optional values, which may be missing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onnxprune.ops.meanings.base import Run, Static, meaning


@meaning("SequenceConstruct")
def sequence_construct(node: Static) -> Run:
    """y = all inputs in order"""
    return lambda *parts: list(parts)


@meaning("SequenceEmpty")
def sequence_empty(node: Static) -> Run:
    """y = no elements"""
    return lambda: []


@meaning("SequenceInsert", host=(2,))
def sequence_insert(node: Static) -> Run:
    """y = a sequence with one more element, at its end or at a position"""

    def run(sequence: list[Tensor], new: Tensor, position: Tensor | None = None) -> list[Tensor]:
        place = len(sequence) if position is None else int(position)
        place += len(sequence) if place < 0 else 0
        return [*sequence[:place], new, *sequence[place:]]

    return run


@meaning("SequenceErase", host=(1,))
def sequence_erase(node: Static) -> Run:
    """y = a sequence without one element, the last one or that at a position"""

    def run(sequence: list[Tensor], position: Tensor | None = None) -> list[Tensor]:
        place = (-1 if position is None else int(position)) % len(sequence)
        return sequence[:place] + sequence[place + 1 :]

    return run


@meaning("SequenceAt", host=(1,))
def sequence_at(node: Static) -> Run:
    """y = one element"""
    return lambda sequence, position: sequence[int(position)]


@meaning("SequenceLength")
def sequence_length(node: Static) -> Run:
    """y = number of elements"""
    return lambda sequence: torch.tensor(len(sequence))


@meaning("ConcatFromSequence")
def concat_from_sequence(node: Static) -> Run:
    """y = all elements, joined along an axis or stacked along a new one"""
    axis, join = node.int("axis"), torch.stack if node.int("new_axis") else torch.cat
    return lambda sequence: join(sequence, dim=axis)


@meaning("SplitToSequence", host=(1,))
def split_to_sequence(node: Static) -> Run:
    """y = parts of x along an axis: of one size, of the sizes given, or single positions"""
    axis, keeps = node.int("axis"), node.int("keepdims", 1) == 1

    def run(x: Tensor, sizes: Tensor | None = None) -> list[Tensor]:
        if sizes is None:
            return list(x.split(1, dim=axis) if keeps else x.unbind(axis))
        return list(x.split(int(sizes) if sizes.dim() == 0 else sizes.tolist(), dim=axis))

    return run


@meaning("Optional", "OptionalGetElement")
def optional(node: Static) -> Run:
    """y = x, or nothing"""

    def run(x: Any = None) -> Any:
        return x

    return run


@meaning("OptionalHasElement")
def optional_has_element(node: Static) -> Run:
    """y = whether there is a value"""
    return lambda x=None: torch.tensor(x is not None)
