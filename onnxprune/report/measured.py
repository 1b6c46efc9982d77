"""What was measured -> reports. Results come as plain values, so that this stage knows no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxprune.types import Report

_SETTING = (
    *("provider", "options", "threads", "spinning", "arena", "pin", "on_device"),
    *("pairs", "repeats", "input_shapes"),
)


def latency_report(
    names: Sequence[str],
    latency: Mapping[str, Any],
    *,
    memory: Sequence[Mapping[str, Any]] = (),
    sizes: Sequence[Mapping[str, Any]] = (),
    sweep: Sequence[Mapping[str, Any]] = (),
    layers: Mapping[str, Any] | None = None,
) -> Report:
    """Return the report of a benchmark.

    Args:
        names: what to call the first model, and the second one if there is one.
        latency: ``LatencyResult.as_dict()``.
        memory: ``MemoryResult.as_dict()`` of each model, or nothing.
        sizes: ``size_bytes`` and ``zstd_bytes`` of each model, or nothing.
        sweep: rows of `onnxprune.measure.sweeps.sweep`, or nothing.
        layers: sections of a profile by name, or None.
    """
    timings = [latency["a"], *([latency["b"]] if latency["b"] is not None else [])]
    sections: dict[str, Any] = {"latency": _by_model(names, timings)}
    if latency["b"] is not None:
        sections["comparison"] = _without_none(
            {
                "verdict": latency["verdict"],
                "latency_ratio": latency["ratio"],
                "control_ratio": latency["control"],
                "cpu_time_ratio": latency["cpu_ratio"],
                "cpu_time_control_ratio": latency["cpu_control"],
            }
        )
    else:
        sections["noise"] = {"control_ratio": latency["control"]}
    sections["percentiles"] = [
        {"percentile": row["percentile"], "latency_ratio": row["ratio"], "control_ratio": row["control"]}
        for row in latency["percentiles"]
    ]
    sections |= {"sweep": sweep} if sweep else {}
    sections |= layers or {}
    if memory:
        sections["memory"] = _by_model(names, memory)
    if sizes:
        sections["size on disk"] = _by_model(names, sizes)
    sections["setting"] = {
        key: latency[key] for key in _SETTING if latency[key] is not None and latency[key] != {}
    }
    return Report(f"bench {' against '.join(reversed(names[: len(timings)]))}", sections)


def accuracy_report(names: Sequence[str], accuracy: Mapping[str, Any], *, samples: int) -> Report:
    """Return the report of a validation.

    Args:
        names: what to call the model, and its reference if there is one.
        accuracy: ``asdict`` of an ``AccuracyResult``.
        samples: how many samples the data has.
    """
    subsets = {"all samples": accuracy["overall"], **accuracy["segments"]}
    if accuracy["near_boundary"] is not None:
        subsets["least sure of"] = accuracy["near_boundary"]
    rows = [
        {
            "samples": name,
            "count": subset["model"]["count"],
            "reference": subset["reference"],
            "model": subset["model"],
            "change": subset["change"],
        }
        for name, subset in subsets.items()
    ]
    sections: dict[str, Any] = {"accuracy": rows}
    if accuracy["agreement"] is not None:
        sections["agreement with the reference"] = _without_none(accuracy["agreement"])
    sections["setting"] = {
        "model": names[0],
        **({"reference": names[1]} if len(names) > 1 else {}),
        "metric": accuracy["metric"],
        "compared_with": accuracy["compared_with"],
        "output": accuracy["output"],
        "samples": samples,
        "data_digest": accuracy["data_digest"],
    }
    return Report(f"validate {' against '.join(names)}", sections)


def _by_model(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"model": name, **row} for name, row in zip(names, rows, strict=True)]


def _without_none(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if value is not None}
