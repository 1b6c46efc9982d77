"""A folder of models -> a folder of smaller ones, with all that was beside them, whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import onnx_ir as ir

from onnxprune.errors import NothingToPrune, OnnxPruneError, UsageError
from onnxprune.folders.agreement import Lost, check_agree, keeps_cache, what_is_lost
from onnxprune.folders.contents import Contents, check_apart, look_into
from onnxprune.model.atomic import check_new_folder, output_errors
from onnxprune.model.inputs import graph_inputs
from onnxprune.model.io import load
from onnxprune.model.size import files_bytes
from onnxprune.model.together import Together, new_folder
from onnxprune.pipeline import options_of_prune, prune, save_pruned
from onnxprune.plans import save_plan
from onnxprune.pruning import PruneResult
from onnxprune.registry import did_you_mean
from onnxprune.types import Check, Plan, Report, Skipped

#: Sections of a file's report that the report of the folder has anyway, in one row.
_IN_THE_ROW = ("cost",)


def prune_folder(
    folder: str | Path,
    output: str | Path,
    *,
    only: Sequence[str] = (),
    plan_folder: str | Path | None = None,
    external_data: bool | None = None,
    sparse_storage: bool | None = None,
    told: Callable[[str], None] | None = None,
    **options: Any,
) -> Report:
    """Prune every model of a folder by the same wish, and carry everything else along unchanged.

    Inputs and outputs of each model stay as they are, so configurations that describe them stay true. Models
    in which there is nothing to prune are copied.

    Args:
        folder: such as Hugging Face Optimum exports: ``.onnx`` files, their data, configurations, tokenizers;
            not changed.
        output: a folder that is not there yet; appears when all is done, verified and on the disk.
        only: globs over the names of models, or their paths in the folder; the others are copied.
        plan_folder: where the plan of each model goes, as ``NAME.plan``; nowhere if None.
        external_data: see `onnxprune.save_pruned`.
        sparse_storage: see `onnxprune.save_pruned`.
        told: called with what is done next.
        **options: as for `onnxprune.prune`. Of ``input_shapes`` each model gets those of its inputs; ``data``
            may also be a mapping, from the paths of models in the folder to the data of each.

    Returns:
        A row for each model under "models"; what was removed, checked and left alone, with the model's name.

    Raises:
        NothingToPrune: in none of the models; ``reasons`` says why.
        UsageError: options that make no sense, or decoders that share weights and a cache, and would lose
            different parts of them.
        ModelError: the folder holds no model, a damaged one, or a link that leads out of it.
        OutputError: the output is there already, lies in the input, or can't be written.
        OnnxPruneError: as `onnxprune.prune` and `onnxprune.save_pruned`, naming the model.
    """
    target = Path(output)
    check_apart(Path(folder), target)
    check_new_folder(target)
    contents = look_into(folder, only)
    wishes = _Wishes(contents, options)
    say = told or str
    rows: list[dict[str, Any]] = []
    tables: dict[str, list[dict[str, Any]]] = {}
    checks: list[Check] = []
    skipped: list[Skipped] = []
    seconds: dict[str, float] = {}
    lost: dict[str, Lost] = {}
    left: dict[PurePath, NothingToPrune] = {}
    plans: dict[PurePath, Plan] = {}
    with Together() as together, new_folder(target, together) as scratch:
        for path in contents.models:
            name = path.as_posix()
            say(f"{name}: deciding, removing, proving")
            with _naming(name, scratch, target):
                original = load(contents.folder / path)
                result = _pruned(original, wishes.of(path, original), left, path)
                if keeps_cache(original):
                    lost[name] = what_is_lost(original, None if result is None else result.plan)
                if result is None:
                    continue
                say(f"{name}: verifying and writing")
                with output_errors(target / path):
                    (scratch / path).parent.mkdir(parents=True, exist_ok=True)
                report = save_pruned(
                    result,
                    scratch / path,
                    against=contents.folder / path,
                    external_data=external_data,
                    sparse_storage=sparse_storage,
                )
            plans[path] = result.plan
            rows.append(_row(name, report, contents.folder / path, scratch / path))
            for key, value in report.sections.items():
                if key not in _IN_THE_ROW:
                    entries = [value] if isinstance(value, Mapping) else value
                    tables.setdefault(key, []).extend({"model": name, **entry} for entry in entries)
            checks += [Check(f"{name}: {check.name}", check.passed, check.detail) for check in report.checks]
            skipped += [Skipped(f"{name}: {each.name}", each.reason) for each in report.skipped]
            for stage, passed in report.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + passed
        if not rows:
            raise _nothing(left)
        for path in contents.data.keys() - set(contents.models):  # they stay whole
            with _naming(path.as_posix(), scratch, target):
                if keeps_cache(other := load(contents.folder / path)):
                    lost[path.as_posix()] = what_is_lost(other, None)
        check_agree(lost)
        skipped += [Skipped(path.as_posix(), f"copied: {error}") for path, error in left.items()]
        carried = contents.carried(list(plans))
        say(f"carrying along {len(carried)} files")
        _copy(carried, contents.folder, scratch, target)
        if plan_folder is not None:
            _save_plans(plans, Path(plan_folder), together)  # before the models: who has them has their plans
    sections = {"models": rows, "carried along": [{"file": path.as_posix()} for path in carried], **tables}
    return Report(f"pruned {len(rows)} models", sections, tuple(checks), tuple(skipped), seconds)


class _Wishes:
    """The options of each model.

    Args:
        contents: of the folder.
        options: for all of it.

    Raises:
        UsageError: an option, a model or an input that there is not.
    """

    def __init__(self, contents: Contents, options: Mapping[str, Any]) -> None:
        self.options = dict(options)
        self.data = self.options.pop("data", None)
        self.shapes = dict(self.options.pop("input_shapes", None) or {})
        models = {path.as_posix(): load(contents.folder / path) for path in contents.models}
        options_of_prune(next(iter(models.values())), self.options)  # refuses what prune does not have
        if isinstance(self.data, Mapping):
            for name in self.data:
                if name not in models:
                    raise UsageError(
                        f"data is given for {name!r}, which is no model of the folder"
                        f"{did_you_mean(name, models)}"
                    )
        inputs = {str(value.name) for model in models.values() for value in graph_inputs(model)}
        for name in self.shapes:
            if name not in inputs:
                raise UsageError(
                    f"input shape given for {name!r}, which is no input of any model of the folder"
                    f"{did_you_mean(name, inputs)}"
                )

    def of(self, path: PurePath, model: ir.Model) -> dict[str, Any]:
        """Return the options for one model."""
        names = {str(value.name) for value in graph_inputs(model)}
        shapes = {name: shape for name, shape in self.shapes.items() if name in names}
        data = self.data.get(path.as_posix()) if isinstance(self.data, Mapping) else self.data
        return {**self.options, "data": data, "input_shapes": shapes or None}


def _pruned(
    model: ir.Model, options: Mapping[str, Any], left: dict[PurePath, NothingToPrune], path: PurePath
) -> PruneResult | None:
    """Prune one model; None, and the reason in ``left``, where there is nothing to prune."""
    try:
        return prune(model, **options)
    except NothingToPrune as error:
        left[path] = error
        return None


@contextlib.contextmanager
def _naming(name: str, scratch: Path, target: Path) -> Iterator[None]:
    """Name the model in whatever goes wrong with it, and the folder by the name that it shall have."""
    try:
        yield
    except OnnxPruneError as error:
        text = str(error).replace(str(scratch), str(target))
        error.args = (text if name in text else f"{name}: {text}",)
        raise


def _row(name: str, report: Report, before: Path, after: Path) -> dict[str, Any]:
    """Return the row of a model: what it costs, and the bytes of its files."""
    cost = {row["what"]: row for row in report.sections["cost"]}
    size, original = _bytes(after), _bytes(before)
    return {
        "model": name,
        "parameters": cost["parameters"]["after"],
        "parameters_ratio": cost["parameters"]["ratio"],
        "MACs": cost["MACs"]["after"],
        "MACs_ratio": cost["MACs"]["ratio"],
        "size_bytes": size,
        "size_ratio": size / original,
    }


def _bytes(model: Path) -> int:
    return files_bytes(model)


def _nothing(left: Mapping[PurePath, NothingToPrune]) -> NothingToPrune:
    """Return what is raised if no model was pruned."""
    reasons = [f"{path.as_posix()}: {reason}" for path, error in left.items() for reason in error.reasons]
    path, first = next(iter(left.items()))
    return NothingToPrune(f"nothing to prune in {len(left)} models ({path.as_posix()}: {first})", reasons)


def _copy(paths: Sequence[PurePath], source: Path, scratch: Path, target: Path) -> None:
    for path in paths:
        with output_errors(target / path):
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / path, scratch / path)


def _save_plans(plans: Mapping[PurePath, Plan], folder: Path, together: Together) -> None:
    for path, plan in plans.items():
        place = folder / path.with_suffix(".plan")
        with output_errors(place):
            place.parent.mkdir(parents=True, exist_ok=True)
        save_plan(plan, place, together=together)
