"""What may be left of something that is counted or measured, and what is left once channels are gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnxprune.types import FloatArray, IntArray, Metric


@dataclass(frozen=True, slots=True)
class Holder:
    """What holds a part of something that is counted or measured.

    Attributes:
        name: of a node, a weight, a part of the model.
        share: of the original, that it holds.
        groups: names of the channel groups that it shrinks with.
    """

    name: str
    share: float
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Limit:
    """A share of the original that may stay.

    Attributes:
        metric: what is counted or measured.
        keep: share of it that may stay, in (0, 1].
        left: the share that is left once channels (int32 numbers by group name) are removed.
        along: the same for several removals of one group, by its name, while the others stay where they are:
            float64 [removals]. None where only ``left`` is known; what lies between a few removals is then
            taken for a polynomial, until the exact share decides.
        holders: what holds the share that is left once channels are removed; None where that is not known.
    """

    metric: Metric
    keep: float
    left: Callable[[Mapping[str, IntArray]], float]
    along: Callable[[Mapping[str, IntArray], str, Sequence[IntArray]], FloatArray] | None = None
    holders: Callable[[Mapping[str, IntArray]], Sequence[Holder]] | None = None


def met(limits: Sequence[Limit], removed: Mapping[str, IntArray]) -> bool:
    """Tell whether a choice keeps to all limits."""
    return all(limit.left(removed) <= limit.keep for limit in limits)
