"""What pydantic found wrong with a recipe -> one line: the key, its value, what is allowed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from onnxprune.messages import one_line, quoted
from onnxprune.recipe.schema import KINDS, STAGES, Recipe
from onnxprune.registry import did_you_mean

#: What a message of pydantic becomes; {} are filled from the error's own context.
_ALLOWED = {
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list, in [ ]",
    "dict_type": "must be a table of keys",
    "model_type": "must be a table of keys",
    "model_attributes_type": "must be a table of keys",
    "too_short": "needs at least {min_length}",
    "string_too_long": "may have at most {max_length} characters",
    "string_pattern_mismatch": "may have letters, digits, dots, dashes and underscores",
}


@dataclass(frozen=True, slots=True)
class _Mistake:
    what: str
    allowed: str
    meaning: str = ""


def explain(error: ValidationError) -> str:
    """Return one line about the first mistake, and how many others there are."""
    # unknown keys first: they are often the cause of others, a misspelt key of a missing one
    mistakes = sorted(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    others = len({_walk(mistake["loc"]).key for mistake in mistakes}) - 1
    key = _walk(mistakes[0]["loc"]).key
    told = [_explain(mistake) for mistake in mistakes if _walk(mistake["loc"]).key == key]
    first = _either(told)
    return first if not others else f"{first} (and {others} more)"


def _either(told: Sequence[_Mistake]) -> str:
    """Return one line of what is said of one key: several things where its value may be of several kinds."""
    allowed = " or ".join(dict.fromkeys(mistake.allowed for mistake in told))
    return f"{told[0].what}: {allowed}{told[0].meaning}"


def _explain(mistake: ErrorDetails) -> _Mistake:
    place, kind = mistake["loc"], mistake["type"]
    if kind == "extra_forbidden":
        table = _walk(place[:-1])
        known = [] if table.model is None else list(_fields(table.model))
        key = ".".join(filter(None, (table.key, one_line(place[-1]))))
        hint = did_you_mean(str(place[-1]), known)
        return _Mistake(key, f"unknown key{hint}; known: {', '.join(known)}")
    found = _walk(place)
    meaning = "" if found.field is None or not found.field.description else f" ({found.field.description})"
    if kind == "missing":
        return _Mistake(found.key, "is missing", meaning)
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        given = mistake["input"]
        tag = given.get("kind") if isinstance(given, Mapping) else None
        what = "has no kind" if tag is None else f"unknown kind {quoted(tag)}{did_you_mean(str(tag), KINDS)}"
        return _Mistake(found.key, f"{what}; known: {', '.join(KINDS)}")
    if kind in _ALLOWED:
        allowed = _ALLOWED[kind].format(**mistake.get("ctx", {}))
    else:
        allowed = one_line(mistake["msg"]).removeprefix("Value error, ")
    return _Mistake(f"{found.key} = {_shown(mistake['input'])}", allowed, meaning)


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "a table" if isinstance(value, dict) else "a list"
    return one_line(str(value).lower() if isinstance(value, bool) else repr(value), 80)


@dataclass(frozen=True, slots=True)
class _Found:
    """What is known of the place of a mistake.

    Attributes:
        key: dotted, as people write it: without the names that pydantic adds for members of unions.
        model: of the table at the place, None if there is none.
        field: what is said about the key, None for a whole table.
    """

    key: str
    model: type[BaseModel] | None
    field: FieldInfo | None


def _walk(place: Sequence[int | str]) -> _Found:
    parts, names = list(place), list[str]()
    model: type[BaseModel] | None = Recipe
    field: FieldInfo | None = None
    while parts:
        part = parts.pop(0)
        if isinstance(part, int):
            names.append(str(part))
            if names[0] == "stages" and len(names) == 2 and parts and parts[0] in KINDS:
                model, field = STAGES[KINDS.index(str(parts.pop(0)))], None
            continue
        fields = {} if model is None else _fields(model)
        if part not in fields:
            break  # the member of a union, or a key of the user's own
        names.append(part)
        field = fields[part]
        model = next(_models_in(field.annotation), None)
    return _Found(".".join(names), model, field)


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return what is known of each key of a table, by its name in a recipe."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for member in get_args(annotation):
        yield from _models_in(member)
