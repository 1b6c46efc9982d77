"""What a choice of channel counts costs in time, predicted from the measured times of parts of the graph.

    predicted(counts) = rest + sum over parts p of  in_context[p] * alone_p(counts) / alone_p(anchor)

``alone_p`` is the time of part p as a model of its own; ``in_context[p]`` its time inside the whole model at
the anchor, the counts at which the whole was timed last (the original, at first); ``rest`` is what the whole
took beyond its parts, and stays. So errors that all sizes of a part share (caches, layouts, threads) cancel
out, and a prediction is exact at the anchor.

Between measured counts, ``alone_p`` is a polynomial in the sizes that the counts decide, with no negative
coefficient (time grows with work and with bytes, and both are sums of products of sizes), times a correction
that makes it exact where the part was measured, and fades away from there.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import scipy

from onnxprune.types import FloatArray

Counts = npt.NDArray[np.int64]

#: The time of a part with more sizes than this (many tensors side by side) is taken to follow their sum.
MOST_JOINT = 3

#: How near, in logarithms of sizes, a measured point must be to decide alone.
_NEAR = 1e-3


@dataclass(slots=True)
class PartTimes:
    """The time of one part alone, by the kept counts of the groups that shrink it.

    Attributes:
        name: of the part.
        groups: names of the groups, in the order of the counts.
        whole: int64 [groups], the counts of the original.
        forms: float64 [sizes, groups], and
        offsets: float64 [sizes]: every size of the part that shrinks is ``forms @ counts + offsets``.
        measured: ms by kept counts.
    """

    name: str
    groups: tuple[str, ...]
    whole: Counts
    forms: FloatArray
    offsets: FloatArray
    measured: dict[tuple[int, ...], float] = field(default_factory=dict)
    _fitted: _Fit | None = None
    _known: dict[tuple[int, ...], float] = field(default_factory=dict)

    def add(self, counts: Sequence[int], ms: float) -> None:
        """Take in a measured time."""
        self.measured[tuple(int(count) for count in counts)] = ms
        self._fitted = None
        self._known = {}

    def one(self, counts: Mapping[str, int]) -> float:
        """Return the predicted time in ms at the kept counts of all groups, by name; whole if not named."""
        key = tuple(counts.get(name, int(all_)) for name, all_ in zip(self.groups, self.whole, strict=True))
        if key not in self._known:
            self._known[key] = float(self.many(np.array([key]))[0])
        return self._known[key]

    def many(self, counts: Counts) -> FloatArray:
        """Return the predicted times in ms, float64 [choices], of int64 [choices, groups]."""
        if self._fitted is None:
            points = np.array(list(self.measured))
            self._fitted = _Fit(self.sizes(points), np.array(list(self.measured.values())), self._scale())
        return self._fitted(self.sizes(counts))

    def sizes(self, counts: Counts) -> FloatArray:
        """Return float64 [choices, sizes] of int64 [choices, groups]."""
        return np.asarray(counts @ self.forms.T + self.offsets)

    def _scale(self) -> FloatArray:
        return np.asarray(np.maximum(self.sizes(self.whole[None])[0], 1.0))


class _Fit:
    """A polynomial of sizes through measured times, corrected to be exact at them."""

    def __init__(self, sizes: FloatArray, times: FloatArray, scale: FloatArray) -> None:
        self._scale = scale
        self._near = np.log(np.maximum(sizes, 1.0))
        features = self._features(sizes)
        if len(times) == 1:  # nothing is known but the whole: it is taken to follow its multiplications
            self._coefficients = np.append(np.zeros(features.shape[1] - 1), times / features[0, -1])
        else:
            # relative errors count: a part at a tenth of its size matters as much to who chooses that size
            self._coefficients = scipy.optimize.nnls(features / times[:, None], np.ones(len(times)))[0]
        self._corrections = np.log(times / self._smooth(sizes))

    def __call__(self, sizes: FloatArray) -> FloatArray:
        place = np.log(np.maximum(sizes, 1.0))
        distance = np.square(place[:, None, :] - self._near[None, :, :]).sum(axis=2)
        weights = 1.0 / (distance + _NEAR**2) ** 1.5
        correction = (weights * self._corrections).sum(axis=1) / weights.sum(axis=1)
        return np.asarray(self._smooth(sizes) * np.exp(correction))

    def _smooth(self, sizes: FloatArray) -> FloatArray:
        return np.asarray(np.maximum(self._features(sizes) @ self._coefficients, 1e-6))

    def _features(self, sizes: FloatArray) -> FloatArray:
        """Return float64 [choices, terms]: products of sizes, as shares of those of the original."""
        if sizes.shape[1] > MOST_JOINT:
            return np.stack([np.ones(len(sizes)), sizes.sum(axis=1) / self._scale.sum()], axis=1)
        shares = sizes / self._scale
        return np.stack([shares[:, list(term)].prod(axis=1) for term in _products(sizes.shape[1])], axis=1)


def _products(count: int) -> list[tuple[int, ...]]:
    """Return which sizes are multiplied in each term: none, one, two, all."""
    return [term for depth in range(count + 1) for term in itertools.combinations(range(count), depth)]


class LatencyModel:
    """The predicted time of a whole model.

    Args:
        parts: those that channel counts shrink.
        in_context: float64 [parts], ms of each inside the original.
        original_ms: of the whole original.
    """

    def __init__(self, parts: Sequence[PartTimes], in_context: FloatArray, original_ms: float) -> None:
        self.parts = tuple(parts)
        self.original_ms = original_ms
        self._by_group: dict[str, list[int]] = {}
        for number, part in enumerate(parts):
            for name in part.groups:
                self._by_group.setdefault(name, []).append(number)
        self._at: dict[str, int] = {}
        self._in_context = in_context
        self._whole_ms = original_ms

    def anchor(self, counts: Mapping[str, int], in_context: FloatArray, whole_ms: float) -> None:
        """Predict from here on relative to another model that was timed whole.

        Args:
            counts: its kept counts by group name.
            in_context: float64 [parts], ms of each part inside it.
            whole_ms: ms of it as a whole, on the clock of ``original_ms``.
        """
        self._at, self._in_context, self._whole_ms = dict(counts), in_context, whole_ms

    @property
    def rest_ms(self) -> float:
        """What the whole takes beyond its parts; stays whatever is cut. Less than 0 if they overlap."""
        return float(self._whole_ms - self._in_context.sum())

    def share(self, counts: Mapping[str, int]) -> float:
        """Return the predicted share of the original's time that is left at kept counts by group name."""
        total = self.rest_ms
        for number in range(len(self.parts)):
            total += self._part_ms(number, counts)
        return total / self.original_ms

    def along(self, counts: Mapping[str, int], name: str, options: Sequence[int]) -> FloatArray:
        """Return the share for each of several kept counts of one group while all others stay as they are."""
        touched = self._by_group.get(name, ())
        still = self.share(counts) * self.original_ms - sum(self._part_ms(n, counts) for n in touched)
        total = np.full(len(options), still)
        for number in touched:
            part = self.parts[number]
            rows = np.array(
                [[counts.get(g, int(w)) for g, w in zip(part.groups, part.whole, strict=True)]] * len(options)
            )
            rows[:, part.groups.index(name)] = options
            total += self._factor(number) * part.many(rows)
        return total / self.original_ms

    def part_shares(self, counts: Mapping[str, int]) -> FloatArray:
        """Return the predicted share of the original's time that each part takes, float64 [parts]."""
        return np.array([self._part_ms(n, counts) for n in range(len(self.parts))]) / self.original_ms

    def _part_ms(self, number: int, counts: Mapping[str, int]) -> float:
        return self._factor(number) * self.parts[number].one(counts)

    def _factor(self, number: int) -> float:
        return float(self._in_context[number]) / self.parts[number].one(self._at)
