"""The smallest scores of many streams, exactly, in a few passes and in bounded memory.

Positive floating-point numbers are ordered as their bit patterns are. So the threshold is found like a word
in a dictionary, 16 bits at a time: count the leading 16 bits, see in which of the 65 536 drawers the
threshold lies, and look into that drawer alone in the next pass. float32 takes two passes, float64 four.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxprune.types import BoolArray

#: Scores (float32 or float64, not negative, finite), and how many weights each entry stands for (None: one).
Piece: TypeAlias = tuple[npt.NDArray[Any], "npt.NDArray[np.int64] | None"]

#: Starts a pass over the pieces of one tensor, the same ones in the same order each time.
Stream: TypeAlias = Callable[[], Iterator[Piece]]

_DIGIT_BITS = 16


@dataclass(frozen=True, slots=True)
class Cut:
    """What goes: everything below a threshold, and the first few of those that lie on it.

    Attributes:
        threshold: bit pattern of the threshold.
        ties: weights with exactly this score that go as well, the first ones in stream order.
        wide: bit patterns are those of float64, else of float32.
    """

    threshold: int
    ties: int
    wide: bool


def find_cut(streams: Iterable[Stream], target: int, *, wide: bool) -> Cut:
    """Return the cut that removes the ``target`` lowest weights; ties go in stream order.

    Entries that stand for several weights go whole: the cut ends before the first that would go too far.

    Args:
        streams: read once in each pass.
        target: number of weights to remove, less than there are.
        wide: compare as float64; needed as soon as one stream is float64.
    """
    chosen = list(streams)
    shift = 64 if wide else 32
    prefix, left = 0, target
    while shift:
        shift -= _DIGIT_BITS
        counts = _count_digits(chosen, prefix, shift, wide)
        before = np.cumsum(counts) - counts
        digit = int(np.searchsorted(before + counts, left, side="right"))
        digit = min(digit, counts.size - 1)
        prefix = prefix << _DIGIT_BITS | digit
        left -= int(before[digit])
    return Cut(prefix, left, wide)


def _count_digits(streams: list[Stream], prefix: int, shift: int, wide: bool) -> npt.NDArray[np.int64]:
    counts = np.zeros(1 << _DIGIT_BITS, dtype=np.int64)
    for stream in streams:
        for scores, sizes in stream():
            digits = _bits(scores, wide) >> shift
            inside: Any = ...
            if shift + _DIGIT_BITS < (64 if wide else 32):
                inside = (digits >> _DIGIT_BITS) == prefix
                digits = digits[inside] & 0xFFFF
            digits = digits.astype(np.intp)
            if sizes is None:
                counts += np.bincount(digits, minlength=counts.size)
            else:
                np.add.at(counts, digits, sizes[inside])
    return counts


def _bits(scores: npt.NDArray[Any], wide: bool) -> npt.NDArray[Any]:
    flat = np.ascontiguousarray(scores.reshape(-1), dtype=np.float64 if wide else np.float32)
    return flat.view(np.uint64 if wide else np.uint32)


class Selector:
    """Applies a cut to the streams it was found on, in the same order."""

    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self._ties_left = cut.ties

    def keep(self, scores: npt.NDArray[Any], sizes: npt.NDArray[np.int64] | None = None) -> BoolArray:
        """Return which entries of the next piece stay, bool [entries]."""
        bits = _bits(scores, self._cut.wide)
        kept = bits > self._cut.threshold
        if self._ties_left <= 0:
            return np.asarray(kept | (bits == self._cut.threshold))
        ties = np.flatnonzero(bits == self._cut.threshold)
        tie_sizes = np.ones(ties.size, dtype=np.int64) if sizes is None else sizes[ties]
        taken = np.cumsum(tie_sizes)
        gone = taken <= self._ties_left
        kept[ties[~gone]] = True
        if not gone.all():
            self._ties_left = 0  # the first entry that does not fit ends the cut
        elif taken.size:
            self._ties_left -= int(taken[-1])
        return np.asarray(kept)
