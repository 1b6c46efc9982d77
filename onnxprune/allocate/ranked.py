"""The channels of groups, weakest first, and the simplest ways to share an amount out between groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from onnxprune.allocate.options import Options
from onnxprune.types import BoolArray, ChannelGroup, FloatArray, IntArray, Scores

#: From the measured cliffs of ONNX Runtime on x86 (see docs): never an odd count, wide layers in blocks.
_AUTO_STEPS = ((128, 16), (64, 8), (8, 4))


def rank(
    groups: Sequence[ChannelGroup],
    scores: Scores,
    options: Options,
    first: Mapping[str, BoolArray],
    last: Mapping[str, BoolArray],
    structures: Mapping[str, Hashable],
    steps: Mapping[str, int],
) -> list[Ranked]:
    """Return the channels of groups that may lose some, in the order in which they go.

    Args:
        groups: that may lose channels.
        scores: of all of them.
        options: with their floor and alignment.
        first: as for `onnxprune.allocate.channels.choose_channels`.
        last: as for the same.
        structures: as for the same.
        steps: as for the same.
    """
    return [
        Ranked(
            group,
            _reranked(scores.channels[group.name], group.name, first, last, scores.losses),
            math.ceil(options.floor * group.size),
            step_of(group, options, steps),
            structures.get(group.name),
        )
        for group in groups
    ]


def _reranked(
    values: FloatArray,
    name: str,
    first: Mapping[str, BoolArray],
    last: Mapping[str, BoolArray],
    losses: bool,
) -> FloatArray:
    """Return scores that compare between groups, with infinities for what goes first and last.

    Losses do as they are. Other scores grow with how much a channel has of weights and activations, so they
    are taken as shares of the greatest in the group. On trained networks (residual and transformer, four
    scores), a global threshold for these kept more accuracy than one for shares of the mean.
    """
    nobody = np.zeros(len(values), dtype=np.bool_)
    weakest, strongest = first.get(name, nobody), last.get(name, nobody)
    plain = values[~(weakest | strongest)]
    relative = values if losses else values / (plain.max(initial=0.0) or 1.0)
    return np.where(weakest, -np.inf, np.where(strongest, np.inf, relative))


def step_of(group: ChannelGroup, options: Options, steps: Mapping[str, int]) -> int:
    """Return what kept counts of a group are multiples of."""
    if options.align != "auto":
        return int(options.align)
    if group.name in steps:
        return steps[group.name]
    if group.kind != "channels":
        return 1  # heads count one by one, and matrix products have no cliffs
    return next((step for size, step in _AUTO_STEPS if group.size >= size), 1)


class Ranked:
    """The channels of a group, weakest first, and the counts that may be left. Scores compare.

    ``readers`` counts the layers that sum over the channels.
    """

    def __init__(
        self, group: ChannelGroup, values: FloatArray, least: int, step: int, structure: Hashable = None
    ) -> None:
        self.name = group.name
        self.readers = max(1, len({member.consumer for member in group.members if member.contracted}))
        self.structure = structure
        self.size = group.size
        self.values = values
        self.order: IntArray = np.argsort(values, kind="stable").astype(np.int32)  # ties go by index
        self.step = step
        self.least = max(1, least)
        self._gone: dict[float, IntArray] = {}

    def weakest(self, wanted: float) -> IntArray:
        """Return about ``wanted`` channels, ascending, such that what is left is allowed."""
        if wanted not in self._gone:  # a search asks for the same ones again and again
            self._gone[wanted] = np.sort(self.order[: self.size - self._allowed(self.size - wanted)])
        return self._gone[wanted]

    def counts(self) -> list[int]:
        """Return how many channels may go: at least those that go before all others, if that may be."""
        lowest = self._lowest()
        kept = {*range(lowest, self.size, self.step), self.size}
        counts = sorted(self.size - count for count in kept)
        first = int(np.isneginf(self.values).sum())
        return [count for count in counts if count >= first] or counts[-1:]

    def _lowest(self) -> int:
        return min(self.size, math.ceil(self.least / self.step) * self.step)

    def _allowed(self, kept: float) -> int:
        """Return the count nearest to ``kept`` that is whole or a multiple of the step above the floor."""
        lowest = self._lowest()
        below = math.floor(kept / self.step) * self.step
        counts = [min(max(count, lowest), self.size) for count in (below, below + self.step, self.size)]
        return min(counts, key=lambda count: (abs(count - kept), count))


def uniform(ranked: Sequence[Ranked], amount: float) -> dict[str, IntArray]:
    """The same share of every group."""
    return {group.name: group.weakest(amount * group.size) for group in ranked}


def global_(ranked: Sequence[Ranked], amount: float) -> dict[str, IntArray]:
    """The lowest share of all channels."""
    if not ranked:
        return {}
    everything = np.sort(np.concatenate([group.values for group in ranked]))
    count = round(amount * len(everything))
    threshold = everything[count] if count < len(everything) else np.inf
    return {group.name: group.weakest(float((group.values < threshold).sum())) for group in ranked}


def isomorphic(ranked: Sequence[Ranked], amount: float) -> dict[str, IntArray]:
    """The lowest share of the channels of every class of groups of the same structure."""
    classes: dict[Hashable, list[Ranked]] = {}
    for group in ranked:
        classes.setdefault(group.structure, []).append(group)
    return {name: gone for each in classes.values() for name, gone in global_(each, amount).items()}


RANKINGS: dict[str, Callable[[Sequence[Ranked], float], dict[str, IntArray]]] = {
    "uniform": uniform,
    "global": global_,
    "isomorphic": isomorphic,
}
