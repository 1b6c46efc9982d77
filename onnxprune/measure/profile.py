"""Where the time of a model goes: the kernels of ONNX Runtime, merged by the layers of the model.

A layer is what one kernel computes (a convolution with its batch norm, sum and activation), or a node that
several kernels compute. Of two models, layers are the same that share a node, by its name; where no name is
shared, a weight, by its name. The profiles are taken by turns, but the layers of a profile are not compared
within rounds, as whole models are: small differences between layers are noise, and are called so.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.measure import intervals
from onnxprune.measure.intervals import Estimate
from onnxprune.model.io import load
from onnxprune.model.stored import consumer_name
from onnxprune.runtime import DEFAULT, Execution, Kernel, time_kernels

PROFILED_RUNS = 20

#: Profiles are taken in so many pieces, the models by turns.
_ROUNDS = 2

#: Of the runs, for the time of a layer: a job that comes in between falls onto single kernels, and onto the
#: same one in many runs.
QUANTILE = 0.25

#: A layer counts as faster or slower if its interval lies outside 1 by this much.
LAYER_NOISE = 0.05

#: ... and only if it is above this time: kernels are timed in whole microseconds.
_LEAST_MS = 0.02

#: Name of the layers that ONNX Runtime inserted, before their operator.
INSERTED = "inserted by ONNX Runtime: "


@dataclass(frozen=True, slots=True)
class Layer:
    """Part of a model that runs as one.

    Attributes:
        name: of the node that does the work, or `INSERTED` and an operator.
        operator: its type in the model.
        kernel: the type of the kernel, or those of several.
        nodes: names of all nodes of the model that run in it; none for what ONNX Runtime inserted.
        milliseconds: float64 [run].
    """

    name: str
    operator: str
    kernel: str
    nodes: tuple[str, ...]
    milliseconds: npt.NDArray[np.float64]

    @property
    def ms(self) -> float:
        """Time of a run of the quieter half: what disturbs a kernel only ever adds to it."""
        return float(np.quantile(self.milliseconds, QUANTILE))


@dataclass(frozen=True, slots=True)
class Profile:
    """The layers of a model in the order in which they run, and what its nodes are.

    Attributes:
        layers: all of them.
        operators: operator of each node of the main graph, by name.
        weights: names of the stored values that each node reads, by name of the node.
    """

    layers: tuple[Layer, ...]
    operators: Mapping[str, str]
    weights: Mapping[str, tuple[str, ...]]

    @property
    def fastest_ms(self) -> float:
        """Time in all kernels of the fastest run."""
        return float(np.sum([layer.milliseconds for layer in self.layers], axis=0).min(initial=np.inf))

    @property
    def attributed_share(self) -> float:
        """Share of that time in kernels that stand for nodes of the model."""
        own = sum(layer.ms for layer in self.layers if layer.nodes)
        return own / max(sum(layer.ms for layer in self.layers), 1e-9)


def profile(
    models: Sequence[ir.Model | str | Path],
    feeds: Mapping[str, npt.NDArray[Any]],
    execution: Execution = DEFAULT,
    *,
    runs: int = PROFILED_RUNS,
) -> tuple[Profile, ...]:
    """Profile one model or several, by turns, on the same inputs.

    Args:
        models: paths or models; not changed.
        feeds: one array per input.
        execution: where and how they run.
        runs: recorded runs of each.

    Raises:
        UsageError: there are no runs.
        ModelError, RuntimeFailure: a model can't be read, opened, run or profiled.
    """
    opened = [model if isinstance(model, ir.Model) else load(model) for model in models]
    labels = [str(model) if isinstance(model, (str, Path)) else None for model in models]
    pieces = min(_ROUNDS, max(runs, 1))
    recorded = [
        [
            time_kernels(model, feeds, execution, runs=math.ceil(runs / pieces), label=label)
            for model, label in zip(opened, labels, strict=True)
        ]
        for _ in range(pieces)
    ]
    return tuple(
        _profile(model, _joined([piece[number] for piece in recorded])) for number, model in enumerate(opened)
    )


def _joined(pieces: Sequence[tuple[Kernel, ...]]) -> list[tuple[Kernel, npt.NDArray[np.float64]]]:
    first = pieces[0]
    same = [piece for piece in pieces if [k.covers for k in piece] == [k.covers for k in first]]
    return [
        (kernel, np.concatenate([piece[index].microseconds for piece in same]) / 1000)
        for index, kernel in enumerate(first)
    ]


def _profile(model: ir.Model, kernels: Sequence[tuple[Kernel, npt.NDArray[np.float64]]]) -> Profile:
    operators: dict[str, str] = {}
    weights: dict[str, tuple[str, ...]] = {}
    for node in model.graph:
        name = consumer_name(node)
        operators[name] = node.op_type
        weights[name] = tuple(
            str(value.name) for value in node.inputs if value is not None and value.is_initializer()
        )
    by_layer: dict[tuple[str, ...], list[tuple[Kernel, npt.NDArray[np.float64]]]] = defaultdict(list)
    for kernel, milliseconds in kernels:
        by_layer[kernel.covers or (f"{INSERTED}{kernel.op_type}",)].append((kernel, milliseconds))
    layers = []
    for key, members in by_layer.items():
        nodes = members[0][0].covers
        main = _main_node(nodes, operators, weights, members[0][0].op_type) if nodes else key[0]
        types = list(dict.fromkeys(kernel.op_type for kernel, _ in members))
        layers.append(
            Layer(
                name=main,
                operator=operators.get(main, types[0]),
                kernel=types[0] if len(types) == 1 else f"{len(members)} kernels",
                nodes=nodes,
                milliseconds=np.sum([milliseconds for _, milliseconds in members], axis=0),
            )
        )
    return Profile(tuple(layers), operators, weights)


def _main_node(
    nodes: Sequence[str], operators: Mapping[str, str], weights: Mapping[str, tuple[str, ...]], kernel: str
) -> str:
    """Return the node that a layer is called by: of the kernel's type, with weights, or the last one."""
    alike = [node for node in nodes if operators.get(node) == kernel]
    with_weights = [node for node in nodes if weights.get(node)]
    return next((found[0] for found in (alike, with_weights) if found), nodes[-1])


def by_time(of: Profile, macs: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return a row for each layer, the slowest first.

    Args:
        of: the profile.
        macs: multiply-accumulates by name of a node, of the whole batch that was run; empty if not known.
    """
    total = max(sum(layer.ms for layer in of.layers), 1e-9)
    rows = []
    cumulative = 0.0
    for layer in sorted(of.layers, key=lambda layer: -layer.ms):
        cumulative += layer.ms
        count = sum(macs.get(node, 0) for node in layer.nodes)
        rows.append(
            {
                "layer": layer.name,
                "operator": layer.operator,
                "kernel": layer.kernel,
                "nodes": len(layer.nodes),
                "ms": layer.ms,
                "share": layer.ms / total,
                "cumulative_share": cumulative / total,
                "macs": count or None,
                "gmacs_per_s": count / layer.ms / 1e6 if count and layer.ms else None,
            }
        )
    return rows


def summarize(of: Profile, fastest_ms: float) -> dict[str, Any]:
    """Return where the time of a run goes, in milliseconds and shares.

    Args:
        of: the profile.
        fastest_ms: the fastest run without the profiler.
    """
    return {
        "layers_ms": sum(layer.ms for layer in of.layers),
        "of_which_inserted_ms": sum(layer.ms for layer in of.layers if not layer.nodes),
        "attributed_share": of.attributed_share,
        "fastest_run_ms": fastest_ms,
        "kernels_of_fastest_run_ms": of.fastest_ms,
    }


def compare(a: Profile, b: Profile, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return a row for each layer of two models, those that changed most first.

    A row has ``layer``, ``operator``, ``before_ms`` and ``after_ms`` (None where there is none), ``ratio``
    (an Estimate as a mapping), ``change`` ("faster", "slower", "no difference", or "gone" and "new") and
    ``note``, which says what was fused or split.
    """
    rows = []
    for before, after in _matched(a, b):
        named = (before or after)[0]
        old = _sum(before)
        new = _sum(after)
        ratio = None if old is None or new is None else _ratio(new, old, seed)
        rows.append(
            {
                "layer": named.name,
                "operator": named.operator,
                "before_ms": None if old is None else float(np.quantile(old, QUANTILE)),
                "after_ms": None if new is None else float(np.quantile(new, QUANTILE)),
                "ratio": None if ratio is None else ratio.as_dict(),
                "change": _change(old, new, ratio),
                "note": _note(before, after, a, b),
            }
        )
    return sorted(rows, key=lambda row: -abs((row["after_ms"] or 0.0) - (row["before_ms"] or 0.0)))


def _matched(a: Profile, b: Profile) -> list[tuple[list[Layer], list[Layer]]]:
    """Put layers together that share a node, or else a weight."""
    layers = [*a.layers, *b.layers]
    group = list(range(len(layers)))

    def root(index: int) -> int:
        while group[index] != index:
            group[index] = group[group[index]]
            index = group[index]
        return index

    def join(keys: Mapping[str, list[int]]) -> None:
        for indexes in keys.values():
            if indexes[0] < len(a.layers) <= indexes[-1]:  # in both models
                for index in indexes[1:]:
                    group[root(index)] = root(indexes[0])

    by_node: dict[str, list[int]] = defaultdict(list)
    for index, layer in enumerate(layers):
        for node in layer.nodes or (layer.name,):
            by_node[node].append(index)
    join(by_node)
    sizes: dict[int, int] = defaultdict(int)
    for index in range(len(layers)):
        sizes[root(index)] += 1
    by_weight: dict[str, list[int]] = defaultdict(list)
    for index, layer in enumerate(layers):
        if sizes[root(index)] > 1:
            continue
        weights = a.weights if index < len(a.layers) else b.weights
        for node in layer.nodes:
            for weight in weights.get(node, ()):
                by_weight[weight].append(index)
    join(by_weight)
    found: dict[int, tuple[list[Layer], list[Layer]]] = {}
    for index, layer in enumerate(layers):
        pair = found.setdefault(root(index), ([], []))
        pair[0 if index < len(a.layers) else 1].append(layer)
    return list(found.values())


def _sum(layers: Sequence[Layer]) -> npt.NDArray[np.float64] | None:
    if not layers:
        return None
    return np.asarray(np.sum([layer.milliseconds for layer in layers], axis=0), dtype=np.float64)


def _ratio(new: npt.NDArray[np.float64], old: npt.NDArray[np.float64], seed: int) -> Estimate | None:
    if min(new.min(), old.min()) <= 0:
        return None  # below a microsecond
    return intervals.ratio_apart(new, old, QUANTILE, seed)


def _change(
    old: npt.NDArray[np.float64] | None, new: npt.NDArray[np.float64] | None, ratio: Estimate | None
) -> str:
    if old is None or new is None:
        return "new" if old is None else "gone"
    if ratio is None or max(np.quantile(old, QUANTILE), np.quantile(new, QUANTILE)) < _LEAST_MS:
        return "too short to tell"
    if ratio.high < 1 - LAYER_NOISE:
        return "faster"
    if ratio.low > 1 + LAYER_NOISE:
        return "slower"
    return "no difference"


def _note(before: Sequence[Layer], after: Sequence[Layer], a: Profile, b: Profile) -> str | None:
    if (before and not before[0].nodes) or (after and not after[0].nodes):
        return None
    if before and not after:
        left = any(node in b.operators for layer in before for node in layer.nodes)
        return "folded into constants, or never run" if left else "its nodes are gone from the model"
    if after and not before:
        known = any(node in a.operators for layer in after for node in layer.nodes)
        return "was folded into constants, or never run" if known else "its nodes are new in the model"
    if len(before) != len(after):
        what = "fused" if len(after) < len(before) else "split"
        return f"{what}: {len(before)} kernels before, {len(after)} after"
    lost = {node for layer in before for node in layer.nodes} - {
        node for layer in after for node in layer.nodes
    }
    return f"without {len(lost)} of its nodes" if lost else None
