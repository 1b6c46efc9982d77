"""Which points of the parts of a model are timed, coarse to fine, and what they say about alignment."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from onnxprune.allocate.latency import MOST_JOINT, PartTimes
from onnxprune.types import ChannelGroup, FloatArray

#: Times a part at kept counts (by group name, whole where not named) and returns ms, None if that failed.
TimePart = Callable[[int, Mapping[str, int]], "float | None"]

#: Times many points at once, where several machines can: what `TimePart` is asked later is then known.
TimeAhead = Callable[[Sequence[tuple[int, Mapping[str, int]]]], None]

#: Shares of its counts at which a part is timed: of all of them alike, then of those of one size alone.
_ALIKE = (0.5, 0.25, 0.75)
_ALONE = (0.5, 0.25)

#: Steps of channel counts that hardware may like, from coarse to fine.
_STEPS = (32, 16, 8, 4, 2, 1)

#: A count this much slower than a larger one is a cliff, and no noise.
_CLIFF = 1.03

#: A finer step is offered if it saves at least this share of what it would save in proportion.
_WORTHWHILE = 0.5

#: Alignment is probed below these counts: where a step is a large share of them, noise hides less of it.
_BASES = (64, 48)

#: Where all that a group can save is less than this share of the whole, its alignment doesn't matter.
_MATTERS = 0.002

#: Alignment is measured on the parts that take most of the time that a group shares in, at most so many.
_MOST_PROBED = 4

#: Counts that one group offers to the search, at most: finer ones differ by less than can be measured.
_MOST_OPTIONS = 32


class Table:
    """The parts of a model, and the points at which they are timed.

    Args:
        parts: what is known of each part: at least its time at whole counts.
        in_context: float64 [parts], ms of each inside the original.
        groups: those that may lose channels, by name.
        lowest: the least kept count of each.
        time_part: times a part, by its number.
        has_time: tells whether more may be timed.
        ahead: is told of points that will be asked for, many at once.
    """

    def __init__(
        self,
        parts: Sequence[PartTimes],
        in_context: FloatArray,
        groups: Mapping[str, ChannelGroup],
        lowest: Mapping[str, int],
        time_part: TimePart,
        has_time: Callable[[], bool],
        ahead: TimeAhead = lambda _: None,
    ) -> None:
        self._parts = parts
        self._in_context = in_context
        self._groups = groups
        self._lowest = lowest
        self._time_part = time_part
        self._has_time = has_time
        self._ahead = ahead
        self.steps: dict[str, int] = {}
        self.wanted = 0
        self.refused = 0

    def probe(self) -> None:
        """Find the steps of channel counts that pay, by timing counts near each other."""
        self._ahead([point for name in self._groups for point in self._first_probes(name)])
        for name, group in self._groups.items():
            step = 1 if group.kind in ("heads", "experts") else self._probed(name, group.size)
            if step is not None:
                self.steps[name] = step

    def fill(self) -> None:
        """Time every part at a few counts: the points that tell most, of all parts, come first."""
        heaviest = sorted(range(len(self._parts)), key=lambda number: -self._in_context[number])
        designs = {number: list(self._design(number)) for number in heaviest}
        self._ahead([(number, counts) for number, design in designs.items() for counts in design])
        for round_ in range(max((len(design) for design in designs.values()), default=0)):
            for number in heaviest:
                if round_ < len(designs[number]):
                    self._time(number, designs[number][round_])

    def at(self, counts: Mapping[str, int]) -> None:
        """Time every part at one choice, so that the prediction there, and nearby, is as sure as can be."""
        for number, part in enumerate(self._parts):
            self._time(number, {name: counts[name] for name in part.groups if name in counts})

    def _time(self, number: int, counts: Mapping[str, int]) -> None:
        """Time a part, and note what comes out."""
        part = self._parts[number]
        key = tuple(counts.get(name, int(all_)) for name, all_ in zip(part.groups, part.whole, strict=True))
        if key not in part.measured and (ms := self._ask(number, counts)) is not None:
            part.add(key, ms)

    def _ask(self, number: int, counts: Mapping[str, int]) -> float | None:
        """Return the time of a part; None if time is up or it can't be timed."""
        self.wanted += 1
        ms = self._time_part(number, counts) if self._has_time() else None
        self.refused += ms is None
        return ms

    # --- where to time --------------------------------------------------------------------------------------

    def _design(self, number: int) -> Iterator[dict[str, int]]:
        """Yield kept counts of a part, those that tell most first."""
        part = self._parts[number]
        for share in _ALIKE:
            yield {name: self._rounded(name, share) for name in part.groups}
        forms = [
            [name for name, weight in zip(part.groups, form, strict=True) if weight] for form in part.forms
        ]
        if 1 < len(forms) <= MOST_JOINT:
            for share in _ALONE:
                for names in forms:
                    yield {name: self._rounded(name, share) for name in names}
            for names in forms:
                rest = {name: self._rounded(name, _ALIKE[1]) for name in part.groups if name not in names}
                yield {**rest, **{name: self._rounded(name, _ALIKE[0]) for name in names}}

    def _rounded(self, name: str, share: float) -> int:
        step, size = self.steps.get(name, 1), self._groups[name].size
        count = max(step, round(share * size / step) * step)
        return min(size, max(count, self._lowest[name]))

    # --- alignment ------------------------------------------------------------------------------------------

    def _first_probes(self, name: str) -> Iterator[tuple[int, Mapping[str, int]]]:
        """Yield the points that `_probed` asks for in any case."""
        group = self._groups[name]
        _, steps = _steps(group.size)
        if steps and group.kind not in ("heads", "experts"):
            counts = [
                *_bases(group.size),
                *(base - steps[0] for base in _bases(group.size) if base > steps[0]),
            ]
            yield from ((number, {name: count}) for number in self._touched(name) for count in counts)

    def _touched(self, name: str) -> list[int]:
        """Return the parts that a group's alignment is measured on."""
        touched = [number for number, part in enumerate(self._parts) if name in part.groups]
        return sorted(touched, key=lambda number: -self._in_context[number])[:_MOST_PROBED]

    def _probed(self, name: str, size: int) -> int | None:
        """Return the finest step that pays for a group, None where nothing can be told."""
        finest, steps = _steps(size)
        if not steps:
            return finest
        bases, touched = _bases(size), self._touched(name)
        before = self._together(touched, name, bases)
        chosen: int | None = None
        worth = 0.0
        for step in steps:
            after = self._together(touched, name, [base - step for base in bases if base > step])
            if before is None or after is None:
                break
            saved = before - after
            if chosen is None:
                if saved <= _MATTERS * float(self._in_context.sum()) * step / size:
                    break
            elif saved < _WORTHWHILE * worth * step / chosen or after > before * _CLIFF:
                break
            chosen, worth = step, saved
        return chosen

    def _together(self, numbers: Sequence[int], name: str, counts: Sequence[int]) -> float | None:
        """Return the time in context of some parts, all groups whole but one: the mean over its counts.

        What is timed for this says nothing about the counts in between, and does not enter the prediction.
        """
        total = 0.0
        for number in numbers:
            part = self._parts[number]
            whole = part.measured[tuple(int(size) for size in part.whole)]
            for count in counts:
                ms = self._ask(number, {name: count})
                if ms is None:
                    return None
                total += float(self._in_context[number]) * ms / whole / len(counts)
        return total


def _steps(size: int) -> tuple[int, list[int]]:
    """Return the finest step of a group, and those that are tried, from coarse to fine."""
    finest = 1 << max(0, math.ceil(math.log2(size / _MOST_OPTIONS)))
    return finest, [step for step in _STEPS if finest <= step <= size // 2]


def _bases(size: int) -> list[int]:
    """Return the counts below which alignment is probed."""
    return [base for base in _BASES if base <= size] or [size // 16 * 16 or size]
