"""The record of one run of a recipe: what was asked, done, measured and decided, as one JSON document.

A run writes it, a report is drawn from it, and a later run compares itself with it. Its schema is public:
keys keep their meaning as long as ``schema`` stays the same; new keys may come.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onnxprune.errors import DataError
from onnxprune.messages import one_line, visible
from onnxprune.reading import contents, parse_json

#: Grows when a key changes its meaning or goes.
SCHEMA: Final = 1

#: Of one gate, or of a whole run. Inconclusive: the evidence allows both.
Verdict: TypeAlias = Literal["pass", "fail", "inconclusive"]

_LARGEST_BYTES = 256 << 20


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False, populate_by_name=True)


class Interval(_Part):
    """An estimate with its interval.

    Attributes:
        value: the estimate.
        low, high: ends of its 95 % interval.
        count: of the samples, or pairs, behind it.
    """

    value: float
    low: float
    high: float
    count: int


class FileRecord(_Part):
    """A file or folder that a run read or wrote.

    Attributes:
        role: what it was for: "model", "calibration data", "output", "plan" and so on.
        path: as the recipe or the user gave it.
        sha256: of its bytes, with those of the files it refers to; of data: of names, types, shapes and
            contents of its arrays; of a plan: of the hashes of its files.
        size_bytes: of all of these.
    """

    role: str
    path: str
    sha256: str
    size_bytes: int


class Skip(_Part):
    """Something that was left alone by a stage, and why."""

    name: str
    reason: str


class CheckRecord(_Part):
    """One thing that was checked; ``detail`` is one line with the figures that decided it."""

    name: str
    passed: bool
    detail: str


class StageRecord(_Part):
    """One stage of the recipe.

    Attributes:
        name: unique in the run.
        kind: "prune", "quantize" and so on.
        options: as the recipe says them, defaults left out.
        reused: nothing that it depends on had changed, so its earlier result was taken.
        seconds: wall time; of the run that made the result, where it was reused.
        summary: one line: what it did.
        sections: tables of its report: each a mapping (name -> value) or a list of such rows.
        checks: of its result.
        skipped: what it left alone.
    """

    name: str
    kind: str
    options: dict[str, Any] = {}
    reused: bool = False
    seconds: float = 0.0
    summary: str = ""
    sections: dict[str, Any] = {}
    checks: tuple[CheckRecord, ...] = ()
    skipped: tuple[Skip, ...] = ()


class ModelRecord(_Part):
    """The model as it was at one point of the run: the original first, then after each stage.

    Attributes:
        name: "original", or the name of the stage that made it.
        sha256: of the file.
        params, macs: of one sample; see `onnxprune.types.Cost`.
        size_bytes: of the file and its external data.
        zstd_bytes: of these, compressed.
        sparsity: share of zeros among the weights.
        accuracy: the metric on all evaluation samples; None where it was not measured.
        latency_ratio: time of one run / that of the original, in one interleaved measurement; None likewise.
        latency_ms: median of one run.
        latency_p95_ms: 95th percentile.
        latency_samples_ms: times of single runs, at most 1000 of them, evenly taken from all.
    """

    name: str
    sha256: str
    params: int
    macs: int
    size_bytes: int
    zstd_bytes: int
    sparsity: float
    accuracy: Interval | None = None
    latency_ratio: Interval | None = None
    latency_ms: float | None = None
    latency_p95_ms: float | None = None
    latency_samples_ms: tuple[float, ...] = ()


class SubsetRecord(_Part):
    """The metric on some samples.

    Attributes:
        name: "all samples", "near the boundary", or the name of a segment.
        kind: which of these.
        original, final: of the two models; original is None where the metric compares with it.
        change: final minus original, paired by sample.
    """

    name: str
    kind: Literal["all", "segment", "boundary"]
    original: Interval | None
    final: Interval
    change: Interval | None


class AccuracyRecord(_Part):
    """Accuracy of the final model beside the original.

    Attributes:
        metric: its name.
        higher_is_better: its direction; None where only the user knows.
        compared_with: "labels" or "reference".
        output: name of the output that was judged.
        samples: how many.
        subsets: all samples, segments, near the boundary.
        agreement: share of samples with the original's highest class; None if there are no classes.
        cosine: mean cosine between the outputs of the two.
        data_sha256: digest of the data.
    """

    metric: str
    higher_is_better: bool | None
    compared_with: str
    output: str
    samples: int
    subsets: tuple[SubsetRecord, ...]
    agreement: Interval | None
    cosine: Interval | None
    data_sha256: str


class LatencyRecord(_Part):
    """How times were measured; the times are with the models.

    Attributes:
        control_ratio: what a second session of the original seems to take beside the first: noise.
        verdict: of the final model against the original: "faster", "slower", "no difference", "inconclusive".
        setting: provider, threads, batch, input shapes, rounds.
    """

    control_ratio: Interval
    verdict: str
    setting: dict[str, Any] = {}


class MemoryRecord(_Part):
    """Memory in MiB to load and run a model, in a process of its own; None where it can't be measured."""

    name: str
    load_peak_mib: float | None
    steady_mib: float | None
    run_peak_mib: float | None
    reason: str | None = None


class GateRecord(_Part):
    """One gate.

    Attributes:
        name: the key in the recipe; with the segment's name where it is judged for each one.
        requirement: what is asked, in words: "at most 0.01 below the original".
        limit: what is asked: a number, or what is allowed.
        measured: what was found; where it is an estimate, with the interval that it is judged by: of the
            confidence that the gates ask for, and widened by noise; None where it could not be found.
        verdict: pass, fail or inconclusive.
        detail: one line with the figures that decided it, and what would decide it where it is inconclusive.
    """

    name: str
    requirement: str
    limit: Any
    measured: Interval | float | str | None
    verdict: Verdict
    detail: str


class LayerRecord(_Part):
    """One layer with weights of the original, and what has become of it.

    Attributes:
        name: of its node in the original.
        op_type: of the node.
        width: output channels (or features) of the original.
        width_left: of the final model; 0 where the layer is gone.
        params, params_left: elements of its weights.
        macs, macs_left: of one sample.
        sparsity: share of zeros among the weights that are left.
        bits: of one weight as it is stored in the final model.
        reason: why it was left alone, where a stage says so of its channels or weights, or where nothing
            at all was removed from it; None otherwise.
    """

    name: str
    op_type: str
    width: int
    width_left: int
    params: int
    params_left: int
    macs: int
    macs_left: int
    sparsity: float
    bits: int
    reason: str | None = None


class CurveRecord(_Part):
    """What removing from one layer alone costs: a curve of a sensitivity analysis.

    Attributes:
        name: of the layer or group.
        amount: shares removed, ascending.
        loss: how much the loss grew at each.
        metric: what the loss is.
    """

    name: str
    amount: tuple[float, ...]
    loss: tuple[float, ...]
    metric: str = "loss"


class PointRecord(_Part):
    """One candidate of a trade-off: what it costs, and what it keeps.

    Attributes:
        name: of the candidate: a stage, or one of several targets.
        cost: ratio of the original's time, or of its size where time was not measured.
        accuracy: the metric.
        chosen: this is the model that the run ended with.
        cost_of: which of the two the cost is.
    """

    name: str
    cost: float
    accuracy: float
    chosen: bool = False
    cost_of: Literal["time", "size"] = "time"


class BaselineRecord(_Part):
    """Figures of the last accepted run beside those of this one.

    Attributes:
        path: of its record.
        finished: when it ended.
        rows: for each figure its name, the one before, the one now, and the change.
    """

    path: str
    finished: str
    rows: tuple[dict[str, Any], ...]


class RecipeRecord(_Part):
    """The recipe as it ran: where it was, its text with all overrides applied, and these overrides."""

    path: str
    text: str
    sha256: str
    overrides: tuple[str, ...] = ()


class Environment(_Part):
    """Where the run took place.

    Attributes:
        hardware: processor, cores, memory.
        system: operating system and Python.
        packages: versions by name.
    """

    hardware: dict[str, Any]
    system: str
    packages: dict[str, str]


class Record(_Part):
    """One run of a recipe.

    Attributes:
        schema_number: see `SCHEMA`.
        kind: "compress".
        version: of onnxprune.
        started, finished: ISO 8601 times, in UTC.
        title: what was compressed.
        verdict: fail if any gate or check failed, else inconclusive if any gate is, else pass.
        accepted: the model and its plan are under the names that the recipe gives: every gate passed, or
            those that are inconclusive were allowed to be.
        output: where the model is now; under another name than the recipe's where it was not accepted.
        recipe, environment: of the run.
        files: all that was read and written.
        models: the original, then one for each stage.
        stages: in their order.
        gates, checks: what was asked of the result, and what was checked on it.
        accuracy, latency, memory: measurements of the end.
        layers: of the original, in the order in which they run.
        skipped: all that was left alone: name, reason.
        sensitivity, pareto: curves and trade-offs, where some were measured.
        baseline: the comparison with the last accepted run.
        commands: shell commands that reproduce the run, in their order.
    """

    schema_number: Literal[1] = Field(default=1, alias="schema")
    kind: Literal["compress"] = "compress"
    version: str
    started: str
    finished: str
    title: str
    verdict: Verdict
    accepted: bool = False
    output: str
    recipe: RecipeRecord
    environment: Environment
    files: tuple[FileRecord, ...] = ()
    models: tuple[ModelRecord, ...] = ()
    stages: tuple[StageRecord, ...] = ()
    gates: tuple[GateRecord, ...] = ()
    checks: tuple[CheckRecord, ...] = ()
    accuracy: AccuracyRecord | None = None
    latency: LatencyRecord | None = None
    memory: tuple[MemoryRecord, ...] = ()
    layers: tuple[LayerRecord, ...] = ()
    skipped: tuple[Skip, ...] = ()
    sensitivity: tuple[CurveRecord, ...] = ()
    pareto: tuple[PointRecord, ...] = ()
    baseline: BaselineRecord | None = None
    commands: tuple[str, ...] = ()

    def to_text(self) -> str:
        """Return the JSON document, in ASCII."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1, allow_nan=False) + "\n"


def schema_text() -> str:
    """Return the JSON schema of a record, as ``docs/report.schema.json`` holds it."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Record.model_json_schema(by_alias=True),
    }
    return json.dumps(schema, indent=1) + "\n"


def read_record(path: str | Path) -> Record:
    """Read the record of a run.

    Raises:
        DataError: it is missing, damaged, or of another schema.
    """
    where = visible(path)
    text = contents(path, DataError, _LARGEST_BYTES, "is larger than any record of a run")
    try:
        return Record.model_validate(parse_json(text))
    except RecursionError:
        raise DataError(f"{where}: is no record of a run: nested too deeply") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{where}: is no record of a run that this version reads ({one_line(place)}: "
            f"{one_line(first['msg'])}); use the JSON report of onnxprune compress"
        ) from None
    except ValueError as error:  # of which those of pydantic are a kind
        raise DataError(f"{where}: is no record of a run: no JSON, {one_line(error)}") from None
