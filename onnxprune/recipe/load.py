"""A recipe's file, and what the command line overrides in it -> a checked recipe.

A file is not trusted: it is of limited size, holds plain values, and names code of its own (a ``.pt2`` file,
``module:function``) in vain unless the user said that this is trusted.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from onnxprune.errors import RecipeError, UsageError
from onnxprune.messages import one_line, quoted, visible
from onnxprune.reading import contents, parse_json
from onnxprune.recipe.errors import explain
from onnxprune.recipe.order import check_order
from onnxprune.recipe.overrides import override
from onnxprune.recipe.schema import Place, Recipe
from onnxprune.user_code import is_reference

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LARGEST_BYTES = 1 << 20
_DEEPEST = 20
_MOST_DOTS = 200


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A recipe, and where it came from.

    Attributes:
        recipe: checked; its paths are those from the current folder.
        path: of the file, as it was given; None for values that never were in a file.
        text: of the file.
        overrides: as they were given.
        digest: sha256 of all that the recipe says, overrides applied.
    """

    recipe: Recipe
    path: Path | None
    text: str
    overrides: tuple[str, ...]
    digest: str


def load_recipe(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    environment: Mapping[str, str] | None = None,
    trust_code: bool = False,
) -> LoadedRecipe:
    """Read and check a recipe.

    Args:
        source: a ``.toml`` or ``.json`` file; or its values, whose paths are relative to the current folder.
        overrides: ``key=value`` each, such as ``stages.prune.target_macs=0.4``; the value as TOML writes it,
            or plain text.
        environment: variables that paths may refer to; those of the process by default.
        trust_code: let the recipe name code that will be run.

    Raises:
        RecipeError: the file is missing or damaged, or a key or value is not allowed.
        UsageError: an override is malformed.
    """
    if isinstance(source, Mapping):
        path, text = None, json.dumps(source, indent=1, default=str)
        values: dict[str, Any] = json.loads(text)
        label = "recipe"
    else:
        path = Path(source)
        label = visible(path)
        text = _read(path, label)
        values = _parse(path, text, label)
    _check_plain(values, label)
    for entry in overrides:
        override(values, entry)
    place = Place(Path() if path is None else path.parent, environment)
    try:
        recipe = Recipe.model_validate(values, context=place)
    except ValidationError as error:
        raise RecipeError(f"{label}: {explain(error)}") from None
    check_order(recipe, label)
    if not trust_code:
        _refuse_code(recipe, label)
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return LoadedRecipe(recipe, path, text, tuple(overrides), digest)


def _read(path: Path, label: str) -> str:
    found = contents(path, RecipeError, _LARGEST_BYTES, "is larger than any recipe (1 MiB)")
    try:
        return found.decode("utf-8-sig")  # the mark that some editors begin with is no text
    except UnicodeDecodeError as error:
        raise RecipeError(f"{label}: is no UTF-8 text (byte {error.start})") from None


def _parse(path: Path, text: str, label: str) -> dict[str, Any]:
    kind = path.suffix.lower()
    if any(line.count(".") > _MOST_DOTS for line in text.splitlines()):
        # the time that a parser takes for one dotted key grows with the square of its parts
        raise RecipeError(f"{label}: is nested too deeply, or has a line with more than {_MOST_DOTS} dots")
    if kind not in (".toml", ".json"):
        raise RecipeError(f"{label}: recipes are .toml or .json files")
    try:
        if kind == ".toml":
            return tomllib.loads(text)
        values = parse_json(text.encode())
    except RecursionError:
        raise RecipeError(f"{label}: is nested too deeply") from None
    except ValueError as error:  # both decoders raise kinds of it, which name line and column
        raise RecipeError(f"{label}: is no {kind[1:].upper()}: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{label}: holds no table of keys")
    return values


def _check_plain(value: Any, label: str, depth: int = 0) -> None:
    """Refuse what no recipe has: dates, numbers that are not finite, deep nests."""
    if depth > _DEEPEST:
        raise RecipeError(f"{label}: is nested too deeply")
    if isinstance(value, dict):
        for entry in value.values():
            _check_plain(entry, label, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            _check_plain(entry, label, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{label}: holds {value}, which is no finite number")
    elif isinstance(value, int) and abs(value) >= 1 << 63:
        raise RecipeError(f"{label}: holds a number that is too large")
    elif value is not None and not isinstance(value, (str, bool, int, float)):
        raise RecipeError(f"{label}: holds {one_line(value)}, a {type(value).__name__}; write it as text")


def _refuse_code(recipe: Recipe, label: str) -> None:
    """Refuse a recipe that makes us run code, unless the user said that it may.

    Raises:
        UsageError: naming the key.
    """
    named = {
        "model.path": recipe.model.path, "data.calibration": recipe.data.calibration,
        "data.evaluation": recipe.data.evaluation, "data.metric": recipe.data.metric,
    }  # fmt: skip
    for name, stage in zip(recipe.stage_names, recipe.stages, strict=True):
        for table, holder in (("", stage), (".tuning", getattr(stage, "tuning", None))):
            for key in ("data", "loss", "validation"):
                named[f"stages.{name}{table}.{key}"] = getattr(holder, key, None)
    for key, value in named.items():
        if isinstance(value, str) and (is_reference(value) or _is_program(value)):
            raise UsageError(
                f"{label}: {key} {quoted(value)} runs code; add --trust-input-code if you trust it"
            )


def _is_program(value: str) -> bool:
    return Path(value).suffix.lower() in (".pt2", ".pt", ".pth", ".py")
