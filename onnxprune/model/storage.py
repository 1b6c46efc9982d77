"""Where each tensor of a model is stored when it is written: in the model, beside it, dense or sparse."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import xxhash

from onnxprune.errors import ModelError, OutputError
from onnxprune.messages import quoted
from onnxprune.model.atomic import NewFile, output_errors
from onnxprune.model.external import FileTensor, unsafe_location
from onnxprune.model.places import graph_protos
from onnxprune.model.serialize import Serialized
from onnxprune.model.sparse import sparse_bytes, stored_nonzeros
from onnxprune.model.streaming import MadeTensor, ahead
from onnxprune.model.together import Together
from onnxprune.model.wire import THRESHOLD_BYTES, put_back
from onnxprune.resident import start_writing

#: Large tensors start at multiples of this in a data file, so that runtimes can map them; the others at 64.
PAGE_BYTES = 4096
_LINE_BYTES = 64
_LARGE_BYTES = 1 << 16
_READ_BYTES = 1 << 22

#: After this many bytes the disk is told to begin: it works while the next ones are made.
_START_BYTES = 1 << 25

#: Digits of the hash in the name of a data file; more if that name is taken by other contents. XXH3 only
#: names it: a file that is shared is compared byte by byte. It costs a twentieth of what SHA-256 does.
_NAME_DIGITS = (12, 24, 32)

Write = Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class _Payload:
    """Bytes that belong in place of a token: how many, and who writes them."""

    name: str
    size: int
    write_to: Callable[[Write], None]


class Storage:
    """One serialized model on its way to disk."""

    def __init__(self, serialized: Serialized, target: Path) -> None:
        self.proto = serialized.proto
        self.tokens = serialized.tokens
        self.target = target
        self._tensors = serialized.tensors
        self._payloads = [_dense(tensor) for tensor in serialized.tensors]
        self._pieces: list[bytes | int] | None = None

    def size_bytes(self) -> int:
        """Return the bytes of all payloads."""
        return sum(payload.size for payload in self._payloads)

    # ---- sparse

    def make_sparse(self, names: frozenset[str], *, past_break_even: bool) -> None:
        """Turn dense tensors of the proto into sparse ones.

        Args:
            names: values that become sparse whatever it costs.
            past_break_even: so does every float initializer or constant that takes less space then.
        """
        if not names and not past_break_even:
            return
        for graph in graph_protos(self.proto):
            interface = {value.name for value in (*graph.input, *graph.output)}
            dense = []
            for tensor in graph.initializer:
                sparse = None
                if tensor.name not in interface:
                    sparse = self._sparse(tensor, tensor.name, names, past_break_even)
                if sparse is None:
                    dense.append(tensor)
                else:
                    graph.sparse_initializer.append(sparse)
            kept = [tensor.SerializeToString() for tensor in dense]
            if len(kept) < len(graph.initializer):
                del graph.initializer[:]
                for serialized in kept:
                    graph.initializer.add().ParseFromString(serialized)
        for node, attribute in _constants(self.proto):
            sparse = self._sparse(attribute.t, node.output[0], names, past_break_even)
            if sparse is not None:
                attribute.Clear()
                attribute.name, attribute.type = "sparse_value", onnx.AttributeProto.SPARSE_TENSOR
                attribute.sparse_tensor.CopyFrom(sparse)

    def _sparse(
        self, tensor: onnx.TensorProto, name: str, names: frozenset[str], past_break_even: bool
    ) -> onnx.SparseTensorProto | None:
        """Return the tensor in sparse form, None if it shall stay dense."""
        index = self.tokens.index(tensor.raw_data)
        if index is None or not tensor.dims:
            return None
        source = self._tensors[index]
        if name not in names and not (past_break_even and source.dtype.is_floating_point()):
            return None
        if source.dtype.bitwidth < 8:
            return None
        count = len(stored_nonzeros(_array(source)))
        if name not in names and sparse_bytes(source.dtype, count) >= source.nbytes:
            return None
        sparse = onnx.SparseTensorProto()
        sparse.dims.extend(tensor.dims)
        sparse.values.CopyFrom(tensor)
        del sparse.values.dims[:]
        sparse.values.dims.append(count)
        sparse.indices.data_type = onnx.TensorProto.INT64
        sparse.indices.dims.append(count)

        def values(write: Write) -> None:
            array = _array(source).reshape(-1)
            write(np.ascontiguousarray(array[stored_nonzeros(array)]).view(np.uint8).data)

        def indices(write: Write) -> None:
            write(stored_nonzeros(_array(source)).astype("<i8", copy=False).view(np.uint8).data)

        self._payloads[index] = _Payload(name, count * source.dtype.bitwidth // 8, values)
        sparse.indices.raw_data = self.tokens.of(len(self._payloads))
        self._payloads.append(_Payload(name, count * 8, indices))
        return sparse

    # ---- external data

    def write_external(self, together: Together) -> Path | None:
        """Write the dense tensors of 1 KiB and more into one data file and point the proto to them.

        Args:
            together: what the file appears with: a run that fails takes its data file with it, but not one
                that was there before.

        Returns:
            The data file, named after its contents; None if no tensor is large enough.

        Raises:
            OutputError: the file can't be written.
            ModelError: a tensor can't be read.
        """
        moved = list(self._movable())
        if not moved:
            return None
        offsets: list[int] = []
        digest = xxhash.xxh3_128()
        with NewFile(self.target.with_name(f"{self.target.name}.data")) as file:
            sink = _Sink(file.stream, self.target, digest.update)
            for _, payload in moved:
                sink.pad(PAGE_BYTES if payload.size >= _LARGE_BYTES else _LINE_BYTES)
                offsets.append(sink.position)
                sink.write_payload(payload)
            file.finish()
            name, present = self._data_name(file, digest.hexdigest(), together)
            if not present:
                together.place(file, name)
        for (tensor, payload), offset in zip(moved, offsets, strict=True):
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, text in (
                ("location", name.name),
                ("offset", str(offset)),
                ("length", str(payload.size)),
            ):
                tensor.external_data.add(key=key, value=text)
        return name

    def _movable(self) -> Iterator[tuple[onnx.TensorProto, _Payload]]:
        """Yield the tensors that may be external: dense initializers and the values of Constant nodes."""
        tensors = [tensor for graph in graph_protos(self.proto) for tensor in graph.initializer]
        tensors += [attribute.t for _, attribute in _constants(self.proto)]
        for tensor in tensors:
            index = self.tokens.index(tensor.raw_data)
            if index is not None and self._payloads[index].size >= THRESHOLD_BYTES:
                yield tensor, self._payloads[index]

    def _data_name(self, file: NewFile, digest: str, together: Together) -> tuple[Path, bool]:
        """Return the name for what a finished file holds, and whether a file with that has it already."""
        stem = self.target.name
        try:
            stem.encode()
        except UnicodeEncodeError:
            stem = "weights"  # a location is text, and this name is none
        if unsafe_location(stem):
            stem = "weights"
        for digits in _NAME_DIGITS:
            name = self.target.with_name(f"{stem}.{digest[:digits]}.data")
            if not os.path.lexists(name):
                return name, False
            if name.is_file() and not name.is_symlink():
                with output_errors(self.target):
                    found = together.adopt(name)
                    if found is None:  # the run that placed it has failed meanwhile
                        return name, False
                    if _same_bytes(found, file.temporary):
                        return name, True
        raise OutputError(f"{name}: is in the way: its contents are not what its name says; remove it")

    # ---- the model itself

    def file_bytes(self) -> int:
        """Return the size of the model file."""
        sizes = [payload.size for payload in self._payloads]
        return sum(sizes[piece] if isinstance(piece, int) else len(piece) for piece in self._layout())

    def write_model(self, stream: IO[bytes]) -> None:
        """Write the model file.

        Raises:
            OutputError: the disk is full or fails.
            ModelError: a tensor can't be read.
        """
        sink = _Sink(stream, self.target)
        for piece in self._layout():
            if isinstance(piece, int):
                sink.write_payload(self._payloads[piece])
            else:
                sink.write(piece)

    def _layout(self) -> list[bytes | int]:
        if self._pieces is None:
            sizes = [payload.size for payload in self._payloads]
            self._pieces = put_back(self.proto.SerializeToString(), self.tokens, sizes)
        return self._pieces


class _Sink:
    """Counts what is written, and tells errors of the output from those of the inputs."""

    def __init__(self, stream: IO[bytes], target: Path, see: Write | None = None) -> None:
        self.stream, self.target, self.see = stream, target, see
        self.position = self._started = 0

    def write(self, data: bytes | memoryview) -> None:
        if self.see is not None:
            self.see(data)
        with output_errors(self.target):
            self.stream.write(data)
        self.position += len(data)
        if self.position - self._started >= _START_BYTES:
            start_writing(self.stream, self._started, self.position - self._started)
            self._started = self.position

    def pad(self, multiple: int) -> None:
        self.write(bytes(-self.position % multiple))

    def write_payload(self, payload: _Payload) -> None:
        start = self.position
        payload.write_to(self.write)
        if self.position - start != payload.size:
            raise ModelError(
                f"tensor {quoted(payload.name)} gave {self.position - start} bytes, but its type and shape "
                f"need {payload.size}"
            )


def _dense(tensor: ir.TensorProtocol) -> _Payload:
    return _Payload(str(tensor.name), tensor.nbytes, lambda write: write_tensor(tensor, write))


def write_tensor(tensor: ir.TensorProtocol, write: Write) -> None:
    """Hand the stored bytes of a tensor to ``write``, without a copy where possible."""
    if isinstance(tensor, FileTensor):
        for piece in ahead(tensor.pieces(), tensor.nbytes):
            write(piece)
        return
    if isinstance(tensor, MadeTensor):
        for array in ahead(tensor.pieces(), tensor.nbytes):
            write_array(array, write)
        return
    if isinstance(tensor, ir.LazyTensor) and not tensor.cache:
        write_tensor(tensor.raw(), write)
        return
    if isinstance(tensor, ir.Tensor) and tensor.dtype.bitwidth >= 8:
        write_array(_array(tensor), write)
        return
    write(tensor.tobytes())


def write_array(array: npt.NDArray[Any], write: Write) -> None:
    """Hand the bytes of an array to ``write`` as files store them: little endian, in order."""
    stored = array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8)
    if stored.size:
        write(stored.data)


def _array(tensor: ir.TensorProtocol) -> npt.NDArray[Any]:
    return np.ascontiguousarray(tensor.numpy())


def _constants(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, onnx.AttributeProto]]:
    """Yield the Constant nodes that hold a tensor, everywhere."""
    bodies: list[onnx.GraphProto | onnx.FunctionProto] = [*graph_protos(model), *model.functions]
    for body in bodies:
        for node in body.node:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                for attribute in node.attribute:
                    if attribute.name == "value" and not attribute.ref_attr_name:
                        yield node, attribute


def _same_bytes(descriptor: int, other: Path) -> bool:
    """Tell whether a file that is open at its beginning holds what another one does."""
    if os.fstat(descriptor).st_size != other.stat().st_size:
        return False
    with open(descriptor, "rb", buffering=0, closefd=False) as first, other.open("rb", buffering=0) as second:
        while piece := first.read(_READ_BYTES):
            if piece != second.read(len(piece)):
                return False
    return True
