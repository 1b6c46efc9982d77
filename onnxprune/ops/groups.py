"""Labels -> channel groups: those that stand on the same axes of the same weights compete."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.model.nodes import nodes_in
from onnxprune.ops.channels import Block, Channels, Use
from onnxprune.types import BoolArray, ChannelGroup, IntArray, Kind, Member

_NEVER = np.iinfo(np.int64).max

#: What rules say of labels, the first one first.
_TAGS: tuple[Kind, ...] = ("heads", "experts", "head_dim")

#: Parts of the names of operators whose channels are called hidden units, where no convolution shares them.
_LINEAR = ("Attention", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "MoE", "RNN")


def group_labels(
    graph: ir.Graph, channels: Channels, prefer: Kind
) -> tuple[tuple[ChannelGroup, ...], dict[str, IntArray]]:
    """Return the channel groups of a graph in its order, and the labels of their channels, int32 [size].

    Args:
        graph: the graph whose weights are looked at, those of its bodies too.
        channels: its labels, solved.
        prefer: what is offered where positions belong to heads and to places in a head.
    """
    return _Grouping(graph, channels, prefer).run()


def constant_along(column: IntArray, axis: int) -> bool:
    """Return whether labels are the same at all places of an axis."""
    return bool((column == np.take(column, [0], axis=axis)).all())


def _joined(arrays: Sequence[IntArray]) -> tuple[npt.NDArray[np.int64], ...]:
    """Return the labels ``[..., k]`` of all arrays in one row, and of each the array and the place in it."""
    if not arrays:
        return (np.zeros(0, np.int64),) * 3
    sizes = [labels.size for labels in arrays]
    number = np.repeat(np.arange(len(arrays)), sizes)
    start = np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
    columns = np.repeat([labels.shape[-1] for labels in arrays], sizes)
    flat = np.concatenate([labels.ravel() for labels in arrays]).astype(np.int64)
    return flat, number, (np.arange(len(flat)) - start) // columns


class _Grouping:
    """Labels that stand on the same axes of the same weights compete: they form a channel group."""

    def __init__(self, graph: ir.Graph, channels: Channels, prefer: Kind) -> None:
        self.graph = graph
        self.channels = channels
        self.prefer = prefer
        self.places = self._places()
        self.nodes = {str(node.name): node for node in nodes_in(graph)}
        tagged = {kind: channels.tagged(kind) for kind in _TAGS}
        self.tagged = {
            kind: self._marked([labels[:, None]]) for kind, labels in tagged.items() if len(labels)
        }
        self.inexact = self._marked([statistic.labels for statistic in channels.statistics])

    def _places(self) -> list[tuple[Use, int, IntArray]]:
        """Every axis of every weight that is labelled: the use, the axis, resolved labels ``[dim, k]``."""
        order = {node: number for number, node in enumerate(nodes_in(self.graph))}
        uses = [ref for ref in self.channels.blocks if isinstance(ref, Use) and ref.node in order]
        uses.sort(key=lambda use: (order[use.node], use.index))
        return [
            (use, axis, labels)
            for use in uses
            for block in self.channels.blocks[use]
            for axis, labels in self._axes(block)
        ]

    def _axes(self, block: Block) -> list[tuple[int, IntArray]]:
        labels = block.labels
        if len(block.axes) == 1:
            return [(block.axes[0], labels)]
        found = []
        for place, axis in enumerate(block.axes):
            others = tuple(p for p in range(len(block.axes)) if p != place)
            mine = [c for c in range(labels.shape[-1]) if not constant_along(labels[..., c], place)]
            line = labels[tuple(0 if p in others else slice(None) for p in range(len(block.axes)))]
            if mine:
                found.append((axis, line[:, mine]))
        return found

    def _marked(self, arrays: Sequence[IntArray]) -> BoolArray:
        """Return bool ``[labels.count]``, True for the labels in some arrays."""
        marks = np.zeros(self.channels.labels.count, dtype=np.bool_)
        for labels in arrays:
            marks[self.channels.labels.resolve(labels)] = True
        marks[0] = False
        return marks

    def run(self) -> tuple[tuple[ChannelGroup, ...], dict[str, IntArray]]:
        signature, first_seen = self._signatures()
        # A frozen channel does not freeze those that stand beside it on the same axis: they form two groups.
        by_key = self._together(signature, first_seen)
        groups: list[ChannelGroup] = []
        units: dict[str, IntArray] = {}
        names: dict[str, int] = {}
        leaders = np.array([labels[0] for labels in by_key], np.int32)
        reasons = self.channels.labels.frozen_reason(leaders)
        for labels, reason, mine in zip(by_key, reasons, self._members(by_key), strict=True):
            name = self._name(mine)
            names[name] = names.get(name, 0) + 1
            unique = name if names[name] == 1 else f"{name}#{names[name]}"
            if reason is None and len(labels) == 1:
                reason = "a single channel is left"
            kind = self._kind(labels, mine)
            exact = not self.inexact[labels].any()
            groups.append(ChannelGroup(unique, kind, len(labels), tuple(mine), reason, exact=exact))
            units[unique] = labels
        return self._choose_between_products(groups, units), units

    def _together(
        self, signature: npt.NDArray[np.uint64], first_seen: npt.NDArray[np.int64]
    ) -> list[IntArray]:
        """Return the labels of each group, int32: those with one signature and one reason to stay.

        Groups, and labels within them, are in the order in which they are first seen.
        """
        present = np.flatnonzero(first_seen < _NEVER)
        present = present[np.argsort(first_seen[present], kind="stable")]
        if not len(present):
            return []
        labels = present.astype(np.int32)
        codes = self.channels.labels.reason_codes(labels).astype(np.int64)
        _, place = np.unique(signature[present], return_inverse=True)
        _, first, number = np.unique(place << 32 | codes, return_index=True, return_inverse=True)
        order = np.argsort(first[number], kind="stable")
        ends = np.flatnonzero(np.diff(number[order])) + 1
        return np.split(labels[order], ends)

    def _signatures(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        """One number for where a label stands, and the place where it is first seen, both by label.

        Labels with equal numbers stand on the same axes of all values, beside the same other labels. So a
        group that keeps one channel empties no axis, and the heads of an attention, which stand beside the
        places in a head, form another group than those.
        """
        count = self.channels.labels.count
        generator = np.random.default_rng(0)
        own = generator.integers(1, 2**63, count, dtype=np.uint64)
        signature = np.zeros(count, dtype=np.uint64)
        blocks = (block.labels for blocks in self.channels.blocks.values() for block in blocks)
        distinct = list({id(labels): labels for labels in blocks}.values())
        flat, number, _ = _joined(distinct)
        beside = np.unique(number << 32 | flat)  # each label of an array once
        numbers = generator.integers(1, 2**63, len(distinct), dtype=np.uint64)
        np.add.at(signature, beside & 0xFFFFFFFF, numbers[beside >> 32])
        signature[0] = 0
        for labels in distinct:
            rows = labels.reshape(-1, labels.shape[-1])
            for a, b in combinations(range(rows.shape[1]), 2):
                pairs = np.unique(rows[:, a].astype(np.int64) << 32 | rows[:, b])
                first, second = pairs >> 32, pairs & 0xFFFFFFFF
                both = (first > 0) & (second > 0)
                np.add.at(signature, first[both], own[second[both]])
                np.add.at(signature, second[both], own[first[both]])
        first_seen = np.full(count, _NEVER, dtype=np.int64)
        seen = {id(labels): labels for _, _, labels in self.places}  # most places share their labels
        flat, number, row = _joined(list(seen.values()))
        np.minimum.at(first_seen, flat, number << 32 | row)
        first_seen[0] = _NEVER
        return signature, first_seen

    def _members(self, by_key: Sequence[IntArray]) -> list[list[Member]]:
        """The members of each group."""
        count = self.channels.labels.count
        group_of = np.full(count, -1, dtype=np.int32)
        channel_of = np.full(count, -1, dtype=np.int32)
        for number, group in enumerate(by_key):
            group_of[group] = number
            channel_of[group] = np.arange(len(group))
        contracted = {(c.node, c.operand, c.axis) for c in self.channels.contractions}
        members: list[list[Member]] = [[] for _ in by_key]
        parts: dict[int, list[tuple[int, IntArray]]] = {}  # most places share their labels
        for use, axis, labels in self.places:
            if id(labels) not in parts:
                parts[id(labels)] = _parts(labels, group_of, channel_of)
            for number, channel_at in parts[id(labels)]:
                members[number].append(
                    Member(
                        tensor=str(use.value.name),
                        axis=axis,
                        channel_at=channel_at,
                        contracted=any((*reader, axis) in contracted for reader in _readers(use)),
                        consumer=str(use.node.name),
                    )
                )
        return members

    def _name(self, members: Sequence[Member]) -> str:
        producers = [member for member in members if not member.contracted]
        first = (producers or members)[0]
        if self.nodes[first.consumer].op_type != "DequantizeLinear":
            return _readable_name(first.tensor, self.nodes[first.consumer])
        if not producers:  # it has labels along the sum even where its input has none
            return f"{_readable_name(first.tensor, self.nodes[first.consumer])}.inputs"
        # The nodes of biases may stand before those of weights.
        first = next((member for member in producers if self._is_wide(member.tensor)), first)
        return _readable_name(first.tensor, self.nodes[first.consumer])

    def _is_wide(self, tensor: str) -> bool:
        shape = self.graph.initializers[tensor].shape
        return shape is not None and len(shape) > 1

    def _kind(self, labels: IntArray, members: Sequence[Member]) -> Kind:
        kind: Kind
        for kind, tagged in self.tagged.items():
            if tagged[labels].any():
                return kind
        uses = [Use(self.nodes[member.consumer], 0) for member in members]
        ops = {reader.op_type for use in uses for reader, _ in _readers(use)}
        linear = any(word in op for op in ops for word in _LINEAR)
        return "hidden" if linear and not any("Conv" in op for op in ops) else "channels"

    def _choose_between_products(
        self, groups: list[ChannelGroup], units: Mapping[str, IntArray]
    ) -> tuple[ChannelGroup, ...]:
        """Where positions belong to several groups at once (heads and places in a head), offer one of them.

        Removing half of each would remove three quarters of the positions. Heads come first, then the group
        with more channels: whole groups of a grouped convolution rather than places inside its groups. Where
        query heads share keys, there are heads of two sorts, and again the more numerous ones are offered.
        """
        group_of = np.full(self.channels.labels.count, -1, dtype=np.int64)
        for number, group in enumerate(groups):
            group_of[units[group.name]] = number
        rivals: dict[int, set[int]] = {}
        known: set[int] = set()
        for _, _, labels in self.places:
            if labels.shape[1] == 1 or id(labels) in known:
                continue
            known.add(id(labels))
            numbers = np.where(labels > 0, group_of[labels], -1)
            for row in np.unique(numbers, axis=0).tolist():
                together = sorted({number for number in row if number >= 0})
                for a in together:
                    rivals.setdefault(a, set()).update(b for b in together if b != a)
        chosen: dict[int, str] = {}
        preference = sorted(
            (n for n in rivals if rivals[n] and groups[n].frozen is None),
            key=lambda n: (
                groups[n].kind != self.prefer,
                groups[n].kind == "head_dim",
                groups[n].kind != "heads",
                -groups[n].size,
                -len(groups[n].members),
            ),
        )
        taken: set[int] = set()
        for number in preference:
            winner = next((rival for rival in rivals[number] if rival in taken), None)
            if winner is None:
                taken.add(number)
            else:
                chosen[number] = f"its positions are removed by way of {groups[winner].name}"
        return tuple(
            replace(group, frozen=chosen[number]) if number in chosen else group
            for number, group in enumerate(groups)
        )


def _parts(labels: IntArray, group_of: IntArray, channel_of: IntArray) -> list[tuple[int, IntArray]]:
    """Return the groups that labels ``[dim, k]`` belong to, and for each the channel at every place or -1."""
    groups_here = group_of[labels]
    first = int(groups_here[0, 0])
    if first >= 0 and (groups_here == first).all():
        return [(first, channel_of[labels].max(axis=1))]
    return [
        (number, np.where(groups_here == number, channel_of[labels], -1).max(axis=1))
        for number in np.unique(groups_here).tolist()
        if number >= 0
    ]


def _readers(use: Use) -> list[tuple[ir.Node, int]]:
    """Return the nodes and inputs that compute with a constant, behind a DequantizeLinear too."""
    if use.node.op_type != "DequantizeLinear":
        return [(use.node, use.index)]
    return list(use.node.outputs[0].uses()) if use.index == 0 else []  # the others are scales


def _readable_name(tensor: str, node: ir.Node) -> str:
    """A weight's own name where the exporter kept it, else the module path, else the node's name."""
    if re.search(r"weight|kernel|[Ww]$|_w\b", tensor) and not tensor.startswith("onnx::"):
        return re.sub(r"\.weight$", "", tensor)
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if scopes:
        try:
            path = [scope for scope in ast.literal_eval(scopes) if scope]
        except (ValueError, SyntaxError):
            path = []
        if len(path) > 1:
            return str(path[-2] if path[-1].count(".") == 0 and "." in path[-2] else path[-1])
    return str(node.name)
