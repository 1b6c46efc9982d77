"""Indices that stand in a model and point outside what they index: such a model fails whenever it runs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.messages import quoted
from onnxprune.model.dims import Contents, Dims

#: Operators that index one axis of their first input by their second.
_ALONG_AN_AXIS = frozenset(("Gather", "GatherElements", "ScatterElements"))

#: Operators whose second input holds an index for each of the first axes.
_BY_TUPLES = frozenset(("GatherND", "ScatterND"))


def takes_indices(node: ir.Node) -> bool:
    """Return whether the indices that a node reads, if they are constant, are looked at."""
    return node.op_type in _ALONG_AN_AXIS | _BY_TUPLES and node.domain in ("", "ai.onnx")


def check_indices(node: ir.Node, dims: Dims, contents: Contents) -> None:
    """Check the constant indices of a node that runs whenever the model does.

    Raises:
        ModelError: without the model's name in front; one lies outside for every input.
    """
    if not takes_indices(node):
        return
    data, indices, *_ = node.inputs
    sizes = None if data is None else dims.get(data)
    known = None if indices is None else contents.get(indices)
    if not sizes or known is None or not known.is_constant or not known.numbers.size:
        return
    numbers = known.numbers
    first = 0
    if node.op_type in _ALONG_AN_AXIS:
        first = node.attributes.get_int("axis", 0) % len(sizes)
        numbers = numbers.reshape(-1, 1)
    else:
        first = node.attributes.get_int("batch_dims", 0)
        numbers = numbers.reshape(-1, numbers.shape[-1] if numbers.ndim else 1)
    for column, size in zip(numbers.T, sizes[first:], strict=False):
        outside = (column < -size.size) | (column >= size.size)
        if size.is_constant and outside.any():
            raise ModelError(
                f"node {quoted(node.name or node.op_type)} has the index {column[np.argmax(outside)]} of an "
                f"axis of {size.size} positions; export the model again"
            )
