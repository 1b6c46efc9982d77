"""Read stored tensors a piece at a time: models larger than memory can be scored, masked and compared.

A tensor that is made of another one, elsewhere or in other numbers, is a `MadeTensor`: it knows its type and
shape, and makes its contents, a piece at a time too, whenever somebody reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.model.external import PIECE_BYTES, FileTensor

Array: TypeAlias = npt.NDArray[Any]
Piece = TypeVar("Piece")


class MadeTensor(ir.LazyTensor):
    """A tensor whose contents are made anew, a piece at a time, at each reading; nothing stays in memory."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[], Iterator[Array]], like: ir.TensorProtocol, **other: Any) -> None:
        """Describe the tensor.

        Args:
            make: starts making the contents: flat arrays of its type, in order, each valid until the next but
                one is asked for.
                Each but the last has a multiple of 8 elements.
            like: has its name and notes, and its type and shape unless these are given.
            other: ``dtype`` (8 bits or more), ``shape`` or ``name`` where they are others.
        """
        self._make = make
        super().__init__(
            self._whole,
            dtype=other.get("dtype", like.dtype),
            shape=ir.Shape(other.get("shape", like.shape.numpy())),
            name=other.get("name", like.name),
            doc_string=like.doc_string,
            metadata_props=dict(like.metadata_props),
        )

    def pieces(self) -> Iterator[Array]:
        """Yield the flattened contents in order."""
        return self._make()

    def _whole(self) -> ir.TensorProtocol:
        flat = np.empty(self.size, dtype=self.dtype.numpy())
        start = 0
        for piece in self._make():
            flat[start : start + piece.size] = piece
            start += piece.size
        if start != flat.size:
            raise ValueError(f"{start} of {flat.size} elements were made")
        return ir.Tensor(flat.reshape(self.shape.numpy()), dtype=self.dtype, name=self.name)


def made(make: Callable[[], Iterator[Array]], source: ir.TensorProtocol, **other: Any) -> ir.TensorProtocol:
    """Return a tensor that is made of another one: when it is read or, if that one is in memory, now.

    Args:
        make: as for `MadeTensor`.
        source: what it is made of; it has its name, notes, type and shape unless others are given.
        other: see `MadeTensor`.
    """
    tensor = MadeTensor(make, source, **other)
    if isinstance(source, (FileTensor, MadeTensor)):
        return tensor
    now = tensor.raw()
    now.name, now.doc_string = tensor.name, tensor.doc_string
    now.metadata_props.update(tensor.metadata_props)
    return now


def read_pieces(tensor: ir.TensorProtocol) -> Iterator[Array]:
    """Yield the flattened tensor in order, in pieces of 4 MiB (the last one may be smaller).

    Pieces are for reading, and valid until the next but one is asked for. They have a multiple of 8
    elements, the same for every tensor of a type that lies in a file or in memory. Tensors in files are never
    in memory at once; those that are computed when read are computed once.

    Raises:
        ModelError: the file of a tensor is missing or has changed.
    """
    if isinstance(tensor, MadeTensor):
        yield from in_wholes(tensor.pieces(), PIECE_BYTES // tensor.dtype.numpy().itemsize)
        return
    if isinstance(tensor, FileTensor) and tensor.dtype.bitwidth >= 8:
        dtype = np.dtype(tensor.dtype.numpy()).newbyteorder("<")  # files are little endian on every machine
        for stored in tensor.pieces():
            yield np.frombuffer(stored, dtype=dtype)
        return
    flat = np.asarray(tensor.numpy()).reshape(-1)
    elements = PIECE_BYTES // max(1, flat.itemsize)
    for start in range(0, flat.size, elements):
        yield flat[start : start + elements]


def ahead(pieces: Iterator[Piece], size: int) -> Iterator[Piece]:
    """Yield pieces while a thread makes the next one: what is written or hashed is read meanwhile.

    Args:
        pieces: each valid until the next but one is asked for.
        size: of all of them, in bytes: one or two pieces are not worth a thread.
    """
    if size <= 2 * PIECE_BYTES:
        yield from pieces
        return
    with ThreadPoolExecutor(1, thread_name_prefix="read") as thread:
        try:
            under_way = thread.submit(next, pieces, None)
        except RuntimeError:  # there is no room for another thread; what was handed over is never begun
            yield from pieces
            return
        while (piece := under_way.result()) is not None:
            under_way = thread.submit(next, pieces, None)
            yield piece


def in_wholes(pieces: Iterable[Array], count: int) -> Iterator[Array]:
    """Yield the same elements in pieces of ``count`` (the last one may be smaller), copying where it must."""
    waiting: list[Array] = []
    have = 0
    for piece in pieces:
        start = 0
        if not have:  # whole pieces pass without a copy
            while piece.size - start >= count:
                yield piece[start : start + count]
                start += count
        while start < piece.size:
            part = piece[start : start + count - have].copy()  # pieces are valid for two steps only
            waiting.append(part)
            have, start = have + part.size, start + part.size
            if have == count:
                yield np.concatenate(waiting) if len(waiting) > 1 else part
                waiting, have = [], 0
    if have:
        yield np.concatenate(waiting) if len(waiting) > 1 else waiting[0]


def in_bands(pieces: Iterable[Array], unit: int, itemsize: int) -> Iterator[Array]:
    """Yield the same elements in bands of about a piece's size, each a multiple of ``unit`` and of 8 long.

    The last band may be no multiple of 8. So what belongs together (``unit`` elements) is seen at once, and
    answers of one bit each can be packed band by band.

    Args:
        pieces: flat, in order.
        unit: elements; the whole is a multiple of it.
        itemsize: bytes of an element.
    """
    step = math.lcm(unit, 8)
    return in_wholes(pieces, step * max(1, PIECE_BYTES // (step * itemsize)))
