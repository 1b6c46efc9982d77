"""The reference of recipes: every key, what it may be, its default and meaning, drawn from the schema.

``python -m onnxprune.recipe.reference`` prints it; docs/recipe.md holds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from onnxprune.gates.settings import GateSettings
from onnxprune.recipe.schema import (
    KINDS,
    PATHS,
    STAGES,
    Data,
    GradualOptions,
    ImportOptions,
    Model,
    Output,
    Recipe,
    Run,
)


def reference() -> str:
    """Return the reference as Markdown: a table for each table of a recipe."""
    stages = [(f'`[[stages]]`, `kind = "{kind}"`', stage) for kind, stage in zip(KINDS, STAGES, strict=True)]
    tables: list[tuple[str, type[BaseModel]]] = [
        ("At the top", Recipe), ("`[model]`", Model), ("`[model.import]`", ImportOptions), ("`[data]`", Data),
        ("`[run]`", Run), *stages, ("`[stages.tuning]` of `prune`", GradualOptions),
        ("`[gates]`", GateSettings), ("`[output]`", Output),
    ]  # fmt: skip
    return "\n".join(line for title, model in tables for line in _table(title, model))


def _table(title: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"### {title}\n"
    if model.__doc__ and model in STAGES:
        yield f"{model.__doc__.splitlines()[0]}\n"
    yield "| key | value | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for name, field in model.model_fields.items():
        if name == "kind":
            continue
        kind = _value(field.annotation, field.metadata)
        yield f"| `{field.alias or name}` | {kind} | {_default(field)} | {field.description} |"
    yield ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*needed*"
    value = field.default
    if value is None or value is PydanticUndefined or value in ([], {}) or isinstance(value, BaseModel):
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`"


def _value(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Return in words what a value may be."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _value(inner, more)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        members = [_value(member, metadata) for member in get_args(annotation) if member is not NoneType]
        return " or ".join(dict.fromkeys(members))
    if get_origin(annotation) in (list, tuple):
        return f"list of {_value(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return "table"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    if any(getattr(entry, "func", None) in PATHS for entry in metadata):
        return "path"
    words = {str: "text", int: "whole number", float: "number", bool: "`true`, `false`", ByteSize: "size"}
    return words.get(annotation, "value") + _range(metadata)


def _range(metadata: Sequence[Any]) -> str:
    bounds = []
    for entry in metadata:
        parts = getattr(entry, "metadata", None) or [entry]  # a Field inside an Annotated holds several
        for part in parts:
            for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
                bound = getattr(part, name, None)
                if bound is not None:
                    bounds.append(f"{sign} {bound:g}")
    return f" {', '.join(dict.fromkeys(bounds))}" if bounds else ""


if __name__ == "__main__":
    print(reference())
