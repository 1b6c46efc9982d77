"""From a file to a checked proto whose large tensors wait outside it.

The file is examined before it is opened, its large payloads go straight into arrays of their own (aligned,
and freed one by one), and external tensors are found, checked and left where they are.
"""

from __future__ import annotations

import codecs
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx_ir import serde

from onnxprune.errors import ModelError
from onnxprune.messages import visible
from onnxprune.model.external import DataFile, DataFolder, FileTensor, as_array
from onnxprune.model.sparse import make_dense
from onnxprune.model.structure import Found, check_structure
from onnxprune.model.tensors import check_field, check_tensor
from onnxprune.model.wire import THRESHOLD_BYTES, Span, Tokens, WireError, take_out

#: protobuf reads and writes no larger message.
MOST_MODEL_BYTES = (1 << 31) - 1

#: In model files from this size on, payloads of this size and more stay there, as those of data files do.
_LARGE_MODEL_BYTES = 1 << 28
_LEFT_BYTES = 1 << 20

_FOREIGN = (
    (
        b"PK\x03\x04",
        "a zip archive; a .pt2 or TorchScript file goes through the importer, others have to be unpacked",
    ),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    *((bytes((0x80, version)), "a Python pickle; export the module to ONNX") for version in (2, 3, 4, 5)),
    (b"\x89HDF", "an HDF5 file, as Keras writes them; convert it to ONNX (tf2onnx)"),
    (b"\x89PNG", "a PNG picture"),
    (b"\x7fELF", "a program or library"),
    (b"version https://git-lfs", "a Git LFS pointer instead of the model; run `git lfs pull`"),
)


@dataclass(slots=True)
class Parsed:
    """A proto that has passed all checks; the payloads of large and external tensors are tokens.

    Attributes:
        proto: the model, all tensors dense.
        tokens: made the tokens.
        found: what the walk came across.
        used: how many tokens there are.
        stored: what belongs in place of each token.
        sparse: names of values that were sparse.
        files: the model file and its data files, without links.
    """

    proto: onnx.ModelProto
    tokens: Tokens
    found: Found
    used: int
    stored: dict[int, ir.TensorProtocol] = field(default_factory=dict)
    sparse: frozenset[str] = frozenset()
    files: tuple[Path, ...] = ()

    def contents(self, tensor: onnx.TensorProto) -> ir.TensorProtocol:
        """Return a tensor of the proto as something that can be read."""
        index = self.tokens.index(tensor.raw_data)
        return serde.TensorProtoTensor(tensor) if index is None else self.stored[index]

    def keep(self, tensor: onnx.TensorProto, stored: ir.TensorProtocol) -> None:
        """Make ``stored`` the payload of a tensor of the proto."""
        index = self.used
        self.used += 1
        tensor.raw_data = self.tokens.of(index)
        tensor.ClearField("data_location")
        del tensor.external_data[:]
        self.stored[index] = stored


def parse(path: Path, data_beside: Path | None = None) -> Parsed:
    """Read and check the file at ``path``, whose external data may lie beside another file.

    Raises:
        ModelError: without the model's name in front; the file is missing, damaged, unsafe or not supported.
    """
    real = os.path.realpath(path)
    file = DataFile.examine(real, "the file", single=False)
    if not file.size:
        raise ModelError("the file is empty; export or download it again")
    if file.size > MOST_MODEL_BYTES:
        raise ModelError(f"{file.size} bytes are too many for one ONNX file (2 GiB); use external data")
    with file.open() as stream:
        reader = _Reader(file, stream)
        parsed, spans = _parse_proto(reader, file.size)
        folder = DataFolder(data_beside or path)
        external = _check_tensors(parsed, spans, folder)
        left = replace(file, shown=visible(path)) if file.size >= _LARGE_MODEL_BYTES else None
        for tensor in parsed.found.tensors:
            index = parsed.tokens.index(tensor.raw_data)
            if index is not None:
                parsed.stored[index] = _inline(reader, spans[index], tensor, left)
        for tensor, stored in external:
            parsed.keep(tensor, stored)
        _pack_typed(parsed)
        _store_inline(parsed, reader, spans)
        parsed.files = (Path(real), *folder.files())
        file.check_unchanged(stream)
    _make_dense(parsed)
    return parsed


def _inline(
    reader: _Reader, span: Span, tensor: onnx.TensorProto, left: DataFile | None
) -> ir.TensorProtocol:
    """Return a tensor whose payload is in the model file, where it stays if it is large in a large file."""
    if left is None or span.length < _LEFT_BYTES or ir.DataType(tensor.data_type).bitwidth < 8:
        return in_memory(reader.payload(span), tensor)
    return FileTensor(left, span.position, tensor)


class _Reader:
    """Reads pieces of one open file."""

    def __init__(self, file: DataFile, stream: BinaryIO) -> None:
        self.file, self.stream = file, stream

    def at(self, position: int, count: int) -> bytes:
        buffer = bytearray(count)
        self.file.read_into(self.stream, memoryview(buffer), position)
        return bytes(buffer)

    def payload(self, span: Span) -> npt.NDArray[np.uint8]:
        array = np.empty(span.length, dtype=np.uint8)
        self.file.read_into(self.stream, array.data, span.position)
        return array


def _parse_proto(reader: _Reader, size: int) -> tuple[Parsed, list[Span]]:
    """Return the parsed and checked structure, and the payloads that it leaves out."""
    tokens = Tokens()
    try:
        small, spans = take_out(reader.at, size, tokens)
    except WireError:
        small, spans = reader.at(0, size), []  # protobuf has the last word
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(small)
        return Parsed(proto, tokens, check_structure(proto), len(spans)), spans
    except DecodeError as error:
        problem: Exception = ModelError("is damaged, or no ONNX model; export or download it again")
        problem.__cause__ = error
    except ModelError as error:
        problem = error
    hint = _foreign(reader.at(0, min(size, 512)))
    if hint is None:
        raise problem
    raise ModelError(f"is {hint}") from problem


def _foreign(head: bytes) -> str | None:
    """Return what a file that is no model may be instead, and what to do about it."""
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            return what
    if head[4:8] == b"ORTM":
        return "in ONNX Runtime's own format; start from the .onnx file it was made from"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model; convert it to ONNX (tf2onnx)"
    if head[8:10] == b'{"':
        return "a safetensors file: weights without a graph; export the model to ONNX"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    return "a text file; is it a saved web page or a failed download?" if _is_text(head) else None


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # may end within a character
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\t\r\n" for character in text)


def _check_tensors(
    parsed: Parsed, spans: list[Span], folder: DataFolder
) -> list[tuple[onnx.TensorProto, ir.TensorProtocol]]:
    """Check every tensor; return the external ones with their places."""
    external: list[tuple[onnx.TensorProto, ir.TensorProtocol]] = []
    for tensor in (*parsed.found.tensors, *parsed.found.training_tensors):
        raw_bytes = None
        if tensor.HasField("raw_data"):
            raw = tensor.raw_data
            index = parsed.tokens.index(raw)
            raw_bytes = len(raw) if index is None else spans[index].length
            if index is not None:
                check_field(tensor, spans[index].number)
        size = check_tensor(tensor, raw_bytes)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            external.append((tensor, folder.tensor(tensor, size)))
        elif tensor.external_data:
            del tensor.external_data[:]  # entries without effect: the data is in the model
    return external


def _pack_typed(parsed: Parsed) -> None:
    """Turn large tensors whose data is a list of numbers into arrays: onnx_ir would at every reading."""
    for tensor in parsed.found.tensors:
        if tensor.HasField("raw_data") or tensor.data_type == onnx.TensorProto.STRING:
            continue
        stored = np.frombuffer(serde.TensorProtoTensor(tensor).tobytes(), dtype=np.uint8)
        if stored.size >= THRESHOLD_BYTES:
            field = next(entry for entry, _ in tensor.ListFields() if entry.name.endswith("_data"))
            tensor.ClearField(field.name)
            parsed.keep(tensor, in_memory(stored, tensor))


def _store_inline(parsed: Parsed, reader: _Reader, spans: list[Span]) -> None:
    """Give the tensors of the training information, which is only copied, their payloads back."""
    for tensor in parsed.found.training_tensors:
        index = parsed.tokens.index(tensor.raw_data)
        if index is None:
            continue
        stored = reader.payload(spans[index]) if index < len(spans) else parsed.stored.pop(index)
        tensor.raw_data = stored.tobytes()


def in_memory(stored: npt.NDArray[np.uint8], proto: onnx.TensorProto) -> ir.TensorProtocol:
    """Return a tensor declared by ``proto`` with the stored bytes ``stored``, which become read-only."""
    stored.flags.writeable = False
    dtype = ir.DataType(proto.data_type)
    about: dict[str, Any] = {
        "name": proto.name,
        "doc_string": proto.doc_string or None,
        "metadata_props": {entry.key: entry.value for entry in proto.metadata_props} or None,
    }
    if dtype.bitwidth < 8:
        return ir.PackedTensor(stored, dtype, shape=ir.Shape(proto.dims), **about)
    return ir.Tensor(as_array(stored, dtype, tuple(proto.dims)), dtype=dtype, **about)


def _make_dense(parsed: Parsed) -> None:
    def read(tensor: onnx.TensorProto) -> npt.NDArray[Any]:
        return np.asarray(parsed.contents(tensor).numpy())

    def keep(tensor: onnx.TensorProto, array: npt.NDArray[Any]) -> None:
        dense = ir.Tensor(array, dtype=ir.DataType(tensor.data_type))
        stored = (
            np.frombuffer(dense.tobytes(), dtype=np.uint8).copy()
            if dense.dtype.bitwidth < 8
            else _bytes_of(array)
        )
        parsed.keep(tensor, in_memory(stored, tensor))

    parsed.sparse = make_dense(parsed.found, read, keep)


def _bytes_of(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)
