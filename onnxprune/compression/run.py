"""A recipe -> a compressed model that passed its gates, and reports of how that went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from onnxprune.compression.chain import run_stages
from onnxprune.compression.folder import RunFolder
from onnxprune.compression.importing import import_original
from onnxprune.compression.measuring import measure
from onnxprune.compression.outputs import Outputs, Placed
from onnxprune.compression.recording import Run, record_of
from onnxprune.compression.stages import Job
from onnxprune.compression.told import Told
from onnxprune.containment import confine
from onnxprune.containment.told import subject
from onnxprune.errors import ModelError, RecipeError
from onnxprune.gates.judge import accepts, judge
from onnxprune.gates.settings import GateSettings, check_data, check_settings
from onnxprune.messages import visible
from onnxprune.model.atomic import check_room
from onnxprune.model.digest import files_digest
from onnxprune.model.size import files_bytes
from onnxprune.recipe.load import LoadedRecipe, load_recipe
from onnxprune.record import Record, read_record

#: More than any stages make of a model: a disk without room for that much of it has none for their results.
_AT_MOST_TIMES_SMALLER = 64


@dataclass(frozen=True, slots=True)
class CompressResult:
    """What a run of a recipe gave.

    Attributes:
        record: all that was asked, done, measured and decided.
        accepted: every gate passed, so the outputs are in their places.
        model: where the compressed model is: under its name, or beside it as NAME.rejected.onnx.
        written: the files and folders that were written, by what they are.
        notes: one line each: what the user should know and did not ask for.
    """

    record: Record
    accepted: bool
    model: Path
    written: Mapping[str, Path]
    notes: tuple[str, ...] = ()


def compress(
    recipe: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    fresh: bool = False,
    baseline: str | Path | None = None,
    trust_code: bool = False,
    told: Told | None = None,
) -> CompressResult:
    """Run a recipe: its stages, measurements, gates; and write its outputs.

    Every stage's result is kept in the run folder, under everything it depends on, so that a second run does
    only what changed. The model and its plan appear under their names only if every gate passed.

    Args:
        recipe: a ``.toml`` or ``.json`` file, or its values; see docs/recipe.md.
        overrides: ``key=value`` each.
        resume: let a stage that was broken off go on from its last checkpoint; without it, it starts anew.
        fresh: believe no earlier result.
        baseline: the JSON record of the last accepted run; in place of ``output.accepted``, which is taken
            where it is there.
        trust_code: let the recipe name code that is run: a ``.pt2`` file, ``module:function``.
        told: who is told meanwhile.

    Raises:
        RecipeError: the recipe is missing or damaged, or says what makes no sense.
        OutputError: another run uses the folder, or an output can't be written.
        OnnxPruneError: what a stage raises: see `onnxprune.prune`, `onnxprune.finetune` and so on.
    """
    told = told or Told()
    started = datetime.now(timezone.utc)
    loaded = load_recipe(recipe, overrides, trust_code=trust_code)
    if not isinstance(recipe, Mapping):  # from here on, what goes wrong does so with this model
        subject(f"{loaded.recipe.model.path} ({recipe})")
    outputs = Outputs(loaded)
    outputs.check()
    if not trust_code:
        confine(
            [path.absolute().parent for path in (*outputs.paths, Path(loaded.recipe.run.folder))],
            network=loaded.recipe.run.scheduler is not None,
        )
    data = loaded.recipe.data
    check_settings(loaded.recipe.gates, has_data=data.evaluation is not None, metric=data.metric)
    earlier = _baseline(loaded, baseline)
    folder = RunFolder(Path(loaded.recipe.run.folder), resume=resume, fresh=fresh)
    with folder.locked():
        original, imported = import_original(loaded.recipe, folder, told)
        check_room(outputs.paths[0], files_bytes(original) // _AT_MOST_TIMES_SMALLER)
        digest = files_digest(original)
        job = Job(loaded.recipe, original, digest, folder.cache, told)
        if data.evaluation is not None:
            check_data(loaded.recipe.gates, job.dataset(data.evaluation), data.metric)
        chain = run_stages(job, folder)
        evidence = measure(job, chain, folder)
        asked, unjudged = _judged_by(loaded, earlier)
        gates = judge(asked, evidence, None if earlier is None else earlier[1])
        if files_digest(original) != digest:
            raise ModelError(f"{visible(original)}: has changed while the run was working; run it again")
        told.step(f"writing {outputs.recipe.model}")
        accepted = accepts(asked, gates)
        notes = (*imported, *folder.damaged, *unjudged)

        def recorded(placed: Placed) -> Record:
            return record_of(
                Run(loaded, started, job, chain, evidence, gates, earlier, placed, accepted, notes)
            )

        record, written = outputs.place(chain, original, recorded, accepted=accepted)
    return CompressResult(record, accepted, Path(record.output), written, notes)


def _judged_by(loaded: LoadedRecipe, baseline: tuple[str, Record] | None) -> tuple[GateSettings, list[str]]:
    """Return the gates that are judged, and notes: before the first run there is nothing to compare with."""
    gates, accepted = loaded.recipe.gates, loaded.recipe.output.accepted
    compared = [name for name in gates.asked() if name.startswith("baseline_")]
    if baseline is not None or accepted is None or not compared:
        return gates, []
    note = f"{visible(accepted)}: no run was accepted yet, so {', '.join(compared)} could not be judged"
    return gates.model_copy(update=dict.fromkeys(compared)), [note]


def _baseline(loaded: LoadedRecipe, given: str | Path | None) -> tuple[str, Record] | None:
    """Return the record of the last accepted run and its path, None where there is none yet.

    Raises:
        DataError: it can't be read.
        RecipeError: the run that it is of was not accepted.
    """
    path = given or loaded.recipe.output.accepted
    if path is None or (given is None and not Path(path).exists()):  # the first run has none
        return None
    record = read_record(path)
    if not record.accepted:
        raise RecipeError(f"{visible(path)}: is of a run that was not accepted, which is no baseline")
    return str(path), record
