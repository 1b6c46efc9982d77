"""Large tensor payloads, taken out of a serialized model before parsing and put back after serializing.

protobuf copies every payload when it parses, again when Python looks at it, and again when it writes. Here
the data of large tensors never reaches it: in its place stands a token of 24 bytes, and the payload goes
straight from the file into an array, or from an array into the file. Only the framing of protobuf is needed
for that (field number, wire type, length), for the few message types that can hold a tensor. Source: the
protobuf encoding guide, and the field numbers of ``onnx.proto3``.
"""

from __future__ import annotations

import secrets
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

#: Payloads from this size on are taken out.
THRESHOLD_BYTES = 1024

#: Message levels below the model that are searched for payloads (one subgraph takes three).
DEEPEST = 24

_WINDOW_BYTES = 1 << 16
_LENGTH_DELIMITED = 2
_RAW_DATA = 9

#: Fields of a tensor that hold data; more than one of them is for the checks to see, not for us to hide.
_DATA_FIELDS = frozenset((4, 5, 6, 7, 9, 10, 11))

Message: TypeAlias = Literal[
    "model", "training", "graph", "function", "node", "attribute", "sparse", "tensor", "payload"
]

#: Which fields of which messages lead to a payload.
_INNER: dict[Message, dict[int, Message]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    # raw_data; packed float_data and double_data, whose bytes are those that raw_data would hold
    "tensor": {9: "payload", 4: "payload", 10: "payload"},
}

ReadAt: TypeAlias = Callable[[int, int], bytes]


class WireError(Exception):
    """The bytes are not framed as this module expects; a real protobuf parser has to judge them."""


class Tokens:
    """What stands in place of payloads: 16 random bytes, which no file can foresee, and an index."""

    def __init__(self) -> None:
        self.nonce = secrets.token_bytes(16)

    def of(self, index: int) -> bytes:
        """Return the token of payload ``index``."""
        return self.nonce + struct.pack("<Q", index)

    def index(self, raw_data: bytes) -> int | None:
        """Return the index if ``raw_data`` is a token, else None."""
        if len(raw_data) != len(self.nonce) + 8 or not raw_data.startswith(self.nonce):
            return None
        return int(struct.unpack_from("<Q", raw_data, len(self.nonce))[0])


@dataclass(frozen=True, slots=True)
class Span:
    """Where the payload of a tensor lies in a file.

    Attributes:
        position: of the first byte.
        length: in bytes.
        number: of the field that holds it: 9 raw_data, 4 float_data, 10 double_data.
    """

    position: int
    length: int
    number: int


def take_out(read_at: ReadAt, size: int, tokens: Tokens) -> tuple[bytes, list[Span]]:
    """Return a serialized model without its large payloads, and where these lie.

    Args:
        read_at: returns the bytes at (position, count).
        size: length of the serialized model in bytes.
        tokens: makes what stands in place of the payloads, always as ``raw_data``.

    Returns:
        The small model, and the payloads by index.

    Raises:
        WireError: the framing is unusual; parse the whole instead.
    """
    source = _Source(read_at, size)
    found: list[Span] = []

    def strip(kind: Message, start: int, end: int, depth: int) -> bytes:
        pieces: list[bytes] = []
        kept = start
        least = 0 if kind == "tensor" else THRESHOLD_BYTES
        filled = 0
        for number, field_start, value_start, value_end in source.large_fields(start, end, least):
            filled += kind == "tensor" and number in _DATA_FIELDS
            if filled > 1:
                raise WireError("a tensor has its data in two places")
            inner = _INNER[kind].get(number)
            if inner is None or depth == DEEPEST or value_end - value_start < THRESHOLD_BYTES:
                continue
            if inner == "payload":
                found.append(Span(value_start, value_end - value_start, number))
                number, content = _RAW_DATA, tokens.of(len(found) - 1)
            else:
                content = strip(inner, value_start, value_end, depth + 1)
            pieces += (source.read(kept, field_start), _header(number, len(content)), content)
            kept = value_end
        return b"".join((*pieces, source.read(kept, end)))

    return strip("model", 0, size, 0), found


def put_back(small: bytes, tokens: Tokens, lengths: Sequence[int]) -> list[bytes | int]:
    """Return the pieces of the serialized model whose payloads have ``lengths``: bytes, or a payload's index.

    The lengths of all enclosing messages are those of the whole. Every token stands once.
    """
    source = _Source(lambda position, count: small[position : position + count], len(small))
    positions = []
    position = small.find(tokens.nonce)
    while position >= 0:
        positions.append(position)
        position = small.find(tokens.nonce, position + 1)

    def expand(kind: Message, start: int, end: int) -> tuple[list[bytes | int], int]:
        if kind == "payload":
            index = tokens.index(small[start:end])
            if index is None:
                raise WireError("a token is damaged")
            return [index], lengths[index]
        pieces: list[bytes | int] = []
        total = 0
        kept = start
        for number, field_start, value_start, value_end in source.large_fields(start, end, len(tokens.of(0))):
            first = bisect_left(positions, value_start)
            if number not in _INNER[kind] or first == len(positions) or positions[first] >= value_end:
                continue
            content, length = expand(_INNER[kind][number], value_start, value_end)
            before = small[kept:field_start] + _header(number, length)
            pieces += (before, *content)
            total += len(before) + length
            kept = value_end
        return [*pieces, small[kept:end]], total + end - kept

    return expand("model", 0, len(small))[0]


class _Source:
    """Fields of a serialized message, read through a window."""

    def __init__(self, read_at: ReadAt, size: int) -> None:
        self.read_at = read_at
        self.size = size
        self.window = b""
        self.base = 0

    def read(self, start: int, end: int) -> bytes:
        return self.read_at(start, end - start) if end > start else b""

    def large_fields(
        self, start: int, end: int, least: int = THRESHOLD_BYTES
    ) -> Iterator[tuple[int, int, int, int]]:
        """Yield (number, start of the field, start and end of its value) of fields of ``least`` bytes.

        Larger ones too; only length-delimited fields count.

        Raises:
            WireError: a field is malformed, is a group, or does not end within the message.
        """
        position = start
        while position < end:
            field_start = position
            tag, position = self._varint(position)
            wire_type = tag & 7
            if wire_type == _LENGTH_DELIMITED:
                length, position = self._varint(position)
                if position + length > end:
                    raise WireError("a field ends outside its message")
                if length >= least:
                    yield tag >> 3, field_start, position, position + length
                position += length
            elif wire_type == 0:
                _, position = self._varint(position)
            elif wire_type in (1, 5):
                position += 8 if wire_type == 1 else 4
            else:
                raise WireError("groups are not expected")
        if position != end:
            raise WireError("a field ends outside its message")

    def _varint(self, position: int) -> tuple[int, int]:
        at = position - self.base
        if at < 0 or at + 10 > len(self.window):
            self.base = position
            self.window = self.read_at(position, min(_WINDOW_BYTES, self.size - position))
            at = 0
        window = self.window
        value = shift = 0
        while at < len(window) and shift < 64:
            byte = window[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, self.base + at
            shift += 7
        raise WireError("a number is malformed")


def _header(number: int, length: int) -> bytes:
    """Return tag and length of a length-delimited field."""
    return _encode(number << 3 | _LENGTH_DELIMITED) + _encode(length)


def _encode(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
