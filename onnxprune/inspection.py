"""A model -> what is in it: its interface, its cost, what can be pruned, and what can't and why."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from onnxprune.analyze import Analysis, analyze
from onnxprune.cost import cost_of, macs_by_node, nothing_cut
from onnxprune.model.inputs import graph_inputs
from onnxprune.model.io import SOURCE, load
from onnxprune.model.serialize import recall
from onnxprune.model.size import tensor_bytes
from onnxprune.model.stored import all_nodes, consumer_name
from onnxprune.ops.registry import rule_for
from onnxprune.ops.weights import locate_weights
from onnxprune.runtime import admit
from onnxprune.types import ChannelGroup, Report, Skipped
from onnxprune.verification.zeros import WeightZeros, count_zeros

#: Which channel groups a report lists.
Which = Literal["all", "open", "frozen"]


def macs_of_nodes(model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, int]:
    """Return the multiply-accumulates of the nodes of a model at these sizes, by name, where they are known.

    Args:
        model: not changed. A node without a name goes by its first output.
        input_shapes: by input name; sensible sizes are tried for symbolic axes otherwise.

    Raises:
        ModelError, UsageError: as `onnxprune.analyze.analyze`.
    """
    analysis = analyze(model, input_shapes=input_shapes)
    counted = macs_by_node(analysis.model.graph, analysis.channels, nothing_cut(analysis.channels))
    named = {str(node.name): macs for node, macs in counted if macs}
    outputs = {str(value.name): str(node.name) for node in analysis.model.graph for value in node.outputs}
    found = {}
    for node in model.graph:
        name = consumer_name(node)
        prepared = name if name in named else next((outputs.get(str(v.name)) for v in node.outputs), None)
        if prepared in named:
            found[name] = named[str(prepared)]
    return found


def inspect_model(
    path: str | Path,
    *,
    groups: Which = "all",
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    allow_inexact: bool = False,
) -> Report:
    """Return what a model file holds: interface, cost, operators, channel groups, and zeros of its weights.

    Args:
        path: the file.
        groups: which channel groups are listed; frozen ones stand in ``skipped``, with the reason.
        input_shapes: concrete shapes by input name for symbolic axes; sensible sizes are tried otherwise.
        allow_inexact: list groups as open whose removal changes statistics.

    Raises:
        ModelError: the file is missing, damaged or not supported, or ONNX Runtime refuses it.
        UsageError: an input shape is missing or does not fit.
    """
    started = time.perf_counter()
    model = load(path)
    admit(model, to_run=False)
    analysis = analyze(model, input_shapes=input_shapes, allow_inexact=allow_inexact)
    analyzed = time.perf_counter()
    weights, not_followed = locate_weights(model)
    zeros = count_zeros(weights, None)
    listed = [group for group in analysis.groups if _is_listed(group, groups)]
    skipped = [Skipped(group.name, group.frozen) for group in listed if group.frozen is not None]
    sections = {
        "model": _model(model, analysis),
        "inputs": [_value(value, analysis) for value in graph_inputs(model)],
        "outputs": [_value(value, analysis) for value in model.graph.outputs],
        "operators": _operators(model),
        "groups": [_group(group) for group in listed],
        "weights": [_weight(weight) for weight in zeros],
    }
    odd = [Skipped(w.weight.use.tensor, w.problem) for w in zeros if w.problem is not None]
    return Report(
        title=f"inspect {path}",
        sections=sections,
        skipped=tuple(dict.fromkeys((*odd, *skipped, *analysis.unknown, *not_followed))),
        seconds={"load and analyze": analyzed - started, "read weights": time.perf_counter() - analyzed},
    )


def _is_listed(group: ChannelGroup, which: Which) -> bool:
    return which == "all" or (group.frozen is None) == (which == "open")


def _model(model: ir.Model, analysis: Analysis) -> dict[str, Any]:
    files = recall(model, SOURCE)
    cost = cost_of(analysis.model.graph, analysis.channels)
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in model.opset_imports.items())
    producer = " ".join(part for part in (model.producer_name, model.producer_version) if part)
    return {
        "size_bytes": sum(Path(file).stat().st_size for file in files),
        "files": len(files),
        "tensor_bytes": tensor_bytes(model),
        "opsets": opsets,
        "ir_version": model.ir_version,
        "producer": producer or None,
        "nodes": sum(1 for _ in all_nodes(model)),
        "functions": len(model.functions),
        "parameters": cost.params,
        "macs": cost.macs,
        "analyzed_at": analysis.shapes.input_shapes,
    }


def _value(value: ir.Value, analysis: Analysis) -> dict[str, Any]:
    dims = None if value.shape is None else [_size(size) for size in value.shape]
    return {
        "name": value.name,
        "type": None if value.dtype is None else value.dtype.name.lower(),
        "shape": dims,
        "analyzed_at": analysis.shapes.input_shapes.get(str(value.name)),
    }


def _size(size: int | ir.SymbolicDim) -> int | str:
    return size if isinstance(size, int) else size.value or "?"


def _operators(model: ir.Model) -> list[dict[str, Any]]:
    """Count nodes by operator, in subgraphs and functions too; the most frequent ones first."""
    counts: Counter[str] = Counter()
    known = {}
    for node in all_nodes(model):
        domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
        name = f"{domain}{node.op_type}"
        counts[name] += 1
        known[name] = rule_for(node) is not None or node.op_identifier() in model.functions
    return [
        {"operator": name, "nodes": count, "known": known[name]}
        for name, count in sorted(counts.items(), key=lambda entry: (known[entry[0]], -entry[1], entry[0]))
    ]


def _group(group: ChannelGroup) -> dict[str, Any]:
    return {
        "group": group.name,
        "kind": group.kind,
        "channels": group.size,
        "exact": group.exact,
        "weights": len({member.tensor for member in group.members}),
        "open": group.frozen is None,
    }


def _weight(found: WeightZeros) -> dict[str, Any]:
    use = found.weight.use
    return {
        "tensor": use.tensor,
        "operator": use.op_type,
        "shape": list(found.weight.shape),
        "summed_axis": use.summed_axis,
        "zeros": found.zeros,
        "sparsity": found.zeros / max(1, found.size),
        "pattern": found.pattern,
    }
