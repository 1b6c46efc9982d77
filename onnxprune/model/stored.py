"""Constants wherever a file keeps them: initializers and ``Constant`` nodes, of every graph and function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxprune.model.nodes import nodes_in
from onnxprune.model.places import bodies

_ONNX_DOMAINS = ("", "ai.onnx")


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the nodes of every graph and function, those of a body after the node that holds it."""
    yield from nodes_in(model.graph)
    for function in model.functions.values():
        yield from nodes_in(function)


def consumer_name(node: ir.Node) -> str:
    """Return the name of a node, or that of its first output: files may leave nodes without names."""
    return node.name or next((str(output.name) for output in node.outputs if output.name), node.op_type)


def stored_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """Return the tensor of an initializer or of a ``Constant`` node that holds a tensor, else None."""
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain not in _ONNX_DOMAINS:
        return None
    attribute = node.attributes.get("value")
    if attribute is None or attribute.is_ref():
        return None
    return attribute.as_tensor()


def tensor_of(value: ir.Value) -> ir.TensorProtocol:
    """Return the tensor of a value that is known to hold one.

    Raises:
        ValueError: the value holds no stored tensor.
    """
    tensor = stored_tensor(value)
    if tensor is None:
        raise ValueError(f"{value.name!r} holds no stored tensor")
    return tensor


def replace_stored(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Put ``tensor`` in the place of a stored one; the value keeps its name.

    Raises:
        ValueError: the value holds no stored tensor.
    """
    tensor_of(value)
    node = value.producer()
    if node is not None:
        node.attributes["value"] = ir.AttrTensor("value", tensor)
    if node is None or value.const_value is not None:
        value.const_value = tensor


def put_numbers(value: ir.Value, array: npt.NDArray[Any]) -> None:
    """Give a stored tensor other numbers, of its shape and type; all else that it carries stays.

    Raises:
        ValueError: the value holds no stored tensor.
    """
    old = tensor_of(value)
    new = ir.Tensor(
        array,
        dtype=old.dtype,
        name=old.name,
        doc_string=old.doc_string,
        metadata_props=dict(old.metadata_props),
    )
    replace_stored(value, new)


def stored_values(model: ir.Model) -> dict[str, list[ir.Value]]:
    """Return every value that holds a stored tensor, by name, in graph order.

    A name has several values where the bodies of an If, or functions, use it each for their own.
    """
    found: dict[str, list[ir.Value]] = {}
    for body in bodies(model):
        for value in () if isinstance(body, ir.Function) else body.initializers.values():
            if value.const_value is not None:
                found.setdefault(str(value.name), []).append(value)
    for node in all_nodes(model):
        if node.op_type == "Constant" and len(node.outputs) == 1:
            value = node.outputs[0]
            if stored_tensor(value) is not None:
                found.setdefault(str(value.name), []).append(value)
    return found
