"""What the members of a family are worth: time, size and accuracy, measured beside the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune.data import DataReader, Dataset
from onnxprune.errors import UsageError
from onnxprune.family import Family, Missed, Saved
from onnxprune.measure.accuracy import AccuracyResult, validate
from onnxprune.measure.intervals import Estimate
from onnxprune.measure.latency import LatencyResult, benchmark_each
from onnxprune.model.io import load
from onnxprune.model.size import files_bytes, zstd_size_bytes
from onnxprune.planning.watch import Watch
from onnxprune.report.family import ORIGINAL, Judged, family_report
from onnxprune.runtime import DEFAULT, Execution, open_session
from onnxprune.types import Check, Report, Skipped
from onnxprune.wishes import samples_of

#: Settings of the measurement of time that a report shows.
_SETTING = ("provider", "options", "threads", "spinning", "arena", "pin", "pairs", "input_shapes")


def measure_family(
    family: Family,
    saved: Sequence[Saved],
    original: str | Path,
    *,
    data: Dataset | DataReader | str | Path | None = None,
    metric: str | None = None,
    source: str | None = None,
    execution: Execution = DEFAULT,
    latency_batch: int | None = None,
    pairs: int = 60,
    batch: int = 32,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Report:
    """Measure the files of a family beside the file that it was made from.

    All of them are timed in one run, in turns. Accuracy is that of ``metric``; without one it is how often
    the highest class is that of the original, or, where the first output holds no class scores, the cosine of
    the angle between their outputs: both need no labels.

    Args:
        family: from `onnxprune.prune_family`.
        saved: from `onnxprune.save_family`.
        original: the file that it was made from.
        data: samples to measure accuracy on; None for none.
        metric: as for `onnxprune.validate`.
        source: what the report calls the samples; their own name if None.
        execution: where and how models are timed, and run on the samples.
        latency_batch: size of the first axis of what is timed, where that is symbolic; 1 by default.
        pairs: rounds in which the models take turns, at least.
        batch: samples per run, where the model's first axis is symbolic.
        seed: of the random inputs and of the bootstrap.
        input_shapes: concrete shapes by input name for symbolic axes.
        progress: called with the share that is done, in (0, 1], of each measurement.

    Raises:
        UsageError: an unknown metric, or one that does not fit; a metric without data.
        DataError: the data does not fit the model, or lacks labels.
        ModelError, RuntimeFailure: a file can't be read or run.
    """
    if metric is not None and data is None:
        raise UsageError("a metric is measured on samples: give --eval eval.npz")
    watch = Watch(progress=progress)
    paths = [Path(original), *(entry.path for entry in saved)]
    rows = _first_rows(family, saved, paths)
    setting: dict[str, Any] = {"targets_of": family.targets_of}
    if saved:
        with watch.stage("measure latency"):
            shapes = None if input_shapes is None else {n: tuple(s) for n, s in input_shapes.items()}
            times = benchmark_each(
                paths[0], paths[1:], execution=execution, batch=latency_batch, input_shapes=shapes,
                pairs=pairs, seed=seed, progress=progress,
            )  # fmt: skip
        _add_times(rows, times)
        setting |= {key: value for key, value in times[0].as_dict().items() if key in _SETTING and value}
    judged = None
    if data is not None and saved:
        with watch.stage("measure accuracy"):
            samples = samples_of(data, load(paths[0]), seed, input_shapes)
            if samples is not None:
                asked = metric or _without_labels(paths[0], execution)
                results = [
                    validate(
                        path, paths[0], data=samples, metric=asked, batch=batch, seed=seed,
                        provider=execution.provider, threads=execution.threads, progress=progress,
                    )
                    for path in paths[1:]
                ]  # fmt: skip
                judged = Judged(asked, results[0].higher_is_better, source or samples.source)
                _add_accuracy(rows, results)
    return family_report(
        rows,
        judged=judged,
        missed=[_missed(entry) for entry in family.missed],
        setting=setting,
        checks=[_checked(entry) for entry in saved],
        skipped=_left_alone(saved),
        seconds=_seconds(family, saved, watch),
    )


def _first_rows(family: Family, saved: Sequence[Saved], paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return a row for the original and one for each member, with what needs no measurement."""
    if not saved:
        return []
    targets = {member.name: member.target for member in family.members}
    rows = []
    for number, path in enumerate(paths):
        entry = saved[max(number - 1, 0)]
        costs = {row["what"]: row for row in entry.report.sections["cost"]}
        when = "after" if number else "before"
        reached = costs.get(_COUNTED.get(family.targets_of, ""))
        rows.append({
            "model": path.name if number else ORIGINAL,
            "target": targets[entry.name] if number else None,
            "reached_ratio": reached["ratio"] if number and reached else None,
            "params": costs["parameters"][when],
            "macs": costs["MACs"][when],
            "size_bytes": files_bytes(path),
            "zstd_bytes": zstd_size_bytes(path),
            "latency_ratio": None,
            "verdict": None,
            "accuracy": None,
            "change": None,
        })  # fmt: skip
    return rows


#: What targets count, as reports of single models call it.
_COUNTED = {"macs": "MACs", "params": "parameters", "size": "bytes of weights"}


def _add_times(rows: Sequence[dict[str, Any]], times: Sequence[LatencyResult]) -> None:
    """Add the time of each model, and that of the original beside itself."""
    rows[0]["latency_ratio"] = times[0].control.as_dict()
    for row, result in zip(rows[1:], times, strict=True):
        row["latency_ratio"] = None if result.ratio is None else result.ratio.as_dict()
        row["verdict"] = result.verdict


def _without_labels(original: Path, execution: Execution) -> str:
    """Return the metric that says how close outputs stay: of class scores by sample, or of anything else."""
    first = next(iter(open_session(original, execution=execution).outputs.values()))
    scores = first.dtype.kind == "f" and len(first.shape) == 2 and first.shape[1] != 1
    return "agreement" if scores else "cosine"


def _add_accuracy(rows: Sequence[dict[str, Any]], results: Sequence[AccuracyResult]) -> None:
    """Add the accuracy of each model; the original's is the best there is where all are compared with it."""
    first = results[0].overall
    best = 1.0 if results[0].higher_is_better else 0.0
    own = Estimate(best, best, best, first.model.count) if first.reference is None else first.reference
    rows[0]["accuracy"] = own.as_dict()
    for row, result in zip(rows[1:], results, strict=True):
        row["accuracy"] = result.overall.model.as_dict()
        row["change"] = None if result.overall.change is None else result.overall.change.as_dict()


def _missed(entry: Missed) -> dict[str, Any]:
    return {
        "target": entry.target,
        "reached": entry.reached,
        "reason": entry.reason,
        "reasons": entry.reasons,
    }


def _checked(entry: Saved) -> Check:
    """Return all checks of a member as one."""
    checks = entry.report.checks
    return Check(entry.path.name, entry.report.passed, f"{len(checks)} checks, from the proof to the file")


def _left_alone(saved: Sequence[Saved]) -> list[Skipped]:
    """Return what any member left alone, each reason once."""
    return list(dict.fromkeys(entry for one in saved for entry in one.report.skipped))


def _seconds(family: Family, saved: Sequence[Saved], watch: Watch) -> dict[str, float]:
    """Return the time of what was gathered once, of all members together, and of measuring them."""
    members = sum(sum(one.report.seconds.values()) for one in saved)
    return {**family.seconds, "all members": members, **watch.seconds}
