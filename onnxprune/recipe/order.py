"""Which orders of stages make sense: cuts, then zeros, then fewer bits."""

from __future__ import annotations

from onnxprune.errors import RecipeError, UsageError
from onnxprune.messages import quoted
from onnxprune.patterns import parse_pattern
from onnxprune.planning.recipes import STRUCTURED
from onnxprune.recipe.schema import Prune, Recipe


def check_order(recipe: Recipe, label: str) -> None:
    """Refuse stages that would undo or misread each other.

    Raises:
        RecipeError: naming the stage.
    """
    names = recipe.stage_names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RecipeError(f"{label}: stages: two are called {quoted(twice)}; give each a name of its own")
    kinds = [stage.kind for stage in recipe.stages]
    if "quantize" in kinds[:-1]:
        after = names[kinds.index("quantize") + 1]
        raise RecipeError(
            f"{label}: stages: {quoted(after)} comes after quantize, which must be last: what is pruned, "
            "repaired or tuned after it would no longer be on its grid"
        )
    zeros = None
    for name, stage in zip(names, recipe.stages, strict=True):
        if not isinstance(stage, Prune):
            continue
        try:
            leaves = leaves_zeros(stage.pattern)
        except UsageError as error:
            raise RecipeError(f"{label}: stages.{name}: {error}") from None
        if not leaves:
            if zeros is not None:
                raise RecipeError(
                    f"{label}: stages: {quoted(name)} cuts what {quoted(zeros)} left zeros in, which would "
                    "break their pattern and let a repair fill them; put it before"
                )
        else:
            zeros = name


def leaves_zeros(pattern: str) -> bool:
    """Tell a pattern of zeros from one that shrinks shapes.

    Raises:
        UsageError: there is no such pattern.
    """
    if pattern in STRUCTURED or pattern == "layers":
        return False
    parse_pattern(pattern)
    return True
