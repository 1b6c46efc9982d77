"""The record of a run -> the tables that a command prints: the verdict first, then what each stage gave."""

from __future__ import annotations

from typing import Any

from onnxprune.record import Record
from onnxprune.types import Check, Report, Skipped


def summary(record: Record) -> Report:
    """Return what a person wants to know at the end of a run; the record holds all of it."""
    sections: dict[str, Any] = {
        "verdict": {"verdict": record.verdict, "accepted": record.accepted, "model": record.output},
        "gates": [
            {"gate": gate.name, "verdict": gate.verdict, "asked": gate.requirement} for gate in record.gates
        ],
        "what each stage gave": [_model(record, number) for number in range(len(record.models))],
    }
    if record.baseline is not None:
        sections[f"since {record.baseline.finished}"] = list(record.baseline.rows)
    return Report(
        f"compress {record.title}",
        {name: rows for name, rows in sections.items() if rows},
        checks=(*_gates(record), *(Check(check.name, check.passed, check.detail) for check in record.checks)),
        skipped=tuple(Skipped(skip.name, skip.reason) for skip in record.skipped),
        seconds={stage.name: stage.seconds for stage in record.stages if not stage.reused},
    )


def _gates(record: Record) -> tuple[Check, ...]:
    """Return gates as checks, so that a report of a run that was not accepted does not say that it passed."""
    return tuple(
        Check(
            f"gate {gate.name}",
            gate.verdict == "pass" or (gate.verdict == "inconclusive" and record.accepted),
            gate.detail,
        )
        for gate in record.gates
    )


def _model(record: Record, number: int) -> dict[str, Any]:
    model, first = record.models[number], record.models[0]
    stages = {stage.name: stage for stage in record.stages}
    row: dict[str, Any] = {"after": model.name}
    if number:
        row["ran"] = "no, reused" if model.name in stages and stages[model.name].reused else "yes"
    row |= {
        "params_ratio": model.params / max(first.params, 1),
        "macs_ratio": model.macs / max(first.macs, 1),
        "bytes": model.size_bytes,
        "zstd_bytes": model.zstd_bytes,
        "sparsity": model.sparsity,
    }
    if model.accuracy is not None:
        row["accuracy"] = model.accuracy.model_dump()
    if model.latency_ratio is not None:
        row["latency_ratio"] = model.latency_ratio.model_dump()
    return row
