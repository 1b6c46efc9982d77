"""Results -> plain JSON values, and the one document that a command prints."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from onnxprune.messages import harmless_json
from onnxprune.types import Report

#: Grows when a key of the documents changes its meaning or goes; new keys do not change it.
SCHEMA = 1


def as_json(value: object) -> Any:
    """Return ``value`` made of dict, list, str, int, float, bool and None alone.

    Numpy scalars and arrays become numbers and lists, paths become text, and the results of this package (any
    dataclass) become objects of their fields. A float that is not finite has no place in JSON: it turns null.

    Raises:
        TypeError: for anything else; a model, say, is no JSON value.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (np.ndarray, np.generic)):
        return as_json(value.tolist())
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Report):
        return {"title": value.title, "passed": value.passed, **_fields(value, without="title")}
    if is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    if isinstance(value, Mapping):
        return {str(key): as_json(entry) for key, entry in value.items()}
    if isinstance(value, (Sequence, Set)) and not isinstance(value, (bytes, bytearray)):
        entries = sorted(value) if isinstance(value, Set) else value
        return [as_json(entry) for entry in entries]
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _fields(value: Any, without: str = "") -> dict[str, Any]:
    names = (entry.name for entry in fields(value) if entry.name != without)
    return {name: as_json(getattr(value, name)) for name in names}


def document(command: str, version: str, result: object) -> dict[str, Any]:
    """Return the document of a command: schema, command and version, then the keys of its result.

    Raises:
        TypeError: the result does not become a JSON object.
    """
    keys = as_json(result)
    if not isinstance(keys, dict):
        raise TypeError(f"{type(result).__name__} has no keys to put into a document")
    return {"schema": SCHEMA, "command": command, "version": version, **keys}


def to_text(value: object) -> str:
    """Return JSON text in ASCII, in which no name does anything to a terminal or a build server."""
    return harmless_json(json.dumps(as_json(value), indent=1, allow_nan=False))
