"""What a run of a recipe would do, and what it would leave, without doing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune.compression.chain import following, storage_of
from onnxprune.compression.folder import Result, RunFolder
from onnxprune.compression.outputs import Outputs
from onnxprune.compression.stages import (
    Job,
    Start,
    depends_on,
    options_of_prune,
)
from onnxprune.compression.told import Told
from onnxprune.cost import cost_of_model
from onnxprune.errors import NothingToPrune, RecipeError
from onnxprune.model.digest import files_digest
from onnxprune.model.io import load
from onnxprune.pipeline import plan, prune
from onnxprune.plans import load_plan
from onnxprune.recipe.load import load_recipe
from onnxprune.recipe.schema import Apply, Prune, Quantize, Stage
from onnxprune.repruning import apply_plan
from onnxprune.types import Cost, Report

#: Bytes of one weight in each form of numbers.
_BYTES = {"int8": 1.0, "dynamic": 1.0, "int4": 0.5, "float16": 2.0}


def preview(
    recipe: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    trust_code: bool = False,
    told: Told | None = None,
) -> Report:
    """Say what `compress` would do: which stages would run, and what each would leave. Nothing is written.

    What goes is decided as the stages would, but not repaired and not tuned, so what a later stage decides
    from that may differ; the amounts are those that the recipe asks for.

    Args:
        recipe: as for `compress`.
        overrides: likewise.
        trust_code: likewise.
        told: likewise.

    Raises:
        OnnxPruneError: as `compress`.
    """
    told = told or Told()
    loaded = load_recipe(recipe, overrides, trust_code=trust_code)
    wanted = loaded.recipe
    outputs = Outputs(loaded)
    outputs.check()
    original = Path(wanted.model.path)
    if original.suffix.lower() != ".onnx":
        raise RecipeError(f"{wanted.model.path}: is imported first; --dry-run looks at .onnx files only")
    folder = RunFolder(Path(wanted.run.folder))
    job = Job(wanted, original, files_digest(original), folder.cache, told)
    model = load(original)
    rows = [_row("original", "", cost_of_model(model))]
    start: Start | None = Start(original, job.original_digest)
    for name, options in zip(wanted.stage_names, wanted.stages, strict=True):
        told.step(f"predicting {name}")
        earlier = None if start is None else _earlier(job, folder, options, start)
        if start is not None and earlier is not None:
            start = following(start, earlier)
            model = load(start.model)
            rows.append(_row(name, "is there already", cost_of_model(model)))
        else:
            start = None  # what comes after it can't be there either
            model, cost, what = _predicted(job, model, options)
            rows.append(_row(name, what, cost))
    gates = [{"gate": name, "limit": getattr(wanted.gates, name)} for name in wanted.gates.asked()]
    output = wanted.output
    written = {
        "model": output.model, "plan": output.plan, "accepted": output.accepted, **outputs.reports
    }  # fmt: skip
    sections = {
        "stages": rows, "gates": gates or [{"gate": "none"}],
        "would be written": {key: path for key, path in written.items() if path is not None},
    }  # fmt: skip
    return Report(f"compress {loaded.path or 'recipe'} (dry run: nothing was written)", sections)


def _earlier(job: Job, folder: RunFolder, options: Stage, start: Start) -> Result | None:
    last = options is job.recipe.stages[-1]
    return folder.find({**depends_on(options, job, start), "storage": storage_of(job, last=last)})


def _predicted(job: Job, model: ir.Model, options: Stage) -> tuple[ir.Model, Cost, str]:
    """Return the model that a stage would leave but for better weights, its cost, and what would be done."""
    try:
        if options.kind == "cleanup":
            model = prune(model, pattern="dead", input_shapes=job.recipe.run.input_shapes or None).model
        elif isinstance(options, Prune):
            given = options_of_prune(options, job)
            score = "l2" if options.tuning is not None else options.score
            decided = plan(model, **{**given, "score": score, "rounds": 1})
            model = apply_plan(model, decided, recover="none").model
        elif isinstance(options, Apply):
            model = apply_plan(model, load_plan(options.plan), recover="none").model
    except NothingToPrune as error:
        return model, cost_of_model(model), f"would find nothing: {error}"
    cost = cost_of_model(model)
    if isinstance(options, Quantize):
        size = round(cost.params * _BYTES[options.form])
        return model, Cost(cost.params, cost.macs, size), "would run; bytes of weights alone"
    return model, cost, "would run"


def _row(name: str, what: str, cost: Cost) -> dict[str, Any]:
    return {"stage": name, "what": what, "params": cost.params, "macs": cost.macs, "bytes": cost.size_bytes}
