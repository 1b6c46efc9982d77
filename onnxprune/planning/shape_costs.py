"""What is left of a model's costs once channels go, asked again and again: only what changes is counted anew.

A node's multiply-accumulates and a weight's bytes depend on the few groups whose channels they have. They are
counted once for each way to cut these groups, so that a search that moves one group at a time mostly adds up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxprune.allocate.limits import Holder, Limit
from onnxprune.analyze import Analysis
from onnxprune.cost import node_macs, nothing_cut, weight_cost
from onnxprune.model.nodes import nodes_in
from onnxprune.ops.channels import Channels, Ref, Use
from onnxprune.ops.kept import Kept
from onnxprune.types import Budget, FloatArray, IntArray, Metric

#: The places of metrics in what a term counts.
_PLACES: Mapping[Metric, int] = {"macs": 0, "params": 1, "bytes": 2}

#: Where along its removals a group is counted, and how far a polynomial may be from that.
_PROBES = (0.0, 0.2, 0.5, 0.8, 1.0)
_EXACT = 1e-9


@dataclass(frozen=True, slots=True)
class _Term:
    """A node or a weight: what it counts at a cut, and the groups that this depends on."""

    name: str
    groups: tuple[str, ...]
    count: Callable[[Kept], tuple[int, int, int]]
    known: dict[tuple[int, ...], FloatArray] = field(default_factory=dict)


class ShapeCosts:
    """Multiply-accumulates, parameters and bytes of one model after any cut.

    Args:
        analysis: of the model.
        already: int32 channel numbers by group name: what is gone in any case.
    """

    def __init__(self, analysis: Analysis, already: Mapping[str, IntArray]) -> None:
        self._analysis = analysis
        self._already = already
        self._numbers: dict[str, dict[bytes, int]] = {}
        self._seen: dict[int, tuple[IntArray, int]] = {}
        self._sums: dict[tuple[int, ...], FloatArray] = {}
        self._terms = _terms(analysis)
        self._of_group: dict[str, list[_Term]] = {}
        for term in self._terms:
            for name in term.groups:
                self._of_group.setdefault(name, []).append(term)
        self._names = tuple(self._of_group)
        self._whole = self._total({})

    def limit(self, budget: Budget) -> Limit:
        """Return a budget with what is left after any cut."""
        metric = budget.metric
        return Limit(
            metric,
            budget.keep,
            left=partial(self._left, metric),
            along=partial(self._along, metric),
            holders=partial(self._holders, metric),
        )

    def _left(self, metric: Metric, removed: Mapping[str, IntArray]) -> float:
        return self._share(self._total(self._gone(removed)), metric)

    def _along(
        self, metric: Metric, removed: Mapping[str, IntArray], name: str, options: Sequence[IntArray]
    ) -> FloatArray:
        terms = self._of_group.get(name, [])
        now = self._gone(removed)
        rest = self._total(now) - self._sum(terms, now)

        def exact(places: Iterable[int]) -> FloatArray:
            sums = (self._sum(terms, self._gone({**removed, name: options[place]})) for place in places)
            return np.array([self._share(rest + each, metric) for each in sums])

        if len(options) <= len(_PROBES):
            return exact(range(len(options)))
        # Mostly a polynomial of the second degree in the count: three shares give it, and two more tell.
        counts = np.array([len(gone) for gone in options]) / max(len(options[-1]), 1)
        places = np.unique(np.rint(np.array(_PROBES) * (len(options) - 1)).astype(int))
        probed = exact(places.tolist())
        fitted = _through(counts[places[::2]], probed[::2], counts)
        if np.abs(fitted[places] - probed).max() < _EXACT:
            return fitted
        return exact(range(len(options)))

    def _holders(self, metric: Metric, removed: Mapping[str, IntArray]) -> list[Holder]:
        now, place = self._gone(removed), _PLACES[metric]
        whole = max(float(self._whole[place]), 1.0)
        shares = ((term, float(self._counted(term, now)[place]) / whole) for term in self._terms)
        return [Holder(term.name, share, term.groups) for term, share in shares if share > 0]

    def _gone(self, removed: Mapping[str, IntArray]) -> Mapping[str, IntArray]:
        return {**self._already, **removed} if self._already else removed

    def _share(self, sums: FloatArray, metric: Metric) -> float:
        """Return the share of the original, with the samples of a batch counted as `cost_of` does."""
        place = _PLACES[metric]
        samples = self._analysis.channels.shapes.samples if metric == "macs" else 1
        whole, left = (round(float(each[place]) / samples) for each in (self._whole, sums))
        return left / max(whole, 1)

    def _total(self, removed: Mapping[str, IntArray]) -> FloatArray:
        key = tuple(self._number(name, removed.get(name)) for name in self._names)
        if key not in self._sums:
            self._sums[key] = self._sum(self._terms, removed)
        return self._sums[key]

    def _sum(self, terms: Iterable[_Term], removed: Mapping[str, IntArray]) -> FloatArray:
        return sum((self._counted(term, removed) for term in terms), np.zeros(len(_PLACES)))

    def _counted(self, term: _Term, removed: Mapping[str, IntArray]) -> FloatArray:
        """Return what a term counts, float64 [metrics]."""
        key = tuple(self._number(name, removed.get(name)) for name in term.groups)
        if key not in term.known:
            here = {name: removed[name] for name in term.groups if name in removed}
            kept = Kept(self._analysis.channels, self._analysis.removed_labels(here))
            term.known[key] = np.array(term.count(kept), np.float64)
        return term.known[key]

    def _number(self, name: str, gone: IntArray | None) -> int:
        """Return a number for each set of channels of a group that was asked for; 0 for none of them."""
        if gone is None or not len(gone):
            return 0
        seen = self._seen.get(id(gone))  # the array is kept, so nothing else gets its id
        if seen is None:
            numbers = self._numbers.setdefault(name, {})
            seen = self._seen[id(gone)] = gone, numbers.setdefault(gone.tobytes(), len(numbers) + 1)
        return seen[1]


def _through(at: FloatArray, values: FloatArray, wanted: FloatArray) -> FloatArray:
    """Return the values of the parabola through three points (Lagrange)."""
    a, b, c = at
    parts = ((b, c, a), (a, c, b), (a, b, c))
    terms = [(wanted - x) * (wanted - y) / ((z - x) * (z - y)) for x, y, z in parts]
    return np.asarray(sum(value * term for value, term in zip(values, terms, strict=True)))


def _terms(analysis: Analysis) -> list[_Term]:
    """Return what counts anything at all."""
    graph, channels = analysis.model.graph, analysis.channels
    names = [group.name for group in analysis.groups]
    group_of = np.full(channels.labels.count, -1, np.int64)
    for number, name in enumerate(names):
        group_of[analysis.units[name]] = number

    def groups_at(refs: Iterable[Ref]) -> tuple[str, ...]:
        labels = [block.labels.ravel() for ref in refs for block in channels.blocks.get(ref, ())]
        numbers = np.unique(group_of[np.concatenate(labels)]) if labels else np.zeros(0, np.int64)
        return tuple(names[number] for number in numbers.tolist() if number >= 0)

    whole = nothing_cut(channels)
    terms = []
    for node in graph:
        if node_macs(node, channels, whole):
            inside = [each for top in nodes_in([node]) for each in _refs(top)]
            terms.append(_Term(str(node.name), groups_at(inside), partial(_macs, node, channels)))
    for value in graph.initializers.values():
        if weight_cost(value, whole)[1]:
            uses = [Use(node, index) for node, index in value.uses()]
            terms.append(_Term(str(value.name), groups_at(uses), partial(_weight, value)))
    return terms


def _refs(node: ir.Node) -> list[Ref]:
    """Return all that a node reads and writes."""
    inputs: list[Ref] = [
        Use(node, index) if value.is_initializer() else value
        for index, value in enumerate(node.inputs)
        if value is not None
    ]
    return [*inputs, *node.outputs]


def _macs(node: ir.Node, channels: Channels, kept: Kept) -> tuple[int, int, int]:
    return node_macs(node, channels, kept) or 0, 0, 0


def _weight(value: ir.Value, kept: Kept) -> tuple[int, int, int]:
    return (0, *weight_cost(value, kept))
