"""Earlier weights of the same graph, for scores that go by how far weights moved."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from onnxprune.errors import PlanError, UsageError
from onnxprune.messages import visible
from onnxprune.model.digest import structure_digest
from onnxprune.model.io import load
from onnxprune.scores.movement import MOVEMENT_SCORERS


def check_earlier(score: str, before: str | None) -> None:
    """Refuse a score that goes by earlier weights without these, and earlier weights that nothing looks at.

    Raises:
        UsageError: see above.
    """
    if score in MOVEMENT_SCORERS and before is None:
        raise UsageError(
            f"score {score!r} compares with earlier weights of the same graph: give --before earlier.onnx"
        )
    if score not in MOVEMENT_SCORERS and before is not None:
        known = ", ".join(MOVEMENT_SCORERS)
        raise UsageError(f"score {score!r} looks at no earlier weights: leave --before out, or take {known}")


def earlier_model(path: str, model: ir.Model) -> ir.Model:
    """Read an earlier model.

    Args:
        path: of its file.
        model: the graph that it must have.

    Raises:
        ModelError: the file is missing or damaged.
        PlanError: it holds another graph.
    """
    before = load(Path(path))
    if structure_digest(before) != structure_digest(model):
        raise PlanError(
            f"{visible(path)} holds another graph; earlier weights must be of the same export as the model"
        )
    return before
