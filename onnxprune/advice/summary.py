"""Advice as a report: for programs one list of each kind, for people the actions one below the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from onnxprune.advice.accuracy import Accuracy
from onnxprune.advice.actions import Action
from onnxprune.advice.layers import STAYS, Layer
from onnxprune.advice.machine import Machine
from onnxprune.advice.sparse_cores import LEAST_CAPABILITY, SparseLayer
from onnxprune.advice.verdict import Where
from onnxprune.types import Report, Skipped

#: Layers below this share of the time are not worth a reason.
_SMALL = 0.005

ACTIONS, NOT_WORTH, LAYERS, SPARSE = "actions", "not worth it", "layers", "2:4 on sparse tensor cores"


def report_of(
    title: str,
    verdict: str,
    actions: Sequence[Action],
    found: Where | None,
    layers: Sequence[Layer],
    machine: Machine | None,
    sparse: Sequence[SparseLayer],
    setting: Mapping[str, Any],
    skipped: Sequence[Skipped],
    seconds: Mapping[str, float],
) -> Report:
    """Return the report of `onnxprune.advise`."""
    sections: dict[str, Any] = {
        "verdict": {"advice": verdict},
        ACTIONS: [_action(action) for action in actions if action.worth],
        NOT_WORTH: [_row(action) for action in actions if not action.worth],
    }
    if found is not None:
        sections["where the time goes"] = [
            {"part": part, "time_share": share, "ms": share * found.wall_ms}
            for part, share in found.parts.items()
        ]
        sections[LAYERS] = _layers(layers, found)
        sections["limits"] = {
            "latency_ms": found.wall_ms,
            "kernels": found.kernels,
            "median_kernel_us": found.median_kernel_us,
            "overhead_share": found.overhead,
            "limited_by_memory_share": found.moving,
            "least_amdahl_ratio": found.bound,
        }
    if machine is not None:
        sections["machine"] = asdict(machine)
    sections[SPARSE] = [_sparse(layer) for layer in sparse]
    sections["setting"] = dict(setting)
    return Report(title, sections, skipped=(*_staying(layers, found), *skipped), seconds=dict(seconds))


def for_people(report: Report, *, sparse: bool, verbose: bool) -> Report:
    """Return the report as tables show it best: each action by itself, layers without what is long.

    Args:
        report: from `report_of`.
        sparse: show which layers sparse tensor cores can run.
        verbose: leave nothing out.
    """
    sections: dict[str, Any] = {}
    for name, section in report.sections.items():
        if name == ACTIONS:
            for number, action in enumerate(section, start=1):
                shown = {key: value for key, value in action.items() if value is not None and key != "action"}
                sections[f"{number}. {action['action']}"] = shown
        elif name == NOT_WORTH:
            sections[name] = {row["candidate"]: _in_words(row) for row in section}
        elif name == "setting" and not sparse:
            sections[name] = {key: value for key, value in section.items() if key != "sparse_tensor_cores"}
        elif name == SPARSE:
            if sparse or verbose:
                sections[name] = section
        else:
            sections[name] = section
    return replace(report, sections=sections)


def _in_words(row: Mapping[str, Any]) -> str:
    """Return why a candidate is not worth it, after what was measured: a cell of a table would cut it off."""
    ratio = row["latency_ratio"]
    if ratio is None:
        return str(row["why"])
    return f"{ratio['value']:.2f} of the time ({ratio['low']:.2f} to {ratio['high']:.2f}): {row['why']}"


def _action(action: Action) -> dict[str, Any]:
    return {
        "action": action.title,
        "run": action.command,
        "latency_ratio": None if action.latency_ratio is None else action.latency_ratio.as_dict(),
        "basis": action.basis,
        "amdahl_ratio": action.bound,
        "size_ratio": action.size_ratio,
        "accuracy": _accuracy(action.accuracy),
        "risk": action.risk,
        "why": action.reason,
    }


def _accuracy(accuracy: Accuracy | str | None) -> Any:
    if not isinstance(accuracy, Accuracy):
        return accuracy
    figures = {accuracy.metric: accuracy.value.as_dict()}
    if accuracy.original is not None:
        figures["of the original"] = accuracy.original.as_dict()
    if accuracy.change is not None:
        figures["change"] = accuracy.change.as_dict()
    return figures


def _row(action: Action) -> dict[str, Any]:
    return {
        "candidate": action.title,
        "latency_ratio": None if action.latency_ratio is None else action.latency_ratio.as_dict(),
        "amdahl_ratio": action.bound,
        "size_ratio": action.size_ratio,
        "why": action.reason,
    }


def _layers(layers: Sequence[Layer], found: Where) -> list[dict[str, Any]]:
    slowest = sorted(layers, key=lambda layer: -layer.microseconds)
    return [
        {
            "layer": layer.name,
            "operator": layer.op_type,
            "ms": layer.microseconds / 1e3,
            "time_share": layer.microseconds / max(1e3 * found.wall_ms, 1e-9),
            "macs": layer.macs or None,
            "limit": layer.limit,
            "of_machine_share": layer.reached,
            "shrinks": None if not layer.macs else layer.part != STAYS,
        }
        for layer in slowest
    ]


def _sparse(layer: SparseLayer) -> dict[str, Any]:
    return {
        "layer": layer.layer,
        "operator": layer.op_type,
        "tensor": layer.tensor,
        "axis": layer.axis,
        "summed": layer.summed,
        "kernel_places": layer.places,
        "outputs": layer.outputs,
        "runs_as": layer.runs_as,
        "eligible": layer.eligible,
        "likely_faster": layer.likely,
        "why": layer.why,
    }


def _staying(layers: Sequence[Layer], found: Where | None) -> list[Skipped]:
    """Say why the layers that take time can't shrink."""
    wall = 1e9 if found is None else max(1e3 * found.wall_ms, 1e-9)
    return [
        Skipped(layer.name, layer.why)
        for layer in layers
        if layer.why is not None and layer.microseconds >= _SMALL * wall
    ]


def capability_note(capability: float | None) -> str:
    """Say what is known of sparse tensor cores here."""
    if capability is None:
        return f"no NVIDIA device was found here; they need compute capability {LEAST_CAPABILITY:g} or more"
    has = "has" if capability >= LEAST_CAPABILITY else "lacks"
    return f"compute capability {capability:g}: it {has} sparse tensor cores (from {LEAST_CAPABILITY:g} on)"
