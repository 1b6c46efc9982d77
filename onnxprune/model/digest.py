"""What identifies a model: its structure, which training does not change, and its weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.messages import visible
from onnxprune.model.hashing import Hashing
from onnxprune.model.io import model_files
from onnxprune.model.places import Body, bodies, places
from onnxprune.model.storage import write_array, write_tensor
from onnxprune.model.streaming import read_pieces

#: Integer tensors up to this size and rank 1 are shapes, axes and indices: they belong to the structure.
_SHAPE_ELEMENTS = 64

_READ_BYTES = 1 << 20

_FLOAT_CONSTANTS = ("value_float", "value_floats")


def files_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256, in hexadecimal, of a model's file and of its data files one after another.

    Raises:
        ModelError: the model can't be read.
    """
    try:
        return sha256_of(*model_files(path))
    except OSError as error:
        own = error.filename is None or Path(error.filename) == Path(path).resolve()
        data = "" if own else f"its data in {visible(error.filename)} "
        raise ModelError(f"{visible(path)}: {data}can't be read: {error.strerror}; check the disk") from error


def sha256_of(*files: Path) -> str:
    """Return the SHA-256, in hexadecimal, of files one after another.

    Raises:
        OSError: one can't be read.
    """
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while piece := stream.read(_READ_BYTES):
                digest.update(piece)
    return digest.hexdigest()


class TensorDigests:
    """SHA-256 of the contents of tensors: each is read once for it, or for something else on the way.

    Whoever reads a tensor to its end with `read_pieces` of this saves `weights_digest` the reading.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[ir.TensorProtocol, str]] = {}  # by id: they live as long

    def of(self, tensor: ir.TensorProtocol) -> str:
        """Return the digest of a tensor.

        Raises:
            ModelError: its file is missing or has changed.
        """
        if id(tensor) not in self._known:
            digest = hashlib.sha256()
            if tensor.dtype == ir.DataType.STRING:
                digest.update(repr(tensor.numpy().tolist()).encode())
            else:
                write_tensor(tensor, digest.update)
            self._known[id(tensor)] = tensor, digest.hexdigest()
        return self._known[id(tensor)][1]

    def read_pieces(self, tensor: ir.TensorProtocol) -> Iterator[npt.NDArray[Any]]:
        """Yield what `streaming.read_pieces` yields, for types of 8 bits and more."""
        if id(tensor) in self._known:
            yield from read_pieces(tensor)
            return
        with Hashing() as digest:
            for piece in read_pieces(tensor):
                write_array(piece, digest.begin)  # which waits for the one before, whose place the next takes
                yield piece
            self._known[id(tensor)] = tensor, digest.hexdigest()


def weights_digest(model: ir.Model, known: TensorDigests | None = None) -> str:
    """Return the SHA-256, in hexadecimal, of all stored tensors: names, types, shapes and bytes.

    The order of tensors does not matter, nor whether one is an initializer or a Constant of the same name,
    inline or external. Contents are read piece by piece, at the speed of SHA-256 (1 to 2 GB/s where the
    processor knows it, which beats BLAKE2 there).

    Args:
        model: any model.
        known: of its tensors, so far.

    Raises:
        ModelError: the file of an external tensor is missing or has changed.
    """
    labels = {id(body): index for index, body in enumerate(bodies(model))}
    known = TensorDigests() if known is None else known
    entries = [
        (labels[id(body)], name, int(tensor.dtype), _dims(tensor.shape), known.of(tensor))
        for body, name, tensor in _stored(model)
    ]
    return hashlib.sha256(repr(sorted(entries)).encode()).hexdigest()


def _stored(model: ir.Model) -> Iterator[tuple[Body, str, ir.TensorProtocol]]:
    """Yield every stored tensor; float constants written as numbers count as tensors."""
    for place in places(model):
        yield place.body, place.name, place.tensor
    for body in bodies(model):
        for node in body:
            for key in _FLOAT_CONSTANTS if _is_constant(node) else ():
                attribute = node.attributes.get(key)
                if attribute is not None and not attribute.is_ref():
                    yield body, str(node.outputs[0].name), ir.tensor(np.asarray(attribute.value, np.float32))


def structure_digest(model: ir.Model) -> str:
    """Return the SHA-256, in hexadecimal, of everything but the weights.

    That is: the interface (names, types, shapes), opsets, and for each node in graph order its operator,
    what it reads and writes (values are numbered as they come up, so their names don't matter) and its
    attributes; stored tensors count with type and shape, and small int64 ones, which are shapes and axes,
    with their contents. Functions and subgraphs are included, documentation and metadata are not.
    """
    digest = hashlib.sha256()
    numbers: dict[ir.Value, int] = {}

    def number(value: ir.Value | None) -> object:
        """Return a value's number; stored tensors describe themselves when they first come up."""
        if value is None:
            return None
        known = numbers.get(value)
        if known is not None:
            return known
        numbers[value] = len(numbers)
        if value.is_initializer() and value.const_value is not None:
            return numbers[value], describe_tensor(value.const_value)
        return numbers[value]

    lines: list[str] = []
    for body in bodies(model):
        if isinstance(body, ir.Function):
            lines.append(repr(("function", body.identifier(), sorted(body.opset_imports.items()))))
            lines += [
                repr((name, describe_attribute(default))) for name, default in sorted(body.attributes.items())
            ]
        elif body is model.graph:
            lines.append(repr(("graph", sorted(body.opset_imports.items()))))
            lines += [_interface(value) for value in (*body.inputs, *body.outputs)]
        else:
            lines.append("subgraph")
        lines.append(repr([number(value) for value in body.inputs]))
        for node in body:
            attributes = [
                (
                    name,
                    "numbers"
                    if _is_constant(node) and name in _FLOAT_CONSTANTS
                    else describe_attribute(attribute),
                )
                for name, attribute in sorted(node.attributes.items())
            ]
            inputs = _without_trailing([number(value) for value in node.inputs])
            outputs = _without_trailing([number(value) if value.name else None for value in node.outputs])
            lines.append(repr((node.domain, node.op_type, node.overload, inputs, outputs, attributes)))
        lines.append(repr([number(value) for value in body.outputs]))
        if not isinstance(body, ir.Function):
            unused = [value for value in body.initializers.values() if value not in numbers]
            lines.append(
                repr(
                    sorted(
                        (int(v.const_value.dtype), _dims(v.const_value.shape))
                        for v in unused
                        if v.const_value
                    )
                )
            )
    digest.update("\n".join(lines).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _without_trailing(numbers: list[object]) -> list[object]:
    """Leave out missing inputs and outputs at the end: naming nothing there is the same."""
    while numbers and numbers[-1] is None:
        numbers.pop()
    return numbers


def _is_constant(node: ir.Node) -> bool:
    return node.op_type == "Constant" and node.domain in ("", "ai.onnx")


def _interface(value: ir.Value) -> str:
    shape = None if value.shape is None else _dims(value.shape)
    return repr((value.name, str(value.type), shape))


def _dims(shape: Any) -> tuple[int | str, ...]:
    return tuple(dim if isinstance(dim, int) else str(dim.value) for dim in shape)


def describe_tensor(tensor: ir.TensorProtocol) -> tuple[object, ...]:
    """Return type, shape and, for what looks like a shape, the contents of a tensor."""
    dims = _dims(tensor.shape)
    if tensor.dtype == ir.DataType.INT64 and len(dims) <= 1 and tensor.size <= _SHAPE_ELEMENTS:
        return int(tensor.dtype), dims, tensor.numpy().tolist()
    return int(tensor.dtype), dims


def describe_attribute(attribute: ir.Attr) -> object:
    """Return what an attribute says, without the contents of tensors; graphs are described on their own."""
    if attribute.is_ref():
        return attribute.type.name, attribute.ref_attr_name
    kind = attribute.type
    if attribute.value is None:
        return kind.name
    if kind == ir.AttributeType.TENSOR:
        return describe_tensor(attribute.as_tensor())
    if kind == ir.AttributeType.TENSORS:
        return [describe_tensor(tensor) for tensor in attribute.as_tensors()]
    if kind in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return kind.name
    if kind in (ir.AttributeType.TYPE_PROTO, ir.AttributeType.TYPE_PROTOS):
        return kind.name, str(attribute.value)
    return kind.name, attribute.value
