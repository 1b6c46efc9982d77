"""What a run leaves outside its folder: the model and its plans if they are accepted, and reports always."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxprune.compression.chain import Chain
from onnxprune.errors import OutputError
from onnxprune.messages import quoted, visible
from onnxprune.model.atomic import check_target
from onnxprune.model.digest import sha256_of
from onnxprune.model.io import load, model_files
from onnxprune.model.together import Together
from onnxprune.pipeline import save_examined
from onnxprune.plans import load_plan, save_plan
from onnxprune.recipe.load import LoadedRecipe
from onnxprune.record import Record
from onnxprune.report.forms import FORMS, write_forms
from onnxprune.types import Check, Report
from onnxprune.verification import verify_and_keep


@dataclass(frozen=True, slots=True)
class Placed:
    """What became of the compressed model.

    Attributes:
        path: where it is about to be.
        file: where it is until then.
        checks: of that file.
        before, after: the original and that model, which nobody needs afterwards.
    """

    path: Path
    file: Path
    checks: tuple[Check, ...]
    before: ir.Model
    after: ir.Model


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
        self._stages = loaded.recipe.stage_names
        self._input_shapes = loaded.recipe.run.input_shapes or None

    @property
    def reports(self) -> dict[str, Path]:
        """Where reports go, by form."""
        found = {form: getattr(self.recipe, "json_" if form == "json" else form) for form in FORMS}
        return {form: Path(path) for form, path in found.items() if path is not None}

    @property
    def paths(self) -> list[Path]:
        """Whatever is written."""
        others = (self.recipe.model, self.recipe.accepted, self.recipe.plan)
        return [*(Path(path) for path in others if path is not None), *self.reports.values()]

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
        places = {f"plan of {stage}": plan_target(path, stage, alone=False)
                  for path in plan.values() for stage in self._stages}  # fmt: skip
        for (one, path), (other, second) in itertools.combinations({**files, **plan}.items(), 2):
            if os.path.abspath(path) == os.path.abspath(second):  # noqa: PTH100 # no link is followed
                raise OutputError(f"output.{one} and output.{other} are the same: {visible(path)}")
        for name, path in {**files, **plan, **places}.items():
            for source in self._inputs:
                if path.exists() and source.exists() and path.samefile(source):
                    raise OutputError(
                        f"output.{name} {visible(path)}: is an input of this run; inputs are never changed"
                    )

    def place(
        self, chain: Chain, original: Path, recorded: Callable[[Placed], Record], *, accepted: bool
    ) -> tuple[Record, dict[str, Path]]:
        """Write the compressed model, its plans and reports; plans and baseline only if it was accepted.

        All of them appear together, or none does, once the model has passed its checks; the model comes last.

        Args:
            chain: what the stages gave.
            original: what interface and size are compared with.
            recorded: makes the record of the run.
            accepted: every gate was passed; if not, the model gets a name that says so.

        Returns:
            The record, and all that was written, by what it is.

        Raises:
            OutputError: something can't be written.
            VerificationError: the file is not what it should be; nothing was written.
        """
        model = Path(self.recipe.model)
        target = model if accepted else rejected(model)

        records: list[Record] = []

        def examine(temporary: Path) -> Sequence[Check]:
            same = sha256_of(temporary) == chain.digests[chain.last]  # it has no data file either
            report, models = verify_and_keep(
                temporary,
                original,
                input_shapes=self._input_shapes,
                known=chain.checks if same else (),
            )
            if all(check.passed for check in report.checks):
                records.append(recorded(Placed(target, temporary, report.checks, models[1], models[0])))
            return report.checks

        written = {"model" if accepted else "rejected model": target}
        wanted = {} if self.recipe.plan is None or not accepted else chain.plans

        def place_others(together: Together) -> None:
            for stage, folder in wanted.items():
                place = plan_target(Path(str(self.recipe.plan)), stage, alone=len(chain.plans) == 1)
                save_plan(load_plan(folder), place, together=together)
                written[f"plan of {quoted(stage)}"] = place

            write_forms(records[0], self.reports, together)
            written.update(self.reports)
            if self.recipe.accepted is not None and accepted:
                written["accepted"] = Path(self.recipe.accepted)
                together.write(written["accepted"], records[0].to_text().encode())

        save_examined(load(chain.final), target, Report("compressed"), examine, once_passed=place_others)
        return records[0], written


def rejected(model: Path) -> Path:
    """Return the name of a model that did not pass: ``small.onnx`` becomes ``small.rejected.onnx``."""
    return model.with_name(f"{model.stem}.rejected{model.suffix}")


def plan_target(plan: Path, stage: str, *, alone: bool) -> Path:
    """Return where the plan of a stage goes: the stage's name comes in where there are several."""
    return plan if alone else plan.with_name(f"{plan.stem}.{stage}{plan.suffix}")


#: Keys of a stage, or of how it tunes, that name what is read.
_INPUT_KEYS = ("plan", "data", "before", "rewind", "validation")


def _inputs_of(loaded: LoadedRecipe) -> list[Path]:
    """Return all files and folders that a run reads, those that hold the model's weights among them."""
    recipe = loaded.recipe
    named = [recipe.model.path, recipe.data.calibration, recipe.data.evaluation, loaded.path]
    for stage in recipe.stages:
        for holder in (stage, getattr(stage, "tuning", None)):
            named += [getattr(holder, key, None) for key in _INPUT_KEYS]
    paths = [Path(name) for name in named if isinstance(name, (str, Path))]
    model = Path(recipe.model.path)
    return [*paths, *(model_files(model) if model.suffix.lower() == ".onnx" else ())]
