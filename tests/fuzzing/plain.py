"""Mutants of plain values (what JSON and TOML hold) and of archives of arrays."""

from __future__ import annotations

import copy
import io
import json
import random
import zipfile
from typing import Any

import numpy as np

from fuzzing.protobufs import flip

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 0.5, 1e-320, 1e308, 2**31, 2**63, 2**64, -(2**63), 10**40, "", "x",
    "0.5", "nan", "../x", "/dev/zero", "\0", "a\x1b[31mb", "::error::x", "\u202e", "x" * 5000, [], {},
    [[]], [0], ["x"], {"a": 1}, "random", "random:1", "module:function", "${HOME}", "${NO_SUCH}",
    "model.onnx", "channels", "2:4", "0:0", "9999999999:1", "block:0x0", "12ms", "-1ms",
)  # fmt: skip
_RAW = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "[" * 3000,
    "{" * 50,
    '"\\ud800"',
    "9" * 5000,
    "-0",
    "0x1",
    "'",
)


def mutate_values(values: Any, rng: random.Random, changes: int) -> Any:
    """Return plain values with so many changes."""
    changed = copy.deepcopy(values)
    for _ in range(changes):
        holders = list(_holders(changed))
        if not holders:
            return copy.deepcopy(rng.choice(_VALUES))
        holder = rng.choice(holders)
        keys: list[Any] = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        other = rng.choice(holders)
        piece = copy.deepcopy(
            rng.choice(list(other.values() if isinstance(other, dict) else other) or [None])
        )
        kind = rng.randrange(6)
        if not keys or kind == 0:
            if isinstance(holder, dict):
                holder[rng.choice(["x", "", "kind", "schema", "name", *map(str, keys)])] = piece
            else:
                holder.append(piece)
            continue
        key = rng.choice(keys)
        if kind == 1:
            del holder[key]
        elif kind == 2:
            holder[key] = piece
        elif kind == 3 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = rng.choice([-holder[key], holder[key] + 1, holder[key] * 1000, holder[key] / 2])
        else:
            holder[key] = copy.deepcopy(rng.choice(_VALUES))  # which later changes may change
    return changed


def _holders(value: Any) -> list[Any]:
    found, waiting = [], [value]
    while waiting and len(found) < 5000:
        entry = waiting.pop()
        if isinstance(entry, (dict, list)):
            found.append(entry)
            waiting += entry.values() if isinstance(entry, dict) else entry
    return found


def json_text(values: Any, rng: random.Random) -> bytes:
    """Return JSON, now and then damaged."""
    text = json.dumps(values)
    if rng.random() < 0.15 and text:
        place = rng.randrange(len(text))
        return (text[:place] + rng.choice(_RAW) + text[place + rng.choice((0, 1, 5)) :]).encode(
            "utf-8", "replace"
        )
    return flip(text.encode(), rng) if rng.random() < 0.15 else text.encode()


def toml_text(values: dict[str, Any], rng: random.Random) -> bytes:
    """Return TOML with the tables of a recipe, now and then damaged."""
    lines: list[str] = []
    for key, value in values.items():
        if isinstance(value, dict) and key and rng.random() < 0.95:
            lines += [f"[{_key(key)}]", *(f"{_key(name)} = {_toml(entry)}" for name, entry in value.items())]
        elif isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            for entry in value:
                lines += [
                    f"[[{_key(key)}]]",
                    *(f"{_key(name)} = {_toml(inner)}" for name, inner in entry.items()),
                ]
        else:
            lines.insert(0, f"{_key(key)} = {_toml(value)}")
    if rng.random() < 0.1:
        place = rng.randrange(len(lines) + 1)
        lines[place:place] = [
            rng.choice(["[model]", "x = 1", "= 1", "[[stages]]", "a.b.c = 1", "x = 1979-05-27", '"'])
        ]
    text = "\n".join(lines)
    if rng.random() < 0.1:
        place = rng.randrange(len(text) + 1)
        text = text[:place] + rng.choice((*_RAW, "nan", "inf", "a." * 2000)) + text[place:]
    raw = text.encode("utf-8", "replace")
    return flip(raw, rng) if rng.random() < 0.1 else raw


def _key(key: str) -> str:
    return json.dumps(str(key))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_toml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if value is None:
        return '""'
    return json.dumps(value)


_DTYPES = (
    "<f4",
    ">f4",
    "<f8",
    "<i8",
    "|u1",
    "|b1",
    "<c8",
    "|O",
    "<U3",
    "|S4",
    "<M8[s]",
    "|V4",
    "<f2",
    "<U999999999",
)


def npz_bytes(rng: random.Random) -> bytes:
    """Return an archive of arrays: sound, of odd types and sizes, or damaged in its members or as a whole."""
    stream = io.BytesIO()
    packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(stream, "w") as archive:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            name = rng.choice(("x", "x", "x", "label", "segment", "y", " ", "../x", "a\x1b[31m", "::error::"))
            member = _npy(rng)
            suffix = rng.choice((".npy", ".npy", ".npy", ".NPY", ""))
            archive.writestr(zipfile.ZipInfo(f"{name}{suffix}"), member, packing)  # without the time of day
    contents = stream.getvalue()
    return flip(contents, rng) if rng.random() < 0.3 else contents


def _npy(rng: random.Random) -> bytes:
    shape = tuple(rng.choice((0, 1, 2, 5, 16)) for _ in range(rng.choice((0, 1, 2, 2, 2, 3))))
    if rng.random() < 0.5:
        array = np.random.default_rng(rng.randrange(2**32)).standard_normal(shape).astype(np.float32)
        if rng.random() < 0.2 and array.size:
            array.flat[0] = rng.choice((np.nan, np.inf, 3e38))
        stream = io.BytesIO()
        np.save(stream, array.astype(rng.choice(("f4", "f8", "i8", "?", "f2", ">f4"))), allow_pickle=False)
        member = stream.getvalue()
    else:
        told = {"descr": rng.choice(_DTYPES), "fortran_order": rng.choice((True, False)), "shape": shape}
        if rng.random() < 0.4:
            told["shape"] = rng.choice(
                ((2**40,), (-1, 16), (2**32, 2**32), ("x",), (2.5,), 4, (True,), (4,) * 70)
            )
        header = repr(told)
        if rng.random() < 0.2:
            header = rng.choice(
                ("{" * 500, "__import__('os')", header[:-3], "(" * 200, "{}", "{'descr': 1}", "[]")
            )
        length = rng.choice((len(header), len(header), len(header), 0, 65535))
        data = rng.randbytes(rng.choice((0, 4, 64, 1024)))
        version = rng.choice((b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\x09\0"))
        size = length.to_bytes(2 if version[0] == 1 else 4, "little")
        member = b"\x93NUMPY" + version + size + header.encode() + data
    return flip(member, rng) if rng.random() < 0.3 else member
