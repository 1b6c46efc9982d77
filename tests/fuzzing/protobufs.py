"""Mutants of protobuf messages: any field of any message in them, changed to what such a field might hold."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_INTEGERS = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64,
             FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)  # fmt: skip
_BITS = {FieldDescriptor.CPPTYPE_INT32: 31, FieldDescriptor.CPPTYPE_UINT32: 31}
_NUMBERS = (
    -1, 0, 1, 2, 3, 4, 7, 16, 17, 64, 255, 65536, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63), -2,
)  # fmt: skip
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 3.4e38, -3.4e38, float("inf"), float("-inf"), float("nan"))
_TEXTS = (
    "", " ", "x", "\n", "a\x1b[31mb", "\u202ex", "::error::x", "##[error]x", "../x", "/etc/passwd",
    "a\\b", "CON", "\0", "x" * 300, "é", "e\u0301", "If", "Loop", "Scan", "Constant", "Identity", "Conv",
    "MatMul", "Reshape", "Concat", "Split", "Softmax", "ai.onnx", "com.microsoft", "location", "offset",
    "length", "checksum", "-1", "18446744073709551616", "1e3", "data.bin", "<script>alert(1)</script>",
    "{{7*7}}", "%s%n", "${HOME}",
)  # fmt: skip
#: Deeper messages are left as they are.
_DEEPEST = 12


def mutate(message: Message, rng: random.Random, changes: int) -> None:
    """Change a message in place, so many times."""
    for _ in range(changes):
        found = list(_messages(message))
        chosen = rng.choice(found)
        fields = chosen.DESCRIPTOR.fields
        present = [field for field, _ in chosen.ListFields()]
        field = rng.choice(present if present and rng.random() < 0.8 else fields)
        same_kind = [m for m in found if field.message_type and m.DESCRIPTOR is field.message_type]
        _change(chosen, field, rng, same_kind, found)


def _messages(message: Message, depth: int = 0) -> Iterator[Message]:
    yield message
    if depth > _DEEPEST:
        return
    for field, value in message.ListFields():
        if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            for child in value if _is_list(field) else [value]:
                yield from _messages(child, depth + 1)


def _is_list(field: FieldDescriptor) -> bool:
    if hasattr(field, "is_repeated"):
        return bool(field.is_repeated)
    return bool(field.label == FieldDescriptor.LABEL_REPEATED)  # older protobuf


def _change(
    message: Message,
    field: FieldDescriptor,
    rng: random.Random,
    same_kind: list[Message],
    all_of_them: list[Message],
) -> None:
    if _is_list(field):
        _change_list(message, field, rng, same_kind, all_of_them)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        if rng.random() < 0.4:
            message.ClearField(field.name)
        elif same_kind:
            _copy(getattr(message, field.name), rng.choice(same_kind))
        else:
            getattr(message, field.name).SetInParent()
    elif rng.random() < 0.15:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _value(field, getattr(message, field.name), rng, all_of_them))


def _change_list(
    message: Message,
    field: FieldDescriptor,
    rng: random.Random,
    same_kind: list[Message],
    all_of_them: list[Message],
) -> None:
    entries = getattr(message, field.name)
    kind = rng.randrange(6)
    if entries and kind == 0:
        del entries[rng.randrange(len(entries))]
    elif entries and kind == 1:
        message.ClearField(field.name)
    elif len(entries) > 1 and kind == 2:
        _swap(entries, field, rng)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        if same_kind and entries and kind == 3:
            _copy(entries[rng.randrange(len(entries))], rng.choice(same_kind))
        elif same_kind:
            _copy(entries.add(), rng.choice(same_kind))
        else:
            entries.add()
    elif entries and kind < 5:
        place = rng.randrange(len(entries))
        entries[place] = _value(field, entries[place], rng, all_of_them)
    else:
        entries.append(_value(field, entries[0] if entries else None, rng, all_of_them))


def _swap(entries: Any, field: FieldDescriptor, rng: random.Random) -> None:
    one, other = rng.sample(range(len(entries)), 2)
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        kept = type(entries[one])()
        kept.CopyFrom(entries[one])
        entries[one].CopyFrom(entries[other])
        entries[other].CopyFrom(kept)
    else:
        entries[one], entries[other] = entries[other], entries[one]


def _copy(target: Message, source: Message) -> None:
    """Make one message like another one, which may hold it, or be in it."""
    copied = type(source)()
    copied.CopyFrom(source)
    if copied.ByteSize() < 200_000:
        target.CopyFrom(copied)


def _value(field: FieldDescriptor, now: Any, rng: random.Random, messages: list[Message]) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice([value.number for value in field.enum_type.values])
    if field.cpp_type in _INTEGERS:
        return _integer(field, now or 0, rng)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice(_FLOATS)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return not now
    if field.type == FieldDescriptor.TYPE_BYTES:
        return flip(now or b"\0" * rng.choice([1, 4, 8]), rng)
    if rng.random() < 0.6:  # a text from elsewhere: another name makes another edge
        texts = [text for message in rng.sample(messages, min(8, len(messages))) for text in _texts(message)]
        if texts:
            return rng.choice(texts)
    return rng.choice(_TEXTS)


def _integer(field: FieldDescriptor, now: int, rng: random.Random) -> int:
    number = rng.choice([*_NUMBERS, now + 1, now - 1, now * 2, -now, rng.randrange(30)])
    bits = _BITS.get(field.cpp_type, 63)
    least = 0 if "UINT" in str(field.cpp_type) or field.cpp_type in (3, 4) else -(2**bits)
    return max(least, min(number, 2**bits - 1))


def _texts(message: Message) -> Iterator[str]:
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_STRING:
            yield from list(value) if _is_list(field) else [value]


def flip(contents: bytes, rng: random.Random) -> bytes:
    """Change some bytes: flipped, cut off, taken out, put in."""
    changed = bytearray(contents)
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        place = rng.randrange(len(changed) + 1)
        kind = rng.randrange(5)
        if kind == 0 and changed:
            changed[place % len(changed)] ^= 1 << rng.randrange(8)
        elif kind == 1 and changed:
            changed[place % len(changed)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del changed[place : place + rng.choice((1, 1, 2, 8, 64))]
        elif kind == 3:
            changed[place:place] = rng.randbytes(rng.choice((1, 1, 2, 8)))
        elif rng.random() < 0.3:
            del changed[place:]
    return bytes(changed)
