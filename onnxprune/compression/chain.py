"""The stages of a recipe, one after the other: each works on what the one before it gave."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.compression.folder import Result, RunFolder, Work
from onnxprune.compression.stages import (
    MODEL_FILE,
    PLAN_FOLDER,
    Job,
    Start,
    Task,
    depends_on,
    run_stage,
)
from onnxprune.errors import NothingToPrune
from onnxprune.model.digest import files_digest
from onnxprune.plans import has_masks
from onnxprune.recipe.schema import Stage
from onnxprune.record import StageRecord
from onnxprune.report.as_json import as_json
from onnxprune.types import Check


@dataclass(frozen=True, slots=True)
class Chain:
    """What all stages gave.

    Attributes:
        models: files by name: "original", then one for each stage that changed the model.
        digests: hash of each of them.
        stages: what is to be said about each stage.
        plans: folders by the name of the stage.
    """

    models: Mapping[str, Path]
    digests: Mapping[str, str]
    stages: tuple[StageRecord, ...]
    plans: Mapping[str, Path]

    @property
    def last(self) -> str:
        """The name of the last stage that changed the model."""
        return list(self.models)[-1]

    @property
    def final(self) -> Path:
        """The file that it gave."""
        return self.models[self.last]

    @property
    def checks(self) -> tuple[Check, ...]:
        """The checks that this file passed."""
        made = next(stage.checks for stage in self.stages if stage.name == self.last)
        return tuple(Check(check.name, check.passed, check.detail) for check in made)


def run_stages(job: Job, folder: RunFolder) -> Chain:
    """Run all stages, or take their earlier results.

    Raises:
        OnnxPruneError: what a stage raises.
        NothingToPrune: no stage changed anything.
    """
    start = Start(job.original, job.original_digest)
    models, digests = {"original": start.model}, {"original": start.digest}
    records: list[StageRecord] = []
    plans: dict[str, Path] = {}
    names, stages = job.recipe.stage_names, job.recipe.stages
    for number, (name, options) in enumerate(zip(names, stages, strict=True), start=1):
        job.told.step(f"stage {number} of {len(stages)}: {name}")
        result = _result(job, folder, options, start, last=number == len(stages))
        records.append(_recorded(name, options, result))
        after = following(start, result)
        if after.model != start.model:
            models[name], digests[name] = after.model, after.digest
        if (result.folder / PLAN_FOLDER).exists():
            plans[name] = result.folder / PLAN_FOLDER
        start = after
    if len(models) == 1:
        reasons = [f"{skip.name}: {skip.reason}" for record in records for skip in record.skipped]
        raise NothingToPrune("no stage found anything to do: the model is as it was", reasons)
    return Chain(models, digests, tuple(records), plans)


def following(start: Start, result: Result) -> Start:
    """Return what the next stage starts from."""
    model, plan = result.folder / MODEL_FILE, result.folder / PLAN_FOLDER
    if not model.exists():  # there was nothing to do
        return start
    zeros = plan if has_masks(plan) else start.zeros
    return Start(model, files_digest(model), zeros)


def _result(job: Job, folder: RunFolder, options: Stage, start: Start, *, last: bool) -> Result:
    storage = storage_of(job, last=last)

    def make(work: Work) -> dict[str, Any]:
        began = time.perf_counter()
        report = run_stage(Task(job, options, start, work, *storage))
        return {"report": as_json(report), "seconds": time.perf_counter() - began}

    return folder.result({**depends_on(options, job, start), "storage": storage}, make)


def storage_of(job: Job, *, last: bool) -> tuple[bool | None, bool | None]:
    """Return how the file of a stage is stored: as the recipe says for the last one, else as it was.

    Returns:
        weights beside the model; weights stored sparse; None for as they were.
    """
    output = job.recipe.output
    return (output.external_data, output.sparse_storage) if last else (None, None)


def _recorded(name: str, options: Stage, result: Result) -> StageRecord:
    report: Mapping[str, Any] = result.about["report"]
    return StageRecord(
        name=name,
        kind=options.kind,
        options=options.model_dump(mode="json", exclude={"kind", "name"}, exclude_unset=True),
        reused=result.reused,
        seconds=float(result.about["seconds"]),
        summary=str(report["title"]),
        sections=dict(report["sections"]),
        checks=report["checks"],
        skipped=report["skipped"],
    )
