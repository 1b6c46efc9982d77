"""What a run leaves outside its folder: the model and its plans if they are accepted, and reports always."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxprune.errors import OutputError
from onnxprune.messages import quoted, visible
from onnxprune.model.atomic import check_target, write_whole
from onnxprune.model.io import load
from onnxprune.pipeline import save_examined
from onnxprune.plans import load_plan, save_plan
from onnxprune.recipe.load import LoadedRecipe
from onnxprune.record import Record
from onnxprune.report.forms import FORMS
from onnxprune.types import Check, Report
from onnxprune.verification import verify


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the compressed model is, and what was checked on that file."""

    path: Path
    checks: tuple[Check, ...]


class Outputs:
    """The outputs of a recipe.

    Args:
        loaded: the recipe.

    Attributes:
        recipe: its section about outputs.
    """

    def __init__(self, loaded: LoadedRecipe) -> None:
        self.recipe = loaded.recipe.output
        self._inputs = _inputs_of(loaded)

    @property
    def reports(self) -> dict[str, Path]:
        """Where reports go, by form."""
        found = {form: getattr(self.recipe, "json_" if form == "json" else form) for form in FORMS}
        return {form: Path(path) for form, path in found.items() if path is not None}

    def check(self) -> None:
        """Refuse outputs that can't be written, are inputs, or are each other, before long work begins.

        Raises:
            OutputError: naming the file.
        """
        model = Path(self.recipe.model)
        accepted = {} if self.recipe.accepted is None else {"accepted": Path(self.recipe.accepted)}
        files = {"model": model, **self.reports, **accepted}
        for path in (*files.values(), rejected(model)):
            check_target(path)
        plan = {} if self.recipe.plan is None else {"plan": Path(self.recipe.plan)}
        for (one, path), (other, second) in itertools.combinations({**files, **plan}.items(), 2):
            if os.path.abspath(path) == os.path.abspath(second):  # noqa: PTH100 # no link is followed
                raise OutputError(f"output.{one} and output.{other} are the same: {visible(path)}")
        for name, path in files.items():
            for source in self._inputs:
                if path.exists() and source.exists() and path.samefile(source):
                    raise OutputError(
                        f"output.{name} {visible(path)}: is an input of this run; inputs are never changed"
                    )

    def place_model(self, final: Path, original: Path, *, accepted: bool) -> Placed:
        """Write the compressed model: under its name, or under one that says that it was rejected.

        Raises:
            OutputError: it can't be written.
            VerificationError: the file is not what it should be; nothing was written.
        """
        model = Path(self.recipe.model)
        target = model if accepted else rejected(model)

        def examine(temporary: Path) -> Sequence[Check]:
            return verify(temporary, against=original).checks

        report = save_examined(load(final), target, Report("compressed"), examine)
        return Placed(target, report.checks)

    def write(self, record: Record, placed: Placed, plans: Mapping[str, Path]) -> dict[str, Path]:
        """Write plans (if the model was accepted) and reports; return all that was written.

        Raises:
            OutputError: a file can't be written.
        """
        written = {"model" if record.accepted else "rejected model": placed.path}
        if self.recipe.plan is not None and record.accepted:
            for stage, folder in plans.items():
                target = plan_target(Path(self.recipe.plan), stage, alone=len(plans) == 1)
                save_plan(load_plan(folder), target)
                written[f"plan of {quoted(stage)}"] = target
        for form, path in self.reports.items():
            write_whole(path, FORMS[form](record).encode())
            written[form] = path
        if self.recipe.accepted is not None and record.accepted:
            path = Path(self.recipe.accepted)
            write_whole(path, record.to_text().encode())
            written["accepted"] = path
        return written


def rejected(model: Path) -> Path:
    """Return the name of a model that did not pass: ``small.onnx`` becomes ``small.rejected.onnx``."""
    return model.with_name(f"{model.stem}.rejected{model.suffix}")


def plan_target(plan: Path, stage: str, *, alone: bool) -> Path:
    """Return where the plan of a stage goes: the stage's name comes in where there are several."""
    return plan if alone else plan.with_name(f"{plan.stem}.{stage}{plan.suffix}")


def _inputs_of(loaded: LoadedRecipe) -> list[Path]:
    recipe = loaded.recipe
    named = [recipe.model.path, recipe.data.calibration, recipe.data.evaluation]
    return [Path(name) for name in named if name is not None] + ([loaded.path] if loaded.path else [])
